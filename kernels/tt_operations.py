"""The public tensor-train ops: check the shapes, then apply (x A) B + bias by the right backend.

W = A B is the tensor-train matrix of AdaZeta (arXiv 2406.18060, section 3.1), input modes first
and the cut on a core boundary, so W itself is never built.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import reference
from .dispatch import use_triton


def _check_cores(cores: Sequence[Tensor], cut: int) -> None:
    shapes = [tuple(core.shape) for core in cores]
    if not 1 <= cut < len(cores):
        raise ValueError(f"cut is {cut} for {len(cores)} cores; at least one core must lie on "
                         "each side")
    dims = {len(shape) for shape in shapes}
    if dims not in ({3}, {4}):
        raise ValueError(f"cores of shapes {shapes}; pass all of shape (r, n, r') or all of "
                         "shape (P, r, n, r')")
    if len({shape[:-3] for shape in shapes}) > 1:
        raise ValueError(f"cores of shapes {shapes} are stacked for different P; stack all alike")
    ranks = [shapes[0][-3], *(shape[-1] for shape in shapes)]
    if ranks[0] != 1 or ranks[-1] != 1 or [shape[-3] for shape in shapes] != ranks[:-1]:
        raise ValueError(f"cores of shapes {shapes} do not chain; the last size of each must be "
                         "the first of the next, and the outer two must be 1")


def tt_factors(cores: Sequence[Tensor], *, cut: int, in_features: int,
               out_features: int) -> tuple[Tensor, Tensor]:
    """Contract the cores on either side of the cut to the factors of W = A B.

    Differentiable. Rows of A beyond ``in_features`` and columns of B beyond ``out_features``
    (the padding of widths that do not factor) are cut off.

    Args:
        cores: tensors (r_{k-1}, n_k, r_k), or all stacked (P, r_{k-1}, n_k, r_k); the first
            ``cut`` carry input modes, the others output modes.
        cut: number of input cores.
        in_features: rows of W, at most the product of the input modes.
        out_features: columns of W, at most the product of the output modes.

    Returns:
        A (in_features, R) and B (R, out_features), or (P, in_features, R) and
        (P, R, out_features), in the cores' dtype; R is the rank at the cut.

    Raises:
        ValueError: if the cores do not chain, are stacked unequally or are too small.
    """
    _check_cores(cores, cut)
    rows = prod([core.shape[-2] for core in cores[:cut]])
    columns = prod([core.shape[-2] for core in cores[cut:]])
    if not 0 < in_features <= rows or not 0 < out_features <= columns:
        raise ValueError(f"modes of {rows} x {columns} cannot hold a matrix of {in_features} x "
                         f"{out_features}; choose larger modes")
    return reference.tt_factors(cores, cut, in_features, out_features)


@torch.library.custom_op("adazeta::tt_apply", mutates_args=())
def tt_apply(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return (x A) B + bias; shapes and dtypes as in ``reference.tt_apply``."""
    if x.numel() and x.dtype != torch.float64 and use_triton(x):
        from . import tensor_train
        return tensor_train.tt_apply(x, a, b, bias)
    return reference.tt_apply(x, a, b, bias)


@tt_apply.register_fake
def _(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], b.shape[-1]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, a, b, bias = ctx.saved_tensors
    return (*reference.tt_apply_backward(grad, x, a, b, bias),)


tt_apply.register_autograd(_backward, setup_context=_save)


def tt_linear(x: Tensor, cores: Sequence[Tensor], bias: Tensor | None = None, *, cut: int,
              out_features: int) -> Tensor:
    """Apply a tensor-train layer: y = (x A) B + bias.

    The arithmetic is float32 whatever the dtype of x (float64 for float64 x), with one rounding
    to x's dtype at the end. Differentiable in x, the cores and the bias.

    Args:
        x: (..., in_features), float32, bfloat16, float16 or float64.
        cores: as in :func:`tt_factors`. Stacked for P probes, the rows of x fall into P equal
            consecutive groups (x.reshape(P, -1, in_features)), and group p uses cores p.
        bias: (out_features,), or (P, out_features) beside stacked cores.
        cut: number of input cores.
        out_features: columns of W.

    Returns:
        (..., out_features) in x's dtype.

    Raises:
        ValueError: if the cores do not chain or do not hold the widths, the rows of x do not
            divide by P, or the bias has another shape.
    """
    in_features = x.shape[-1]
    a, b = tt_factors(cores, cut=cut, in_features=in_features, out_features=out_features)
    probes = a.shape[0] if a.dim() == 3 else None
    shapes = [(out_features,)] if probes is None else [(out_features,), (probes, out_features)]
    if bias is not None and tuple(bias.shape) not in shapes:
        raise ValueError(f"bias of shape {tuple(bias.shape)}; expected one of {shapes}")
    if probes is None:
        rows = x.reshape(-1, in_features)
    else:
        count = prod(x.shape[:-1])
        if count % probes:
            raise ValueError(f"{count} rows of x of shape {tuple(x.shape)} do not split in "
                             f"{probes} equal groups; repeat the batch once per probe")
        rows = x.reshape(probes, count // probes, in_features)
    # A registered op costs some 15 us a call, which dozens of adapters per forward would feel.
    if _needs_op(rows, a, b, bias):
        y = tt_apply(rows, a, b, bias)
    else:
        y = reference.tt_apply(rows, a, b, bias)
    return y.reshape(*x.shape[:-1], out_features)


def _needs_op(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> bool:
    if torch.compiler.is_compiling():
        return True
    if torch.is_grad_enabled() and any(
            value is not None and value.requires_grad for value in (x, a, b, bias)):
        return True
    return x.dtype != torch.float64 and use_triton(x)
