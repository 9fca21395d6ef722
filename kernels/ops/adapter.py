"""The public op of a whole adapter: y = x + scale * Up(phi(Down(x))), forward and backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..dispatch import needs_op, triton_serves, use_triton
from ..plan import Factors
from ..reference import adapter as reference
from ..reference.adapter import ACTIVATIONS
from .calls import Calls, described
from .layers import check_devices, check_factors, grouped_rows


def _adapt(
    x: Tensor,
    down_a: Tensor,
    down_b: Tensor,
    down_bias: Tensor | None,
    up_a: Tensor,
    up_b: Tensor,
    up_bias: Tensor | None,
    activation: str,
    scale: float,
) -> Tensor:
    down, up = Factors(down_a, down_b, down_bias), Factors(up_a, up_b, up_bias)
    if triton_serves(x, down_a.shape[-1], up_a.shape[-1]):
        from ..gpu import adapter

        return adapter.tt_adapter(x, down, up, activation, scale)
    return reference.tt_adapter(x, down, up, activation, scale)


@torch.library.custom_op("adazeta::tt_adapter", mutates_args=())
def tt_adapter_op(
    x: Tensor,
    down_a: Tensor,
    down_b: Tensor,
    down_bias: Tensor | None,
    up_a: Tensor,
    up_b: Tensor,
    up_bias: Tensor | None,
    activation: str,
    scale: float,
) -> Tensor:
    """Apply an adapter; shapes and dtypes as in ``reference.adapter.tt_adapter``."""
    return _adapt(x, down_a, down_b, down_bias, up_a, up_b, up_bias, activation, scale)


@tt_adapter_op.register_fake
def _(
    x: Tensor,
    down_a: Tensor,
    down_b: Tensor,
    down_bias: Tensor | None,
    up_a: Tensor,
    up_b: Tensor,
    up_bias: Tensor | None,
    activation: str,
    scale: float,
) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("adazeta::tt_adapter_backward", mutates_args=())
def _tt_adapter_backward(
    grad: Tensor,
    x: Tensor,
    down_a: Tensor,
    down_b: Tensor,
    down_bias: Tensor | None,
    up_a: Tensor,
    up_b: Tensor,
    up_bias: Tensor | None,
    activation: str,
    scale: float,
) -> list[Tensor]:
    """Return the gradients of the tensors after ``grad`` that are not None, in their order."""
    down, up = Factors(down_a, down_b, down_bias), Factors(up_a, up_b, up_bias)
    if triton_serves(x, down_a.shape[-1], up_a.shape[-1]):
        from ..gpu import adapter

        grads = adapter.tt_adapter_backward(grad, x, down, up, activation, scale)
    else:
        grads = reference.tt_adapter_backward(grad, x, down, up, activation, scale)
    # The layout that the fake below announces: compiled code relies on it.
    return [value.contiguous() for value in grads if value is not None]


@_tt_adapter_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    down_a: Tensor,
    down_b: Tensor,
    down_bias: Tensor | None,
    up_a: Tensor,
    up_b: Tensor,
    up_bias: Tensor | None,
    activation: str,
    scale: float,
) -> list[Tensor]:
    return [
        value.new_empty(value.shape)
        for value in (x, down_a, down_b, down_bias, up_a, up_b, up_bias)
        if value is not None
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.activation, ctx.scale = inputs[7:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = iter(_tt_adapter_backward(grad, *ctx.saved_tensors, ctx.activation, ctx.scale))
    return (*(None if value is None else next(grads) for value in ctx.saved_tensors), None, None)


tt_adapter_op.register_autograd(_backward, setup_context=_save)


# What the kernels serve, by all that the checks and the launches look at.
_CALLS: Calls[Callable[[Tensor, Factors, Factors, float], Tensor]] = Calls()


def _checked_rows(x: Tensor, down: Factors, up: Factors, activation: str) -> Tensor:
    """Return x as :func:`grouped_rows` does; errors as in :func:`tt_adapter`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    check_devices(x, *down, *up)
    check_factors(down, x.shape[-1], "factors of down")
    check_factors(up, down.b.shape[-1], "factors of up")
    if up.b.shape[-1] != x.shape[-1] or up.a.shape[:-2] != down.a.shape[:-2]:
        raise ValueError(
            f"up ends in B of shape {tuple(up.b.shape)} for x of width "
            f"{x.shape[-1]} and down's A of shape {tuple(down.a.shape)}; it must "
            "return to the width of x, stacked for the same P"
        )
    return grouped_rows(x, down.a)


def tt_adapter(
    x: Tensor, down: Factors, up: Factors, *, activation: str = "relu", scale: float = 1.0
) -> Tensor:
    """Apply a bottleneck adapter: y = x + scale * Up(phi(Down(x))), in one kernel (few rows: two).

    Down and Up are tensor-train layers given by their factors, ``Down(x) = (x A) B + bias``. The
    arithmetic is float32 whatever the dtype of x (float64 for float64 x), with one rounding to
    x's dtype at the end; where the delta is zero, y has the bits of x. Differentiable in x and
    the factors. Source: AdaZeta (arXiv 2406.18060), section 3.1.

    Args:
        x: (..., width), float32, bfloat16, float16 or float64.
        down: factors of width -> bottleneck: A (width, R), B (R, bottleneck), bias (bottleneck,)
            or None; or stacked for P probes, (P, width, R) and so on: the rows of x then fall
            into P equal consecutive groups, and group p uses factors p.
        up: factors of bottleneck -> width, stacked alike.
        activation: phi: ``"relu"``, ``"gelu"`` (exact), ``"gelu_tanh"``, ``"silu"``, ``"tanh"`` or
            ``"identity"``.
        scale: factor on the delta.

    Returns:
        The shape and dtype of x.

    Raises:
        TypeError: x is of another dtype.
        ValueError: the factors do not fit x or each other, the rows do not divide by P, or the
            activation is none of these.

    Example:
        >>> down = Factors(torch.randn(576, 5), torch.randn(5, 64))
        >>> up = Factors(torch.randn(64, 5), torch.zeros(5, 576))
        >>> x = torch.randn(8, 30, 576)
        >>> torch.equal(tt_adapter(x, down, up), x)
        True
    """
    if needs_op(x, *down, *up) or not use_triton(x):
        rows = _checked_rows(x, down, up, activation)
        adapt = tt_adapter_op if needs_op(x, *down, *up) else _adapt
        return adapt(rows, *down, *up, activation, float(scale)).reshape(x.shape)
    key = (activation, *map(described, (x, *down, *up)))
    call = _CALLS.get(key)
    if call is None:
        rows = _checked_rows(x, down, up, activation)
        if not triton_serves(rows, down.a.shape[-1], up.a.shape[-1]):
            return _adapt(rows, *down, *up, activation, float(scale)).reshape(x.shape)
        from ..gpu import adapter

        call = _CALLS.keep(key, adapter.prepare(rows, down, up, activation))
    return call(x, down, up, float(scale))
