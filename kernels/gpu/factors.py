"""Triton: the factors of every tensor-train layer of a model in one launch, for every probe.

The arithmetic repeats ``reference.factors.stacked_factors`` operation by operation, and the launch
forbids fused multiply-add, so the results are the same bits.

The perturbed cores are made before, once each, by the kernel of ``perturbed_copies``: they are a
hundredth of the factors, each enters hundreds of products, and a normal costs a hundred times what
a product does. Noise inside the contraction took 7.2 ms on an H100 where this takes 1.0 ms (64
layers of 4096 x 4096 in modes of 8, rank 8, 16 probes).
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..plan import ITEM_COLUMNS, MAX_STEPS, STEP_COLUMNS, FactorPlan
from ..reference.philox import PERTURBATION_STREAM
from ..tables import hold, refuse_while_recording
from .arithmetic import EXACT, times
from .launch import grid, launch_options, maxnreg
from .noise import perturbed_copies
from .tensor_lists import stream_of
from .variants import Variant

NUM_WARPS = 4
# By the largest rank, padded to a power of two: the points (rows of A, columns of B) and the
# columns (of the core at the cut) of one tile, and the columns that one program walks over,
# because the chains of its points are made once.
BLOCKS = {8: (128, 32, 512), 16: (128, 32, 1024), 32: (64, 32, 2048), 64: (32, 32, 4096)}

ITEM = tl.constexpr(ITEM_COLUMNS)
STEP = tl.constexpr(STEP_COLUMNS)
ROW = tl.constexpr(ITEM_COLUMNS + MAX_STEPS * STEP_COLUMNS)
WORK = tl.constexpr(4)


@triton.jit
def _int(pointer):
    """Load a number of the table that counts within one layer, and so is below 2**31."""
    return tl.load(pointer).to(tl.int32)


@triton.jit
def _column(chain, column, rank):
    """Return chain[:, column]; picked by its bits, because a sum would turn -0.0 into 0.0."""
    bits = chain.to(tl.int32, bitcast=True)
    return tl.sum(tl.where(rank[None, :] == column, bits, 0), axis=1).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["size", "extent"])
def stacked_factors_kernel(theta_ptr, items_ptr, work_ptr, out_ptr, extent, size,
                           RANK: tl.constexpr, BLOCK_POINTS: tl.constexpr,
                           BLOCK_COLUMNS: tl.constexpr, SPAN: tl.constexpr):
    """Contract the cores of one side of one layer, or copy its bias, for one probe.

    One program keeps the chains of BLOCK_POINTS points (points, RANK) in registers, made from all
    cores but the one at the cut, and multiplies them by up to SPAN columns of that core.

    Args:
        theta_ptr: pointer to the float32 parameter vectors, (P, extent).
        items_ptr: pointer to the int64 table of ``FactorPlan.items``.
        work_ptr: pointer to int32 (programs, 4): item, first point, first column, 0.
        out_ptr: pointer to float32 (P, size).
        extent: elements of one probe's parameter vector.
        size: elements of one probe's factors.
        RANK: largest rank, padded to a power of two.
        BLOCK_POINTS: points of one program.
        BLOCK_COLUMNS: columns in one tile.
        SPAN: columns of one program.
    """
    probe = tl.program_id(1).to(tl.int64)
    work = work_ptr + tl.program_id(0) * WORK
    item = items_ptr + tl.load(work) * ROW
    begin = tl.load(work + 2)
    theta = theta_ptr + probe * extent
    point = tl.load(work + 1) + tl.arange(0, BLOCK_POINTS)
    inside = point < _int(item + 5)
    rank = tl.arange(0, RANK)
    chain = tl.where(rank[None, :] == 0, 1.0, tl.zeros((BLOCK_POINTS, RANK), dtype=tl.float32))
    # Not ranges over loaded numbers: interpreters before triton 3.9 fail there with NumPy 2.4.
    steps = _int(item + 14)
    number = 0
    while number < steps:
        step = item + ITEM + number * STEP
        offset = tl.load(step)
        terms = _int(step + 1)
        stride = _int(step + 2)
        digit = point // _int(step + 3) % _int(step + 4)
        index = (digit * _int(step + 5))[:, None] + (rank * _int(step + 6))[None, :]
        known = inside[:, None] & (rank < _int(step + 7))[None, :]
        # Minus zero is what a sum that starts from its first term starts from.
        total = tl.zeros((BLOCK_POINTS, RANK), dtype=tl.float32) * -1.0
        term = 0
        while term < terms:
            core = tl.load(theta + offset + index + term * stride, mask=known, other=0.0)
            total += times(_column(chain, term, rank)[:, None], core)
            term += 1
        chain = total
        number += 1
    offset = tl.load(item)
    terms = _int(item + 1)
    stride = _int(item + 2)
    columns = _int(item + 4)
    outer_divisor = _int(item + 6)
    outer_modulus = _int(item + 7)
    inner_divisor = _int(item + 8)
    inner_modulus = _int(item + 9)
    inner_stride = _int(item + 10)
    point_stride = _int(item + 11)
    limit = _int(item + 12)
    out = out_ptr + (probe * size + tl.load(item + 13))
    end = tl.minimum(begin + SPAN, columns)
    while begin < end:
        column = begin + tl.arange(0, BLOCK_COLUMNS)
        index = column * _int(item + 3)
        total = tl.zeros((BLOCK_POINTS, BLOCK_COLUMNS), dtype=tl.float32) * -1.0
        term = 0
        while term < terms:
            core = tl.load(theta + offset + index + term * stride, mask=column < columns,
                           other=0.0)
            total += times(_column(chain, term, rank)[:, None], core[None, :])
            term += 1
        inner = column // inner_divisor % inner_modulus * inner_stride
        place = (point * point_stride)[:, None] + inner[None, :]
        outer = column // outer_divisor % outer_modulus
        target = (outer * limit)[None, :] + place
        kept = inside[:, None] & (column < columns)[None, :] & (place < limit)
        if point_stride == 1:
            # Neighbouring points are neighbours in memory, so they go to neighbouring threads.
            tl.store(out + tl.trans(target), tl.trans(total), mask=tl.trans(kept))
        else:
            tl.store(out + target, total, mask=kept)
        begin += BLOCK_COLUMNS


@lru_cache(maxsize=32)
def _tables(plan: FactorPlan, device: torch.device, points: int, span: int,
            stream: int) -> tuple[Tensor, Tensor]:
    """Copy the plan's table, and the list of programs, to the device once.

    ``stream`` keeps a table to the stream that its copy was queued on.
    """
    refuse_while_recording()
    work = [(number, point, column, 0)
            for number, item in enumerate(plan.items.tolist())
            for point in range(0, item[5], points) for column in range(0, item[4], span)]
    return plan.items.to(device), torch.tensor(work, dtype=torch.int32, device=device)


def stacked_factors(theta: Tensor, plan: FactorPlan, seeds: Tensor | None, scales: Tensor | None,
                    distribution: str, out: Tensor) -> None:
    """Launch :func:`stacked_factors_kernel` once, for an ``out`` that is not empty.

    It writes there what ``reference.factors.stacked_factors`` returns.
    """
    rank = max(8, triton.next_power_of_2(plan.rank))
    points, columns, span = BLOCKS[rank]
    items, work = _tables(plan, theta.device, points, span, stream_of(theta.device))
    hold((items, work))
    theta = theta.detach()
    if seeds is not None:
        assert scales is not None
        # The end of the layout, rounded up to whole 16 bytes.
        theta = perturbed_copies(theta[:-(-plan.extent // 4) * 4], seeds.contiguous(),
                                 scales.contiguous(), 0, PERTURBATION_STREAM, distribution)
    with torch.cuda.device_of(theta):
        stacked_factors_kernel[grid(len(work), len(out))](
            theta, items, work, out, theta.shape[-1], plan.size, RANK=rank, BLOCK_POINTS=points,
            BLOCK_COLUMNS=columns, SPAN=span, **launch_options(NUM_WARPS), **EXACT)


def variants() -> Iterator[Variant]:
    """Every configuration that the launcher above can choose, for sides of three modes of 16."""
    for rank in BLOCKS:
        points, columns, span = BLOCKS[rank]
        width = 16 * rank
        yield Variant(
            f"stacked_factors/rank {rank}", stacked_factors_kernel,
            {"theta_ptr": "*fp32", "items_ptr": "*i64", "work_ptr": "*i32", "out_ptr": "*fp32",
             "extent": "i32", "size": "i32"},
            {"RANK": rank, "BLOCK_POINTS": points, "BLOCK_COLUMNS": columns, "SPAN": span},
            elements=points * min(span, width), traffic={"float32": 4.0}, num_warps=NUM_WARPS,
            maxnreg=maxnreg(NUM_WARPS),
            divisible=("theta_ptr", "items_ptr", "work_ptr", "out_ptr"),
            loops=(2, -(-min(span, width) // columns), rank, rank), noise=True)
