/* What ../native.py calls: cut a job in tiles, and hand them to the threads. */
#include <stdlib.h>

#include "jobs.h"

#define EXPORT __attribute__((visibility("default")))

/* Jobs below this many normals are not worth waking a thread for. */
#define SMALL 65536
EXPORT int64_t adazeta_abi(void) { return ABI; }

/* For the test that Python's structures are these. */
EXPORT void adazeta_sizes(int64_t sizes[3]) {
    sizes[0] = sizeof(struct tensor);
    sizes[1] = sizeof(struct update);
    sizes[2] = sizeof(struct copies);
}

/* The best level of the instruction set here: 0 generic, 1 AVX2, 2 AVX-512. */
EXPORT int64_t adazeta_best_level(void) {
#ifdef X86_LEVELS
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2"))
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

/* A tensor's tiles begin on whole counters of either distribution, so only its first has a part
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

/* `job->next` and `job->head` are filled in here. */
EXPORT int64_t adazeta_copies(struct copies *job, int64_t level, int64_t threads) {
    int64_t rows = job->probes.count;
    int64_t *next = malloc((2 * rows + 1) * sizeof *next), *head = next + rows;
    if (!next)
        return 1;
    for (int64_t row = 0; row < rows; row++) {
        next[row] = -1;
        head[row] = 1;
        for (int64_t other = row - 1; other >= 0 && head[row]; other--)
            if (job->probes.seeds[other] == job->probes.seeds[row]) {
                next[other] = row;
                head[row] = 0;
            }
    }
    job->next = next;
    job->head = head;
    if (job->tensor.size * rows < SMALL)
        threads = 1;
    int64_t tiles = tiles_of(&job->tensor), chunk = chunk_of(tiles, threads);
    struct copies_work work = {job, level_of(level), tiles, chunk};
    adazeta_parallel(threads, copies_chunk, &work, (tiles + chunk - 1) / chunk);
    free(next);
    return 0;
}
