/* The noise, in the arithmetic of ../reference/philox.py and ../reference/pairs.py.
 *
 * The words of a counter lie in the low halves of 64-bit lanes, so that a round of Philox needs no
 * shuffles: one multiplication gives the high and the low word, and what the high halves hold does
 * not matter.
 *
 * The time goes with the number of vector operations, so steps of philox.py that are exact are
 * written with fewer: a sign is flipped by its bit, the quarter of the circle is read off the
 * word's bits, a power of two moves from one factor to another, and an exact product is fused with
 * the sum that follows. Every operation that rounds is the one of philox.py.
 */
#ifndef ADAZETA_NOISE_H
#define ADAZETA_NOISE_H

#include "vector.h"

#define GROUP (2 * LANES)   /* elements of the counters of one vector: LANES / 2 counters of 4 */
#define ROUNDS 10
#define MULTIPLIER0 0xD2511F53u
#define MULTIPLIER1 0xCD9E8D57u

enum { PERTURBATION = 0, ROUNDING = 1 };

/* The keys of a seed, for one stream and counters with one upper half: of the first two rounds,
 * only what the lower half takes part in is left to do. */
struct keys {
    vwide low[ROUNDS], high[ROUNDS];
    vwide start[3];
};

INLINE void expand_keys(struct keys *keys, uint64_t seed, uint32_t upper, uint32_t stream) {
    uint32_t low[ROUNDS], high[ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
        low[round] = (uint32_t)seed + (uint32_t)round * 0x9E3779B9u;
        high[round] = (uint32_t)(seed >> 32) + (uint32_t)round * 0xBB67AE85u;
        keys->low[round] = vwide_of(low[round]);
        keys->high[round] = vwide_of(high[round]);
    }
    /* The product of the third word in round 0, and that of the first in round 1. */
    uint64_t product = (uint64_t)stream * MULTIPLIER1;
    uint32_t word = (uint32_t)(product >> 32) ^ upper ^ low[0];
    keys->start[0] = vwide_of((uint32_t)product ^ low[1]);
    product = (uint64_t)word * MULTIPLIER0;
    keys->start[1] = vwide_of((uint32_t)(product >> 32) ^ high[1]);
    keys->start[2] = vwide_of((uint32_t)product ^ high[2]);
}

struct words {
    vwide c0, c1, c2, c3;   /* in the low halves */
};

/* Philox-4x32-10 of the counters first .. first + LANES / 2 - 1. */
INLINE struct words philox(uint64_t first, const struct keys *keys) {
    const vwide m0 = vwide_of(MULTIPLIER0), m1 = vwide_of(MULTIPLIER1);
    vwide p0 = multiply_low(vwide_of(first) + (vwide)COUNTER_ORDER, m0);
    vwide p1 = multiply_low((p0 >> 32) ^ keys->high[0], m1);
    vwide c0 = (p1 >> 32) ^ keys->start[0];
    vwide c1 = p1;
    vwide c2 = p0 ^ keys->start[1];
    p0 = multiply_low(c0, m0);
    p1 = multiply_low(c2, m1);
    c0 = (p1 >> 32) ^ (c1 ^ keys->low[2]);
    c1 = p1;
    c2 = (p0 >> 32) ^ keys->start[2];
    vwide c3 = p0;
#pragma GCC unroll 7
    for (int round = 3; round < ROUNDS; round++) {
        p0 = multiply_low(c0, m0);
        p1 = multiply_low(c2, m1);
        c0 = (p1 >> 32) ^ (c1 ^ keys->low[round]);
        c2 = (p0 >> 32) ^ (c3 ^ keys->high[round]);
        c1 = p1;
        c3 = p0;
    }
    return (struct words){c0, c1, c2, c3};
}

INLINE vfloat keep(vfloat value, int32_t mask) { return (vfloat)((vint)value & mask); }

/* sqrt(-2 log u) of the words' uniforms, as a head of 12 bits and a tail. */
INLINE void radius(vword word, vfloat *head, vfloat *tail) {
    vfloat whole = to_float((vint)(word >> 8));
    vint bits = (vint)(whole + 0.5f) + (0x3F800000 - 0x3F3504F3);
    vint power = bits & 0x7F800000;
    vfloat inverse = (vfloat)(0x7F000000 - power);
    vfloat f = ((whole - (vfloat)power) + 0.5f) * inverse;
    vfloat octaves = 151 * 0x1p23f - to_float(power);   /* 2^23 times their number */
    vfloat square = f * f;
    vfloat series = f * -0.07631202787160873f + 0.12854920327663422f;
    series = series * f + -0.1320788860321045f;
    series = series * f + 0.14190006256103516f;
    series = series * f + -0.16616523265838623f;
    series = series * f + 0.20001615583896637f;
    series = series * f + -0.25001060962677f;
    series = series * f + 0.333333283662796f;
    vfloat twice = f + f;
    vfloat logarithms = (square - series * (square * twice)) - twice;
    vfloat high = octaves * (1.3862953186035156f * 0x1p-23f);
    vfloat low = octaves * (-9.574836212777882e-07f * 0x1p-23f) + logarithms;
    vfloat root = square_root(high + low);
    *head = keep(root, -(1 << 12));
    *tail = (multiply_add(-*head, *head, high) + low) / (root + *head);
}

/* Two normals of each pair of words: `second`, and the one that gave the radius. */
INLINE void turn(vword second, vfloat rh, vfloat rl, vfloat *left, vfloat *right) {
    const vfloat circle = vfloat_of(6.28125f), bend = vfloat_of(-19.734375f);
    /* u = quarter / 4 + t with |t| < 1/8: t is the low 22 of the word's 24 bits, signed. */
    vword quarters = second + (1u << 29);
    vfloat t = multiply_add(to_float((vint)(second << 2) >> 10), vfloat_of(0x1p-24f),
                            vfloat_of(0x1p-25f));
    vfloat head = keep(t, -(1 << 18));
    vfloat tail = t - head;
    vfloat square = t * t;

    vfloat series = (square * -75.24006652832031f + 81.58812713623047f) * square
                    + -41.34162902832031f;
    vfloat rest = (series * square + 0.0019353071693331003f) * t + tail * 6.28125f;
    vfloat value = multiply_add(head, circle, rest);
    vfloat brief = keep(value, -(1 << 12));
    rest = multiply_add(head, circle, -brief) + rest;
    vfloat sine = multiply_add(brief, rh, rest * rh + value * rl);

    vfloat power = head * head;
    series = (square * 59.24596405029297f + -85.44374084472656f) * square + 64.93932342529297f;
    rest = (series * square + -0.004833802115172148f) * square;
    rest = rest + ((t + head) * tail) * -19.734375f;
    value = multiply_add(power, bend, rest) + 1.0f;
    brief = keep(value, -(1 << 12));
    rest = multiply_add(power, bend, 1.0f - brief) + rest;
    vfloat cosine = multiply_add(brief, rh, rest * rh + value * rl);

    /* In quarters 0 to 3, left: cosine, -sine, -cosine, sine; right: sine, cosine and so on. */
    vword sign = quarters & 0x80000000u;
    *left = (vfloat)((vword)choose(quarters << 1, -sine, cosine) ^ sign);
    *right = (vfloat)((vword)choose(quarters << 1, cosine, sine) ^ sign);
}

/* The words of the counters first .. first + LANES / 2 - 1, in order: one for each element. */
INLINE void word_group(uint64_t first, const struct keys *keys, uint32_t *out) {
    struct words words = philox(first, keys);
    vfloat even = (vfloat)join(words.c0, words.c2), odd = (vfloat)join(words.c1, words.c3);
    store_words(out, (vword)zip_low(even, odd));
    store_words(out + LANES, (vword)zip_high(even, odd));
}

/* Where noise z goes: to = z, or to = from + coefficient z, in place if need be. */
enum { SET, ADD };

struct target {
    float *to;
    const float *from;
    float coefficient;
    const float *ahead[2];   /* what will be worked on next and is fetched meanwhile, or NULL */
};

INLINE void put(const struct target *target, int64_t at, vfloat noise, int mode) {
    if (mode == ADD)
        noise = load(target->from + at) + noise * target->coefficient;
    store(target->to + at, noise);
}

INLINE void fetch_ahead(const struct target *target, int64_t at, int64_t count) {
    if (target->ahead[0])
        for (int64_t line = at; line < at + count; line += 16) {
            __builtin_prefetch(target->ahead[0] + line);
            __builtin_prefetch(target->ahead[1] + line);
        }
}

/* Groups that go through one stage of the work before the next one begins: a stage needs fewer
 * registers than the whole, and its groups do not wait for each other. */
#define BLOCK 16

/* z(base) .. z(base + count - 1) of the keys. `base` is a multiple of 4; the target has room for
 * count rounded up to a multiple of 4 GROUP. */
INLINE void gaussian_pass(const struct target *target, uint64_t base, int64_t count,
                          const struct keys *keys, int mode) {
    vword even[BLOCK], odd[BLOCK];
    vfloat head[BLOCK], tail[BLOCK];
    for (int64_t done = 0; done < count; done += BLOCK * GROUP) {
        uint64_t first = (base + done) / 4;
        int64_t groups = (count - done + GROUP - 1) / GROUP;
        groups = groups < BLOCK ? groups : BLOCK;
        fetch_ahead(target, done, groups * GROUP);
        for (int64_t group = 0; group < groups; group += 2)
#pragma GCC unroll 2
            for (int64_t k = group; k < group + 2; k++) {
                struct words words = philox(first + k * (GROUP / 4), keys);
                even[k] = join(words.c0, words.c2);
                odd[k] = join(words.c1, words.c3);
            }
        for (int64_t group = 0; group < groups; group += 4)
#pragma GCC unroll 4
            for (int64_t k = group; k < group + 4; k++)
                radius(even[k], &head[k], &tail[k]);
        for (int64_t group = 0; group < groups; group += 2)
#pragma GCC unroll 2
            for (int64_t k = group; k < group + 2; k++) {
                vfloat left, right;
                turn(odd[k], head[k], tail[k], &left, &right);
                put(target, done + k * GROUP, zip_low(left, right), mode);
                put(target, done + k * GROUP + LANES, zip_high(left, right), mode);
            }
    }
}

/* sqrt(-2 log u) of each word, version 2: pair() of ../reference/pairs.py. */
INLINE vfloat pair_radius(vword word) {
    vfloat whole = to_float((vint)((word & 0x1FFFFEu) | 1u));
    vint power = ((vint)whole - 0x3F3504F3) & -(1 << 23);
    vfloat f = (vfloat)((vint)whole - power) - 1.0f;
    vfloat series = f * 0.2863970100879669f + -0.44660139083862305f;
    series = series * f + 0.509449303150177f;
    series = series * f + -0.6645174622535706f;
    series = series * f + 0.9997010231018066f;
    series = series * f + -2.000025510787964f;
    vfloat start = multiply_add(to_float(power), vfloat_of(-1.6525928003829904e-07f),
                                vfloat_of(29.112201690673828f));
    return square_root(series * f + start);
}

/* The two normals of each word with that radius. */
INLINE void pair(vword word, vfloat radius, vfloat *left, vfloat *right) {
    vfloat s = (vfloat)(((word >> 7) & 0x007FC000u) | 0x3F802000u) - 1.5f;
    vfloat square = s * s;
    vfloat even = (square * 0.17391224205493927f + -0.8718488216400146f) * square
                  + 0.7070997357368469f;
    even = radius * even;
    vfloat odd = (square * 0.05491914227604866f + -0.4565873146057129f) * square
                 + 1.1107151508331299f;
    odd = (radius * s) * odd;
    *left = (vfloat)((vword)(even - odd) ^ (word & 0x80000000u));
    *right = (vfloat)((vword)(even + odd) ^ ((word << 1) & 0x80000000u));
}

/* The same for version 2, whose counters serve 8 elements. `base` is a multiple of 8; room as for
 * version 1. */
#define PAIRS_GROUP (2 * GROUP)
#define PAIRS_BLOCK (BLOCK / 2)

INLINE void pairs_pass(const struct target *target, uint64_t base, int64_t count,
                       const struct keys *keys, int mode) {
    vword half[BLOCK];   /* the words of half the counters of each group */
    vfloat radii[BLOCK];
    for (int64_t done = 0; done < count; done += PAIRS_BLOCK * PAIRS_GROUP) {
        uint64_t first = (base + done) / 8;
        int64_t groups = (count - done + PAIRS_GROUP - 1) / PAIRS_GROUP;
        groups = groups < PAIRS_BLOCK ? groups : PAIRS_BLOCK;
        fetch_ahead(target, done, groups * PAIRS_GROUP);
        /* Radii are long chains of operations: eight at a time hide each other's waits. */
        int64_t drawn = (groups + 3) / 4 * 4;
        for (int64_t group = 0; group < drawn; group += 2)
#pragma GCC unroll 2
            for (int64_t k = group; k < group + 2; k++) {
                struct words words = philox(first + k * (PAIRS_GROUP / 8), keys);
                half[2 * k] = join(words.c0, words.c1);
                half[2 * k + 1] = join(words.c2, words.c3);
            }
        for (int64_t part = 0; part < 2 * drawn; part += 8)
#pragma GCC unroll 8
            for (int64_t k = part; k < part + 8; k++)
                radii[k] = pair_radius(half[k]);
        for (int64_t group = 0; group < groups; group += 2)
#pragma GCC unroll 2
            for (int64_t k = group; k < group + 2; k++) {
                vfloat left[2], right[2], whole[4];
                pair(half[2 * k], radii[2 * k], &left[0], &right[0]);
                pair(half[2 * k + 1], radii[2 * k + 1], &left[1], &right[1]);
                whole_counters(zip_low(left[0], right[0]), zip_low(left[1], right[1]), whole);
                whole_counters(zip_high(left[0], right[0]), zip_high(left[1], right[1]),
                               whole + 2);
#pragma GCC unroll 4
                for (int part = 0; part < 4; part++)
                    put(target, done + k * PAIRS_GROUP + part * LANES, whole[part], mode);
            }
    }
}

/* The same for signs: bit i of the words of a counter is element i, +1 where it is set. `base` is
 * a multiple of 128; the target has room for count rounded up to a multiple of 32 GROUP. */
INLINE void rademacher_pass(const struct target *target, uint64_t base, int64_t count,
                            const struct keys *keys, int mode) {
    vword lanes[32 / LANES];
    for (int lane = 0; lane < 32; lane++)
        lanes[lane / LANES][lane % LANES] = 1u << lane;
    for (int64_t done = 0; done < count; done += 32 * GROUP) {
        uint32_t words[GROUP];
        word_group((base + done) / 128, keys, words);
        for (int word = 0; word < GROUP; word++) {
            int64_t at = done + word * 32;
            fetch_ahead(target, at, 32);
            for (int part = 0; part < 32 / LANES; part++) {
                vword clear = (vword)((((vword){0} + words[word]) & lanes[part]) == 0);
                vword one = (vword)vfloat_of(1.0f) | (clear & 0x80000000u);
                put(target, at + part * LANES, (vfloat)one, mode);
            }
        }
    }
}

/* One uniform word per element, for elements base .. base + count - 1; room as for normals. */
INLINE void word_pass(uint32_t *words, uint64_t base, int64_t count, const struct keys *keys) {
    for (int64_t done = 0; done < count; done += GROUP)
        word_group((base + done) / 4, keys, words + done);
}

#endif
