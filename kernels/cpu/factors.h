/* The factors of one tensor-train layer at perturbed cores; included by tiles.c.
 *
 * The order of all sums is that of ../reference/factors.py.
 */
#ifndef ADAZETA_FACTORS_H
#define ADAZETA_FACTORS_H

/* out (rows, columns) = left (rows, terms) times right (terms, columns), every product and sum
 * rounded, terms in order. */
static void ordered_product(float *restrict out, const float *restrict left,
                            const float *restrict right, int64_t rows, int64_t terms,
                            int64_t columns) {
    for (int64_t row = 0; row < rows; row++, left += terms, out += columns) {
        int64_t column = 0;
        for (; column + 2 * LANES <= columns; column += 2 * LANES) {
            vfloat first = load(right + column) * left[0];
            vfloat second = load(right + column + LANES) * left[0];
            for (int64_t term = 1; term < terms; term++) {
                const float *from = right + term * columns + column;
                first = first + load(from) * left[term];
                second = second + load(from + LANES) * left[term];
            }
            store(out + column, first);
            store(out + column + LANES, second);
        }
        while (column < columns && columns >= LANES) {
            /* The last vector may begin in what is done, and does that again. */
            column = column + LANES < columns ? column : columns - LANES;
            vfloat sum = load(right + column) * left[0];
            for (int64_t term = 1; term < terms; term++)
                sum = sum + load(right + term * columns + column) * left[term];
            store(out + column, sum);
            column += LANES;
        }
        for (; column < columns; column++) {
            float sum = left[0] * right[column];
            for (int64_t term = 1; term < terms; term++)
                sum = sum + left[term] * right[term * columns + column];
            out[column] = sum;
        }
    }
}

INLINE int64_t size_of(const struct core *core) { return core->left * core->mode * core->right; }

/* A transposed, (rank at the cut, in_features). */
static void write_a(const struct layer *layer, const float *values, float *chain[2], float *out) {
    const struct core *core = layer->cores;
    const float *total = values + core->place;
    int64_t rows = core->mode, rank = core->right;
    for (int64_t k = 1; k < layer->cut; k++) {
        core++;
        ordered_product(chain[k % 2], total, values + core->place, rows, core->left,
                        core->mode * core->right);
        total = chain[k % 2];
        rows *= core->mode;
        rank = core->right;
    }
    for (int64_t r = 0; r < rank; r++)
        for (int64_t row = 0; row < layer->in_features; row++)
            out[r * layer->in_features + row] = total[row * rank + r];
}

/* B, (rank at the cut, out_features). */
static void write_b(const struct layer *layer, const float *values, float *chain[2], float *out) {
    const struct core *core = layer->cores + layer->count - 1;
    const float *total = values + core->place;
    int64_t columns = core->mode;
    for (int64_t k = layer->count - 2; k >= layer->cut; k--) {
        core--;
        ordered_product(chain[k % 2], values + core->place, total, core->left * core->mode,
                        core->right, columns);
        total = chain[k % 2];
        columns *= core->mode;
    }
    for (int64_t r = 0; r < core->left; r++)
        memcpy(out + r * layer->out_features, total + r * columns, 4 * layer->out_features);
}

/* z of the layer's parameters, place by place. */
static void draw_runs(const struct layer *layer, const struct probes *probes, int64_t probe,
                      float *z) {
    float noise[ROOM] ALIGNED;
    for (int64_t index = 0; index < layer->runs; index++) {
        const struct run *run = &layer->run[index];
        for (int64_t done = 0; done < run->size; done += TILE) {
            int64_t count = run->size - done < TILE ? run->size - done : TILE;
            struct window window = window_of((uint64_t)(run->offset + done), count,
                                             probes->distribution);
            draw(noise, &window, probes, probe, PERTURBATION);
            memcpy(z + run->place + done, noise + window.skip, 4 * count);
        }
    }
}

/* theta + coefficient z; or theta, if z is NULL. */
static void gather_runs(const struct layer *layer, const float *theta, const float *z,
                        float coefficient, float *restrict values) {
    for (int64_t index = 0; index < layer->runs; index++) {
        const struct run *run = &layer->run[index];
        const float *from = theta + run->offset;
        float *to = values + run->place;
        if (!z) {
            memcpy(to, from, 4 * run->size);
            continue;
        }
        for (int64_t i = 0; i < run->size; i++)
            to[i] = z[run->place + i] * coefficient + from[i];
    }
}

/* The factors of one layer for the rows of one seed. `scratch` has room for twice the layer's
 * parameters and twice its longest chain. */
static void factors_of_layer(const struct factors *job, const struct layer *layer, int64_t head,
                             float *scratch) {
    float *values = scratch, *z = job->probes.count ? values + layer->size : 0;
    float *chain[2] = {values + 2 * layer->size, values + 2 * layer->size + layer->chain};
    if (z)
        draw_runs(layer, &job->probes, head, z);
    for (int64_t row = head; row >= 0; row = job->rows.next[row]) {
        float *out = job->out + row * job->size;
        gather_runs(layer, job->theta, z, z ? job->probes.coefficients[row] : 0, values);
        write_a(layer, values, chain, out + layer->a);
        write_b(layer, values, chain, out + layer->b);
        if (layer->bias >= 0)
            memcpy(out + layer->bias_out, values + layer->bias, 4 * layer->out_features);
    }
}

#endif
