"""Sampling that repeats itself: the noise of a token is a pure function of seed and position.

Adding independent Gumbel noise to logits and taking the largest draws from their softmax (the
Gumbel-max trick). The noise here comes from the counter generator of the directions: a row's seed
and the place of the token fix it. So two members of a population that share the seeds of their
rows differ by their parameters alone (common random numbers), a run that is resumed writes the
same texts, and neither the batch nor the process in which a row is decoded matters.
"""

import torch
from torch import Tensor

from adazeta.kernels import gaussian

SAMPLING_STREAM = 5
"""Third counter word of the draws."""


def gumbel(seeds: Tensor, position: int, words: int) -> Tensor:
    """Draw the noise of one token for some rows.

    With normals x and y, ``(x^2 + y^2) / 2`` is exponential and minus its logarithm is Gumbel.

    Args:
        seeds: int64 (N,), in [0, 2**63).
        position: index of the token in the completion, from 0.
        words: size V of the vocabulary.

    Returns:
        float32 (N, V), on the device of the seeds.
    """
    normals = gaussian(seeds, 2 * words * position, 2 * words, stream=SAMPLING_STREAM)
    squares = normals.square_().view(len(seeds), 2, words).sum(1)
    return squares.mul_(0.5).clamp_min_(torch.finfo(torch.float32).tiny).log_().neg_()
