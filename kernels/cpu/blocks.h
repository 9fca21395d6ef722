/* Rows of quantised blocks, as GGUF files hold them: the job, shared by unpack.c and blocks.c.
 *
 * The structure is mirrored by blocks.py. The formats are numbered as in ../reference/blocks.py.
 */
#ifndef ADAZETA_BLOCKS_H
#define ADAZETA_BLOCKS_H

#include <stdint.h>

enum { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, FORMATS };

struct unpack {
    const uint8_t *packed;
    void *output;
    const int64_t *rows;     /* which rows to unpack, or NULL for the first ones */
    int64_t count;           /* rows of the output */
    int64_t blocks;          /* of a row */
    int64_t format, dtype;
};

extern const int64_t adazeta_block_values[FORMATS], adazeta_block_bytes[FORMATS];

/* Unpacks rows begin .. end - 1 of the output. */
typedef void unpack_rows(const struct unpack *, int64_t begin, int64_t end);

extern unpack_rows adazeta_unpack_generic, adazeta_unpack_avx2, adazeta_unpack_avx512;

#endif
