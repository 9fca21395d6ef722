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

/* The range of noise that a tile draws: whole counters, so it may begin before the tile. */
struct window {
    uint64_t base;
    int64_t skip, count;
};

INLINE struct window window_of(uint64_t index, int64_t count, int64_t distribution) {
    uint64_t per_counter = distribution == RADEMACHER ? 128 : 4;
    int64_t skip = (int64_t)(index % per_counter);
    return (struct window){index - skip, skip, skip + count};
}

INLINE void pass(float *value, const struct window *window, const struct probes *probes,
                 int64_t probe, uint32_t stream, int mode) {
    uint64_t seed = (uint64_t)probes->seeds[probe];
    float coefficient = mode == ADD ? probes->coefficients[probe] : 1.0f;
    if (probes->distribution == RADEMACHER)
        rademacher_pass(value, window->base, window->count, seed, stream, coefficient, mode);
    else
        gaussian_pass(value, window->base, window->count, seed, stream, coefficient, mode);
}

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

INLINE void scale(float *restrict to, const float *restrict from, float factor, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        to[i] = factor * from[i];
}

static void update_tile(const struct update *job, const struct tensor *tensor, int64_t begin,
                        int64_t count) {
    float noise[TILE] ALIGNED, theta[TILE] ALIGNED;
    struct window window = window_of((uint64_t)(tensor->offset + begin), count,
                                     job->probes.distribution);
    int64_t width = tensor->dtype == FLOAT32 ? 4 : 2;
    const void *input = (const char *)tensor->input + width * begin;
    void *output = (char *)tensor->output + width * begin;
    float *sum = noise + window.skip, *result = sum;

    widen(theta, input, tensor->dtype, count);
    memset(noise, 0, sizeof noise);
    if (job->kind == ADD_NOISE)
        scale(sum, theta, job->decay, count);
    for (int64_t probe = 0; probe < job->probes.count; probe++)
        pass(noise, &window, &job->probes, probe, PERTURBATION, ADD);
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
        uint32_t words[TILE] ALIGNED;
        window = window_of((uint64_t)(tensor->offset + begin), count, GAUSSIAN);
        word_pass(words, window.base, window.count, job->rounding_seed);
        narrow_random(output, result, words + window.skip, tensor->dtype, count);
    } else {
        narrow(output, result, tensor->dtype, count);
    }
}

static void copies_tile(const struct copies *job, int64_t begin, int64_t count) {
    float noise[TILE] ALIGNED, theta[TILE] ALIGNED, result[TILE] ALIGNED;
    const struct tensor *tensor = &job->tensor;
    struct window window = window_of((uint64_t)(tensor->offset + begin), count,
                                     job->probes.distribution);
    int64_t width = tensor->dtype == FLOAT32 ? 4 : 2;
    if (tensor->input)
        widen(theta, (const char *)tensor->input + width * begin, tensor->dtype, count);
    for (int64_t head = 0; head < job->probes.count; head++) {
        if (!job->head[head])
            continue;
        pass(noise, &window, &job->probes, head, (uint32_t)job->stream, SET);
        for (int64_t row = head; row >= 0; row = job->next[row]) {
            const float *restrict drawn = noise + window.skip;
            const float coefficient = job->probes.coefficients[row];
            void *output = (char *)tensor->output + width * (row * tensor->size + begin);
            if (!tensor->input) {
                memcpy(output, drawn, 4 * count);
                continue;
            }
            for (int64_t i = 0; i < count; i++)
                result[i] = drawn[i] * coefficient + theta[i];
            narrow(output, result, tensor->dtype, count);
        }
    }
}

const struct level LEVEL = {update_tile, copies_tile};
