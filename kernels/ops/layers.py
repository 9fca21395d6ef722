"""The public ops of tensor-train layers: check the shapes, then hand over to the right backend.

W = A B is the tensor-train matrix of AdaZeta (arXiv 2406.18060, section 3.1), input modes first
and the cut on a core boundary, so W itself is never built.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import tt_reference
from .dispatch import use_triton
from .factor_plan import MAX_RANK, Factors

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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

    The tensor train (Oseledets, SIAM J. Sci. Comput. 33(5), 2011) of AdaZeta, section 3.1::

        A[i, r] = G_1[:, i_1, :] ... G_c[:, i_c, r]        i = (i_1, ..., i_c), the first slowest
        B[r, j] = G_{c+1}[r, j_1, :] ... G_d[:, j_{d-c}, :]

    Differentiable. Rows of A beyond ``in_features`` and columns of B beyond ``out_features``
    (the padding of widths that do not factor) are cut off. The factors of all layers of a model
    at once, with noise, are :func:`stacked_factors`.

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

    Example:
        >>> cores = [torch.randn(1, 4, 2), torch.randn(2, 3, 2), torch.randn(2, 5, 1)]
        >>> a, b = tt_factors(cores, cut=2, in_features=11, out_features=5)
        >>> a.shape, b.shape
        (torch.Size([11, 2]), torch.Size([2, 5]))
    """
    _check_cores(cores, cut)
    rows = prod([core.shape[-2] for core in cores[:cut]])
    columns = prod([core.shape[-2] for core in cores[cut:]])
    if not 0 < in_features <= rows or not 0 < out_features <= columns:
        raise ValueError(f"modes of {rows} x {columns} cannot hold a matrix of {in_features} x "
                         f"{out_features}; choose larger modes")
    return tt_reference.tt_factors(cores, cut, in_features, out_features)


def check_factors(factors: Factors, in_features: int, what: str = "factors") -> None:
    """Raise ValueError unless A, B and the bias fit each other and the width of the input."""
    a, b, bias = factors
    lead = tuple(a.shape[:-2])
    if a.dim() not in (2, 3) or b.dim() != a.dim() or tuple(b.shape[:-2]) != lead:
        raise ValueError(f"{what} of shapes {tuple(a.shape)} and {tuple(b.shape)}; pass A (in, R) "
                         "and B (R, out), or both stacked (P, ...)")
    if a.shape[-1] != b.shape[-2] or a.shape[-2] != in_features:
        raise ValueError(f"{what} of shapes {tuple(a.shape)} and {tuple(b.shape)} for an input of "
                         f"width {in_features}; A must be (in, R) and B (R, out)")
    shapes = [(b.shape[-1],), (*lead, b.shape[-1])]
    if bias is not None and tuple(bias.shape) not in shapes:
        raise ValueError(f"bias of shape {tuple(bias.shape)} of the {what}; expected one of "
                         f"{sorted(set(shapes))}")


def grouped_rows(x: Tensor, a: Tensor) -> Tensor:
    """Return x as (N, in), or (P, N / P, in) for P probes.

    Raises:
        TypeError: x is of no floating dtype that the ops take.
        ValueError: the rows do not divide by P.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"x has dtype {x.dtype}; pass float32, bfloat16, float16 or float64")
    if a.dim() == 2:
        return x.reshape(-1, x.shape[-1])
    probes, count = a.shape[0], prod(x.shape[:-1])
    if count % probes:
        raise ValueError(f"{count} rows of x of shape {tuple(x.shape)} do not split in "
                         f"{probes} equal groups; repeat the batch once per probe")
    return x.reshape(probes, count // probes, x.shape[-1])


def triton_serves(x: Tensor, *ranks: int) -> bool:
    """Say whether the Triton kernels serve these rows: not float64, not empty, ranks up to 64."""
    return (x.numel() > 0 and x.dtype != torch.float64 and max(ranks) <= MAX_RANK
            and use_triton(x))


def needs_op(*tensors: Tensor | None) -> bool:
    """Say whether a call must go through the registered op.

    A registered op costs some 15 us a call, which dozens of adapters per forward would feel.
    """
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors))


def _apply(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    if triton_serves(x, a.shape[-1]):
        from . import tensor_train
        return tensor_train.tt_apply(x, a, b, bias)
    return tt_reference.tt_apply(x, a, b, bias)


@torch.library.custom_op("adazeta::tt_apply", mutates_args=())
def tt_apply_op(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return (x A) B + bias; shapes and dtypes as in ``tt_reference.tt_apply``."""
    return _apply(x, a, b, bias)


@tt_apply_op.register_fake
def _(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], b.shape[-1]))


@torch.library.custom_op("adazeta::tt_apply_backward", mutates_args=())
def _tt_apply_backward(grad: Tensor, x: Tensor, a: Tensor, b: Tensor,
                       bias: Tensor | None) -> list[Tensor]:
    """Return the gradients of x, A, B and, if there is one, the bias."""
    if triton_serves(x, a.shape[-1]):
        from . import tensor_train
        grads = tensor_train.tt_apply_backward(grad, x, a, b, bias)
    else:
        grads = tt_reference.tt_apply_backward(grad, x, a, b, bias)
    # The layout that the fake below announces: compiled code relies on it.
    return [value.contiguous() for value in grads if value is not None]


@_tt_apply_backward.register_fake
def _(grad: Tensor, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> list[Tensor]:
    return [value.new_empty(value.shape) for value in (x, a, b, bias) if value is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _tt_apply_backward(grad, *ctx.saved_tensors)
    return (*grads, None) if len(grads) == 3 else (*grads,)


tt_apply_op.register_autograd(_backward, setup_context=_save)


def tt_apply(x: Tensor, factors: Factors) -> Tensor:
    """Apply a tensor-train layer given by its factors: y = (x A) B + bias.

    AdaZeta (arXiv 2406.18060), section 3.1: W = A B is never built. The arithmetic is float32
    whatever the dtype of x (float64 for float64 x), with one rounding to x's dtype at the end.
    Differentiable in x and the factors.

    Args:
        x: (..., in), float32, bfloat16, float16 or float64.
        factors: A (in, R), B (R, out) and bias (out,) or None. Stacked for P probes, (P, in, R),
            (P, R, out) and (out,) or (P, out), the rows of x fall into P equal consecutive groups
            (x.reshape(P, -1, in)), and group p uses factors p.

    Returns:
        (..., out) in x's dtype.

    Raises:
        TypeError: x is of another dtype.
        ValueError: the factors do not fit x or each other, or the rows do not divide by P.

    Example:
        >>> x = torch.randn(6, 11)
        >>> stacked = Factors(torch.randn(3, 11, 2), torch.randn(3, 2, 5))  # 3 probes, 2 rows each
        >>> tt_apply(x, stacked).shape
        torch.Size([6, 5])
    """
    check_factors(factors, x.shape[-1])
    rows = grouped_rows(x, factors.a)
    y = (tt_apply_op if needs_op(x, *factors) else _apply)(rows, *factors)
    return y.reshape(*x.shape[:-1], factors.b.shape[-1])


def tt_linear(x: Tensor, cores: Sequence[Tensor], bias: Tensor | None = None, *, cut: int,
              out_features: int) -> Tensor:
    """Apply a tensor-train layer given by its cores: :func:`tt_factors`, then :func:`tt_apply`.

    y = x W + bias for the tensor-train matrix W of AdaZeta (arXiv 2406.18060), section 3.1.

    Args:
        x: (..., in_features), float32, bfloat16, float16 or float64.
        cores: as in :func:`tt_factors`, unstacked or stacked for P probes.
        bias: (out_features,), or (P, out_features) beside stacked cores.
        cut: number of input cores.
        out_features: columns of W.

    Returns:
        (..., out_features) in x's dtype.

    Raises:
        TypeError: x is of another dtype.
        ValueError: if the cores do not chain or do not hold the widths, the rows of x do not
            divide by P, or the bias has another shape.

    Example:
        >>> cores = [torch.randn(1, 4, 2), torch.randn(2, 3, 2), torch.randn(2, 5, 1)]
        >>> tt_linear(torch.randn(6, 11), cores, torch.zeros(5), cut=2, out_features=5).shape
        torch.Size([6, 5])
    """
    a, b = tt_factors(cores, cut=cut, in_features=x.shape[-1], out_features=out_features)
    return tt_apply(x, Factors(a, b, bias))
