"""Triton: y + s (x A) B, the forward pass of a weight matrix with a low-rank term in one kernel."""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import kernel_view
from .launch import grid
from .tiles import (
    TILES,
    TYPICAL_WIDTH,
    contract_rows,
    expand,
    load_tile,
    padded_rank,
    store_tile,
    tile_for,
    tile_options,
    tile_variant,
    tiles,
)
from .variants import Variant


@triton.jit(do_not_specialize=["rows", "scale"])
def low_rank_add_kernel(x_ptr, a_ptr, b_ptr, y_ptr, out_ptr, rows, rank, in_features,
                        out_features, a_step, b_step, scale, BFLOAT16: tl.constexpr,
                        RANK: tl.constexpr, PRECISION: tl.constexpr,
                        BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Compute y + scale (x A) B for the rows of each probe.

    One program handles BLOCK_ROWS rows of one probe and keeps x A in float32 registers, so x and y
    are read once and the result is written once.

    Args:
        x_ptr: pointer to (P, rows, in_features), float32, float16 or the int16 bits of bfloat16.
        a_ptr: pointer to float32 (rank, in_features) of the first probe, A transposed.
        b_ptr: pointer to float32 (rank, out_features) of the first probe.
        y_ptr: pointer to (P, rows, out_features), the dtype of x.
        out_ptr: pointer to the result, likewise.
        rows: rows of x per probe.
        rank: inner dimension of the term.
        in_features: width of x.
        out_features: width of y.
        a_step: elements from one probe's A to the next, 0 if they share it.
        b_step: of B.
        scale: factor on the term.
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
    place = (probe * rows + row)[:, None] * out_features
    hidden = hidden * scale
    for start in tiles(0, out_features, BLOCK_COLUMNS):
        column = start + step
        inside = (row < rows)[:, None] & (column < out_features)[None, :]
        delta = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
        delta = expand(delta, hidden, b_ptr + probe * b_step, rank, out_features, column, RANK,
                       PRECISION)
        y = load_tile(y_ptr + place + column[None, :], inside, BFLOAT16)
        store_tile(out_ptr + place + column[None, :], y + delta, inside, BFLOAT16)


def low_rank_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Launch :func:`low_rank_add_kernel`; arguments as in ``reference.low_rank_add``."""
    probes, rows, out_features = y.shape
    rank, in_features = a.shape[-1], x.shape[-1]
    x, y = x.contiguous(), y.contiguous()
    a, b = a.mT.float().contiguous(), b.float().contiguous()
    out = torch.empty_like(y)
    tile = tile_for(padded_rank(rank), in_features, out_features)
    with torch.cuda.device_of(x):
        low_rank_add_kernel[grid(-(-rows // tile.rows), probes)](
            kernel_view(x), a, b, kernel_view(y), kernel_view(out), rows, rank, in_features,
            out_features, a.stride(0) if a.dim() == 3 else 0, b.stride(0) if b.dim() == 3 else 0,
            scale, BFLOAT16=y.dtype == torch.bfloat16, RANK=padded_rank(rank),
            **tile_options(tile))
    return out


def variants() -> Iterator[Variant]:
    """Every configuration that the launcher can choose, of even and odd widths."""
    types = (("float32", "*fp32"), ("bfloat16", "*i16"), ("float16", "*fp16"))
    widths = ("in_features", "out_features", "a_step", "b_step")
    for (dtype, pointer), rank, even in product(types, (1, 16, 32, 64), (True, False)):
        known = {} if rank > 1 else {"rank": 1}
        tile = TILES[even][padded_rank(rank)]
        passes = TYPICAL_WIDTH // tile.columns
        yield tile_variant(
            f"low_rank_add/{dtype}/rank {rank}/{'even' if even else 'odd'}", low_rank_add_kernel,
            {"x_ptr": pointer, "a_ptr": "*fp32", "b_ptr": "*fp32", "y_ptr": pointer,
             "out_ptr": pointer, "scale": "fp32",
             **dict.fromkeys({"rows", "rank", *widths} - set(known), "i32")},
            {"BFLOAT16": dtype == "bfloat16", "RANK": padded_rank(rank), **known}, tile,
            elements=tile.rows * TYPICAL_WIDTH,
            traffic={dtype: 12.0 if dtype == "float32" else 6.0},
            divisible=("x_ptr", "a_ptr", "b_ptr", "y_ptr", "out_ptr", *(widths if even else ())),
            loops=(passes, passes))
