"""Triton: optimizer epilogues, which make the gradient estimate from probes on the fly.

State and parameters are read once and written once; the estimate itself is never stored. Twins:
``reference.updates.momentum_update_`` and ``reference.updates.adam_update_``.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.updates import AdamScalars
from .arithmetic import full_quotient, full_root, times
from .noise import cases
from .normals import sum_terms
from .tensor_lists import (
    BLOCKS,
    FIRST,
    INPUT,
    SECOND,
    THREADS,
    find,
    load,
    place,
    prepare,
    store,
    widen,
    write,
)
from .variants import Variant

# A thread computes 4 elements at a time, 16 bytes of each float32 state. The 16 bytes of a 16-bit
# parameter are 8 elements, so only these pass through shared memory.
VECTOR = tl.constexpr(4)
# That of float32 whatever the parameters are, since the states are.
BLOCK = BLOCKS[4]


@triton.jit
def _estimate(state_ptr, seeds_ptr, coefficients_ptr, probes, base, DISTRIBUTION: tl.constexpr,
              BLOCK: tl.constexpr):
    # Zeros that lie in the threads as the state does, from a load that loads nothing: a plain
    # constant would lie one element a thread, and all noise would pass through shared memory to be
    # added to it.
    never = (tl.zeros((BLOCK,), tl.int32) + probes) < 0
    zeros = tl.load(state_ptr + tl.arange(0, BLOCK), mask=never, other=0.0)
    return sum_terms(zeros, seeds_ptr, coefficients_ptr, probes, base, DISTRIBUTION, BLOCK, VECTOR)


@triton.jit(do_not_specialize=["seeds_ptr", "coefficients_ptr", "probes", "momentum", "lr",
                               "decay", "key_ptr"])
def momentum_kernel(origin_ptr, records_ptr, seeds_ptr, coefficients_ptr, probes, momentum, lr,
                    decay, key_ptr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
                    DISTRIBUTION: tl.constexpr, STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr):
    """Write m <- momentum m + g and theta <- decay theta - lr m, g = sum_k c_k z(s_k).

    One program handles a block of consecutive elements of one tensor; m and theta are on their
    way from memory while the noise is drawn.

    Args:
        origin_ptr: pointer to float32 that the records' addresses count from.
        records_ptr: pointer to int64 (records, 6), see ``tensor_lists.py``.
        seeds_ptr: pointer to int64 (probes,).
        coefficients_ptr: pointer to float32 (probes,).
        probes: number of terms.
        momentum: float32 factor on m.
        lr: float32 learning rate.
        decay: float32 factor on theta.
        key_ptr: pointer to int64 (1,), the key of stochastic rounding; any if not STOCHASTIC.
        DTYPE: name of the parameters' dtype.
        ALIGNED: parameters, states and offsets allow 16-byte accesses.
        DISTRIBUTION: name of the noise's distribution.
        STOCHASTIC: stochastic rounding instead of nearest.
        BLOCK: elements per program, a multiple of 128.
    """
    record, start, base, first, stop = find(records_ptr, BLOCK)
    parameters = place(origin_ptr, record, INPUT, start, DTYPE, ALIGNED)
    means = place(origin_ptr, record, FIRST, start, "float32", ALIGNED)
    m = load(means, first, stop, BLOCK)
    theta = load(parameters, first, stop, BLOCK)
    g = _estimate(means, seeds_ptr, coefficients_ptr, probes, base, DISTRIBUTION, BLOCK)
    m = times(m, momentum) + g
    store(means, m, first, stop, BLOCK)
    value = times(widen(theta, DTYPE), decay) - times(m, lr)
    write(parameters, value, key_ptr, base, first, stop, DTYPE, STOCHASTIC, BLOCK, VECTOR)


@triton.jit(do_not_specialize=["seeds_ptr", "coefficients_ptr", "probes", "beta1", "rest1",
                               "beta2", "rest2", "lr", "epsilon", "scale1", "scale2", "decay",
                               "root_ptr", "key_ptr"])
def adam_kernel(origin_ptr, records_ptr, seeds_ptr, coefficients_ptr, probes, beta1, rest1, beta2,
                rest2, lr, epsilon, scale1, scale2, decay, root_ptr, key_ptr, DTYPE: tl.constexpr,
                ALIGNED: tl.constexpr, DISTRIBUTION: tl.constexpr, STOCHASTIC: tl.constexpr,
                ELEMENTWISE: tl.constexpr, BLOCK: tl.constexpr):
    """Write m, v and theta of the Adam rule, g = sum_k c_k z(s_k).

    m <- beta1 m + rest1 g; v <- beta2 v + rest2 g^2; theta <- decay theta - lr u with
    u = m scale1 / (sqrt(v scale2) + epsilon), or m scale1 times the scalar at root_ptr if the
    second moment is not ELEMENTWISE. Programs as in :func:`momentum_kernel`.

    Args:
        origin_ptr: pointer to float32 that the records' addresses count from.
        records_ptr: pointer to int64 (records, 6), see ``tensor_lists.py``.
        seeds_ptr: pointer to int64 (probes,).
        coefficients_ptr: pointer to float32 (probes,).
        probes: number of terms.
        beta1: float32 factor on m; the next eight as in ``AdamScalars``.
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
        DTYPE: name of the parameters' dtype.
        ALIGNED: parameters, states and offsets allow 16-byte accesses.
        DISTRIBUTION: name of the noise's distribution.
        STOCHASTIC: stochastic rounding instead of nearest.
        ELEMENTWISE: there is a second moment per element.
        BLOCK: elements per program, a multiple of 128.
    """
    record, start, base, first, stop = find(records_ptr, BLOCK)
    parameters = place(origin_ptr, record, INPUT, start, DTYPE, ALIGNED)
    means = place(origin_ptr, record, FIRST, start, "float32", ALIGNED)
    m = load(means, first, stop, BLOCK)
    if ELEMENTWISE:
        squares = place(origin_ptr, record, SECOND, start, "float32", ALIGNED)
        v = load(squares, first, stop, BLOCK)
    theta = load(parameters, first, stop, BLOCK)
    g = _estimate(means, seeds_ptr, coefficients_ptr, probes, base, DISTRIBUTION, BLOCK)
    m = times(m, beta1) + times(g, rest1)
    store(means, m, first, stop, BLOCK)
    u = m * scale1
    if ELEMENTWISE:
        v = times(v, beta2) + times(g * g, rest2)
        store(squares, v, first, stop, BLOCK)
        u = full_quotient(u, full_root(v * scale2) + epsilon)
    else:
        u = u * tl.load(root_ptr)
    value = times(widen(theta, DTYPE), decay) - times(u, lr)
    write(parameters, value, key_ptr, base, first, stop, DTYPE, STOCHASTIC, BLOCK, VECTOR)


def momentum_update_(tensors: Sequence[Tensor], momenta: Sequence[Tensor],
                     offsets: Sequence[int], seeds: Tensor, coefficients: Tensor,
                     momentum: float, lr: float, decay: float, distribution: str,
                     rounding_seed: Tensor | None) -> None:
    """Launch :func:`momentum_kernel` for each dtype; as ``reference.updates.momentum_update_``."""
    key = seeds if rounding_seed is None else rounding_seed
    with torch.cuda.device_of(seeds):
        for launch in prepare(tensors, tensors, (momenta,), offsets, distribution,
                              rounding_seed is not None, BLOCK):
            launch.start(momentum_kernel, seeds, coefficients, len(seeds), momentum, lr, decay,
                         key)


def adam_update_(tensors: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor],
                 offsets: Sequence[int], seeds: Tensor, coefficients: Tensor,
                 scalars: AdamScalars, inverse_root: Tensor | None, distribution: str,
                 rounding_seed: Tensor | None) -> None:
    """Launch :func:`adam_kernel` for each dtype; as in ``reference.updates.adam_update_``."""
    key = seeds if rounding_seed is None else rounding_seed
    with torch.cuda.device_of(seeds):
        for launch in prepare(tensors, tensors, (first, second) if second else (first,), offsets,
                              distribution, rounding_seed is not None, BLOCK):
            launch.start(adam_kernel, seeds, coefficients, len(seeds), *scalars,
                         launch.origin if inverse_root is None else inverse_root, key,
                         ELEMENTWISE=inverse_root is None)


def variants() -> Iterator[Variant]:
    """Every configuration that the launchers above can choose."""
    common = {"origin_ptr": "*fp32", "records_ptr": "*i64", "seeds_ptr": "*i64",
              "coefficients_ptr": "*fp32", "probes": "i32", "lr": "fp32", "decay": "fp32",
              "key_ptr": "*i64"}
    scalars = dict.fromkeys(AdamScalars._fields, "fp32")
    rules: list[tuple] = [("momentum_update", momentum_kernel, {"momentum": "fp32"}, {}, 16.0)]
    rules += [(f"adam_update/{name}", adam_kernel, {**scalars, "root_ptr": "*fp32"},
               {"ELEMENTWISE": name == "element"}, 24.0 if name == "element" else 16.0)
              for name in ("element", "scalar")]
    for (name, kernel, types, chosen, traffic), (case, constants) in product(
            rules, cases({4: BLOCK, 2: BLOCK})):
        dtype = constants["DTYPE"]
        yield Variant(
            f"{name}/{case}", kernel, {**common, **types}, {**chosen, **constants},
            elements=BLOCK, divisible=("origin_ptr", "records_ptr"),
            traffic={dtype: traffic if dtype == "float32" else traffic - 4}, loops=(1,),
            num_warps=THREADS // 32, wavefronts=THREADS // 64, noise=True)
