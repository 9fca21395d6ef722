"""Triton: y = (x A) B + bias and its gradients. Twins: ``reference/layers.py``."""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..plan import Factors
from .arithmetic import kernel_view
from .launch import grid
from .tiles import (
    TILES,
    TYPICAL_WIDTH,
    contract_rows,
    expand,
    kernel_factors,
    outer,
    padded_rank,
    store_hidden,
    store_tile,
    tile_for,
    tile_options,
    tile_variant,
    tiles,
)
from .variants import Variant


@triton.jit(do_not_specialize=["rows"])
def tt_apply_kernel(x_ptr, a_ptr, b_ptr, bias_ptr, y_ptr, hidden_ptr, rows, rank, in_features,
                    out_features, a_step, b_step, bias_step, BIAS: tl.constexpr,
                    OUTPUT: tl.constexpr, HIDDEN: tl.constexpr, BFLOAT16: tl.constexpr,
                    RANK: tl.constexpr, PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                    BLOCK_COLUMNS: tl.constexpr):
    """Compute H = x A and y = H B + bias for the rows of each probe.

    One program handles BLOCK_ROWS rows of one probe and keeps H in float32 registers.

    Args:
        x_ptr: pointer to (P, rows, in_features), float32, float16 or the int16 bits of bfloat16.
        a_ptr: pointer to float32 (rank, in_features) of the first probe, A transposed.
        b_ptr: pointer to float32 (rank, out_features) of the first probe.
        bias_ptr: pointer to float32 (out_features,) of the first probe.
        y_ptr: pointer to (P, rows, out_features), the dtype of x.
        hidden_ptr: pointer to float32 (P, rows, rank).
        rows: rows of x per probe.
        rank: rank at the cut.
        in_features: width of x.
        out_features: width of y.
        a_step: elements from one probe's A to the next, 0 if they share it; so the others.
        b_step: of B.
        bias_step: of the bias.
        BIAS: whether there is a bias.
        OUTPUT: whether y is written.
        HIDDEN: whether H is written.
        BFLOAT16: x and y are bfloat16.
        RANK: rank padded to a power of two.
        PRECISION: of products, see ``low_rank.PRECISION``.
        BLOCK_ROWS: rows of one program.
        BLOCK_COLUMNS: columns of x or y in one step.
    """
    probe = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    step = tl.arange(0, BLOCK_COLUMNS)
    hidden = contract_rows(x_ptr + probe * rows * in_features, a_ptr + probe * a_step, row, rows,
                           rank, in_features, BFLOAT16, RANK, PRECISION, BLOCK_ROWS, BLOCK_COLUMNS)
    if HIDDEN:
        store_hidden(hidden_ptr + probe * rows * rank, hidden, row, rows, rank, RANK)
    if OUTPUT:
        y_row = y_ptr + (probe * rows + row)[:, None] * out_features
        for start in tiles(0, out_features, BLOCK_COLUMNS):
            column = start + step
            inside = column < out_features
            y = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
            if BIAS:
                y += tl.load(bias_ptr + probe * bias_step + column, mask=inside,
                             other=0.0)[None, :]
            y = expand(y, hidden, b_ptr + probe * b_step, rank, out_features, column, RANK,
                       PRECISION)
            store_tile(y_row + column[None, :], y, (row < rows)[:, None] & inside[None, :],
                       BFLOAT16)


def _launch(x: Tensor, factors: Factors, *, output: bool = True,
            hidden: bool = False) -> tuple[Tensor, Tensor]:
    """Compute y and H = x A for contiguous x (P, N, in); what is not asked for is meaningless."""
    probes, rows, in_features = x.shape
    rank, out_features = factors.b.shape[-2:]
    a, b, bias, *steps = kernel_factors(factors)
    y = torch.empty((probes, rows, out_features), dtype=x.dtype, device=x.device) if output else x
    kept = torch.empty((probes, rows, rank), device=x.device) if hidden else b
    tile = tile_for(padded_rank(rank), in_features, out_features)
    tt_apply_kernel[grid(-(-rows // tile.rows), probes)](
        kernel_view(x), a, b, bias, kernel_view(y), kept, rows, rank, in_features, out_features,
        *steps, BIAS=factors.bias is not None, OUTPUT=output, HIDDEN=hidden,
        BFLOAT16=x.dtype == torch.bfloat16, RANK=padded_rank(rank),
        **tile_options(tile))
    return y, kept


def as_stack(x: Tensor) -> Tensor:
    """Return (N, n) or (P, N, n) as contiguous (P, N, n)."""
    x = x.detach().contiguous()
    return x if x.dim() == 3 else x[None]


def bias_grad(grad: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return the gradient of a bias from its gradients (P, out) per probe."""
    if bias is None:
        return None
    return (grad.sum(0) if bias.dim() == 1 else grad).to(bias.dtype)


def tt_apply(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Launch :func:`tt_apply_kernel`; arguments as in ``reference.layers.tt_apply``."""
    with torch.cuda.device_of(x):
        y, _ = _launch(as_stack(x), Factors(a, b, bias))
    return y.view(*x.shape[:-1], b.shape[-1])


def tt_apply_backward(grad: Tensor, x: Tensor, a: Tensor, b: Tensor,
                      bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients; arguments and formulas as in ``reference.layers.tt_apply_backward``."""
    rows, grads = as_stack(x), as_stack(grad)
    with torch.cuda.device_of(x):
        grad_x, low = _launch(grads, Factors(b.mT, a.mT), hidden=True)
        _, hidden = _launch(rows, Factors(a, b), output=False, hidden=True)
        grad_a, _ = outer(low, rows)
        grad_b, sums = outer(hidden, grads, with_sum=bias is not None)
    return (grad_x.view(x.shape), grad_a.mT.reshape(a.shape).to(a.dtype),
            grad_b.view(b.shape).to(b.dtype), bias_grad(sums, bias))


def variants() -> Iterator[Variant]:
    """Every configuration that the launcher can choose, of even and odd widths.

    Rank 1 is one of its own, because triton compiles the value 1 in.
    """
    types = (("float32", "*fp32"), ("bfloat16", "*i16"), ("float16", "*fp16"))
    kinds = {"bias": (True, True, False), "no bias": (False, True, False),
             "with hidden": (False, True, True), "hidden": (False, False, True)}
    widths = ("in_features", "out_features", "a_step", "b_step", "bias_step")
    for (dtype, pointer), rank, kind, even in product(
            types, (1, 16, 32, 64), kinds, (True, False)):
        bias, output, hidden = kinds[kind]
        known = {} if rank > 1 else {"rank": 1}
        tile = TILES[even][padded_rank(rank)]
        passes = TYPICAL_WIDTH // tile.columns
        yield tile_variant(
            f"tt_apply/{dtype}/rank {rank}/{kind}/{'even' if even else 'odd'}",
            tt_apply_kernel,
            {"x_ptr": pointer, "a_ptr": "*fp32", "b_ptr": "*fp32", "bias_ptr": "*fp32",
             "y_ptr": pointer, "hidden_ptr": "*fp32",
             **dict.fromkeys({"rows", "rank", *widths} - set(known), "i32")},
            {"BIAS": bias, "OUTPUT": output, "HIDDEN": hidden, "BFLOAT16": dtype == "bfloat16",
             "RANK": padded_rank(rank), **known}, tile, elements=tile.rows * TYPICAL_WIDTH,
            traffic={dtype: (4.0 if dtype == "float32" else 2.0) * (1 + output)},
            divisible=("x_ptr", "a_ptr", "b_ptr", "bias_ptr", "y_ptr", "hidden_ptr",
                       *(widths if even else ())),
            loops=(passes, passes) if output else (passes,))
