/* What library.py calls: cut a job in tiles, and hand them to the threads. */
#include <stdatomic.h>
#include <stdlib.h>

#include "jobs.h"

/* Jobs below this many normals are not worth waking a thread for. */
#define SMALL 65536

EXPORT int64_t adazeta_abi(void) { return ABI; }

/* For the test that Python's structures are these. */
EXPORT void adazeta_sizes(int64_t sizes[5]) {
    sizes[0] = sizeof(struct tensor);
    sizes[1] = sizeof(struct update);
    sizes[2] = sizeof(struct copies);
    sizes[3] = sizeof(struct layer);
    sizes[4] = sizeof(struct factors);
}

/* The best level of the instruction set here: 0 generic, 1 AVX2, 2 AVX-512. */
EXPORT int64_t adazeta_best_level(void) {
#ifdef X86_LEVELS
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return 0;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return 2;
    return 1;
#else
    return 0;
#endif
}

static const struct level *level_of(int64_t number) {
#ifdef X86_LEVELS
    if (number > 0 && number <= adazeta_best_level())
        return number == 2 ? &adazeta_avx512 : &adazeta_avx2;
#endif
    (void)number;
    return &adazeta_generic;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* A tensor's tiles begin on whole counters of every distribution, so only its first has a part
 * of a counter to skip. */
static int64_t tiles_of(const struct tensor *tensor) {
    return tensor->size ? (tensor->offset % 128 + tensor->size + TILE - 1) / TILE : 0;
}

static int64_t range_of(const struct tensor *tensor, int64_t tile, int64_t *begin) {
    int64_t lead = tensor->offset % 128;
    int64_t end = (tile + 1) * TILE - lead;
    *begin = tile ? tile * TILE - lead : 0;
    return least(end, tensor->size) - *begin;
}

/* Tiles that a thread takes at a time: few enough that the threads end together. */
static int64_t chunk_of(int64_t tiles, int64_t threads) {
    int64_t chunk = tiles / (4 * threads);
    return chunk < 1 ? 1 : chunk > 8 ? 8 : chunk;
}

struct update_work {
    const struct update *job;
    const struct level *level;
    const int64_t *ends;   /* tiles up to and with each tensor */
    int64_t tiles, chunk;
};

static void update_chunk(void *context, int64_t chunk) {
    const struct update_work *work = context;
    const struct update *job = work->job;
    int64_t tile = chunk * work->chunk, stop = least(tile + work->chunk, work->tiles);
    int64_t low = 0, high = job->count - 1;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (work->ends[middle] > tile)
            high = middle;
        else
            low = middle + 1;
    }
    for (; tile < stop; tile++) {
        int64_t begin, count;
        while (work->ends[low] <= tile)
            low++;
        count = range_of(&job->tensors[low], tile - (low ? work->ends[low - 1] : 0), &begin);
        work->level->update_tile(job, &job->tensors[low], begin, count);
    }
}

/* Returns 0, or 1 where there was no memory and nothing was done. */
EXPORT int64_t adazeta_update(const struct update *job, int64_t level, int64_t threads) {
    int64_t tiles = 0, elements = 0;
    int64_t *ends = malloc((job->count + 1) * sizeof *ends);
    if (!ends)
        return 1;
    for (int64_t index = 0; index < job->count; index++) {
        tiles += tiles_of(&job->tensors[index]);
        elements += job->tensors[index].size;
        ends[index] = tiles;
    }
    if (elements * (job->probes.count + 1) < SMALL)
        threads = 1;
    struct update_work work = {job, level_of(level), ends, tiles, chunk_of(tiles, threads)};
    adazeta_parallel(threads, update_chunk, &work, (tiles + work.chunk - 1) / work.chunk);
    free(ends);
    return 0;
}

struct copies_work {
    const struct copies *job;
    const struct level *level;
    int64_t tiles, chunk;
};

static void copies_chunk(void *context, int64_t chunk) {
    const struct copies_work *work = context;
    const struct copies *job = work->job;
    int64_t stop = least((chunk + 1) * work->chunk, work->tiles);
    for (int64_t tile = chunk * work->chunk; tile < stop; tile++) {
        int64_t begin, count = range_of(&job->tensor, tile, &begin);
        work->level->copies_tile(job, begin, count);
    }
}

/* Finds the rows of each seed; of no probes, one row. Returns what is to be freed, or NULL where
 * there was no memory. */
static int64_t *find_rows(const struct probes *probes, struct rows *rows) {
    int64_t count = probes->count ? probes->count : 1, heads = 0;
    int64_t *next = malloc(2 * count * sizeof *next), *head = next + count;
    if (!next)
        return 0;
    for (int64_t row = 0; row < count; row++) {
        int64_t other = 0, last;
        next[row] = -1;
        while (other < heads && probes->seeds[head[other]] != probes->seeds[row])
            other++;
        if (other == heads) {
            head[heads++] = row;
            continue;
        }
        for (last = head[other]; next[last] >= 0;)
            last = next[last];
        next[last] = row;
    }
    *rows = (struct rows){next, head, heads};
    return next;
}

EXPORT int64_t adazeta_copies(struct copies *job, int64_t level, int64_t threads) {
    int64_t *memory = find_rows(&job->probes, &job->rows);
    if (!memory)
        return 1;
    if (job->tensor.size * job->probes.count < SMALL)
        threads = 1;
    int64_t tiles = tiles_of(&job->tensor), chunk = chunk_of(tiles, threads);
    struct copies_work work = {job, level_of(level), tiles, chunk};
    adazeta_parallel(threads, copies_chunk, &work, (tiles + chunk - 1) / chunk);
    free(memory);
    return 0;
}

struct factors_work {
    const struct factors *job;
    const struct level *level;
    int64_t items, chunk;
    int64_t scratch;        /* floats */
    atomic_int failed;
};

static void factors_chunk(void *context, int64_t chunk) {
    struct factors_work *work = context;
    const struct factors *job = work->job;
    int64_t stop = least((chunk + 1) * work->chunk, work->items);
    float *scratch = malloc(work->scratch * sizeof *scratch);
    if (!scratch) {
        atomic_store(&work->failed, 1);
        return;
    }
    for (int64_t item = chunk * work->chunk; item < stop; item++)
        work->level->factors_of_layer(job, &job->layers[item % job->count],
                                      job->rows.head[item / job->count], scratch);
    free(scratch);
}

EXPORT int64_t adazeta_factors(struct factors *job, int64_t level, int64_t threads) {
    int64_t *memory = find_rows(&job->probes, &job->rows);
    int64_t scratch = 0, parameters = 0;
    if (!memory)
        return 1;
    for (int64_t index = 0; index < job->count; index++) {
        int64_t wanted = 2 * (job->layers[index].size + job->layers[index].chain);
        scratch = wanted > scratch ? wanted : scratch;
        parameters += job->layers[index].size;
    }
    if (job->rows.heads * parameters + job->probes.count * job->size < SMALL)
        threads = 1;
    int64_t items = job->count * job->rows.heads, chunk = chunk_of(items, threads);
    struct factors_work work = {job, level_of(level), items, chunk, scratch, 0};
    adazeta_parallel(threads, factors_chunk, &work, (items + chunk - 1) / chunk);
    free(memory);
    return atomic_load(&work.failed);
}
