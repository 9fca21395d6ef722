"""Triton: an adapter on few rows, whose columns are split over programs.

A program of ``tt_adapter_kernel`` walks over all columns of its rows, twice, so that 256 rows are
8 programs on a GPU of 132 SMs, and a call takes as long as one program lives. Here a first kernel
multiplies tiles of x by those of A, and a second one adds the products up in the order of the
tiles, makes the bottleneck again in each program, which is little, and writes its own columns. The
sums are those of ``tt_adapter_kernel``, in its order, so the bits do not depend on the number of
rows that are given (on AMD, where the compiler adds a product to the sum before it in one
operation, they may in the last bit).
"""

from collections.abc import Iterator
from itertools import product

import triton
import triton.language as tl

from ..reference.adapter import ACTIVATIONS
from .adapter_kernels import BIASES, DTYPES, bottleneck_rows, write_sums
from .tiles import (
    BLOCK_MIDDLE,
    TILES,
    TYPICAL_WIDTH,
    contract,
    load_tile,
    padded_rank,
    store_hidden,
    tile_variant,
    tiles,
)
from .variants import Variant

# Programs of a launch that are aimed at: two for each SM of an H100.
PROGRAMS = 256
# Tiles that a program takes at least, by the bytes of an element: with fewer bytes its start and
# end would cost more than what it moves.
LEAST_TILES = {4: 2, 2: 4}
# Where there would be fewer parts than this, whole rows fill the GPU, or are short.
LEAST_PARTS = 4
# Products that are on their way at once.
AHEAD = 8


def tiles_of_program(blocks: int, columns: int, size: int) -> int:
    """Choose how many tiles a program takes, or 0 where programs take whole rows.

    Args:
        blocks: blocks of rows, of all probes.
        columns: tiles of a row.
        size: bytes of an element.
    """
    parts = min(columns // LEAST_TILES[size], PROGRAMS // blocks)
    return -(-columns // parts) if parts >= LEAST_PARTS else 0


@triton.jit(do_not_specialize=["rows", "share"])
def few_rows_low_kernel(x_ptr, products_ptr, a_ptr, rows, rank, width, share, a_step,
                        BFLOAT16: tl.constexpr, RANK: tl.constexpr, PRECISION: tl.constexpr,
                        BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Multiply tiles of x by those of A.

    One program handles some tiles of BLOCK_ROWS rows of one probe.

    Args:
        x_ptr: pointer to (P, rows, width), float32, float16 or the int16 bits of bfloat16.
        products_ptr: pointer to float32 (tiles, P, rows, rank).
        a_ptr: pointer to float32 (rank, width) of the first probe, A transposed.
        rows: rows of x per probe.
        rank: columns of A.
        width: width of x.
        share: tiles of a program.
        a_step: elements from one probe's A to the next, 0 if they share it.
        BFLOAT16: x is bfloat16.
        RANK: rank padded to a power of two.
        PRECISION: of products, see ``tiles.PRECISION``.
        BLOCK_ROWS: rows of one program.
        BLOCK_COLUMNS: columns of one tile.
    """
    SHORT: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    probe = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    begin = tl.program_id(2) * share * BLOCK_COLUMNS
    end = tl.minimum(begin + share * BLOCK_COLUMNS, width)
    x_row = x_ptr + (probe * rows + row)[:, None] * width
    of_tile = tl.num_programs(1).to(tl.int64) * rows * rank
    products = products_ptr + probe * rows * rank
    for start in tiles(begin, end, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        x = load_tile(x_row + column[None, :], inside, BFLOAT16)
        low = tl.zeros((BLOCK_ROWS, RANK), dtype=tl.float32)
        low = contract(low, x, a_ptr + probe * a_step, rank, width, column, SHORT, RANK, PRECISION)
        store_hidden(products + start // BLOCK_COLUMNS * of_tile, low, row, rows, rank, RANK)


@triton.jit(do_not_specialize=["rows", "count", "share", "scale"])
def few_rows_high_kernel(x_ptr, y_ptr, products_ptr, down_b_ptr, down_bias_ptr, up_a_ptr, up_b_ptr,
                         up_bias_ptr, rows, down_rank, up_rank, width, bottleneck, count, share,
                         scale, down_b_step, down_bias_step, up_a_step, up_b_step, up_bias_step,
                         DOWN_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, BFLOAT16: tl.constexpr,
                         ACTIVATION: tl.constexpr, RANK: tl.constexpr, PRECISION: tl.constexpr,
                         BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
                         BLOCK_MIDDLE: tl.constexpr, AHEAD: tl.constexpr):
    """Finish the adapter from the products of the tiles.

    One program handles some tiles of BLOCK_ROWS rows of one probe.

    Args:
        x_ptr: pointer to (P, rows, width), float32, float16 or the int16 bits of bfloat16.
        y_ptr: pointer to the result, the same shape and dtype.
        products_ptr: pointer to float32 (tiles, P, rows, down_rank), what
            :func:`few_rows_low_kernel` wrote.
        down_b_ptr: as in ``tt_adapter_kernel``, and so are the others.
        down_bias_ptr: bias of the down-projection.
        up_a_ptr: A of the up-projection, transposed.
        up_b_ptr: its B.
        up_bias_ptr: its bias.
        rows: rows of x per probe.
        down_rank: rank of the down-projection.
        up_rank: rank of the up-projection.
        width: width of x.
        bottleneck: width between the layers.
        count: tiles of a row.
        share: tiles of a program.
        scale: float32 factor on the delta.
        down_b_step: elements from probe to probe.
        down_bias_step: of the bias.
        up_a_step: of A.
        up_b_step: of B.
        up_bias_step: of the bias.
        DOWN_BIAS: whether the down-projection has a bias.
        UP_BIAS: whether the up-projection has one.
        BFLOAT16: x and y are bfloat16.
        ACTIVATION: name of phi.
        RANK: the larger rank, padded to a power of two.
        PRECISION: of products, see ``tiles.PRECISION``.
        BLOCK_ROWS: rows of one program.
        BLOCK_COLUMNS: columns of one tile of x.
        BLOCK_MIDDLE: columns of one tile of the bottleneck.
        AHEAD: products that are loaded before they are added.
    """
    probe = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    index = tl.arange(0, RANK)
    of_tile = tl.num_programs(1).to(tl.int64) * rows * down_rank
    products = products_ptr + (probe * rows + row)[:, None] * down_rank + index[None, :]
    # A block of zeros, since interpreters take no single truth for a mask.
    known = (row < rows)[:, None] & (index < down_rank)[None, :]
    zero = tl.zeros((BLOCK_ROWS,), dtype=tl.int32)
    low = tl.zeros((BLOCK_ROWS, RANK), dtype=tl.float32)
    for first in tiles(0, count, AHEAD):
        for later in tl.static_range(AHEAD):
            tile = first + later
            # A sum that began with +0.0 keeps its bits where +0.0 is added.
            low += tl.load(products + tile * of_tile, mask=known & (zero + tile < count)[:, None],
                           other=0.0)
    high = bottleneck_rows(low, down_b_ptr + probe * down_b_step,
                           down_bias_ptr + probe * down_bias_step, up_a_ptr + probe * up_a_step,
                           down_rank, up_rank, bottleneck, DOWN_BIAS, ACTIVATION, RANK, PRECISION,
                           BLOCK_ROWS, BLOCK_MIDDLE)
    begin = tl.program_id(2) * share * BLOCK_COLUMNS
    end = tl.minimum(begin + share * BLOCK_COLUMNS, width)
    place = (probe * rows + row)[:, None] * width
    write_sums(x_ptr + place, y_ptr + place, high, row, rows, begin, end, width,
               up_b_ptr + probe * up_b_step, up_bias_ptr + probe * up_bias_step, up_rank, scale,
               UP_BIAS, BFLOAT16, RANK, PRECISION, BLOCK_ROWS, BLOCK_COLUMNS)


def variants() -> Iterator[Variant]:
    """Every dtype, padded rank, activation and choice of biases, of even and odd widths.

    Rank 1 is one of its own, because triton compiles the value 1 in. Counted for 256 rows.
    """
    factors = ("down_b_ptr", "down_bias_ptr", "up_a_ptr", "up_b_ptr", "up_bias_ptr")
    steps = tuple(name.replace("ptr", "step") for name in factors)
    for (dtype, pointer), rank, even in product(DTYPES, (1, 16, 32, 64), (True, False)):
        tile = TILES[even][padded_rank(rank)]
        size = 4 if dtype == "float32" else 2
        count = TYPICAL_WIDTH // tile.columns
        share = tiles_of_program(256 // tile.rows, count, size)
        parity = "even" if even else "odd"
        constants = {"BFLOAT16": dtype == "bfloat16", "RANK": padded_rank(rank)}
        shared = {"elements": tile.rows * share * tile.columns}
        known = {} if rank > 1 else {"rank": 1}
        yield tile_variant(
            f"few_rows_low/{dtype}/rank {rank}/{parity}", few_rows_low_kernel,
            {"x_ptr": pointer, "products_ptr": "*fp32", "a_ptr": "*fp32",
             **dict.fromkeys({"rows", "rank", "width", "share", "a_step"} - set(known), "i32")},
            {**constants, **known}, tile, traffic={dtype: float(size)}, loops=(share,),
            divisible=("x_ptr", "products_ptr", "a_ptr", *(("width", "a_step") if even else ())),
            **shared)
        known = {} if rank > 1 else {"down_rank": 1, "up_rank": 1}
        numbers = {"rows", "down_rank", "up_rank", "width", "bottleneck", "count", "share", *steps}
        for activation, (biases, (down_bias, up_bias)) in product(ACTIVATIONS, BIASES.items()):
            yield tile_variant(
                f"few_rows_high/{dtype}/rank {rank}/{activation}/{biases}/{parity}",
                few_rows_high_kernel,
                {"x_ptr": pointer, "y_ptr": pointer, "products_ptr": "*fp32", "scale": "fp32",
                 **dict.fromkeys(factors, "*fp32"), **dict.fromkeys(numbers - set(known), "i32")},
                {**constants, **known, "DOWN_BIAS": down_bias, "UP_BIAS": up_bias,
                 "ACTIVATION": activation, "BLOCK_MIDDLE": BLOCK_MIDDLE, "AHEAD": AHEAD}, tile,
                traffic={dtype: 2.0 * size}, loops=(-(-count // AHEAD), 4, share),
                divisible=("x_ptr", "y_ptr", "products_ptr", *factors, "bottleneck",
                           *(("width", *steps) if even else ())),
                **shared)
