"""The public op of weight matrices with a low-rank term: check, then choose the backend."""

import torch
from torch import Tensor

from ..dispatch import needs_op, triton_serves, wants_gradient
from ..reference import low_rank_add as reference
from .layers import DTYPES, check_devices


def _low_rank_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    if y.numel() and triton_serves(x, a.shape[-1]):
        from ..gpu import low_rank_add as kernel

        return kernel.low_rank_add(y, x, a, b, scale)
    return reference.low_rank_add(y, x, a, b, scale)


@torch.library.custom_op("adazeta::low_rank_add", mutates_args=())
def low_rank_add_op(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return y + scale (x A) B; shapes and dtypes as in ``reference.low_rank_add.low_rank_add``."""
    return _low_rank_add(y, x, a, b, scale)


@low_rank_add_op.register_fake
def _(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def low_rank_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return ``y + scale (x A) B``: a linear's output once its matrix has a low-rank term more.

    SubZero (arXiv 2410.08989) and LOZO (2410.07698) train such a term; the matrix itself, of which
    ``y`` is the product, is not touched. Float32 arithmetic (float64 for float64) whatever the
    dtype, since the perturbations of the factors may lie below that of the model, and one rounding
    at the end. Where a gradient is wanted the plain formula runs, which has one.

    Args:
        y: (..., out), float32, bfloat16, float16 or float64.
        x: (..., in), the input that y was made from.
        a: (in, r), or (P, in, r): the rows of x then are P equal, consecutive groups, and group p
            uses A[p].
        b: (r, out), or (P, r, out) likewise.
        scale: factor on the term.

    Returns:
        (..., out) in y's dtype, in new memory.

    Raises:
        TypeError: y is of another dtype.
        ValueError: the shapes do not fit, or the rows do not divide by P.
    """
    if y.dtype not in DTYPES:
        raise TypeError(f"y has dtype {y.dtype}; pass float32, bfloat16, float16 or float64")
    check_devices(x, a, b, y, what="y or factors")
    groups = {factor.shape[0] for factor in (a, b) if factor.dim() == 3}
    if (
        a.dim() not in (2, 3)
        or b.dim() not in (2, 3)
        or len(groups) > 1
        or (a.shape[-2], a.shape[-1], b.shape[-1]) != (x.shape[-1], b.shape[-2], y.shape[-1])
    ):
        raise ValueError(
            f"factors of shapes {tuple(a.shape)} and {tuple(b.shape)} do not fit x of "
            f"shape {tuple(x.shape)} and y of shape {tuple(y.shape)}; pass A (in, r) "
            "and B (r, out), or stacks (P, ...) of them"
        )
    probes = groups.pop() if groups else 1
    count = y.numel() // max(1, y.shape[-1])
    if x.shape[:-1] != y.shape[:-1] or count % probes:
        raise ValueError(
            f"x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)} do not "
            f"split in {probes} equal groups of rows; repeat the batch once per probe"
        )
    rows = count // probes
    args = (
        y.reshape(probes, rows, y.shape[-1]),
        x.to(y.dtype).reshape(probes, rows, x.shape[-1]),
        a,
        b,
    )
    if wants_gradient(*args):
        return reference.low_rank_add(*args, scale).view(y.shape)
    run = low_rank_add_op if needs_op(*args) else _low_rank_add
    return run(*args, scale).view(y.shape)
