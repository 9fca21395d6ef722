"""Triton: the kernels of a whole adapter, y = x + scale * Up(phi(Down(x))), and of its gradients.

``adapter.py`` launches them.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import triton
import triton.language as tl

from ..reference.adapter import ACTIVATIONS
from .tiles import (
    BACKWARD_TILES,
    BLOCK_MIDDLE,
    TILES,
    TYPICAL_WIDTH,
    Tile,
    activate,
    contract,
    expand,
    load_tile,
    padded_rank,
    slope,
    store_hidden,
    store_tile,
    tile_variant,
    tiles,
)
from .variants import Variant

DTYPES = (("float32", "*fp32"), ("bfloat16", "*i16"), ("float16", "*fp16"))
# Whether the down- and the up-projection have a bias.
BIASES = {"both biases": (True, True), "down bias": (True, False), "up bias": (False, True),
          "no bias": (False, False)}


@triton.jit
def _inputs(x_row, row, rows, column, width, BFLOAT16: tl.constexpr):
    inside = (row < rows)[:, None] & (column < width)[None, :]
    return load_tile(x_row + column[None, :], inside, BFLOAT16)


@triton.jit
def _bias(total, bias_ptr, scale, column, width, BIAS: tl.constexpr):
    if BIAS:
        bias = tl.load(bias_ptr + column, mask=column < width, other=0.0)
        total += (bias * scale)[None, :]
    return total


@triton.jit
def bottleneck_rows(hidden, down_b_ptr, down_bias_ptr, up_a_ptr, down_rank, up_rank, bottleneck,
                    DOWN_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, RANK: tl.constexpr,
                    PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                    BLOCK_MIDDLE: tl.constexpr):
    """Return phi(Down(x)) A of the up-projection, from x A of the down-projection.

    The pointers are those of one probe, the others as in :func:`tt_adapter_kernel`.
    """
    high = tl.zeros((BLOCK_ROWS, RANK), dtype=tl.float32)
    for start in tiles(0, bottleneck, BLOCK_MIDDLE):
        column = start + tl.arange(0, BLOCK_MIDDLE)
        middle = tl.zeros((BLOCK_ROWS, BLOCK_MIDDLE), dtype=tl.float32)
        middle = _bias(middle, down_bias_ptr, 1.0, column, bottleneck, DOWN_BIAS)
        middle = expand(middle, hidden, down_b_ptr, down_rank, bottleneck, column, RANK, PRECISION)
        high = contract(high, activate(middle, ACTIVATION), up_a_ptr, up_rank, bottleneck, column,
                        False, RANK, PRECISION)
    return high


@triton.jit
def write_sums(x_row, y_row, high, row, rows, begin, end, width, up_b_ptr, up_bias_ptr, up_rank,
               scale, UP_BIAS: tl.constexpr, BFLOAT16: tl.constexpr, RANK: tl.constexpr,
               PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Write y = x + scale (high B + bias) for the columns begin .. end, from whole tiles.

    x_row and y_row point to the rows, the other pointers are those of one probe.
    """
    # Sums that begin with +0.0 are +0.0 where they are zero, and x - 0.0 has the bits of x;
    # x + 0.0 would turn -0.0 into 0.0.
    high = high * -scale
    for start in tiles(begin, end, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        x = _inputs(x_row, row, rows, column, width, BFLOAT16)
        delta = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
        delta = _bias(delta, up_bias_ptr, -scale, column, width, UP_BIAS)
        delta = expand(delta, high, up_b_ptr, up_rank, width, column, RANK, PRECISION)
        store_tile(y_row + column[None, :], x - delta,
                   (row < rows)[:, None] & (column < width)[None, :], BFLOAT16)


@triton.jit(do_not_specialize=["rows", "scale"])
def tt_adapter_kernel(x_ptr, y_ptr, down_a_ptr, down_b_ptr, down_bias_ptr, up_a_ptr, up_b_ptr,
                      up_bias_ptr, rows, down_rank, up_rank, width, bottleneck, scale, down_a_step,
                      down_b_step, down_bias_step, up_a_step, up_b_step, up_bias_step,
                      DOWN_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, BFLOAT16: tl.constexpr,
                      ACTIVATION: tl.constexpr, RANK: tl.constexpr, PRECISION: tl.constexpr,
                      BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
                      BLOCK_MIDDLE: tl.constexpr):
    """Apply the adapter of each probe to its rows.

    One program handles BLOCK_ROWS rows of one probe. It reads x for the contraction and again for
    the residual, of narrow rows from the cache.

    Args:
        x_ptr: pointer to (P, rows, width), float32, float16 or the int16 bits of bfloat16.
        y_ptr: pointer to the result, the same shape and dtype.
        down_a_ptr: pointer to float32 (down_rank, width) of the first probe, A transposed.
        down_b_ptr: pointer to float32 (down_rank, bottleneck).
        down_bias_ptr: pointer to float32 (bottleneck,).
        up_a_ptr: pointer to float32 (up_rank, bottleneck), A transposed.
        up_b_ptr: pointer to float32 (up_rank, width).
        up_bias_ptr: pointer to float32 (width,).
        rows: rows of x per probe.
        down_rank: rank at the cut of the down-projection.
        up_rank: rank at the cut of the up-projection.
        width: width of x.
        bottleneck: width between the layers.
        scale: float32 factor on the delta.
        down_a_step: elements from one probe's factor to the next; so the others.
        down_b_step: of B.
        down_bias_step: of the bias.
        up_a_step: of A.
        up_b_step: of B.
        up_bias_step: of the bias.
        DOWN_BIAS: whether the down-projection has a bias.
        UP_BIAS: whether the up-projection has one.
        BFLOAT16: x and y are bfloat16.
        ACTIVATION: name of phi.
        RANK: the larger rank, padded to a power of two.
        PRECISION: of products, see ``low_rank.PRECISION``.
        BLOCK_ROWS: rows of one program.
        BLOCK_COLUMNS: columns of one tile of x.
        BLOCK_MIDDLE: columns of one tile of the bottleneck.
    """
    SHORT: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    probe = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    step = tl.arange(0, BLOCK_COLUMNS)
    x_row = x_ptr + (probe * rows + row)[:, None] * width
    y_row = y_ptr + (probe * rows + row)[:, None] * width
    down_a = down_a_ptr + probe * down_a_step
    hidden = tl.zeros((BLOCK_ROWS, RANK), dtype=tl.float32)
    for start in tiles(0, width, BLOCK_COLUMNS):
        x = _inputs(x_row, row, rows, start + step, width, BFLOAT16)
        hidden = contract(hidden, x, down_a, down_rank, width, start + step, SHORT, RANK,
                          PRECISION)
    high = bottleneck_rows(hidden, down_b_ptr + probe * down_b_step,
                           down_bias_ptr + probe * down_bias_step, up_a_ptr + probe * up_a_step,
                           down_rank, up_rank, bottleneck, DOWN_BIAS, ACTIVATION, RANK, PRECISION,
                           BLOCK_ROWS, BLOCK_MIDDLE)
    write_sums(x_row, y_row, high, row, rows, 0, width, width, up_b_ptr + probe * up_b_step,
               up_bias_ptr + probe * up_bias_step, up_rank, scale, UP_BIAS, BFLOAT16, RANK,
               PRECISION, BLOCK_ROWS, BLOCK_COLUMNS)


@triton.jit(do_not_specialize=["rows", "scale"])
def tt_adapter_backward_kernel(grad_ptr, x_ptr, grad_x_ptr, low_ptr, high_ptr, grad_low_ptr,
                               grad_high_ptr, middle_ptr, grad_middle_ptr, down_a_ptr, down_b_ptr,
                               down_bias_ptr, up_a_ptr, up_b_ptr, rows, down_rank, up_rank, width,
                               bottleneck, scale, down_a_step, down_b_step, down_bias_step,
                               up_a_step, up_b_step, DOWN_BIAS: tl.constexpr,
                               BFLOAT16: tl.constexpr, ACTIVATION: tl.constexpr,
                               RANK: tl.constexpr, PRECISION: tl.constexpr,
                               BLOCK_ROWS: tl.constexpr,
                               BLOCK_COLUMNS: tl.constexpr, BLOCK_MIDDLE: tl.constexpr):
    """Compute the gradient of x and the rows that the gradients of the factors are made from.

    Args:
        grad_ptr: pointer to the gradient of y, (P, rows, width), the dtype of x.
        x_ptr: pointer to x.
        grad_x_ptr: pointer to the gradient of x.
        low_ptr: pointer to float32 (P, rows, down_rank), x A of the down-projection.
        high_ptr: pointer to float32 (P, rows, up_rank), phi(Down(x)) A of the up-projection.
        grad_low_ptr: pointer to the gradient of low.
        grad_high_ptr: pointer to the gradient of high.
        middle_ptr: pointer to float32 (P, rows, bottleneck), phi(Down(x)).
        grad_middle_ptr: pointer to the gradient of Down(x).
        down_a_ptr: as in :func:`tt_adapter_kernel`, and so are the others.
        down_b_ptr: B of the down-projection.
        down_bias_ptr: its bias.
        up_a_ptr: A of the up-projection, transposed.
        up_b_ptr: its B.
        rows: rows of x per probe.
        down_rank: rank of the down-projection.
        up_rank: rank of the up-projection.
        width: width of x.
        bottleneck: width between the layers.
        scale: factor on the delta.
        down_a_step: elements from probe to probe.
        down_b_step: of B.
        down_bias_step: of the bias.
        up_a_step: of A.
        up_b_step: of B.
        DOWN_BIAS: whether the down-projection has a bias.
        BFLOAT16: x and both gradients are bfloat16.
        ACTIVATION: name of phi.
        RANK: the larger rank, padded to a power of two.
        PRECISION: of products, see ``low_rank.PRECISION``.
        BLOCK_ROWS: rows of one program.
        BLOCK_COLUMNS: columns of one tile of x.
        BLOCK_MIDDLE: columns of one tile of the bottleneck.
    """
    SHORT: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    probe = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    step = tl.arange(0, BLOCK_COLUMNS)
    place = probe * rows
    x_row = x_ptr + (place + row)[:, None] * width
    grad_row = grad_ptr + (place + row)[:, None] * width
    grad_x_row = grad_x_ptr + (place + row)[:, None] * width
    down_a = down_a_ptr + probe * down_a_step
    low = tl.zeros((BLOCK_ROWS, RANK), dtype=tl.float32)
    grad_high = tl.zeros((BLOCK_ROWS, RANK), dtype=tl.float32)
    for start in tiles(0, width, BLOCK_COLUMNS):
        column = start + step
        x = _inputs(x_row, row, rows, column, width, BFLOAT16)
        low = contract(low, x, down_a, down_rank, width, column, SHORT, RANK, PRECISION)
        grad = _inputs(grad_row, row, rows, column, width, BFLOAT16)
        grad_high = contract(grad_high, grad, up_b_ptr + probe * up_b_step, up_rank, width, column,
                             SHORT, RANK, PRECISION)
    grad_high = grad_high * scale
    high = tl.zeros((BLOCK_ROWS, RANK), dtype=tl.float32)
    grad_low = tl.zeros((BLOCK_ROWS, RANK), dtype=tl.float32)
    for start in tiles(0, bottleneck, BLOCK_MIDDLE):
        column = start + tl.arange(0, BLOCK_MIDDLE)
        inside = (row < rows)[:, None] & (column < bottleneck)[None, :]
        target = (place + row)[:, None] * bottleneck + column[None, :]
        up_a = up_a_ptr + probe * up_a_step
        down_b = down_b_ptr + probe * down_b_step
        before = tl.zeros((BLOCK_ROWS, BLOCK_MIDDLE), dtype=tl.float32)
        before = _bias(before, down_bias_ptr + probe * down_bias_step, 1.0, column, bottleneck,
                       DOWN_BIAS)
        before = expand(before, low, down_b, down_rank, bottleneck, column, RANK, PRECISION)
        middle = activate(before, ACTIVATION)
        tl.store(middle_ptr + target, middle, mask=inside)
        high = contract(high, middle, up_a, up_rank, bottleneck, column, False, RANK, PRECISION)
        grad_middle = tl.zeros((BLOCK_ROWS, BLOCK_MIDDLE), dtype=tl.float32)
        grad_middle = expand(grad_middle, grad_high, up_a, up_rank, bottleneck, column, RANK,
                             PRECISION)
        grad_middle = grad_middle * slope(before, ACTIVATION)
        tl.store(grad_middle_ptr + target, grad_middle, mask=inside)
        grad_low = contract(grad_low, grad_middle, down_b, down_rank, bottleneck, column, False,
                            RANK, PRECISION)
    store_hidden(low_ptr + place * down_rank, low, row, rows, down_rank, RANK)
    store_hidden(grad_low_ptr + place * down_rank, grad_low, row, rows, down_rank, RANK)
    store_hidden(high_ptr + place * up_rank, high, row, rows, up_rank, RANK)
    store_hidden(grad_high_ptr + place * up_rank, grad_high, row, rows, up_rank, RANK)
    for start in tiles(0, width, BLOCK_COLUMNS):
        column = start + step
        grad = _inputs(grad_row, row, rows, column, width, BFLOAT16)
        total = expand(grad, grad_low, down_a, down_rank, width, column, RANK, PRECISION)
        store_tile(grad_x_row + column[None, :], total,
                   (row < rows)[:, None] & (column < width)[None, :], BFLOAT16)


def _counted(tile: Tile) -> dict[str, Any]:
    passes = TYPICAL_WIDTH // tile.columns
    return {"elements": tile.rows * TYPICAL_WIDTH, "loops": (passes, 4, passes)}


def variants() -> Iterator[Variant]:
    """Every dtype, padded rank, activation and choice of biases, of even and odd widths.

    Rank 1 is one of its own, because triton compiles the value 1 in.
    """
    steps = ("down_a_step", "down_b_step", "down_bias_step", "up_a_step", "up_b_step")
    factors = ("down_a_ptr", "down_b_ptr", "down_bias_ptr", "up_a_ptr", "up_b_ptr")
    ranks = ("down_rank", "up_rank")
    rest = ("low_ptr", "high_ptr", "grad_low_ptr", "grad_high_ptr", "middle_ptr",
            "grad_middle_ptr")
    for (dtype, pointer), rank, activation, down_bias, even in product(
            DTYPES, (1, 16, 32, 64), ACTIVATIONS, (True, False), (True, False)):
        known = {} if rank > 1 else dict.fromkeys(ranks, 1)
        shared = {**dict.fromkeys(factors, "*fp32"), **dict.fromkeys(steps, "i32"),
                  **dict.fromkeys({"rows", "width", "bottleneck", *ranks} - set(known), "i32"),
                  "scale": "fp32"}
        size = 4.0 if dtype == "float32" else 2.0
        divisible = ("bottleneck", *(("width", *steps) if even else ()))
        case = f"{dtype}/rank {rank}/{activation}"
        parity = "even" if even else "odd"
        constants = {"DOWN_BIAS": down_bias, "BFLOAT16": dtype == "bfloat16",
                     "ACTIVATION": activation, "RANK": padded_rank(rank),
                     "BLOCK_MIDDLE": BLOCK_MIDDLE, **known}
        tile = TILES[even][padded_rank(rank)]
        for up_bias in (True, False):
            biases = next(name for name, kind in BIASES.items() if kind == (down_bias, up_bias))
            yield tile_variant(
                f"tt_adapter/{case}/{biases}/{parity}", tt_adapter_kernel,
                {"x_ptr": pointer, "y_ptr": pointer, "up_bias_ptr": "*fp32", "up_bias_step": "i32",
                 **shared}, {**constants, "UP_BIAS": up_bias}, tile,
                traffic={dtype: 2 * size}, **_counted(tile),
                divisible=(*factors, *divisible, "x_ptr", "y_ptr", "up_bias_ptr",
                           *(("up_bias_step",) if even else ())))
        tile = BACKWARD_TILES[even][padded_rank(rank)]
        yield tile_variant(
            f"tt_adapter_backward/{case}/{'bias' if down_bias else 'no bias'}/{parity}",
            tt_adapter_backward_kernel,
            {**dict.fromkeys(("grad_ptr", "x_ptr", "grad_x_ptr"), pointer),
             **dict.fromkeys(rest, "*fp32"), **shared}, constants, tile,
            traffic={dtype: 3 * size}, **_counted(tile),
            divisible=(*factors, *divisible, *rest, "grad_ptr", "x_ptr", "grad_x_ptr"))
