/* Unpacking quantised blocks, compiled once per level of the instruction set.
 *
 * Each format is what the comment above it says; the layouts are those of the GGUF format. Every
 * operation is rounded once and in the order written, so the values have the same bits at every
 * level and in ../reference/blocks.py. The loops are left to the compiler's vectoriser.
 */
#include "blocks.h"
#include "convert.h"

#if defined(LEVEL_AVX512)
#define UNPACK adazeta_unpack_avx512
#elif defined(LEVEL_AVX2)
#define UNPACK adazeta_unpack_avx2
#else
#define UNPACK adazeta_unpack_generic
#endif

#define LARGEST 256   /* values of a block */

INLINE float half_at(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, 2);
    return from_float16(half);
}

typedef uint8_t bytes16 __attribute__((vector_size(16)));

/* 16 bytes of two 4-bit values each, the lower halves first. */
INLINE void four_bits(uint8_t *restrict q, const uint8_t *restrict packed) {
    bytes16 both;
    memcpy(&both, packed, 16);
    const bytes16 low = both & 15, high = both >> 4;
    memcpy(q, &low, 16);
    memcpy(q + 16, &high, 16);
}

/* scale, values: d (q - 8) */
INLINE void q4_0(float *restrict to, const uint8_t *restrict block) {
    const float d = half_at(block);
    uint8_t q[32];
    four_bits(q, block + 2);
    for (int j = 0; j < 32; j++)
        to[j] = d * (float)((int32_t)q[j] - 8);
}

/* scale, minimum, values: d q + m */
INLINE void q4_1(float *restrict to, const uint8_t *restrict block) {
    const float d = half_at(block), m = half_at(block + 2);
    uint8_t q[32];
    four_bits(q, block + 4);
    for (int j = 0; j < 32; j++)
        to[j] = d * (float)(int32_t)q[j] + m;
}

/* scale, the fifth bits of 32 values, bit j that of value j, and 4 bits each as above: d (q - 16) */
INLINE void q5_0(float *restrict to, const uint8_t *restrict block) {
    const float d = half_at(block);
    uint32_t bits;
    uint8_t q[32];
    memcpy(&bits, block + 2, 4);
    four_bits(q, block + 6);
    for (int j = 0; j < 32; j++)
        to[j] = d * (float)((int32_t)(q[j] | (bits >> j & 1) << 4) - 16);
}

/* scale, minimum, fifth bits, values: d q + m */
INLINE void q5_1(float *restrict to, const uint8_t *restrict block) {
    const float d = half_at(block), m = half_at(block + 2);
    uint32_t bits;
    uint8_t q[32];
    memcpy(&bits, block + 4, 4);
    four_bits(q, block + 8);
    for (int j = 0; j < 32; j++)
        to[j] = d * (float)(int32_t)(q[j] | (bits >> j & 1) << 4) + m;
}

/* scale, 32 signed bytes: d q */
INLINE void q8_0(float *restrict to, const uint8_t *restrict block) {
    const float d = half_at(block);
    const int8_t *q = (const int8_t *)(block + 2);
    for (int j = 0; j < 32; j++)
        to[j] = d * (float)(int32_t)q[j];
}

/* Scale and minimum, 6 bits each, of the 32 values of group `index`, from 12 bytes for 8 groups. */
INLINE void scale_and_minimum(const uint8_t *packed, int index, float *scale, float *minimum) {
    int s, m;
    if (index < 4) {
        s = packed[index] & 63;
        m = packed[index + 4] & 63;
    } else {
        s = (packed[index + 4] & 15) | (packed[index - 4] >> 6) << 4;
        m = (packed[index + 4] >> 4) | (packed[index] >> 6) << 4;
    }
    *scale = (float)s;
    *minimum = (float)m;
}

/* scale, scale of the minima, 12 bytes as above, 128 bytes of values, 32 of two groups at a time:
 * (d scale) q - (dmin minimum) */
INLINE void q4_k(float *restrict to, const uint8_t *restrict block) {
    const float d = half_at(block), dmin = half_at(block + 2);
    const uint8_t *q = block + 16;
    for (int group = 0; group < 8; group++, to += 32) {
        float scale, minimum;
        const uint8_t *low = q + 32 * (group / 2);
        const int shift = 4 * (group & 1);
        scale_and_minimum(block + 4, group, &scale, &minimum);
        const float factor = d * scale, offset = dmin * minimum;
        for (int j = 0; j < 32; j++)
            to[j] = factor * (float)(int32_t)(low[j] >> shift & 15) - offset;
    }
}

/* As q4_k, with 32 bytes of fifth bits before the values, bit `group` of byte j. */
INLINE void q5_k(float *restrict to, const uint8_t *restrict block) {
    const float d = half_at(block), dmin = half_at(block + 2);
    const uint8_t *high = block + 16, *q = block + 48;
    for (int group = 0; group < 8; group++, to += 32) {
        float scale, minimum;
        const uint8_t *low = q + 32 * (group / 2);
        const int shift = 4 * (group & 1);
        scale_and_minimum(block + 4, group, &scale, &minimum);
        const float factor = d * scale, offset = dmin * minimum;
        for (int j = 0; j < 32; j++) {
            int32_t value = (low[j] >> shift & 15) | (high[j] >> group & 1) << 4;
            to[j] = factor * (float)value - offset;
        }
    }
}

/* 128 bytes of lower halves, 64 of upper pairs of bits, 16 signed scales, scale: (d scale) (q - 32)
 * Of each 128 values: bytes 0 .. 31 hold the lower halves of values 0 .. 31 and, above, of
 * 64 .. 95, bytes 32 .. 63 those of 32 .. 63 and 96 .. 127; a byte of pairs has one of each 32. */
INLINE void q6_k(float *restrict to, const uint8_t *restrict block) {
    const float d = half_at(block + 208);
    const int8_t *scales = (const int8_t *)(block + 192);
    for (int part = 0; part < 8; part++, to += 32) {
        const int within = part & 3;
        const uint8_t *low = block + 64 * (part / 4) + 32 * (within & 1);
        const uint8_t *high = block + 128 + 32 * (part / 4);
        const int shift = 4 * (within / 2), pair = 2 * within;
        for (int side = 0; side < 2; side++) {
            const float factor = d * (float)(int32_t)scales[2 * part + side];
            for (int j = 16 * side; j < 16 * side + 16; j++) {
                int32_t value = (low[j] >> shift & 15) | (high[j] >> pair & 3) << 4;
                to[j] = factor * (float)(value - 32);
            }
        }
    }
}

#define EACH(name, values, bytes)                                                           \
    for (int64_t k = 0; k < blocks; k++, from += bytes) {                                   \
        if (dtype == FLOAT32) {                                                             \
            name((float *)to + values * k, from);                                           \
        } else {                                                                            \
            name(wide, from);                                                               \
            narrow((uint16_t *)to + values * k, wide, dtype, values);                       \
        }                                                                                   \
    }                                                                                       \
    break

static void one_row(void *to, const uint8_t *from, int64_t blocks, int64_t format, int64_t dtype) {
    float wide[LARGEST] __attribute__((aligned(64)));
    switch (format) {
    case Q4_0: EACH(q4_0, 32, 18);
    case Q4_1: EACH(q4_1, 32, 20);
    case Q5_0: EACH(q5_0, 32, 22);
    case Q5_1: EACH(q5_1, 32, 24);
    case Q8_0: EACH(q8_0, 32, 34);
    case Q4_K: EACH(q4_k, 256, 144);
    case Q5_K: EACH(q5_k, 256, 176);
    case Q6_K: EACH(q6_k, 256, 210);
    }
}

void UNPACK(const struct unpack *job, int64_t begin, int64_t end) {
    const int64_t bytes = job->blocks * adazeta_block_bytes[job->format];
    const int64_t width = job->blocks * adazeta_block_values[job->format];
    const int64_t size = job->dtype == FLOAT32 ? 4 : 2;
    for (int64_t row = begin; row < end; row++) {
        const uint8_t *from = job->packed + (job->rows ? job->rows[row] : row) * bytes;
        one_row((char *)job->output + row * width * size, from, job->blocks, job->format,
                job->dtype);
    }
}
