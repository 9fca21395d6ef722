"""A low-rank term added to the output of a linear, in plain PyTorch: the ground truth."""

import torch
from torch import Tensor


def low_rank_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return ``y + scale (x A) B``, for each group of rows with its own factors.

    Args:
        y: (P, N, out).
        x: (P, N, in).
        a: (in, r) or (P, in, r).
        b: (r, out) or (P, r, out).
        scale: factor.

    Returns:
        (P, N, out) in y's dtype. The arithmetic is float32 (float64 for float64 y), rounded once.
    """
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    delta = (x.to(wide) @ a.to(wide)) @ b.to(wide)
    return torch.add(y, delta, alpha=scale).to(y.dtype)
