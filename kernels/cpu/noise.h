/* Noise version 1, in the arithmetic of ../philox.py, operation by operation.
 *
 * The words of a counter lie in the low halves of 64-bit lanes, so that a round of Philox needs no
 * shuffles: one multiplication gives the high and the low word, and what the high halves hold does
 * not matter. The only rewriting is of exact steps: signs are flipped by their bit where philox.py
 * multiplies by +-1, and the quarter of the circle is read off the word's bits.
 */
#ifndef ADAZETA_NOISE_H
#define ADAZETA_NOISE_H

#include "vector.h"

#define GROUP (2 * LANES)   /* elements of the counters of one vector: LANES / 2 counters of 4 */
#define ROUNDS 10

enum { PERTURBATION = 0, ROUNDING = 1 };

struct keys {
    vwide low[ROUNDS], high[ROUNDS];
};

INLINE void expand_keys(struct keys *keys, uint64_t seed) {
    uint32_t low = (uint32_t)seed, high = (uint32_t)(seed >> 32);
    for (int round = 0; round < ROUNDS; round++) {
        keys->low[round] = vwide_of(low);
        keys->high[round] = vwide_of(high);
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
}

struct words {
    vword even, odd;   /* words 0 and 2, and words 1 and 3, of each counter */
};

/* Philox-4x32-10 of the counters first .. first + LANES / 2 - 1. */
INLINE struct words philox(uint64_t first, uint32_t stream, const struct keys *keys) {
    const vwide m0 = vwide_of(0xD2511F53u), m1 = vwide_of(0xCD9E8D57u);
    vwide counter = vwide_of(first) + (vwide)COUNTER_ORDER;
    /* The third word is the same for all counters and the fourth is 0, so round 1 is short. */
    uint64_t fixed = (uint64_t)stream * 0xCD9E8D57u;
    vwide product = multiply_low(counter, m0);
    vwide c0 = vwide_of(fixed >> 32) ^ (counter >> 32) ^ keys->low[0];
    vwide c1 = vwide_of((uint32_t)fixed);
    vwide c2 = (product >> 32) ^ keys->high[0];
    vwide c3 = product;
#pragma GCC unroll 9
    for (int round = 1; round < ROUNDS; round++) {
        vwide p0 = multiply_low(c0, m0), p1 = multiply_low(c2, m1);
        c0 = (p1 >> 32) ^ (c1 ^ keys->low[round]);
        c2 = (p0 >> 32) ^ (c3 ^ keys->high[round]);
        c1 = p1;
        c3 = p0;
    }
    return (struct words){join(c0, c2), join(c1, c3)};
}

INLINE vfloat keep(vfloat value, int32_t mask) { return (vfloat)((vint)value & mask); }

/* sqrt(-2 log u) of the words' uniforms, as a head of 12 bits and a tail. */
INLINE void radius(vword word, vfloat *head, vfloat *tail) {
    vfloat whole = to_float((vint)(word >> 8));
    vint bits = (vint)(whole + 0.5f) + (0x3F800000 - 0x3F3504F3);
    vint power = bits & 0x7F800000;
    vfloat inverse = (vfloat)(0x7F000000 - power);
    vfloat f = ((whole - (vfloat)power) + 0.5f) * inverse;
    vfloat octaves = to_float(151 - (bits >> 23));
    vfloat square = f * f;
    vfloat series = f * -0.07631202787160873f + 0.12854920327663422f;
    series = series * f + -0.1320788860321045f;
    series = series * f + 0.14190006256103516f;
    series = series * f + -0.16616523265838623f;
    series = series * f + 0.20001615583896637f;
    series = series * f + -0.25001060962677f;
    series = series * f + 0.333333283662796f;
    vfloat logarithm = (square * 0.5f - series * (square * f)) - f;
    vfloat high = octaves * 1.3862953186035156f;
    vfloat low = octaves * -9.574836212777882e-07f + (logarithm + logarithm);
    vfloat root = square_root(high + low);
    *head = keep(root, -(1 << 12));
    *tail = ((high - *head * *head) + low) / (root + *head);
}

/* Two normals of each pair of words. */
INLINE void box_muller(vword first, vword second, vfloat *left, vfloat *right) {
    vfloat rh, rl;
    radius(first, &rh, &rl);
    /* u = quarter / 4 + t with |t| < 1/8: t is the low 22 of the word's 24 bits, signed. */
    vword quarters = second + (1u << 29);
    vfloat t = (to_float((vint)(second << 2) >> 10) + 0.5f) * 5.9604644775390625e-08f;
    vfloat head = keep(t, -(1 << 18));
    vfloat tail = t - head;
    vfloat square = t * t;

    vfloat exact = head * 6.28125f;
    vfloat series = (square * -75.24006652832031f + 81.58812713623047f) * square
                    + -41.34162902832031f;
    vfloat rest = (series * square + 0.0019353071693331003f) * t + tail * 6.28125f;
    vfloat value = exact + rest;
    vfloat brief = keep(value, -(1 << 12));
    vfloat sine = brief * rh + (((exact - brief) + rest) * rh + value * rl);

    exact = (head * head) * -19.734375f;
    series = (square * 59.24596405029297f + -85.44374084472656f) * square + 64.93932342529297f;
    rest = (series * square + -0.004833802115172148f) * square;
    rest = rest + ((t + head) * tail) * -19.734375f;
    value = (exact + rest) + 1.0f;
    brief = keep(value, -(1 << 12));
    vfloat cosine = brief * rh + ((((1.0f - brief) + exact) + rest) * rh + value * rl);

    swap_where(quarters << 1, &cosine, &sine);
    *left = (vfloat)((vword)cosine ^ ((quarters + (1u << 30)) & 0x80000000u));
    *right = (vfloat)((vword)sine ^ (quarters & 0x80000000u));
}

/* z(4 first) .. z(4 first + GROUP - 1), in order. */
INLINE void gaussian_group(uint64_t first, uint32_t stream, const struct keys *keys,
                           vfloat noise[2]) {
    vfloat left, right;
    struct words words = philox(first, stream, keys);
    box_muller(words.even, words.odd, &left, &right);
    noise[0] = zip_low(left, right);
    noise[1] = zip_high(left, right);
}

/* The words of the counters first .. first + LANES / 2 - 1, in order: one for each element. */
INLINE void word_group(uint64_t first, uint32_t stream, const struct keys *keys, uint32_t *out) {
    struct words words = philox(first, stream, keys);
    store_words(out, (vword)zip_low((vfloat)words.even, (vfloat)words.odd));
    store_words(out + LANES, (vword)zip_high((vfloat)words.even, (vfloat)words.odd));
}

/* What a pass does with the noise z of a seed. */
enum { ADD, SET };

INLINE void take(float *value, vfloat noise, float coefficient, int mode) {
    if (mode == ADD)
        noise = load(value) + noise * coefficient;
    store(value, noise);
}

/* ADD: value += coefficient z; SET: value = z; for z(base) .. z(base + count - 1). `base` is a
 * multiple of 4; `value` has room for count rounded up to a multiple of 2 GROUP. */
INLINE void gaussian_pass(float *value, uint64_t base, int64_t count, uint64_t seed,
                          uint32_t stream, float coefficient, int mode) {
    struct keys keys;
    expand_keys(&keys, seed);
    for (int64_t done = 0; done < count; done += 2 * GROUP) {
        vfloat noise[4];
        gaussian_group((base + done) / 4, stream, &keys, noise);
        gaussian_group((base + done + GROUP) / 4, stream, &keys, noise + 2);
        for (int part = 0; part < 4; part++)
            take(value + done + part * LANES, noise[part], coefficient, mode);
    }
}

/* The same for signs: bit i of the words of a counter is element i, +1 where it is set. `base` is
 * a multiple of 128; `value` has room for count rounded up to a multiple of 32 GROUP. */
INLINE void rademacher_pass(float *value, uint64_t base, int64_t count, uint64_t seed,
                            uint32_t stream, float coefficient, int mode) {
    struct keys keys;
    vword lanes[32 / LANES];
    for (int lane = 0; lane < 32; lane++)
        lanes[lane / LANES][lane % LANES] = 1u << lane;
    expand_keys(&keys, seed);
    for (int64_t done = 0; done < count; done += 32 * GROUP) {
        uint32_t words[GROUP];
        word_group((base + done) / 128, stream, &keys, words);
        for (int word = 0; word < GROUP; word++)
            for (int part = 0; part < 32 / LANES; part++) {
                vword clear = (vword)((((vword){0} + words[word]) & lanes[part]) == 0);
                vword one = (vword)vfloat_of(1.0f) | (clear & 0x80000000u);
                take(value + done + word * 32 + part * LANES, (vfloat)one, coefficient, mode);
            }
    }
}

/* One uniform word per element, for elements base .. base + count - 1; room as for normals. */
INLINE void word_pass(uint32_t *words, uint64_t base, int64_t count, uint64_t seed) {
    struct keys keys;
    expand_keys(&keys, seed);
    for (int64_t done = 0; done < count; done += GROUP)
        word_group((base + done) / 4, ROUNDING, &keys, words + done);
}

#endif
