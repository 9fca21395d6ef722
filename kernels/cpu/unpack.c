/* What blocks.py calls: hand rows of quantised blocks to the threads. */
#include "blocks.h"
#include "jobs.h"

/* Fewer values than this are not worth waking a thread for; and as many make a thread's piece. */
#define SMALL 65536
#define PIECE 16384

const int64_t adazeta_block_values[FORMATS] = {32, 32, 32, 32, 32, 256, 256, 256};
const int64_t adazeta_block_bytes[FORMATS] = {18, 20, 22, 24, 34, 144, 176, 210};

EXPORT int64_t adazeta_best_level(void);

/* For the test that Python's structure is this one. */
EXPORT int64_t adazeta_unpack_size(void) { return sizeof(struct unpack); }

struct unpack_work {
    const struct unpack *job;
    unpack_rows *rows;
    int64_t piece;
};

static void unpack_piece(void *context, int64_t piece) {
    const struct unpack_work *work = context;
    int64_t begin = piece * work->piece, end = begin + work->piece;
    work->rows(work->job, begin, end < work->job->count ? end : work->job->count);
}

static unpack_rows *of_level(int64_t number) {
#ifdef X86_LEVELS
    if (number > 0 && number <= adazeta_best_level())
        return number == 2 ? adazeta_unpack_avx512 : adazeta_unpack_avx2;
#endif
    (void)number;
    return adazeta_unpack_generic;
}

EXPORT int64_t adazeta_unpack(const struct unpack *job, int64_t level, int64_t threads) {
    int64_t width = job->blocks * adazeta_block_values[job->format];
    if (!width || !job->count)
        return 0;
    if (job->count * width < SMALL)
        threads = 1;
    struct unpack_work work = {job, of_level(level), (PIECE + width - 1) / width};
    adazeta_parallel(threads, unpack_piece, &work, (job->count + work.piece - 1) / work.piece);
    return 0;
}
