/* The work on one tile of elements, compiled once per level of the instruction set.
 *
 * The noise is in explicit vectors (noise.h). What follows it is element-wise, and left to the
 * compiler's vectoriser; every operation is rounded once and in the order written, so the width
 * does not show in the results.
 */
#include "convert.h"
#include "jobs.h"
#include "noise.h"

#if defined(LEVEL_AVX512)
#define LEVEL adazeta_avx512
#elif defined(LEVEL_AVX2)
#define LEVEL adazeta_avx2
#else
#define LEVEL adazeta_generic
#endif

#define ALIGNED __attribute__((aligned(64)))
#define APART static __attribute__((noinline))   /* code that would be repeated at each call */

/* Of a buffer for the noise of a tile: whole vectors of counters are drawn, up to twice. */
#define ROOM (TILE + 2048)

/* The range of noise that a tile draws: whole counters, so it may begin before the tile. */
struct window {
    uint64_t base;
    int64_t skip, count;
    int64_t first;   /* elements before the upper half of the counter changes, mostly all */
};

INLINE struct window window_of(uint64_t index, int64_t count, int64_t distribution) {
    uint64_t per_counter = distribution == RADEMACHER ? 128 : distribution == PAIRS ? 8 : 4;
    uint64_t skip = index % per_counter, base = index - skip;
    uint64_t left = (per_counter << 32) - base % (per_counter << 32);
    count += skip;
    return (struct window){base, skip, count, left < (uint64_t)count ? (int64_t)left : count};
}

INLINE void pass(const struct target *target, uint64_t base, int64_t count,
                 const struct probes *probes, int64_t probe, uint32_t stream, int mode) {
    struct keys keys;
    uint64_t seed = (uint64_t)probes->seeds[probe];
    if (probes->distribution == RADEMACHER) {
        expand_keys(&keys, seed, (uint32_t)(base >> 39), stream);
        rademacher_pass(target, base, count, &keys, mode);
    } else if (probes->distribution == PAIRS) {
        expand_keys(&keys, seed, (uint32_t)(base >> 35), stream);
        pairs_pass(target, base, count, &keys, mode);
    } else {
        expand_keys(&keys, seed, (uint32_t)(base >> 34), stream);
        gaussian_pass(target, base, count, &keys, mode);
    }
}

/* noise = z of the window. */
APART void draw(float *noise, const struct window *window, const struct probes *probes,
                int64_t probe, uint32_t stream) {
    struct target target = {noise, 0, 0, {0, 0}};
    pass(&target, window->base, window->first, probes, probe, stream, SET);
    if (window->first < window->count) {
        target.to = noise + window->first;
        pass(&target, window->base + window->first, window->count - window->first, probes, probe,
             stream, SET);
    }
}

/* to = from + c z, from the beginning of the window. */
APART void add_term(const struct target *target, const struct window *window,
                    const struct probes *probes, int64_t probe) {
    float noise[ROOM] ALIGNED;
    if (window->first == window->count) {
        pass(target, window->base, window->count, probes, probe, PERTURBATION, ADD);
        return;
    }
    draw(noise, window, probes, probe, PERTURBATION);
    for (int64_t i = 0; i < window->count; i++)
        target->to[i] = target->from[i] + noise[i] * target->coefficient;
}

APART void draw_words(uint32_t *words, const struct window *window, uint64_t seed) {
    for (int64_t begin = 0, end = window->first; begin < window->count;
         begin = end, end = window->count) {
        struct keys keys;
        uint64_t base = window->base + begin;
        expand_keys(&keys, seed, (uint32_t)(base >> 34), ROUNDING);
        word_pass(words + begin, base, end - begin, &keys);
    }
}

#include "factors.h"

static void momentum_rule(const struct update *restrict job, float *restrict result,
                          const float *restrict theta, const float *restrict noise,
                          float *restrict first, int64_t count) {
    const float momentum = job->beta1, decay = job->decay, lr = job->lr;
    for (int64_t i = 0; i < count; i++) {
        float m = momentum * first[i] + noise[i];
        first[i] = m;
        result[i] = decay * theta[i] - lr * m;
    }
}

static void adam_rule(const struct update *restrict job, float *restrict result,
                      const float *restrict theta, const float *restrict noise,
                      float *restrict first, float *restrict second, int64_t count) {
    const float decay = job->decay, lr = job->lr, beta1 = job->beta1, rest1 = job->rest1;
    const float beta2 = job->beta2, rest2 = job->rest2, epsilon = job->epsilon;
    const float inverse1 = job->inverse1, inverse2 = job->inverse2;
    for (int64_t i = 0; i < count; i++) {
        float g = noise[i];
        float m = beta1 * first[i] + rest1 * g;
        float v = beta2 * second[i] + rest2 * (g * g);
        first[i] = m;
        second[i] = v;
        float step = m * inverse1 / (__builtin_sqrtf(v * inverse2) + epsilon);
        result[i] = decay * theta[i] - lr * step;
    }
}

static void adam_group_rule(const struct update *restrict job, float *restrict result,
                            const float *restrict theta, const float *restrict noise,
                            float *restrict first, int64_t count) {
    const float decay = job->decay, lr = job->lr, beta1 = job->beta1, rest1 = job->rest1;
    const float inverse1 = job->inverse1, root = job->inverse_root;
    for (int64_t i = 0; i < count; i++) {
        float m = beta1 * first[i] + rest1 * noise[i];
        first[i] = m;
        result[i] = decay * theta[i] - lr * (m * inverse1 * root);
    }
}

/* `count` is rounded up to whole vectors; `to` may be `from`. */
INLINE void scale(float *to, const float *from, float factor, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES)
        store(to + i, load(from + i) * factor);
}

/* A whole tile of float32 needs no buffers. */
static void whole_tile(const struct update *job, const struct window *window, float *to,
                       const float *from) {
    struct target target = {to, from, 0, {from + TILE, to + TILE}};
    if (job->decay != 1 || !job->probes.count) {
        scale(to, from, job->decay, TILE);
        target.from = to;
    }
    for (int64_t probe = 0; probe < job->probes.count; probe++) {
        target.coefficient = job->probes.coefficients[probe];
        add_term(&target, window, &job->probes, probe);
        target = (struct target){to, to, 0, {0, 0}};
    }
}

static void update_tile(const struct update *job, const struct tensor *tensor, int64_t begin,
                        int64_t count) {
    float noise[ROOM] ALIGNED, theta[TILE] ALIGNED;
    struct window window = window_of((uint64_t)(tensor->offset + begin), count,
                                     job->probes.distribution);
    int64_t width = tensor->dtype == FLOAT32 ? 4 : 2;
    const void *input = (const char *)tensor->input + width * begin;
    void *output = (char *)tensor->output + width * begin;
    float *sum = noise + window.skip, *result = sum;

    if (job->kind == ADD_NOISE && tensor->dtype == FLOAT32 && !window.skip && count == TILE) {
        whole_tile(job, &window, output, input);
        return;
    }
    widen(theta, input, tensor->dtype, count);
    memset(noise, 0, sizeof noise);   /* all that a draw adds to, beyond the end as well */
    if (job->kind == ADD_NOISE)
        scale(sum, theta, job->decay, count);
    for (int64_t probe = 0; probe < job->probes.count; probe++) {
        struct target target = {noise, noise, job->probes.coefficients[probe], {0, 0}};
        add_term(&target, &window, &job->probes, probe);
    }
    if (job->kind != ADD_NOISE) {
        float updated[TILE] ALIGNED;
        result = updated;
        if (job->kind == MOMENTUM)
            momentum_rule(job, result, theta, sum, tensor->first + begin, count);
        else if (job->kind == ADAM)
            adam_rule(job, result, theta, sum, tensor->first + begin, tensor->second + begin,
                      count);
        else
            adam_group_rule(job, result, theta, sum, tensor->first + begin, count);
        memcpy(theta, updated, 4 * count);
        result = theta;
    }
    if (job->rounding == STOCHASTIC && tensor->dtype != FLOAT32) {
        uint32_t words[ROOM] ALIGNED;
        window = window_of((uint64_t)(tensor->offset + begin), count, GAUSSIAN);
        draw_words(words, &window, job->rounding_seed);
        narrow_random(output, result, words + window.skip, tensor->dtype, count);
    } else {
        narrow(output, result, tensor->dtype, count);
    }
}

static void copies_tile(const struct copies *job, int64_t begin, int64_t count) {
    float noise[ROOM] ALIGNED, theta[TILE] ALIGNED, result[TILE] ALIGNED;
    const struct tensor *tensor = &job->tensor;
    struct window window = window_of((uint64_t)(tensor->offset + begin), count,
                                     job->probes.distribution);
    const float *drawn = noise + window.skip;
    int64_t width = tensor->dtype == FLOAT32 ? 4 : 2;
    if (tensor->input)
        widen(theta, (const char *)tensor->input + width * begin, tensor->dtype, count);
    for (int64_t seed = 0; seed < job->rows.heads; seed++) {
        int64_t head = job->rows.head[seed];
        draw(noise, &window, &job->probes, head, (uint32_t)job->stream);
        for (int64_t row = head; row >= 0; row = job->rows.next[row]) {
            const float coefficient = job->probes.coefficients[row];
            void *output = (char *)tensor->output + width * (row * tensor->size + begin);
            float *restrict copy = tensor->dtype == FLOAT32 ? output : result;
            if (!tensor->input) {
                memcpy(output, drawn, 4 * count);
                continue;
            }
            for (int64_t i = 0; i < count; i++)
                copy[i] = drawn[i] * coefficient + theta[i];
            if (tensor->dtype != FLOAT32)
                narrow(output, result, tensor->dtype, count);
        }
    }
}

const struct level LEVEL = {update_tile, copies_tile, factors_of_layer};
