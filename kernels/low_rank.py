"""Triton: the device functions and the launch settings that the tensor-train layers share.

A tile of x (rows, columns) and the hidden values (rows, rank) lie in registers; a product with a
factor is a loop over the rank, one row of the factor at a time. For ranks this small that takes
fewer instructions than ``tl.dot``, which pads the rank to 16. And it is float32 throughout:
TF32 would round x and the factors to 11 bits, and the perturbations of the factors can lie below
that.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bfloat16 import from_bits, kernel_view, to_bits
from .factor_plan import Factors
from .variants import Variant

BLOCK_MIDDLE = 64
# Width of a tile: (rows, warps), so that a thread holds 32 elements of x, or 16 of small tiles:
# those of float32 and of the backward pass, where more would not fit in registers. A width up to
# the last is one tile: x is read once and kept in registers.
TILES = {256: (16, 4), 512: (16, 8), 1024: (8, 8), 2048: (4, 8), 4096: (2, 8), 8192: (1, 8)}
SMALL_TILES = {256: (8, 4), 512: (8, 8), 1024: (4, 8), 2048: (2, 8), 4096: (1, 8), 8192: (1, 16)}
WIDE_TILE = 2048
# Instead of so many warps, on AMD: 16 wavefronts of 64 threads leave a thread only 128 registers.
WAVEFRONTS = {16: 8}
OUTER_ROWS, OUTER_COLUMNS, OUTER_WARPS = 32, 64, 4
# Rows that one program of the outer product sums up.
OUTER_SPAN = 1024


class Tile(NamedTuple):
    """Launch settings for rows of one width."""

    columns: int
    rows: int
    warps: int
    held: bool


def tile_for(width: int, *, small: bool = False) -> Tile:
    """Choose the tile of a width."""
    tiles = SMALL_TILES if small else TILES
    held = width <= max(TILES)
    columns = max(min(TILES), triton.next_power_of_2(width)) if held else WIDE_TILE
    return Tile(columns, *tiles[columns], held)


def maxnreg(warps: int) -> int:
    """Return how many registers each thread of a program can have on NVIDIA GPUs.

    Where no limit is stated, the assembler spills a few registers to let one more program run
    beside; a stated one keeps it from that.
    """
    return min(255, (1 << 16) // (32 * warps))


def launch_options(warps: int) -> dict[str, int]:
    """Return the options of a launch with so many warps."""
    if torch.version.hip:
        return {"num_warps": WAVEFRONTS.get(warps, warps)}
    return {"num_warps": warps, "maxnreg": maxnreg(warps)}


def padded_rank(*ranks: int) -> int:
    """Return the power of two that holds the hidden values."""
    return max(8, *(triton.next_power_of_2(rank) for rank in ranks))


def kernel_factors(factors: Factors) -> tuple[Tensor, Tensor, Tensor, int, int, int]:
    """Return A transposed, B and the bias (B where there is none) and their steps per probe.

    Within a probe each is contiguous float32, A as (R, in) and B as (R, out).
    """
    a, b = (_rows(value.detach().float()) for value in (factors.a.mT, factors.b))
    if factors.bias is None:
        return a, b, b, _step(a, 3), _step(b, 3), 0
    bias = factors.bias.detach().float()
    bias = bias if bias.stride(-1) == 1 else bias.contiguous()
    return a, b, bias, _step(a, 3), _step(b, 3), _step(bias, 2)


def _rows(matrix: Tensor) -> Tensor:
    dense = matrix.stride()[-2:] == (matrix.shape[-1], 1)
    return matrix if dense else matrix.contiguous()


def _step(tensor: Tensor, stacked: int) -> int:
    return tensor.stride(0) if tensor.dim() == stacked else 0


@triton.jit
def load_tile(pointer, inside, BFLOAT16: tl.constexpr):
    """Load elements as float32, zero outside."""
    if BFLOAT16:
        return from_bits(tl.load(pointer, mask=inside, other=0))
    else:
        return tl.load(pointer, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_tile(pointer, value, inside, BFLOAT16: tl.constexpr):
    """Store float32 elements, rounded to the dtype of the pointer."""
    if BFLOAT16:
        tl.store(pointer, to_bits(value), mask=inside)
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def contract(hidden, x, factor_ptr, rank, width, column, RANK: tl.constexpr):
    """Return hidden + x F^T for the columns of a tile: F is (rank, width), float32."""
    index = tl.arange(0, RANK)
    inside = column < width
    r = 0
    while r < rank:
        row = tl.load(factor_ptr + r * width + column, mask=inside, other=0.0)
        value = tl.sum(x * row[None, :], axis=1)
        hidden = tl.where(index[None, :] == r, hidden + value[:, None], hidden)
        r += 1
    return hidden


@triton.jit
def contract_rows(x_ptr, a_ptr, row, rows, rank, width, BFLOAT16: tl.constexpr, RANK: tl.constexpr,
                  BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Return x A of some rows (int64) of a probe; x is (rows, width), a_ptr holds A transposed."""
    x_row = x_ptr + row[:, None] * width
    step = tl.arange(0, BLOCK_COLUMNS)
    hidden = tl.zeros((BLOCK_ROWS, RANK), dtype=tl.float32)
    start = 0
    while start < width:
        column = start + step
        x = load_tile(x_row + column[None, :],
                      (row < rows)[:, None] & (column < width)[None, :], BFLOAT16)
        hidden = contract(hidden, x, a_ptr, rank, width, column, RANK)
        start += BLOCK_COLUMNS
    return hidden


@triton.jit
def expand(total, hidden, factor_ptr, rank, width, column, RANK: tl.constexpr):
    """Return total + hidden F for the columns of a tile: F is (rank, width), float32."""
    index = tl.arange(0, RANK)
    inside = column < width
    r = 0
    while r < rank:
        row = tl.load(factor_ptr + r * width + column, mask=inside, other=0.0)
        weight = tl.sum(tl.where(index[None, :] == r, hidden, 0.0), axis=1)
        total += weight[:, None] * row[None, :]
        r += 1
    return total


@triton.jit
def store_hidden(pointer, hidden, row, rows, rank, RANK: tl.constexpr):
    """Store (rows, rank) of one probe."""
    index = tl.arange(0, RANK)
    tl.store(pointer + row[:, None] * rank + index[None, :], hidden,
             mask=(row < rows)[:, None] & (index < rank)[None, :])


@triton.jit
def tanh(x):
    """Hyperbolic tangent, within 2e-7 of its size; the quotient loses its digits near zero."""
    square = x * x
    series = x * (1.0 + square * (-0.3333333333 + square * (
        0.1333333333 + square * (-0.0539682540 + square * 0.0218694885))))
    size = tl.abs(x)
    decay = tl.exp(-2.0 * size)
    ratio = (1.0 - decay) / (1.0 + decay)
    return tl.where(size < 0.3, series, tl.where(x < 0, -ratio, ratio))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Return phi(x)."""
    if ACTIVATION == "relu":
        y = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        y = 0.5 * x * (1.0 + tanh(0.7978845608028654 * x * (1.0 + 0.044715 * x * x)))
    elif ACTIVATION == "silu":
        y = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "tanh":
        y = tanh(x)
    else:
        y = x
    return y


@triton.jit
def slope(x, ACTIVATION: tl.constexpr):
    """Return phi'(x)."""
    if ACTIVATION == "relu":
        y = tl.where(x > 0, 1.0, 0.0)
    elif ACTIVATION == "gelu":
        density = tl.exp(-0.5 * x * x) * 0.3989422804014327
        y = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density
    elif ACTIVATION == "gelu_tanh":
        t = tanh(0.7978845608028654 * x * (1.0 + 0.044715 * x * x))
        inner = 0.7978845608028654 * (1.0 + 0.134145 * x * x)
        y = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
    elif ACTIVATION == "silu":
        s = 1.0 / (1.0 + tl.exp(-x))
        y = s * (1.0 + x * (1.0 - s))
    elif ACTIVATION == "tanh":
        t = tanh(x)
        y = 1.0 - t * t
    else:
        y = x * 0.0 + 1.0
    return y


@triton.jit(do_not_specialize=["rows", "span", "scale"])
def outer_kernel(left_ptr, right_ptr, out_ptr, sum_ptr, rows, rank, width, span, scale,
                 SUM: tl.constexpr, BFLOAT16: tl.constexpr, RANK: tl.constexpr,
                 BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Compute scale L^T R, and scale times the sum of the rows of R, for a part of the rows.

    Args:
        left_ptr: pointer to float32 (P, rows, rank), L.
        right_ptr: pointer to (P, rows, width), R, float32, float16 or the bits of bfloat16.
        out_ptr: pointer to float32 (parts, P, rank, width).
        sum_ptr: pointer to float32 (parts, P, width).
        rows: rows per probe.
        rank: width of L.
        width: width of R.
        span: rows of one part, a multiple of BLOCK_ROWS.
        scale: float32 factor.
        SUM: whether sum_ptr is written.
        BFLOAT16: R is bfloat16.
        RANK: rank padded to a power of two of at least 16, the least that tl.dot takes.
        BLOCK_ROWS: rows in one step.
        BLOCK_COLUMNS: columns of one program.
    """
    probe = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    index = tl.arange(0, RANK)
    left = left_ptr + probe * rows * rank
    right = right_ptr + probe * rows * width
    total = tl.zeros((RANK, BLOCK_COLUMNS), dtype=tl.float32)
    sums = tl.zeros((BLOCK_COLUMNS,), dtype=tl.float32)
    begin = part * span
    end = tl.minimum(begin + span, rows)
    while begin < end:
        row = (begin + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        low = tl.load(left + row[None, :] * rank + index[:, None],
                      mask=(row < end)[None, :] & (index < rank)[:, None], other=0.0)
        inside = (row < end)[:, None] & (column < width)[None, :]
        high = load_tile(right + row[:, None] * width + column[None, :], inside, BFLOAT16)
        # TF32 would round to 11 bits.
        total = tl.dot(low, high, total, input_precision="ieee")
        if SUM:
            sums += tl.sum(high, axis=0)
        begin += BLOCK_ROWS
    place = part * tl.num_programs(1) + probe
    tl.store(out_ptr + place * rank * width + index[:, None] * width + column[None, :],
             total * scale, mask=(index < rank)[:, None] & (column < width)[None, :])
    if SUM:
        tl.store(sum_ptr + place * width + column, sums * scale, mask=column < width)


def outer(left: Tensor, right: Tensor, scale: float = 1.0, *,
          with_sum: bool = False) -> tuple[Tensor, Tensor]:
    """Launch :func:`outer_kernel`: scale L^T R of each probe, and scale times R's sum of rows.

    Args:
        left: float32 (P, N, R), contiguous.
        right: (P, N, width), contiguous.
        scale: factor on both.
        with_sum: whether the sum is needed; if not, the second result is meaningless.

    Returns:
        float32 (P, R, width) and (P, width).
    """
    probes, rows, rank = left.shape
    width = right.shape[-1]
    span = -(-min(rows, OUTER_SPAN) // OUTER_ROWS) * OUTER_ROWS
    parts = triton.cdiv(rows, span)
    out = torch.empty((parts, probes, rank, width), device=left.device)
    sums = torch.empty((parts, probes, width), device=left.device) if with_sum else out
    outer_kernel[(triton.cdiv(width, OUTER_COLUMNS), probes, parts)](
        left, kernel_view(right), out, sums, rows, rank, width, span, scale, SUM=with_sum,
        BFLOAT16=right.dtype == torch.bfloat16, RANK=max(16, triton.next_power_of_2(rank)),
        BLOCK_ROWS=OUTER_ROWS, BLOCK_COLUMNS=OUTER_COLUMNS, enable_fp_fusion=True,
        **launch_options(OUTER_WARPS))
    # Partial sums, added in a fixed order: atomics would not give the same bits every time.
    return (out[0], sums[0]) if parts == 1 else (out.sum(0), sums.sum(0) if with_sum else sums)


def variants() -> Iterator[Variant]:
    """Every configuration of the outer product that its launcher can choose."""
    types = (("float32", "*fp32"), ("bfloat16", "*i16"), ("float16", "*fp16"))
    for (dtype, pointer), rank, with_sum, even in product(types, (16, 32, 64), (True, False),
                                                          (True, False)):
        yield Variant(
            f"outer/{dtype}/rank {rank}/{'sum' if with_sum else 'no sum'}/"
            f"{'even' if even else 'odd'}", outer_kernel,
            {"left_ptr": "*fp32", "right_ptr": pointer, "out_ptr": "*fp32", "sum_ptr": "*fp32",
             "scale": "fp32", **dict.fromkeys(("rows", "rank", "width", "span"), "i32")},
            {"SUM": with_sum, "BFLOAT16": dtype == "bfloat16", "RANK": rank,
             "BLOCK_ROWS": OUTER_ROWS, "BLOCK_COLUMNS": OUTER_COLUMNS},
            elements=OUTER_SPAN * OUTER_COLUMNS, num_warps=OUTER_WARPS,
            maxnreg=maxnreg(OUTER_WARPS), fusion=True,
            traffic={dtype: 4.0 if dtype == "float32" else 2.0},
            divisible=("left_ptr", "right_ptr", "out_ptr", "sum_ptr",
                       *(("width",) if even else ())),
            loops=(OUTER_SPAN // OUTER_ROWS,))
