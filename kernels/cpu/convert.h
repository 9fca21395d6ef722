/* float32 to and from bfloat16 and float16: nearest (ties to even) and stochastic. */
#ifndef ADAZETA_CONVERT_H
#define ADAZETA_CONVERT_H

#include <string.h>

#include "jobs.h"
#include "vector.h"

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE float from_bfloat16(uint16_t half) { return float_of((uint32_t)half << 16); }

INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits = bits_of(value);
    uint32_t rounded = bits + 0x7FFF + (bits >> 16 & 1);
    /* Of a NaN, or the round-up could carry its mantissa into the exponent. */
    return (uint16_t)((value != value ? 0x7FC00000u : rounded) >> 16);
}

INLINE float from_float16(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7FFF) << 13, exponent = bits & 0x0F800000u;
    uint32_t normal = bits + (112u << 23);
    uint32_t special = bits + (224u << 23);
    /* A subnormal: its bits as the mantissa of a number of known exponent, which is taken off. */
    uint32_t small = bits_of(float_of(bits + (113u << 23)) - float_of(113u << 23));
    uint32_t magnitude = exponent == 0x0F800000u ? special : exponent == 0 ? small : normal;
    return float_of(magnitude | (uint32_t)(half & 0x8000) << 16);
}

INLINE uint16_t to_float16(float value) {
    uint32_t bits = bits_of(value) & 0x7FFFFFFFu, sign = bits_of(value) >> 16 & 0x8000;
    uint32_t normal = (bits - (112u << 23) + 0xFFF + (bits >> 13 & 1)) >> 13;
    /* Below 2^-14: adding 2^-1 leaves the rounded subnormal in the low bits of the sum. */
    uint32_t small = bits_of(float_of(bits) + 0.5f) - bits_of(0.5f);
    uint32_t large = bits > 0x7F800000u ? 0x7E00 : 0x7C00;
    uint32_t half = bits >= (143u << 23) ? large : bits < (113u << 23) ? small : normal;
    return (uint16_t)(half | sign);
}

/* Stochastic rounding with a uniform word; twins of round_stochastically in ../reference/noise.py. */
INLINE uint16_t random_bfloat16(float value, uint32_t word) {
    uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFFu;
    uint32_t total = magnitude + (word >> 16);
    /* From 0x7F7F8000 on, half a spacing beyond the largest bfloat16, nearest is infinity. */
    if (magnitude < 0x7F7F8000u)
        total = total < 0x7F7FFFFFu ? total : 0x7F7FFFFFu;
    total = value != value ? 0x7FC00000u : total;
    return (uint16_t)((total | (bits & 0x80000000u)) >> 16);
}

INLINE uint16_t random_float16(float value, uint32_t word) {
    float magnitude = float_of(bits_of(value) & 0x7FFFFFFFu);
    float size = magnitude < 65536.0f ? magnitude : 65536.0f;
    /* Below 2^-14 (exponent field 113) the spacing of float16 is constant. */
    int32_t exponent = (int32_t)(bits_of(size) >> 23);
    exponent = exponent > 113 ? exponent : 113;
    float scaled = size * float_of((uint32_t)(264 - exponent) << 23);
    int32_t whole = (int32_t)scaled;
    int32_t rest = (int32_t)((scaled - (float)whole) * 16777216.0f);
    whole += (rest + (int32_t)(word >> 8)) >> 24;
    float rounded = (float)whole * float_of((uint32_t)(exponent - 10) << 23);
    if (size < 65520.0f)
        rounded = rounded < 65504.0f ? rounded : 65504.0f;
    rounded = float_of(bits_of(rounded) | (bits_of(value) & 0x80000000u));
    return to_float16(value != value ? value : rounded);
}

/* float32 of `count` elements. */
INLINE void widen(float *restrict to, const void *restrict from, int64_t dtype, int64_t count) {
    const uint16_t *half = from;
    int64_t i = 0;
    if (dtype == FLOAT32) {
        memcpy(to, from, 4 * count);
    } else if (dtype == BFLOAT16) {
        for (; i < count; i++)
            to[i] = from_bfloat16(half[i]);
    } else {
#if defined(LEVEL_AVX512) || defined(LEVEL_AVX2)
        for (; i + 8 <= count; i += 8)
            _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(half + i))));
#endif
        for (; i < count; i++)
            to[i] = from_float16(half[i]);
    }
}

INLINE void narrow(void *restrict to, const float *restrict from, int64_t dtype, int64_t count) {
    uint16_t *half = to;
    int64_t i = 0;
    if (dtype == FLOAT32) {
        memcpy(to, from, 4 * count);
    } else if (dtype == BFLOAT16) {
        for (; i < count; i++)
            half[i] = to_bfloat16(from[i]);
    } else {
#if defined(LEVEL_AVX512) || defined(LEVEL_AVX2)
        for (; i + 8 <= count; i += 8)
            _mm_storeu_si128((void *)(half + i),
                             _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
        for (; i < count; i++)
            half[i] = to_float16(from[i]);
    }
}

INLINE void narrow_random(void *restrict to, const float *restrict from,
                          const uint32_t *restrict words, int64_t dtype, int64_t count) {
    uint16_t *half = to;
    if (dtype == BFLOAT16)
        for (int64_t i = 0; i < count; i++)
            half[i] = random_bfloat16(from[i], words[i]);
    else
        for (int64_t i = 0; i < count; i++)
            half[i] = random_float16(from[i], words[i]);
}

#endif
