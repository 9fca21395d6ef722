"""Triton: noise added to any number of tensors in one launch, and perturbed copies of one.

Twins: ``reference.noise.add_noise_``, ``reference.noise.perturbed_copies`` and ``philox.draw``.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import EXACT, from_bits, kernel_view, times, to_bits
from .launch import LIMIT
from .normals import add_terms, noise
from .tensor_lists import (
    BLOCK,
    GRAINS,
    HALF_BLOCK,
    NUM_WARPS,
    THREADS,
    VECTORS,
    find,
    load,
    prepare,
    read,
    store,
    write,
)
from .variants import Variant


@triton.jit(do_not_specialize=["seeds_ptr", "coefficients_ptr", "probes", "decay", "key_ptr"])
def add_noise_kernel(origin_ptr, table_ptr, owners_ptr, seeds_ptr, coefficients_ptr, probes, decay,
                     key_ptr, ALIGNED: tl.constexpr, RADEMACHER: tl.constexpr,
                     STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr):
    """Write decay * theta + sum_k c_k z(s_k) of design section 4.

    One program handles a block of consecutive elements of one tensor. The paths of the 4-byte
    and of the 2-byte dtypes differ in the number of elements: a thread holds the 16 bytes that
    it loads and stores, and draws the noise of just these.

    Args:
        origin_ptr: pointer to float32 that the table's addresses count from.
        table_ptr: pointer to int64 (tensors, 8), see ``tensor_lists.py``.
        owners_ptr: pointer to int32 (programs,), rows of the table.
        seeds_ptr: pointer to int64 (probes,).
        coefficients_ptr: pointer to float32 (probes,).
        probes: number of terms.
        decay: float32 factor.
        key_ptr: pointer to int64 (1,), the key of stochastic rounding; any if not STOCHASTIC.
        ALIGNED: inputs, outputs and offsets allow 16-byte accesses.
        RADEMACHER: signs instead of normals.
        STOCHASTIC: stochastic rounding instead of nearest.
        BLOCK: elements per program of a float32 tensor, a multiple of 128.
        HALF_BLOCK: elements per program of a 16-bit tensor; not BLOCK if ALIGNED, or the compiler
            would choose one layout for both paths.
    """
    row, dtype, base, begin, end = find(table_ptr, owners_ptr, BLOCK, HALF_BLOCK, RADEMACHER)
    DRAWN: tl.constexpr = 8 if ALIGNED else 4
    if dtype == 0:
        theta = times(read(origin_ptr, row, dtype, begin, end, BLOCK, 4, ALIGNED), decay)
        theta = add_terms(theta, seeds_ptr, coefficients_ptr, probes, base, RADEMACHER, BLOCK, 4)
        write(origin_ptr, row, dtype, base, begin, end, theta, key_ptr, BLOCK, 4, 4, ALIGNED,
              STOCHASTIC)
    else:
        # Another name, because a variable has one type in both branches.
        half = times(read(origin_ptr, row, dtype, begin, end, HALF_BLOCK, 8, ALIGNED), decay)
        half = add_terms(half, seeds_ptr, coefficients_ptr, probes, base, RADEMACHER,
                         HALF_BLOCK, DRAWN)
        write(origin_ptr, row, dtype, base, begin, end, half, key_ptr, HALF_BLOCK, 8, DRAWN,
              ALIGNED, STOCHASTIC)


@triton.jit(do_not_specialize=["seeds_ptr", "coefficients_ptr", "offset", "size", "stream"])
def perturbed_copies_kernel(theta_ptr, out_ptr, seeds_ptr, coefficients_ptr, offset: tl.int64,
                            size: tl.int64, stream: tl.int64, ALIGNED: tl.constexpr,
                            BFLOAT16: tl.constexpr, RADEMACHER: tl.constexpr,
                            BLOCK: tl.constexpr, VECTOR: tl.constexpr):
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
        ALIGNED: theta, every copy and the offset allow 16-byte accesses.
        BFLOAT16: theta and the copies are bfloat16.
        RADEMACHER: signs instead of normals.
        BLOCK: elements per program, a multiple of 128.
        VECTOR: elements in 16 bytes.
    """
    probe = tl.program_id(1).to(tl.int64)
    GRAIN: tl.constexpr = 128 if RADEMACHER else 4
    base = offset // GRAIN * GRAIN + tl.program_id(0).to(tl.int64) * BLOCK
    begin = offset - base
    end = begin + size
    seed = tl.load(seeds_ptr + probe)
    coefficient = tl.load(coefficients_ptr + probe)
    value = load(theta_ptr, size * 0, begin, end, BLOCK, VECTOR, ALIGNED)
    theta = from_bits(value) if BFLOAT16 else value.to(tl.float32)
    theta = theta + times(coefficient, noise(seed, base, stream, RADEMACHER, BLOCK, VECTOR))
    value = to_bits(theta) if BFLOAT16 else theta.to(out_ptr.dtype.element_ty)
    store(out_ptr, probe * size, begin, end, value, BLOCK, VECTOR, ALIGNED)


def add_noise_(inputs: Sequence[Tensor], outputs: Sequence[Tensor], offsets: Sequence[int],
               seeds: Tensor, coefficients: Tensor, decay: float, distribution: str,
               rounding_seed: Tensor | None) -> None:
    """Launch :func:`add_noise_kernel` once; arguments as in ``reference.noise.add_noise_``."""
    launch = prepare(inputs, outputs, (), offsets, distribution)
    if launch is None:
        return
    with torch.cuda.device_of(seeds):
        add_noise_kernel[(len(launch.owners),)](
            launch.origin, launch.table, launch.owners, seeds, coefficients, len(seeds), decay,
            seeds if rounding_seed is None else rounding_seed,
            STOCHASTIC=rounding_seed is not None, **launch.options)


def perturbed_copies(theta: Tensor, seeds: Tensor, coefficients: Tensor, offset: int,
                     stream: int, distribution: str) -> Tensor:
    """Launch :func:`perturbed_copies_kernel`; as ``reference.noise.perturbed_copies``."""
    out = torch.empty((len(seeds), *theta.shape), dtype=theta.dtype, device=theta.device)
    if not out.numel():
        return out
    half = theta.dtype != torch.float32
    block, vector = (BLOCK, HALF_BLOCK)[half], VECTORS[half]
    grain = GRAINS[distribution]
    places = (theta.data_ptr() // theta.element_size(), theta.numel(), offset % grain)
    programs = -(-(offset % grain + theta.numel()) // block)
    with torch.cuda.device_of(theta):
        for first in range(0, len(seeds), LIMIT):
            part = slice(first, first + LIMIT)
            perturbed_copies_kernel[(programs, len(seeds[part]))](
                kernel_view(theta), kernel_view(out[part]), seeds[part], coefficients[part],
                offset, theta.numel(), stream,
                ALIGNED=all(place % vector == 0 for place in places),
                BFLOAT16=theta.dtype == torch.bfloat16, RADEMACHER=distribution == "rademacher",
                BLOCK=block, VECTOR=vector, num_warps=NUM_WARPS, **EXACT)
    return out


def draw(seeds: Tensor, start: int, count: int, stream: int, distribution: str) -> Tensor:
    """Draw float32 (P, count) as perturbed copies of zero; arguments as in ``philox.draw``."""
    return perturbed_copies(torch.zeros(count, device=seeds.device), seeds,
                            torch.ones(len(seeds), device=seeds.device), start, stream,
                            distribution)


def variants() -> Iterator[Variant]:
    """Every configuration that the launchers above can choose."""
    pointers = {"seeds_ptr": "*i64", "coefficients_ptr": "*fp32"}
    for distribution, aligned in product(("gaussian", "rademacher"), (True, False)):
        case = f"{distribution}/{'aligned' if aligned else 'unaligned'}"
        constants = {"ALIGNED": aligned, "RADEMACHER": distribution == "rademacher"}
        for stochastic in (False, True):
            yield Variant(
                f"add_noise/{case}/{'stochastic' if stochastic else 'nearest'}", add_noise_kernel,
                {"origin_ptr": "*fp32", "table_ptr": "*i64", "owners_ptr": "*i32", **pointers,
                 "probes": "i32", "decay": "fp32", "key_ptr": "*i64"},
                {**constants, "STOCHASTIC": stochastic, "BLOCK": BLOCK,
                 "HALF_BLOCK": HALF_BLOCK if aligned else BLOCK},
                elements=BLOCK, divisible=("origin_ptr", "table_ptr", "owners_ptr"),
                traffic={"float32": 8.0, "bfloat16": 4.0, "float16": 4.0},
                num_warps=THREADS // 32, wavefronts=THREADS // 64,
                half_elements=HALF_BLOCK if aligned else BLOCK, loops=(1,), noise=True)
        for dtype, pointer in (("float32", "*fp32"), ("bfloat16", "*i16"), ("float16", "*fp16")):
            half = dtype != "float32"
            yield Variant(
                f"perturbed_copies/{dtype}/{case}", perturbed_copies_kernel,
                {"theta_ptr": pointer, "out_ptr": pointer, **pointers, "offset": "i64",
                 "size": "i64", "stream": "i64"},
                {**constants, "BFLOAT16": dtype == "bfloat16", "BLOCK": (BLOCK, HALF_BLOCK)[half],
                 "VECTOR": VECTORS[half]},
                elements=(BLOCK, HALF_BLOCK)[half],
                # Each copy is written once; theta is read once per copy, mostly from the cache.
                traffic={dtype: 4.0 if dtype == "float32" else 2.0}, num_warps=THREADS // 32,
                wavefronts=THREADS // 64, divisible=("theta_ptr", "out_ptr"), noise=True)
