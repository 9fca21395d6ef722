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
from .arithmetic import times
from .launch import launch_options, maxnreg
from .normals import add_terms
from .tensor_lists import (
    BLOCK,
    FIRST,
    HALF_BLOCK,
    NUM_WARPS,
    SECOND,
    THREADS,
    find,
    load,
    prepare,
    read,
    store,
    write,
)
from .variants import Variant

# A thread computes 4 elements at a time, 16 bytes of each float32 state. The 16 bytes of a 16-bit
# parameter are 8 elements, so only these pass through shared memory.
VECTOR = tl.constexpr(4)


@triton.jit
def _estimate(state, seeds_ptr, coefficients_ptr, probes, base, RADEMACHER: tl.constexpr,
              BLOCK: tl.constexpr):
    # Zeros that lie in the threads as the state does: a plain constant would lie one element a
    # thread, and all noise would pass through shared memory to be added to it.
    g = tl.where(probes < 0, state, 0.0)
    return add_terms(g, seeds_ptr, coefficients_ptr, probes, base, RADEMACHER, BLOCK, VECTOR)


@triton.jit
def _momentum(origin_ptr, row, dtype, base, begin, end, seeds_ptr, coefficients_ptr, probes,
              momentum, lr, decay, key_ptr, ALIGNED: tl.constexpr, RADEMACHER: tl.constexpr,
              STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Apply the momentum rule to a block; WIDTH elements of the parameter are 16 bytes."""
    place = tl.load(row + FIRST)
    m = load(origin_ptr, place, begin, end, BLOCK, VECTOR, ALIGNED)
    g = _estimate(m, seeds_ptr, coefficients_ptr, probes, base, RADEMACHER, BLOCK)
    m = times(m, momentum) + g
    store(origin_ptr, place, begin, end, m, BLOCK, VECTOR, ALIGNED)
    theta = read(origin_ptr, row, dtype, begin, end, BLOCK, WIDTH, ALIGNED)
    theta = times(theta, decay) - times(m, lr)
    write(origin_ptr, row, dtype, base, begin, end, theta, key_ptr, BLOCK, WIDTH, VECTOR, ALIGNED,
          STOCHASTIC)


@triton.jit(do_not_specialize=["seeds_ptr", "coefficients_ptr", "probes", "momentum", "lr",
                               "decay", "key_ptr"])
def momentum_kernel(origin_ptr, table_ptr, owners_ptr, seeds_ptr, coefficients_ptr, probes,
                    momentum, lr, decay, key_ptr, ALIGNED: tl.constexpr, RADEMACHER: tl.constexpr,
                    STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr):
    """Write m <- momentum m + g and theta <- decay theta - lr m, g = sum_k c_k z(s_k).

    One program handles a block of consecutive elements of one tensor.

    Args:
        origin_ptr: pointer to float32 that the table's addresses count from.
        table_ptr: pointer to int64 (tensors, 8), see ``tensor_lists.py``.
        owners_ptr: pointer to int32 (programs,), rows of the table.
        seeds_ptr: pointer to int64 (probes,).
        coefficients_ptr: pointer to float32 (probes,).
        probes: number of terms.
        momentum: float32 factor on m.
        lr: float32 learning rate.
        decay: float32 factor on theta.
        key_ptr: pointer to int64 (1,), the key of stochastic rounding; any if not STOCHASTIC.
        ALIGNED: parameters, states and offsets allow 16-byte accesses.
        RADEMACHER: signs instead of normals.
        STOCHASTIC: stochastic rounding instead of nearest.
        BLOCK: elements per program of a float32 tensor, a multiple of 128.
        HALF_BLOCK: elements per program of a 16-bit tensor.
    """
    row, dtype, base, begin, end = find(table_ptr, owners_ptr, BLOCK, HALF_BLOCK, RADEMACHER)
    if dtype == 0:
        _momentum(origin_ptr, row, dtype, base, begin, end, seeds_ptr, coefficients_ptr, probes,
                  momentum, lr, decay, key_ptr, ALIGNED, RADEMACHER, STOCHASTIC, BLOCK, 4)
    else:
        _momentum(origin_ptr, row, dtype, base, begin, end, seeds_ptr, coefficients_ptr, probes,
                  momentum, lr, decay, key_ptr, ALIGNED, RADEMACHER, STOCHASTIC, HALF_BLOCK, 8)


@triton.jit
def _adam(origin_ptr, row, dtype, base, begin, end, seeds_ptr, coefficients_ptr, probes, beta1,
          rest1, beta2, rest2, lr, epsilon, scale1, scale2, decay, root_ptr, key_ptr,
          ALIGNED: tl.constexpr, RADEMACHER: tl.constexpr, STOCHASTIC: tl.constexpr,
          ELEMENTWISE: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Apply the Adam rule to a block; WIDTH elements of the parameter are 16 bytes."""
    place = tl.load(row + FIRST)
    m = load(origin_ptr, place, begin, end, BLOCK, VECTOR, ALIGNED)
    g = _estimate(m, seeds_ptr, coefficients_ptr, probes, base, RADEMACHER, BLOCK)
    m = times(m, beta1) + times(g, rest1)
    store(origin_ptr, place, begin, end, m, BLOCK, VECTOR, ALIGNED)
    u = m * scale1
    if ELEMENTWISE:
        place = tl.load(row + SECOND)
        v = load(origin_ptr, place, begin, end, BLOCK, VECTOR, ALIGNED)
        v = times(v, beta2) + times(g * g, rest2)
        store(origin_ptr, place, begin, end, v, BLOCK, VECTOR, ALIGNED)
        u = tl.div_rn(u, tl.sqrt_rn(v * scale2) + epsilon)
    else:
        u = u * tl.load(root_ptr)
    theta = read(origin_ptr, row, dtype, begin, end, BLOCK, WIDTH, ALIGNED)
    theta = times(theta, decay) - times(u, lr)
    write(origin_ptr, row, dtype, base, begin, end, theta, key_ptr, BLOCK, WIDTH, VECTOR, ALIGNED,
          STOCHASTIC)


@triton.jit(do_not_specialize=["seeds_ptr", "coefficients_ptr", "probes", "beta1", "rest1",
                               "beta2", "rest2", "lr", "epsilon", "scale1", "scale2", "decay",
                               "root_ptr", "key_ptr"])
def adam_kernel(origin_ptr, table_ptr, owners_ptr, seeds_ptr, coefficients_ptr, probes, beta1,
                rest1, beta2, rest2, lr, epsilon, scale1, scale2, decay, root_ptr, key_ptr,
                ALIGNED: tl.constexpr, RADEMACHER: tl.constexpr, STOCHASTIC: tl.constexpr,
                ELEMENTWISE: tl.constexpr, BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr):
    """Write m, v and theta of the Adam rule, g = sum_k c_k z(s_k).

    m <- beta1 m + rest1 g; v <- beta2 v + rest2 g^2; theta <- decay theta - lr u with
    u = m scale1 / (sqrt(v scale2) + epsilon), or m scale1 times the scalar at root_ptr if the
    second moment is not ELEMENTWISE. One program handles a block of consecutive
    elements of one tensor.

    Args:
        origin_ptr: pointer to float32 that the table's addresses count from.
        table_ptr: pointer to int64 (tensors, 8), see ``tensor_lists.py``.
        owners_ptr: pointer to int32 (programs,), rows of the table.
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
        ALIGNED: parameters, states and offsets allow 16-byte accesses.
        RADEMACHER: signs instead of normals.
        STOCHASTIC: stochastic rounding instead of nearest.
        ELEMENTWISE: there is a second moment per element.
        BLOCK: elements per program of a float32 tensor, a multiple of 128.
        HALF_BLOCK: elements per program of a 16-bit tensor.
    """
    row, dtype, base, begin, end = find(table_ptr, owners_ptr, BLOCK, HALF_BLOCK, RADEMACHER)
    if dtype == 0:
        _adam(origin_ptr, row, dtype, base, begin, end, seeds_ptr, coefficients_ptr, probes, beta1,
              rest1, beta2, rest2, lr, epsilon, scale1, scale2, decay, root_ptr, key_ptr, ALIGNED,
              RADEMACHER, STOCHASTIC, ELEMENTWISE, BLOCK, 4)
    else:
        _adam(origin_ptr, row, dtype, base, begin, end, seeds_ptr, coefficients_ptr, probes, beta1,
              rest1, beta2, rest2, lr, epsilon, scale1, scale2, decay, root_ptr, key_ptr, ALIGNED,
              RADEMACHER, STOCHASTIC, ELEMENTWISE, HALF_BLOCK, 8)


def momentum_update_(tensors: Sequence[Tensor], momenta: Sequence[Tensor],
                     offsets: Sequence[int], seeds: Tensor, coefficients: Tensor,
                     momentum: float, lr: float, decay: float, distribution: str,
                     rounding_seed: Tensor | None) -> None:
    """Launch :func:`momentum_kernel` once; as in ``reference.updates.momentum_update_``."""
    launch = prepare(tensors, tensors, (momenta,), offsets, distribution)
    if launch is None:
        return
    with torch.cuda.device_of(seeds):
        momentum_kernel[(len(launch.owners),)](
            launch.origin, launch.table, launch.owners, seeds, coefficients, len(seeds),
            momentum, lr, decay, seeds if rounding_seed is None else rounding_seed,
            STOCHASTIC=rounding_seed is not None, **{**launch.options, **launch_options(NUM_WARPS)})


def adam_update_(tensors: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor],
                 offsets: Sequence[int], seeds: Tensor, coefficients: Tensor,
                 scalars: AdamScalars, inverse_root: Tensor | None, distribution: str,
                 rounding_seed: Tensor | None) -> None:
    """Launch :func:`adam_kernel` once; as in ``reference.updates.adam_update_``."""
    launch = prepare(tensors, tensors, (first, second) if second else (first,), offsets,
                     distribution)
    if launch is None:
        return
    with torch.cuda.device_of(seeds):
        adam_kernel[(len(launch.owners),)](
            launch.origin, launch.table, launch.owners, seeds, coefficients, len(seeds),
            *scalars, launch.origin if inverse_root is None else inverse_root,
            seeds if rounding_seed is None else rounding_seed,
            STOCHASTIC=rounding_seed is not None, ELEMENTWISE=inverse_root is None,
            **{**launch.options, **launch_options(NUM_WARPS)})


def variants() -> Iterator[Variant]:
    """Every configuration that the launchers above can choose."""
    common = {"origin_ptr": "*fp32", "table_ptr": "*i64", "owners_ptr": "*i32", "seeds_ptr": "*i64",
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
             "STOCHASTIC": stochastic, "BLOCK": BLOCK,
             "HALF_BLOCK": HALF_BLOCK if aligned else BLOCK},
            elements=BLOCK, divisible=("origin_ptr", "table_ptr", "owners_ptr"),
            traffic={"float32": traffic, "bfloat16": traffic - 4, "float16": traffic - 4},
            num_warps=THREADS // 32, wavefronts=THREADS // 64, maxnreg=maxnreg(THREADS // 32),
            half_elements=HALF_BLOCK if aligned else BLOCK, loops=(1,), noise=True)
