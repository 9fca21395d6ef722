"""Bases of random subspaces: pure functions of a seed, so that nothing of them is ever stored.

Sources: SubZero (arXiv 2410.08989) for the orthonormal bases and the near-square view; LOZO (arXiv
2410.07698) for the Gaussian ones.
"""

import math

import torch
from torch import Tensor

from adazeta.kernels import gaussian
from adazeta.kernels.reference.philox import BASIS_STREAM

_THIN = 64  # a side of at most this many elements ...
_LONGER = 4  # ... at least this many times shorter than the other makes a matrix thin


def gaussian_basis(seed: int, rows: int, rank: int, device: torch.device | str) -> Tensor:
    """Draw a matrix of independent standard normals.

    Args:
        seed: 63-bit seed.
        rows: length of a basis vector.
        rank: number of basis vectors.
        device: where to draw; the values do not depend on it.

    Returns:
        float32 ``(rows, rank)``.
    """
    return gaussian(seed, 0, rows * rank, stream=BASIS_STREAM, device=device).view(rows, rank)


def haar_basis(seed: int, rows: int, rank: int, device: torch.device | str) -> Tensor:
    """Draw orthonormal columns, uniformly distributed (Haar): no direction is preferred.

    ``G = Q R`` with Gaussian G is unique once the diagonal of R is positive, and only then is Q
    Haar distributed; LAPACK leaves the signs to chance of its reflections, so they are set here.

    Args:
        seed: 63-bit seed.
        rows: length of a basis vector, at least ``rank``.
        rank: number of basis vectors.
        device: where to compute. The Gaussian matrix is the same everywhere, its factorisation
            the same wherever the linear algebra library is.

    Returns:
        float32 ``(rows, rank)``.
    """
    q, r = torch.linalg.qr(gaussian_basis(seed, rows, rank, device))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def near_square(count: int) -> tuple[int, int]:
    """Return the factors (rows, columns) of a count that lie nearest to each other.

    Args:
        count: number of elements, 1 or more.

    Returns:
        The factors, ``rows <= columns``; ``(1, count)`` for a prime.
    """
    rows = next(k for k in range(math.isqrt(count), 0, -1) if count % k == 0)
    return rows, count // rows


def is_thin(rows: int, columns: int) -> bool:
    """Tell whether a matrix is one of the thin ones of PEFT: LoRA factors, prompts, prefixes.

    Their short side would cap the rank, so SubZero views them near-square.

    Args:
        rows: of the matrix.
        columns: of the matrix.
    """
    short, long = sorted((rows, columns))
    return short <= _THIN and long >= _LONGER * short
