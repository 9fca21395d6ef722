"""Triton: y + s (x A) B, the forward pass of a weight matrix with a low-rank term in one kernel."""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bfloat16 import kernel_view
from .low_rank import (
    TILES,
    WAVEFRONTS,
    contract_rows,
    expand,
    launch_options,
    load_tile,
    maxnreg,
    padded_rank,
    store_tile,
    tile_for,
)
from .variants import Variant


@triton.jit(do_not_specialize=["rows", "scale"])
def low_rank_add_kernel(x_ptr, a_ptr, b_ptr, y_ptr, out_ptr, rows, rank, in_features,
                        out_features, a_step, b_step, scale, BFLOAT16: tl.constexpr,
                        RANK: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                        BLOCK_COLUMNS: tl.constexpr):
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
        BLOCK_ROWS: rows of one program.
        BLOCK_COLUMNS: columns of x or y in one step.
    """
    probe = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    step = tl.arange(0, BLOCK_COLUMNS)
    hidden = contract_rows(x_ptr + probe * rows * in_features, a_ptr + probe * a_step, row, rows,
                           rank, in_features, BFLOAT16, RANK, BLOCK_ROWS, BLOCK_COLUMNS)
    place = (probe * rows + row)[:, None] * out_features
    hidden = hidden * scale
    start = 0
    while start < out_features:
        column = start + step
        inside = (row < rows)[:, None] & (column < out_features)[None, :]
        delta = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
        delta = expand(delta, hidden, b_ptr + probe * b_step, rank, out_features, column, RANK)
        y = load_tile(y_ptr + place + column[None, :], inside, BFLOAT16)
        store_tile(out_ptr + place + column[None, :], y + delta, inside, BFLOAT16)
        start += BLOCK_COLUMNS


def low_rank_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Launch :func:`low_rank_add_kernel`; arguments as in ``subspace_reference.low_rank_add``."""
    probes, rows, out_features = y.shape
    rank, in_features = a.shape[-1], x.shape[-1]
    x, y = x.contiguous(), y.contiguous()
    a, b = a.mT.float().contiguous(), b.float().contiguous()
    out = torch.empty_like(y)
    tile = tile_for(max(in_features, out_features), small=x.dtype == torch.float32)
    with torch.cuda.device_of(x):
        low_rank_add_kernel[(triton.cdiv(rows, tile.rows), probes)](
            kernel_view(x), a, b, kernel_view(y), kernel_view(out), rows, rank, in_features,
            out_features, a.stride(0) if a.dim() == 3 else 0, b.stride(0) if b.dim() == 3 else 0,
            scale, BFLOAT16=y.dtype == torch.bfloat16, RANK=padded_rank(rank),
            BLOCK_ROWS=tile.rows, BLOCK_COLUMNS=tile.columns, enable_fp_fusion=True,
            **launch_options(tile.warps))
    return out


def variants() -> Iterator[Variant]:
    """Every configuration that the launcher can choose, from a tile's width to itself."""
    types = (("float32", "*fp32"), ("bfloat16", "*i16"), ("float16", "*fp16"))
    for (dtype, pointer), width, rank in product(types, TILES, (8, 16, 32, 64)):
        tile = tile_for(width, small=dtype == "float32")
        yield Variant(
            f"low_rank_add/{dtype}/width {width}/rank {rank}", low_rank_add_kernel,
            {"x_ptr": pointer, "a_ptr": "*fp32", "b_ptr": "*fp32", "y_ptr": pointer,
             "out_ptr": pointer, "scale": "fp32",
             **dict.fromkeys(("rows", "rank", "in_features", "out_features", "a_step", "b_step"),
                             "i32")},
            {"BFLOAT16": dtype == "bfloat16", "RANK": rank, "BLOCK_ROWS": tile.rows,
             "BLOCK_COLUMNS": tile.columns},
            elements=tile.rows * width, num_warps=tile.warps,
            wavefronts=WAVEFRONTS.get(tile.warps, 0), maxnreg=maxnreg(tile.warps), fusion=True,
            traffic={dtype: 12.0 if dtype == "float32" else 6.0},
            divisible=("x_ptr", "a_ptr", "b_ptr", "y_ptr", "out_ptr", "in_features",
                       "out_features", "a_step", "b_step"),
            loops=(1, 1, rank, rank))
