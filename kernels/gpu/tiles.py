"""Triton: the device functions and the launch settings that the tensor-train layers share.

A program takes a few rows of x and walks over their columns in tiles. A product with a factor is a
matrix product on the tensor cores with the rank padded to 16, so that factors, which are larger
than a few rows of x, are read once for all rows of a program. The products have float32 accuracy:
plain TF32 would round x and the factors to 11 bits, and the perturbations of the factors can lie
below that.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..plan import Factors
from .arithmetic import INTERPRETED, from_bits, kernel_view, to_bits
from .launch import grid, launch_options, maxnreg
from .variants import Variant

BLOCK_MIDDLE = 16
# Of products: TF32 of heads and rests on NVIDIA, see ``multiply``; AMD multiplies float32.
PRECISION = "ieee" if torch.version.hip else "tf32"
# Rows that one program of the outer product sums up.
OUTER_SPAN = 1024


class Tile(NamedTuple):
    """Rows and columns of a tile of x, warps of a program, and tiles that are loaded ahead."""

    rows: int
    columns: int
    warps: int
    stages: int


# For widths that are multiples of 16, whose tiles are loaded 16 bytes at a time, and for others,
# which need more registers, by the padded rank: the fastest of a dozen on an H100 without spills.
TILES = {True: {16: Tile(32, 64, 2, 3), 32: Tile(32, 32, 4, 2), 64: Tile(32, 32, 8, 2)},
         False: {16: Tile(32, 32, 4, 2), 32: Tile(16, 32, 4, 2), 64: Tile(32, 32, 8, 2)}}
# Of the backward pass, which holds twice as much.
BACKWARD_TILES = {True: {16: Tile(64, 32, 4, 2), 32: Tile(16, 32, 4, 2), 64: Tile(16, 32, 8, 2)},
                  False: {16: Tile(32, 32, 4, 2), 32: Tile(16, 32, 4, 2), 64: Tile(16, 32, 8, 2)}}
# Width of x for which the static report counts the passes of loops.
TYPICAL_WIDTH = 4096
# Of the outer products.
OUTER_TILE = Tile(32, 64, 4, 3)


def tile_for(rank: int, *widths: int, backward: bool = False) -> Tile:
    """Choose the tile of a padded rank and the widths of its rows."""
    choices = BACKWARD_TILES if backward else TILES
    return choices[all(width % 16 == 0 for width in widths)][rank]


def tile_options(tile: Tile) -> dict[str, Any]:
    """Return the options of a launch that works on tiles of x."""
    return {"PRECISION": PRECISION, "BLOCK_ROWS": tile.rows, "BLOCK_COLUMNS": tile.columns,
            "enable_fp_fusion": True, "num_stages": tile.stages, **launch_options(tile.warps)}


def padded_rank(*ranks: int) -> int:
    """Return the power of two of at least 16, the least of a product, that holds the ranks."""
    return max(16, 1 << (max(ranks) - 1).bit_length())


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


def is_ready(factors: Factors) -> bool:
    """Say whether :func:`kernel_factors` changes nothing but views, so that addresses stay."""
    views = kernel_factors(factors)[:3]
    return all(value is None or value.data_ptr() == view.data_ptr()
               for value, view in zip(factors, views, strict=True))


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


def _tiles(start, stop, step):
    """Count in the interpreter; its tensors are no bounds of a range before triton 3.9."""
    return range(start, int(stop.handle.data.item()) if hasattr(stop, "handle") else stop, step)


# The compiler loads tiles ahead in loops over a range, not in others.
tiles = _tiles if INTERPRETED else tl.range


@triton.jit
def _split(value):
    """Return float32 rounded to the 11 bits that TF32 holds, and the rest of at most 12 bits."""
    head = ((value.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
    return head, value - head


@triton.jit
def multiply(a, b, A_SHORT: tl.constexpr, B_SHORT: tl.constexpr, PRECISION: tl.constexpr):
    """Return a b with float32 accuracy, for a sum that is kept outside.

    Of the four products of heads and rests three matter: what is left out of a product of two
    numbers is at most 4 * 2**-23 of its size.

    Tensor cores cut off what they add to an accumulator instead of rounding it, which over the
    thousands of columns of x would cost 5 bits; so each tile has an accumulator of its own.

    Args:
        a: float32 (rows, k).
        b: float32 (k, columns).
        A_SHORT: a was widened from 16 bits, so that it is its own head.
        B_SHORT: b was.
        PRECISION: ``"tf32"``, or ``"ieee"`` for float32 products of the hardware.
    """
    if PRECISION == "tf32":
        if A_SHORT:
            b_head, b_rest = _split(b)
            product = tl.dot(a, b_rest, input_precision="tf32")
            product = tl.dot(a, b_head, product, input_precision="tf32")
        elif B_SHORT:
            a_head, a_rest = _split(a)
            product = tl.dot(a_rest, b, input_precision="tf32")
            product = tl.dot(a_head, b, product, input_precision="tf32")
        else:
            a_head, a_rest = _split(a)
            b_head, b_rest = _split(b)
            product = tl.dot(a_rest, b_head, input_precision="tf32")
            product = tl.dot(a_head, b_rest, product, input_precision="tf32")
            product = tl.dot(a_head, b_head, product, input_precision="tf32")
        return product
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def contract(hidden, x, factor_ptr, rank, width, column, SHORT: tl.constexpr, RANK: tl.constexpr,
             PRECISION: tl.constexpr):
    """Return hidden + x F^T for the columns of a tile: F is (rank, width), float32."""
    index = tl.arange(0, RANK)
    factor = tl.load(factor_ptr + index[None, :] * width + column[:, None],
                     mask=(index < rank)[None, :] & (column < width)[:, None], other=0.0)
    return hidden + multiply(x, factor, SHORT, False, PRECISION)


@triton.jit
def contract_rows(x_ptr, a_ptr, row, rows, rank, width, BFLOAT16: tl.constexpr, RANK: tl.constexpr,
                  PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Return x A of some rows (int64) of a probe; x is (rows, width), a_ptr holds A transposed."""
    SHORT: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    x_row = x_ptr + row[:, None] * width
    step = tl.arange(0, BLOCK_COLUMNS)
    hidden = tl.zeros((BLOCK_ROWS, RANK), dtype=tl.float32)
    for start in tiles(0, width, BLOCK_COLUMNS):
        column = start + step
        x = load_tile(x_row + column[None, :],
                      (row < rows)[:, None] & (column < width)[None, :], BFLOAT16)
        hidden = contract(hidden, x, a_ptr, rank, width, column, SHORT, RANK, PRECISION)
    return hidden


@triton.jit
def expand(total, hidden, factor_ptr, rank, width, column, RANK: tl.constexpr,
           PRECISION: tl.constexpr):
    """Return total + hidden F for the columns of a tile: F is (rank, width), float32."""
    index = tl.arange(0, RANK)
    factor = tl.load(factor_ptr + index[:, None] * width + column[None, :],
                     mask=(index < rank)[:, None] & (column < width)[None, :], other=0.0)
    return total + multiply(hidden, factor, False, False, PRECISION)


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
                 PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
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
        RANK: rank padded to a power of two, see ``padded_rank``.
        PRECISION: of products, see ``PRECISION``.
        BLOCK_ROWS: rows in one step.
        BLOCK_COLUMNS: columns of one program.
    """
    probe = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    index = tl.arange(0, RANK)
    SHORT: tl.constexpr = right_ptr.dtype.element_ty != tl.float32
    left = left_ptr + probe * rows * rank
    right = right_ptr + probe * rows * width
    total = tl.zeros((RANK, BLOCK_COLUMNS), dtype=tl.float32)
    sums = tl.zeros((BLOCK_COLUMNS,), dtype=tl.float32)
    begin = part * span
    end = tl.minimum(begin + span, rows)
    for first in tiles(begin, end, BLOCK_ROWS):
        row = (first + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        low = tl.load(left + row[None, :] * rank + index[:, None],
                      mask=(row < end)[None, :] & (index < rank)[:, None], other=0.0)
        inside = (row < end)[:, None] & (column < width)[None, :]
        high = load_tile(right + row[:, None] * width + column[None, :], inside, BFLOAT16)
        total += multiply(low, high, False, SHORT, PRECISION)
        if SUM:
            sums += tl.sum(high, axis=0)
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
    span = -(-min(rows, OUTER_SPAN) // OUTER_TILE.rows) * OUTER_TILE.rows
    parts = -(-rows // span)
    out = torch.empty((parts, probes, rank, width), device=left.device)
    sums = torch.empty((parts, probes, width), device=left.device) if with_sum else out
    outer_kernel[grid(-(-width // OUTER_TILE.columns), probes, parts)](
        left, kernel_view(right), out, sums, rows, rank, width, span, scale, SUM=with_sum,
        BFLOAT16=right.dtype == torch.bfloat16, RANK=padded_rank(rank), **tile_options(OUTER_TILE))
    # Partial sums, added in a fixed order: atomics would not give the same bits every time.
    return (out[0], sums[0]) if parts == 1 else (out.sum(0), sums.sum(0) if with_sum else sums)


def tile_variant(name: str, kernel: Any, signature: dict[str, str], constants: dict[str, Any],
                 tile: Tile, **details: Any) -> Variant:
    """Describe a launch with :func:`tile_options`."""
    return Variant(name, kernel, signature,
                   {"PRECISION": "tf32", "BLOCK_ROWS": tile.rows, "BLOCK_COLUMNS": tile.columns,
                    **constants},
                   num_warps=tile.warps, num_stages=tile.stages, maxnreg=maxnreg(tile.warps),
                   fusion=True, **details)


def variants() -> Iterator[Variant]:
    """Every configuration of the outer product that its launcher can choose."""
    types = (("float32", "*fp32"), ("bfloat16", "*i16"), ("float16", "*fp16"))
    for (dtype, pointer), rank, with_sum, even in product(types, (16, 32, 64), (True, False),
                                                          (True, False)):
        yield tile_variant(
            f"outer/{dtype}/rank {rank}/{'sum' if with_sum else 'no sum'}/"
            f"{'even' if even else 'odd'}", outer_kernel,
            {"left_ptr": "*fp32", "right_ptr": pointer, "out_ptr": "*fp32", "sum_ptr": "*fp32",
             "scale": "fp32", **dict.fromkeys(("rows", "rank", "width", "span"), "i32")},
            {"SUM": with_sum, "BFLOAT16": dtype == "bfloat16", "RANK": rank}, OUTER_TILE,
            elements=OUTER_SPAN * OUTER_TILE.columns,
            traffic={dtype: 4.0 if dtype == "float32" else 2.0},
            divisible=("left_ptr", "right_ptr", "out_ptr", "sum_ptr",
                       *(("width",) if even else ())),
            loops=(OUTER_SPAN // OUTER_TILE.rows,))
