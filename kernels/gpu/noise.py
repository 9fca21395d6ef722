"""Triton: noise added to any number of tensors in one launch, and perturbed copies of one.

Twins: ``reference.noise.add_noise_``, ``reference.noise.perturbed_copies`` and ``philox.draw``.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import EXACT, kernel_view, plain_nan, times
from .launch import LIMIT
from .normals import add_terms, noise
from .tensor_lists import (
    BLOCKS,
    DTYPES,
    GRAINS,
    INPUT,
    NUM_WARPS,
    OUTPUT,
    THREADS,
    VECTORS,
    block_for,
    find,
    load,
    place,
    prepare,
    widen,
    write,
)
from .variants import Variant


@triton.jit(do_not_specialize=["seeds_ptr", "coefficients_ptr", "probes", "decay", "one",
                               "key_ptr"])
def add_noise_kernel(origin_ptr, records_ptr, seeds_ptr, coefficients_ptr, probes, decay, one,
                     key_ptr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
                     DISTRIBUTION: tl.constexpr, STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr):
    """Write decay * theta + sum_k c_k z(s_k) of design section 4.

    One program handles a block of consecutive elements of one tensor. A thread holds the 16 bytes
    that it loads and stores, and of version 1 it draws the noise of just these; the 4 words of a
    counter of "pairs", for 8 elements, change threads where 16 bytes are 4 elements.

    Args:
        origin_ptr: pointer to float32 that the records' addresses count from.
        records_ptr: pointer to int64 (records, 6), see ``tensor_lists.py``.
        seeds_ptr: pointer to int64 (probes,).
        coefficients_ptr: pointer to float32 (probes,).
        probes: number of terms.
        decay: float32 factor.
        one: 1.0, see ``add_terms``.
        key_ptr: pointer to int64 (1,), the key of stochastic rounding; any if not STOCHASTIC.
        DTYPE: name of the tensors' dtype.
        ALIGNED: inputs, outputs and offsets allow 16-byte accesses.
        DISTRIBUTION: name of the noise's distribution.
        STOCHASTIC: stochastic rounding instead of nearest.
        BLOCK: elements per program, a multiple of 128.
    """
    VECTOR: tl.constexpr = 4 if DTYPE == "float32" else 8
    PLAIN: tl.constexpr = DTYPE == "bfloat16"
    if PLAIN:
        decay = plain_nan(decay)
    record, start, base, first, stop = find(records_ptr, BLOCK)
    source = place(origin_ptr, record, INPUT, start, DTYPE, ALIGNED)
    target = place(origin_ptr, record, OUTPUT, start, DTYPE, ALIGNED)
    theta = widen(load(source, first, stop, BLOCK), DTYPE)
    theta = add_terms(theta, decay, one, seeds_ptr, coefficients_ptr, probes, base, DISTRIBUTION,
                      BLOCK, VECTOR, PLAIN)
    write(target, theta, key_ptr, base, first, stop, DTYPE, STOCHASTIC, BLOCK, VECTOR, PLAIN)


@triton.jit(do_not_specialize=["seeds_ptr", "coefficients_ptr", "offset", "size", "stream"])
def perturbed_copies_kernel(theta_ptr, out_ptr, seeds_ptr, coefficients_ptr, offset: tl.int64,
                            size: tl.int64, stream: tl.int64, DTYPE: tl.constexpr,
                            ALIGNED: tl.constexpr, DISTRIBUTION: tl.constexpr,
                            GRAIN: tl.constexpr, BLOCK: tl.constexpr):
    """Write theta + c_p z(s_p) for each probe p.

    One program handles BLOCK consecutive elements of one probe's copy.

    Args:
        theta_ptr: pointer to theta, (size,), float32, float16 or the int16 bits of bfloat16.
        out_ptr: pointer to the copies, (P, size), same dtype.
        seeds_ptr: pointer to int64 (P,).
        coefficients_ptr: pointer to float32 (P,).
        offset: index of theta's first element in the parameter space.
        size: elements of theta.
        stream: third counter word.
        DTYPE: name of theta's dtype.
        ALIGNED: theta, every copy and the offset allow 16-byte accesses.
        DISTRIBUTION: name of the noise's distribution.
        GRAIN: its elements per counter.
        BLOCK: elements per program, a multiple of 128.
    """
    VECTOR: tl.constexpr = 4 if DTYPE == "float32" else 8
    probe = tl.program_id(1).to(tl.int64)
    lead = offset & (GRAIN - 1)
    begin = tl.program_id(0).to(tl.int64) * BLOCK - lead
    first = tl.maximum(-begin, 0).to(tl.int32)
    stop = tl.minimum(size - begin, BLOCK).to(tl.int32)
    copy = probe * size
    if ALIGNED:
        # Dividing and multiplying tells the compiler what it cannot see in the numbers.
        begin = begin // VECTOR * VECTOR
        copy = copy // VECTOR * VECTOR
    seed = tl.load(seeds_ptr + probe)
    coefficient = tl.load(coefficients_ptr + probe)
    PLAIN: tl.constexpr = DTYPE == "bfloat16"
    if PLAIN:
        coefficient = plain_nan(coefficient)
    theta = widen(load(theta_ptr + begin, first, stop, BLOCK), DTYPE)
    z = noise(seed, offset + begin, stream, DISTRIBUTION, BLOCK, VECTOR)
    theta = theta + times(coefficient, z)
    write(out_ptr + (copy + begin), theta, seeds_ptr, begin, first, stop, DTYPE, False, BLOCK,
          VECTOR, PLAIN)


def add_noise_(inputs: Sequence[Tensor], outputs: Sequence[Tensor], offsets: Sequence[int],
               seeds: Tensor, coefficients: Tensor, decay: float, distribution: str,
               rounding_seed: Tensor | None) -> None:
    """Launch :func:`add_noise_kernel` for each dtype; as in ``reference.noise.add_noise_``."""
    with torch.cuda.device_of(seeds):
        for launch in prepare(inputs, outputs, (), offsets, distribution,
                              rounding_seed is not None):
            launch.start(add_noise_kernel, seeds, coefficients, len(seeds), decay, 1.0,
                         seeds if rounding_seed is None else rounding_seed)


def perturbed_copies(theta: Tensor, seeds: Tensor, coefficients: Tensor, offset: int,
                     stream: int, distribution: str) -> Tensor:
    """Launch :func:`perturbed_copies_kernel`; as ``reference.noise.perturbed_copies``."""
    out = torch.empty((len(seeds), *theta.shape), dtype=theta.dtype, device=theta.device)
    if not out.numel():
        return out
    grain, vector = GRAINS[distribution], VECTORS[theta.element_size()]
    places = (theta.data_ptr() // theta.element_size(), theta.numel(), offset % grain)
    aligned = all(place % vector == 0 for place in places)
    block = block_for(BLOCKS[theta.element_size()], aligned)
    programs = -(-(offset % grain + theta.numel()) // block)
    with torch.cuda.device_of(theta):
        for first in range(0, len(seeds), LIMIT):
            part = slice(first, first + LIMIT)
            perturbed_copies_kernel[(programs, len(seeds[part]))](
                kernel_view(theta), kernel_view(out[part]), seeds[part], coefficients[part],
                offset, theta.numel(), stream, DTYPE=DTYPES[theta.dtype],
                ALIGNED=aligned,
                DISTRIBUTION=distribution, GRAIN=grain, BLOCK=block, num_warps=NUM_WARPS, **EXACT)
    return out


def draw(seeds: Tensor, start: int, count: int, stream: int, distribution: str) -> Tensor:
    """Draw float32 (P, count) as perturbed copies of zero; arguments as in ``philox.draw``."""
    return perturbed_copies(torch.zeros(count, device=seeds.device), seeds,
                            torch.ones(len(seeds), device=seeds.device), start, stream,
                            distribution)


POINTERS = {"float32": "*fp32", "bfloat16": "*i16", "float16": "*fp16"}


def cases(blocks: Mapping[int, int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and constants of all that sets two launches over tensors apart.

    Args:
        blocks: elements of a program, by the bytes of one.
    """
    for dtype, distribution, aligned, stochastic in product(
            POINTERS, GRAINS, (True, False), (False, True)):
        if dtype != "float32" or not stochastic:
            yield (f"{dtype}/{distribution}/{'aligned' if aligned else 'unaligned'}/"
                   f"{'stochastic' if stochastic else 'nearest'}",
                   {"DTYPE": dtype, "ALIGNED": aligned, "DISTRIBUTION": distribution,
                    "STOCHASTIC": stochastic,
                    "BLOCK": block_for(blocks[4 if dtype == "float32" else 2], aligned)})


def variants() -> Iterator[Variant]:
    """Every configuration that the launchers above can choose."""
    pointers = {"seeds_ptr": "*i64", "coefficients_ptr": "*fp32"}
    common: dict[str, Any] = {"num_warps": THREADS // 32,
                              "wavefronts": THREADS // 64, "noise": True}
    for case, constants in cases(BLOCKS):
        dtype = constants["DTYPE"]
        yield Variant(
            f"add_noise/{case}", add_noise_kernel,
            {"origin_ptr": "*fp32", "records_ptr": "*i64", **pointers, "probes": "i32",
             "decay": "fp32", "one": "fp32", "key_ptr": "*i64"}, constants,
            divisible=("origin_ptr", "records_ptr"), loops=(1,),
            traffic={dtype: 8.0 if dtype == "float32" else 4.0}, elements=constants["BLOCK"],
            **common)
    for (dtype, pointer), (distribution, grain), aligned in product(
            POINTERS.items(), GRAINS.items(), (True, False)):
        block = block_for(BLOCKS[4 if dtype == "float32" else 2], aligned)
        yield Variant(
            f"perturbed_copies/{dtype}/{distribution}/{'aligned' if aligned else 'unaligned'}",
            perturbed_copies_kernel,
            {"theta_ptr": pointer, "out_ptr": pointer, **pointers, "offset": "i64", "size": "i64",
             "stream": "i64"},
            {"DTYPE": dtype, "ALIGNED": aligned, "DISTRIBUTION": distribution, "GRAIN": grain,
             "BLOCK": block},
            # Each copy is written once; theta is read once per copy, mostly from the cache.
            traffic={dtype: 4.0 if dtype == "float32" else 2.0},
            divisible=("theta_ptr", "out_ptr"), elements=block, **common)
