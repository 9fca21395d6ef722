/* Writes 1031 numbers of each distribution from some places to standard output: test_neon.py. */
#include <stdio.h>

#include "jobs.h"

int64_t adazeta_copies(struct copies *, int64_t level, int64_t threads);

int main(void) {
    static const int64_t starts[] = {0, 3, (1ll << 34) - 501, (1ll << 35) - 501, (1ll << 62) - 8};
    static float out[1031];
    int64_t seed = 7 | 5ll << 32;
    float one = 1;
    for (int64_t distribution = GAUSSIAN; distribution <= PAIRS; distribution++)
        for (int place = 0; place < 5; place++) {
            struct copies job = {{0, out, 0, 0, starts[place], 1031, FLOAT32},
                                 {&seed, &one, 1, distribution}, 2, {0, 0, 0}};
            if (adazeta_copies(&job, 0, 1) || fwrite(out, sizeof out, 1, stdout) != 1)
                return 1;
        }
    return 0;
}
