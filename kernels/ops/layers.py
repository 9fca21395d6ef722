"""The public ops of tensor-train layers: check the shapes, then hand over to the right backend.

W = A B is the tensor-train matrix of AdaZeta (arXiv 2406.18060, section 3.1), input modes first
and the cut on a core boundary, so W itself is never built.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..dispatch import needs_op, triton_serves
from ..plan import Factors
from ..reference import layers as reference
from .factors import tt_factors

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_devices(x: Tensor, *tensors: Tensor | None, what: str = "factors") -> None:
    """Raise ValueError unless tensors are on the device of x, where kernels read them."""
    for tensor in tensors:
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"{what} on {tensor.device} for x on {x.device}; move them with .to(x.device)"
            )


def check_factors(factors: Factors, in_features: int, what: str = "factors") -> None:
    """Raise ValueError unless A, B and the bias fit each other and the width of the input."""
    a, b, bias = factors
    lead = tuple(a.shape[:-2])
    if a.dim() not in (2, 3) or b.dim() != a.dim() or tuple(b.shape[:-2]) != lead:
        raise ValueError(
            f"{what} of shapes {tuple(a.shape)} and {tuple(b.shape)}; pass A (in, R) "
            "and B (R, out), or both stacked (P, ...)"
        )
    if a.shape[-1] != b.shape[-2] or a.shape[-2] != in_features:
        raise ValueError(
            f"{what} of shapes {tuple(a.shape)} and {tuple(b.shape)} for an input of "
            f"width {in_features}; A must be (in, R) and B (R, out)"
        )
    shapes = [(b.shape[-1],), (*lead, b.shape[-1])]
    if bias is not None and tuple(bias.shape) not in shapes:
        raise ValueError(
            f"bias of shape {tuple(bias.shape)} of the {what}; expected one of "
            f"{sorted(set(shapes))}"
        )


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
        raise ValueError(
            f"{count} rows of x of shape {tuple(x.shape)} do not split in "
            f"{probes} equal groups; repeat the batch once per probe"
        )
    return x.reshape(probes, count // probes, x.shape[-1])


def _apply(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    if triton_serves(x, a.shape[-1]):
        from ..gpu import layers

        return layers.tt_apply(x, a, b, bias)
    return reference.tt_apply(x, a, b, bias)


@torch.library.custom_op("adazeta::tt_apply", mutates_args=())
def tt_apply_op(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return (x A) B + bias; shapes and dtypes as in ``reference.layers.tt_apply``."""
    return _apply(x, a, b, bias)


@tt_apply_op.register_fake
def _(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], b.shape[-1]))


@torch.library.custom_op("adazeta::tt_apply_backward", mutates_args=())
def _tt_apply_backward(
    grad: Tensor, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None
) -> list[Tensor]:
    """Return the gradients of x, A, B and, if there is one, the bias."""
    if triton_serves(x, a.shape[-1]):
        from ..gpu import layers

        grads = layers.tt_apply_backward(grad, x, a, b, bias)
    else:
        grads = reference.tt_apply_backward(grad, x, a, b, bias)
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
    check_devices(x, *factors)
    check_factors(factors, x.shape[-1])
    rows = grouped_rows(x, factors.a)
    y = (tt_apply_op if needs_op(x, *factors) else _apply)(rows, *factors)
    return y.reshape(*x.shape[:-1], factors.b.shape[-1])


def tt_linear(
    x: Tensor, cores: Sequence[Tensor], bias: Tensor | None = None, *, cut: int, out_features: int
) -> Tensor:
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
