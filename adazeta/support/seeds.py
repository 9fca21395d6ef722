"""Seeds that are a pure function of the run's seed and of what they are for."""

MASK64 = (1 << 64) - 1

# Purposes of seeds: the word after the run's seed, where that of a direction has its step, 0 or
# more. The values belong to every log written. -2 serves twice: the size of a stack is measured at
# scale 0, where no noise counts. (Streams, of :mod:`adazeta.kernels.reference.philox`, keep draws
# from one seed apart.)
PROFILE_SEEDS = -1  # directions that measure how eps does
SIZE_SEEDS = -2  # stands for directions while the size of a stack is measured
ROUNDING_SEEDS = -2  # stochastic rounding of parameters and states, then the step
BASES_SEEDS = -3  # bases of a subspace, then the layer
FOLD_SEEDS = -4  # stochastic rounding of a fold, then the layer
SAMPLING_SEEDS = -5  # noise of sampled completions, then the step and the prompt
NEW_WEIGHTS_SEEDS = -6  # weights that a checkpoint lacks, then the parameter
DROP_SEEDS = -7  # which adapters are left out, then the step and the micro-batch
EXTRAPOLATION_SEEDS = -8  # noise on parameters whose gradient is taken there, likewise
ADVERSARIAL_SEEDS = -9  # random moves of embeddings, likewise


def derive_seed(*words: int) -> int:
    """Mix integers into one 63-bit seed, a pure function of them.

    A chain of the SplitMix64 finaliser: every probe of a run has its own well-separated seed
    without any global random state, so a resumed, re-ordered or distributed run draws the same
    directions.

    Args:
        words: any integers, e.g. run seed, step, query, row group.

    Returns:
        An integer in [0, 2**63), which an int64 tensor can carry.
    """
    state = 0
    for word in words:
        state = (state ^ (word & MASK64)) + 0x9E3779B97F4A7C15 & MASK64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK64
        state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK64
        state ^= state >> 31
    return state >> 1
