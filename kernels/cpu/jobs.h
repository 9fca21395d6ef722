/* What Python asks for, and what a level of the instruction set offers.
 *
 * The structures are mirrored by library.py; ABI counts their versions, and is also raised when
 * results change, so that a library left over from older sources is not loaded.
 */
#ifndef ADAZETA_JOBS_H
#define ADAZETA_JOBS_H

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define ABI 4

/* Elements worked on at a time: a few buffers of them fit a first-level cache. A multiple of 1024,
 * the signs that one vector of counters holds at the widest level. */
#define TILE 2048

enum { FLOAT32, BFLOAT16, FLOAT16 };
enum { GAUSSIAN, RADEMACHER, PAIRS };
enum { NEAREST, STOCHASTIC };
enum { ADD_NOISE, MOMENTUM, ADAM, ADAM_GROUP };

struct tensor {
    const void *input;
    void *output;
    float *first, *second;   /* moments, or NULL */
    int64_t offset;          /* index of the first element in the space of the noise */
    int64_t size;
    int64_t dtype;
};

struct probes {
    const int64_t *seeds;
    const float *coefficients;
    int64_t count;
    int64_t distribution;
};

/* theta <- update(theta, sum_k c_k z(s_k)); the equations are in ../reference/updates.py. */
struct update {
    const struct tensor *tensors;
    int64_t count;
    struct probes probes;
    int64_t kind;
    int64_t rounding;
    uint64_t rounding_seed;
    float decay, lr;
    float beta1, rest1;      /* momentum and 1 for MOMENTUM; beta and 1 - beta for ADAM */
    float beta2, rest2;
    float epsilon, inverse1, inverse2;
    float inverse_root;      /* for ADAM_GROUP */
};

/* Rows of one seed, whose noise is drawn once; filled in by library.c. */
struct rows {
    const int64_t *next;     /* the next row of the same seed, or -1 */
    const int64_t *head;     /* the first row of each seed */
    int64_t heads;
};

/* Row p of the output is theta + c_p z(s_p); or z(s_p), where the input is NULL. */
struct copies {
    struct tensor tensor;
    struct probes probes;
    int64_t stream;
    struct rows rows;
};

/* Of a tensor-train layer. Places count in a copy of the layer's own parameters. */
#define MAX_CORES 8

struct core {
    int64_t left, mode, right;
    int64_t place;
};

struct run {
    int64_t offset;          /* of consecutive parameters in theta */
    int64_t size, place;
};

struct layer {
    int64_t count, cut;      /* cores in all, and of the input */
    int64_t in_features, out_features;
    int64_t a, b, bias_out;  /* where the factors of a probe begin in its row of the output */
    int64_t bias;            /* its place, or -1 */
    int64_t size, chain;     /* elements of the copy, and of the longest product of cores */
    int64_t runs;
    struct core cores[MAX_CORES];
    struct run run[MAX_CORES + 1];
};

/* Row p of the output holds the factors of all layers at theta + c_p z(s_p); or, where there are no
 * probes, its one row those at theta. */
struct factors {
    const float *theta;
    float *out;
    int64_t size;            /* of a row */
    const struct layer *layers;
    int64_t count;
    struct probes probes;
    struct rows rows;
};

struct level {
    void (*update_tile)(const struct update *, const struct tensor *, int64_t begin,
                        int64_t count);
    void (*copies_tile)(const struct copies *, int64_t begin, int64_t count);
    void (*factors_of_layer)(const struct factors *, const struct layer *, int64_t head,
                             float *scratch);
};

extern const struct level adazeta_generic, adazeta_avx2, adazeta_avx512;

/* Calls work(context, item) for every item in 0 .. items - 1, from at most `threads` threads. */
void adazeta_parallel(int64_t threads, void (*work)(void *, int64_t), void *context,
                      int64_t items);

#endif
