/* One vector width per compilation: the few operations that plain C cannot say.
 *
 * tiles.c is compiled once per level of the instruction set (setup.py), with LEVEL_AVX512 or
 * LEVEL_AVX2 defined or neither, so every level runs the same source. Arithmetic is written with
 * the compiler's vector types: +, -, * and / are IEEE operations, each rounded once, because
 * setup.py forbids contraction (-ffp-contract=off) and -ffast-math is never given.
 */
#ifndef ADAZETA_VECTOR_H
#define ADAZETA_VECTOR_H

#include <stdint.h>

#if defined(LEVEL_AVX512) || defined(LEVEL_AVX2)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#else
#include <math.h>
#endif

#if defined(LEVEL_AVX512)
#define LANES 16
#elif defined(LEVEL_AVX2)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))
#define VECTOR __attribute__((vector_size(4 * LANES), may_alias))
#define UNALIGNED __attribute__((vector_size(4 * LANES), may_alias, aligned(4)))

typedef float vfloat VECTOR;
typedef int32_t vint VECTOR;
typedef uint32_t vword VECTOR;
typedef uint64_t vwide VECTOR;      /* half as many lanes, of 64 bits */
typedef float vfloat_memory UNALIGNED;
typedef uint32_t vword_memory UNALIGNED;

INLINE vfloat load(const float *from) { return *(const vfloat_memory *)from; }
INLINE void store(float *to, vfloat value) { *(vfloat_memory *)to = value; }
INLINE void store_words(uint32_t *to, vword value) { *(vword_memory *)to = value; }
INLINE vfloat vfloat_of(float value) { return (vfloat){0} + value; }
INLINE vwide vwide_of(uint64_t value) { return (vwide){0} + value; }

/* int32 to float32; exact here, as every argument has at most 24 significant bits. */
INLINE vfloat to_float(vint value) { return __builtin_convertvector(value, vfloat); }

/* The 64-bit lane that holds counter first + k of a group, chosen such that zip_low and zip_high
 * below leave the elements of consecutive counters in order. */
#if defined(LEVEL_AVX512)
#define COUNTER_ORDER {0, 4, 1, 5, 2, 6, 3, 7}
#elif defined(LEVEL_AVX2)
#define COUNTER_ORDER {0, 2, 1, 3}
#else
#define COUNTER_ORDER {0, 1}
#endif

#if defined(LEVEL_AVX512)

/* The 64-bit products of the low 32 bits of each 64-bit lane. */
INLINE vwide multiply_low(vwide a, vwide b) {
    return (vwide)_mm512_mul_epu32((__m512i)a, (__m512i)b);
}
/* Lane by lane, (low 32 bits of high) * 2^32 + (low 32 bits of low). */
INLINE vword join(vwide low, vwide high) {
    return (vword)_mm512_mask_shuffle_epi32((__m512i)low, 0xAAAA, (__m512i)high, 0xA0);
}
INLINE vfloat square_root(vfloat a) { return (vfloat)_mm512_sqrt_ps((__m512)a); }
/* a where the sign bit of `where` is set, else b. */
INLINE vfloat choose(vword where, vfloat a, vfloat b) {
    __mmask16 mask = _mm512_movepi32_mask((__m512i)where);
    return (vfloat)_mm512_mask_blend_ps(mask, (__m512)b, (__m512)a);
}
/* a * b + c of an exact a * b, so that it does not show whether the two are fused. */
INLINE vfloat multiply_add(vfloat a, vfloat b, vfloat c) {
    return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
/* a0 b0 a1 b1, a4 b4 a5 b5, ...; and a2 b2 a3 b3, a6 b6 a7 b7, ... */
INLINE vfloat zip_low(vfloat a, vfloat b) {
    return (vfloat)_mm512_unpacklo_ps((__m512)a, (__m512)b);
}
INLINE vfloat zip_high(vfloat a, vfloat b) {
    return (vfloat)_mm512_unpackhi_ps((__m512)a, (__m512)b);
}

/* Each 128 bits of `low` are the first half of a counter's elements, those of `high` the second;
 * out: all elements in order. */
INLINE void whole_counters(vfloat low, vfloat high, vfloat out[2]) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29,
                                             30, 31);
    out[0] = (vfloat)_mm512_permutex2var_ps((__m512)low, first, (__m512)high);
    out[1] = (vfloat)_mm512_permutex2var_ps((__m512)low, second, (__m512)high);
}

#elif defined(LEVEL_AVX2)

INLINE vwide multiply_low(vwide a, vwide b) {
    return (vwide)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}
INLINE vword join(vwide low, vwide high) {
    return (vword)_mm256_blend_epi32((__m256i)low, _mm256_slli_epi64((__m256i)high, 32), 0xAA);
}
INLINE vfloat square_root(vfloat a) { return (vfloat)_mm256_sqrt_ps((__m256)a); }
INLINE vfloat choose(vword where, vfloat a, vfloat b) {
    return (vfloat)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)where);
}
INLINE vfloat multiply_add(vfloat a, vfloat b, vfloat c) {
    return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
INLINE vfloat zip_low(vfloat a, vfloat b) {
    return (vfloat)_mm256_unpacklo_ps((__m256)a, (__m256)b);
}
INLINE vfloat zip_high(vfloat a, vfloat b) {
    return (vfloat)_mm256_unpackhi_ps((__m256)a, (__m256)b);
}
INLINE void whole_counters(vfloat low, vfloat high, vfloat out[2]) {
    out[0] = (vfloat)_mm256_permute2f128_ps((__m256)low, (__m256)high, 0x20);
    out[1] = (vfloat)_mm256_permute2f128_ps((__m256)low, (__m256)high, 0x31);
}

#else

INLINE vfloat choose(vword where, vfloat a, vfloat b) {
    return (vfloat)((vint)b ^ (((vint)a ^ (vint)b) & ((vint)where >> 31)));
}
INLINE vfloat multiply_add(vfloat a, vfloat b, vfloat c) { return a * b + c; }
INLINE void whole_counters(vfloat low, vfloat high, vfloat out[2]) {
    out[0] = low;
    out[1] = high;
}

#if defined(__SSE2__)

INLINE vwide multiply_low(vwide a, vwide b) {
    return (vwide)_mm_mul_epu32((__m128i)a, (__m128i)b);
}
INLINE vword join(vwide low, vwide high) { return (vword)((low & 0xFFFFFFFF) | high << 32); }
INLINE vfloat square_root(vfloat a) { return (vfloat)_mm_sqrt_ps((__m128)a); }
INLINE vfloat zip_low(vfloat a, vfloat b) { return (vfloat)_mm_unpacklo_ps((__m128)a, (__m128)b); }
INLINE vfloat zip_high(vfloat a, vfloat b) { return (vfloat)_mm_unpackhi_ps((__m128)a, (__m128)b); }

#elif defined(__aarch64__)

INLINE vwide multiply_low(vwide a, vwide b) {
    return (vwide)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
}
INLINE vword join(vwide low, vwide high) {
    return (vword)vtrn1q_u32((uint32x4_t)low, (uint32x4_t)high);
}
INLINE vfloat square_root(vfloat a) { return (vfloat)vsqrtq_f32((float32x4_t)a); }
INLINE vfloat zip_low(vfloat a, vfloat b) {
    return (vfloat)vzip1q_f32((float32x4_t)a, (float32x4_t)b);
}
INLINE vfloat zip_high(vfloat a, vfloat b) {
    return (vfloat)vzip2q_f32((float32x4_t)a, (float32x4_t)b);
}

#else /* any machine with IEEE floats */

INLINE vwide multiply_low(vwide a, vwide b) { return (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF); }
INLINE vword join(vwide low, vwide high) {
    return (vword){(uint32_t)low[0], (uint32_t)high[0], (uint32_t)low[1], (uint32_t)high[1]};
}
INLINE vfloat square_root(vfloat a) {
    return (vfloat){sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])};
}
INLINE vfloat zip_low(vfloat a, vfloat b) { return (vfloat){a[0], b[0], a[1], b[1]}; }
INLINE vfloat zip_high(vfloat a, vfloat b) { return (vfloat){a[2], b[2], a[3], b[3]}; }

#endif
#endif
#endif
