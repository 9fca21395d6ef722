"""Noise version 2, "pairs": two normals from each word, in plain PyTorch.

The words are those of version 1 (``philox.py``). Word j of the counter i div 8 gives elements
8 (i div 8) + 2 j and + 2 j + 1. Every float32 operation below is rounded separately, in the order
written; no integer is rounded, and every conversion is exact.

A normal of version 1 is within 4e-7 of the exact Box-Muller transform of 48 random bits. Here 32
bits serve two: 20 of the radius, 10 of the angle, of which 9 say where in a quarter of the circle,
and a free sign for each of the two. The map from bits to numbers is coarser, which no
test of samples sees, and takes less than half of the operations.

Source: Box, Muller, "A note on the generation of random normal deviates" (1958).
"""

import torch
from torch import Tensor

from .arithmetic import horner, square_root

# Every constant is a float32 written out in full. -2 log(1 + f) = f P(f) on
# [sqrt(1/2) - 1, sqrt(2) - 1], cos(pi s / 2) / sqrt(2) = E(s^2) and sin(pi s / 2) / sqrt(2)
# = s O(s^2) on [-1/2, 1/2]: minimax fits, as in philox.py.
LOG = (
    -2.000025510787964,
    0.9997010231018066,
    -0.6645174622535706,
    0.509449303150177,
    -0.44660139083862305,
    0.2863970100879669,
)
EVEN = (0.7070997357368469, -0.8718488216400146, 0.17391224205493927)
ODD = (1.1107151508331299, -0.4565873146057129, 0.05491914227604866)
# 2 log 2 in 19 bits, so that its products with the number of octaves are exact: OCTAVE is -2^-23
# times that, TOP 21 times.
OCTAVE, TOP = -1.6525928003829904e-07, 29.112201690673828
SQRT_HALF_BITS = 0x3F3504F3
EXPONENT_MASK = -(1 << 23)
SIGN = -(1 << 31)


def _signed(value: Tensor, word: Tensor) -> Tensor:
    return (value.view(torch.int32) ^ (word & SIGN)).view(torch.float32)


def pair(word: Tensor) -> tuple[Tensor, Tensor]:
    """Turn words into two normals each.

    u = (2 k + 1) 2^-21 of bits 20 to 1 of the word is the uniform of the radius
    r = sqrt(-2 log u); bits 29 to 21 are s = (their number + 1/2) 2^-9 - 1/2, and the angle
    pi/4 + pi s/2 lies in the first quarter; bits 31 and 30 are the signs of the two normals, which
    are r times its cosine and its sine.

    Args:
        word: int32 tensor whose bits are the words.

    Returns:
        Two float32 tensors of that shape.
    """
    whole = ((word & 0x1FFFFE) | 1).to(torch.float32)
    bits = whole.view(torch.int32)
    # u = (1 + f) 2^(e - 21) with 1 + f in [sqrt(1/2), sqrt(2)); the power holds 2^23 e.
    power = (bits - SQRT_HALF_BITS) & EXPONENT_MASK
    f = (bits - power).view(torch.float32).sub_(1.0)
    start = power.to(torch.float32).mul_(OCTAVE).add_(TOP)
    radius = square_root(horner(f, LOG).mul_(f).add_(start))
    s = (((word >> 7) & 0x007FC000) | 0x3F802000).view(torch.float32).sub_(1.5)
    square = s * s
    even = horner(square, EVEN).mul_(radius)
    odd = radius.mul_(s).mul_(horner(square, ODD))
    return _signed(even - odd, word), _signed(even + odd, word << 1)
