"""Triton: optimizer epilogues, which make the gradient estimate from probes on the fly.

State and parameters are read once and written once; the estimate itself is never stored. Twins:
``reference.momentum_update_`` and ``reference.adam_update_``.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from .exact import exact_options_of
from .multi_tensor import (
    FIRST,
    INPUT,
    SECOND,
    Launch,
    find,
    load,
    narrow,
    prepare,
    store,
    widen,
)
from .noise_core import add_terms, uniform_words
from .reference import AdamScalars
from .variants import Variant

# A thread holds 4 elements: 16 bytes of each float32 state, which are most of the traffic. Of a
# 16-bit parameter these are 8 bytes; 8 elements would send every state through shared memory.
BLOCK = 1024
THREADS = 256
NUM_WARPS = THREADS // (64 if torch.version.hip else 32)
VECTOR = tl.constexpr(4)


@triton.jit
def _read_theta(origin_ptr, row, dtype, begin, end, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    start = tl.load(row + INPUT)
    if dtype == 0:
        theta = load(origin_ptr, start, begin, end, BLOCK, VECTOR, ALIGNED)
    else:
        short_ptr = origin_ptr.to(tl.pointer_type(tl.int16), bitcast=True)
        theta = widen(load(short_ptr, start, begin, end, BLOCK, VECTOR, ALIGNED), dtype)
    return theta


@triton.jit
def _write_theta(origin_ptr, row, dtype, base, begin, end, theta, key_ptr, BLOCK: tl.constexpr,
                 ALIGNED: tl.constexpr, STOCHASTIC: tl.constexpr):
    start = tl.load(row + INPUT)
    if dtype == 0:
        store(origin_ptr, start, begin, end, theta, BLOCK, VECTOR, ALIGNED)
    else:
        random = theta
        if STOCHASTIC:
            random = uniform_words(tl.load(key_ptr), base, tl.program_id(0) * 0 + 1, BLOCK, VECTOR)
        short_ptr = origin_ptr.to(tl.pointer_type(tl.int16), bitcast=True)
        bits = narrow(theta, dtype, random, STOCHASTIC)
        store(short_ptr, start, begin, end, bits, BLOCK, VECTOR, ALIGNED)


@triton.jit
def _estimate(seeds_ptr, coefficients_ptr, probes, base, RADEMACHER: tl.constexpr,
              BLOCK: tl.constexpr):
    g = tl.zeros((BLOCK,), tl.float32)
    return add_terms(g, seeds_ptr, coefficients_ptr, probes, base, RADEMACHER, BLOCK, VECTOR)


@triton.jit(do_not_specialize=["tensors", "seeds_ptr", "coefficients_ptr", "probes", "momentum",
                               "lr", "decay", "key_ptr"])
def momentum_kernel(origin_ptr, table_ptr, tensors, seeds_ptr, coefficients_ptr, probes, momentum,
                    lr, decay, key_ptr, ALIGNED: tl.constexpr, RADEMACHER: tl.constexpr,
                    STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr):
    """Write m <- momentum m + g and theta <- decay theta - lr m, g = sum_k c_k z(s_k).

    One program handles BLOCK consecutive elements of one tensor.

    Args:
        origin_ptr: pointer to float32 that the table's addresses count from.
        table_ptr: pointer to int64 (tensors, 8), see ``multi_tensor.py``.
        tensors: rows of the table.
        seeds_ptr: pointer to int64 (probes,).
        coefficients_ptr: pointer to float32 (probes,).
        probes: number of terms.
        momentum: float32 factor on m.
        lr: float32 learning rate.
        decay: float32 factor on theta.
        key_ptr: pointer to int64 (1,), the key of stochastic rounding; any if not STOCHASTIC.
        ALIGNED: parameters, states and offsets allow accesses of 4 elements.
        RADEMACHER: signs instead of normals.
        STOCHASTIC: stochastic rounding instead of nearest.
        BLOCK: elements per program, a multiple of 128.
    """
    row, dtype, base, begin, end = find(table_ptr, tensors, BLOCK, BLOCK, RADEMACHER)
    g = _estimate(seeds_ptr, coefficients_ptr, probes, base, RADEMACHER, BLOCK)
    place = tl.load(row + FIRST)
    m = load(origin_ptr, place, begin, end, BLOCK, VECTOR, ALIGNED) * momentum + g
    store(origin_ptr, place, begin, end, m, BLOCK, VECTOR, ALIGNED)
    theta = _read_theta(origin_ptr, row, dtype, begin, end, BLOCK, ALIGNED)
    theta = theta * decay - m * lr
    _write_theta(origin_ptr, row, dtype, base, begin, end, theta, key_ptr, BLOCK, ALIGNED,
                 STOCHASTIC)


@triton.jit(do_not_specialize=["tensors", "seeds_ptr", "coefficients_ptr", "probes", "beta1",
                               "rest1", "beta2", "rest2", "lr", "epsilon", "scale1", "scale2",
                               "decay", "root_ptr", "key_ptr"])
def adam_kernel(origin_ptr, table_ptr, tensors, seeds_ptr, coefficients_ptr, probes, beta1, rest1,
                beta2, rest2, lr, epsilon, scale1, scale2, decay, root_ptr, key_ptr,
                ALIGNED: tl.constexpr, RADEMACHER: tl.constexpr, STOCHASTIC: tl.constexpr,
                ELEMENTWISE: tl.constexpr, BLOCK: tl.constexpr):
    """Write m, v and theta of the Adam rule, g = sum_k c_k z(s_k).

    m <- beta1 m + rest1 g; v <- beta2 v + rest2 g^2; theta <- decay theta - lr u with
    u = m scale1 / (sqrt(v scale2) + epsilon), or m scale1 times the scalar at root_ptr if the
    second moment is not ELEMENTWISE. One program handles BLOCK consecutive elements.

    Args:
        origin_ptr: pointer to float32 that the table's addresses count from.
        table_ptr: pointer to int64 (tensors, 8), see ``multi_tensor.py``.
        tensors: rows of the table.
        seeds_ptr: pointer to int64 (probes,).
        coefficients_ptr: pointer to float32 (probes,).
        probes: number of terms.
        beta1: float32 factor on m; the next nine as in ``AdamScalars``.
        rest1: 1 - beta1.
        beta2: factor on v.
        rest2: 1 - beta2.
        lr: learning rate.
        epsilon: added to the root.
        scale1: reciprocal of the bias correction of m.
        scale2: reciprocal of the bias correction of v.
        decay: factor on theta.
        root_ptr: pointer to float32 (1,), the inverse root; any if ELEMENTWISE.
        key_ptr: pointer to int64 (1,), the key of stochastic rounding; any if not STOCHASTIC.
        ALIGNED: parameters, states and offsets allow accesses of 4 elements.
        RADEMACHER: signs instead of normals.
        STOCHASTIC: stochastic rounding instead of nearest.
        ELEMENTWISE: there is a second moment per element.
        BLOCK: elements per program, a multiple of 128.
    """
    row, dtype, base, begin, end = find(table_ptr, tensors, BLOCK, BLOCK, RADEMACHER)
    g = _estimate(seeds_ptr, coefficients_ptr, probes, base, RADEMACHER, BLOCK)
    place = tl.load(row + FIRST)
    m = load(origin_ptr, place, begin, end, BLOCK, VECTOR, ALIGNED) * beta1 + g * rest1
    store(origin_ptr, place, begin, end, m, BLOCK, VECTOR, ALIGNED)
    u = m * scale1
    if ELEMENTWISE:
        place = tl.load(row + SECOND)
        v = load(origin_ptr, place, begin, end, BLOCK, VECTOR, ALIGNED) * beta2 + g * g * rest2
        store(origin_ptr, place, begin, end, v, BLOCK, VECTOR, ALIGNED)
        u = tl.div_rn(u, tl.sqrt_rn(v * scale2) + epsilon)
    else:
        u = u * tl.load(root_ptr)
    theta = _read_theta(origin_ptr, row, dtype, begin, end, BLOCK, ALIGNED)
    theta = theta * decay - u * lr
    _write_theta(origin_ptr, row, dtype, base, begin, end, theta, key_ptr, BLOCK, ALIGNED,
                 STOCHASTIC)


def _prepare(tensors: Sequence[Tensor], states: Sequence[Sequence[Tensor]],
             offsets: Sequence[int], distribution: str) -> Launch | None:
    width = VECTOR.value
    return prepare(tensors, tensors, states, offsets, distribution, (BLOCK, BLOCK), (width, width))


def momentum_update_(tensors: Sequence[Tensor], momenta: Sequence[Tensor],
                     offsets: Sequence[int], seeds: Tensor, coefficients: Tensor,
                     momentum: float, lr: float, decay: float, distribution: str,
                     rounding_seed: Tensor | None) -> None:
    """Launch :func:`momentum_kernel` once; arguments as in ``reference.momentum_update_``."""
    launch = _prepare(tensors, (momenta,), offsets, distribution)
    if launch is None:
        return
    with torch.cuda.device_of(seeds):
        momentum_kernel[(launch.programs,)](
            launch.origin, launch.table, launch.tensors, seeds, coefficients, len(seeds),
            momentum, lr, decay, seeds if rounding_seed is None else rounding_seed,
            ALIGNED=launch.aligned, RADEMACHER=distribution == "rademacher",
            STOCHASTIC=rounding_seed is not None, BLOCK=BLOCK, num_warps=NUM_WARPS,
            **exact_options_of(seeds.device))


def adam_update_(tensors: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor],
                 offsets: Sequence[int], seeds: Tensor, coefficients: Tensor,
                 scalars: AdamScalars, inverse_root: Tensor | None, distribution: str,
                 rounding_seed: Tensor | None) -> None:
    """Launch :func:`adam_kernel` once; arguments as in ``reference.adam_update_``."""
    launch = _prepare(tensors, (first, second) if second else (first,), offsets, distribution)
    if launch is None:
        return
    with torch.cuda.device_of(seeds):
        adam_kernel[(launch.programs,)](
            launch.origin, launch.table, launch.tensors, seeds, coefficients, len(seeds),
            *scalars, launch.origin if inverse_root is None else inverse_root,
            seeds if rounding_seed is None else rounding_seed, ALIGNED=launch.aligned,
            RADEMACHER=distribution == "rademacher", STOCHASTIC=rounding_seed is not None,
            ELEMENTWISE=inverse_root is None, BLOCK=BLOCK, num_warps=NUM_WARPS,
            **exact_options_of(seeds.device))


def variants() -> Iterator[Variant]:
    """Every configuration that the launchers above can choose."""
    common = {"origin_ptr": "*fp32", "table_ptr": "*i64", "tensors": "i32", "seeds_ptr": "*i64",
              "coefficients_ptr": "*fp32", "probes": "i32", "lr": "fp32", "decay": "fp32",
              "key_ptr": "*i64"}
    scalars = dict.fromkeys(AdamScalars._fields, "fp32")
    rules: list[tuple] = [("momentum_update", momentum_kernel, {"momentum": "fp32"}, {}, 16.0)]
    rules += [(f"adam_update/{name}", adam_kernel, {**scalars, "root_ptr": "*fp32"},
               {"ELEMENTWISE": name == "element"}, 24.0 if name == "element" else 16.0)
              for name in ("element", "scalar")]
    for (name, kernel, types, chosen, traffic), distribution, aligned, stochastic in product(
            rules, ("gaussian", "rademacher"), (True, False), (False, True)):
        yield Variant(
            f"{name}/{distribution}/{'aligned' if aligned else 'unaligned'}/"
            f"{'stochastic' if stochastic else 'nearest'}", kernel, {**common, **types},
            {**chosen, "ALIGNED": aligned, "RADEMACHER": distribution == "rademacher",
             "STOCHASTIC": stochastic, "BLOCK": BLOCK},
            elements=BLOCK, divisible=("origin_ptr", "table_ptr"),
            traffic={"float32": traffic, "bfloat16": traffic - 4, "float16": traffic - 4},
            num_warps=THREADS // 32, wavefronts=THREADS // 64, loops=(10, 1), noise=True)
