"""Triton: launches of a whole adapter, y = x + scale * Up(phi(Down(x))), and of its gradients.

Twins: ``reference.adapter.tt_adapter`` and ``reference.adapter.tt_adapter_backward``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..plan import Factors
from . import few_rows
from .adapter_kernels import tt_adapter_backward_kernel, tt_adapter_kernel
from .arithmetic import kernel_view
from .launch import grid
from .layers import as_stack, bias_grad
from .prepared import Prepared
from .tiles import (
    BLOCK_MIDDLE,
    Tile,
    is_ready,
    kernel_factors,
    outer,
    padded_rank,
    tile_for,
    tile_options,
)


def _settings(tile: Tile, x: Tensor, down: Factors, up: Factors, activation: str) -> dict[str, Any]:
    return {"DOWN_BIAS": down.bias is not None, "BFLOAT16": x.dtype == torch.bfloat16,
            "ACTIVATION": activation, "RANK": padded_rank(down.a.shape[-1], up.a.shape[-1]),
            "BLOCK_MIDDLE": BLOCK_MIDDLE, **tile_options(tile)}


Call = Callable[[Tensor, Factors, Factors, float], Tensor]
# Launches what is prepared: of x, y, the six tensors of the factors and the scale.
Run = Callable[..., None]


def prepare(x: Tensor, down: Factors, up: Factors, activation: str,
            share: int | None = None) -> Call:
    """Work out what the calls with tensors like these have in common.

    Args:
        x: (N, width), or (P, N, width) beside stacked factors.
        down: as in ``reference.adapter.tt_adapter``.
        up: likewise.
        activation: likewise.
        share: tiles of a program where the columns are split over programs, 0 where they are not;
            by default chosen by the shape.

    Returns:
        The call, of x, both factors and the scale, for tensors of the same devices, dtypes, shapes
        and strides, and addresses that are the same modulo 16. Its x may have any shape.
    """
    shape = as_stack(x).shape
    tile = tile_for(padded_rank(down.a.shape[-1], up.a.shape[-1]), shape[-1])
    if share is None:
        share = few_rows.tiles_of_program(
            -(-shape[1] // tile.rows) * shape[0], -(-shape[2] // tile.columns), x.element_size())
    settings = _settings(tile, x, down, up, activation) | {"UP_BIAS": up.bias is not None}
    if share:
        run = _split(shape, tile, share, down, up, settings)
    else:
        run = _whole(shape, tile, down, up, settings)
    ready = is_ready(down) and is_ready(up)

    def call(x: Tensor, down: Factors, up: Factors, scale: float) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        down_a, down_b, down_bias = down if ready else kernel_factors(down)[:3]
        up_a, up_b, up_bias = up if ready else kernel_factors(up)[:3]
        with torch.cuda.device_of(x):
            run(x, y, down_a, down_b, down_b if down_bias is None else down_bias, up_a, up_b,
                up_b if up_bias is None else up_bias, scale)
        return y

    return call


def _whole(shape: torch.Size, tile: Tile, down: Factors, up: Factors,
           settings: dict[str, Any]) -> Run:
    """Prepare :func:`tt_adapter_kernel`, whose programs take whole rows."""
    probes, rows, width = shape
    launch = Prepared(tt_adapter_kernel, grid(-(-rows // tile.rows), probes), settings)
    numbers = (rows, down.a.shape[-1], up.a.shape[-1], width, down.b.shape[-1])
    steps = (*kernel_factors(down)[3:], *kernel_factors(up)[3:])

    def run(*tensors_and_scale: Any) -> None:
        *tensors, scale = tensors_and_scale
        launch(*tensors, *numbers, scale, *steps)

    return run


def _split(shape: torch.Size, tile: Tile, share: int, down: Factors, up: Factors,
           settings: dict[str, Any]) -> Run:
    """Prepare the two kernels of ``few_rows.py``."""
    probes, rows, width = shape
    down_rank = down.a.shape[-1]
    count = -(-width // tile.columns)
    programs = grid(-(-rows // tile.rows), probes, -(-count // share))
    of_high = {"DOWN_BIAS", "UP_BIAS", "ACTIVATION", "BLOCK_MIDDLE"}
    low = Prepared(few_rows.few_rows_low_kernel, programs,
                   {name: value for name, value in settings.items() if name not in of_high})
    high = Prepared(few_rows.few_rows_high_kernel, programs,
                    {**settings, "AHEAD": few_rows.AHEAD})
    numbers = (rows, down_rank, up.a.shape[-1], width, down.b.shape[-1], count, share)
    a_step, *steps = (*kernel_factors(down)[3:], *kernel_factors(up)[3:])

    def run(x: Tensor, y: Tensor, down_a: Tensor, *factors_and_scale: Any) -> None:
        *factors, scale = factors_and_scale
        products = torch.empty((count, probes, rows, down_rank), device=x.device)
        low(x, products, down_a, rows, down_rank, width, share, a_step)
        high(x, y, products, *factors, *numbers, scale, *steps)

    return run


def tt_adapter(x: Tensor, down: Factors, up: Factors, activation: str, scale: float) -> Tensor:
    """Launch the kernels of an adapter; arguments as in ``reference.adapter.tt_adapter``."""
    return prepare(x, down, up, activation)(x, down, up, scale)


def tt_adapter_backward(
        grad: Tensor, x: Tensor, down: Factors, up: Factors, activation: str, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
    """Return the gradients, as ``reference.adapter.tt_adapter_backward`` does."""
    stack, grads = as_stack(x), as_stack(grad.to(x.dtype))
    probes, rows, width = stack.shape
    bottleneck = down.b.shape[-1]
    grad_x = torch.empty_like(stack)
    low, high, grad_low, grad_high, middle, grad_middle = (
        torch.empty((probes, rows, size), device=x.device)
        for size in (down.a.shape[-1], up.a.shape[-1]) * 2 + (bottleneck, bottleneck))
    down_a, down_b, down_bias, *down_steps = kernel_factors(down)
    up_a, up_b, _, *up_steps = kernel_factors(up)
    tile = tile_for(padded_rank(down.a.shape[-1], up.a.shape[-1]), width, backward=True)
    with torch.cuda.device_of(x):
        tt_adapter_backward_kernel[grid(-(-rows // tile.rows), probes)](
            kernel_view(grads), kernel_view(stack), kernel_view(grad_x), low, high, grad_low,
            grad_high, middle, grad_middle, down_a, down_b, down_bias, up_a, up_b, rows,
            down.a.shape[-1], up.a.shape[-1], width, bottleneck, scale, *down_steps, *up_steps[:2],
            **_settings(tile, x, down, up, activation))
        down_a_grad, _ = outer(grad_low, stack)
        down_b_grad, down_sums = outer(low, grad_middle, with_sum=down.bias is not None)
        up_a_grad, _ = outer(grad_high, middle)
        up_b_grad, up_sums = outer(high, grads, scale, with_sum=up.bias is not None)
    return (grad_x.view(x.shape), down_a_grad.mT.reshape(down.a.shape).to(down.a.dtype),
            down_b_grad.view(down.b.shape).to(down.b.dtype), bias_grad(down_sums, down.bias),
            up_a_grad.mT.reshape(up.a.shape).to(up.a.dtype),
            up_b_grad.view(up.b.shape).to(up.b.dtype), bias_grad(up_sums, up.bias))
