"""One correctly rounded root and one quotient an element: their expansions hold fused operations.

A machine has no such instructions; the assembler writes an approximation and corrections by fused
multiply-add, which is how a correctly rounded result is reached. The checks compare the fused
instructions of a noise kernel with as many of these expansions as it needs, so that any other
shows.
"""

from collections.abc import Iterator

import triton
import triton.language as tl

from adazeta.kernels.gpu.variants import Variant

THREADS = 128


@triton.jit
def root_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    """Write sqrt(x), correctly rounded."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + index, tl.sqrt_rn(tl.load(x_ptr + index)))


@triton.jit
def quotient_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    """Write x / y, correctly rounded."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + index, tl.div_rn(tl.load(x_ptr + index), tl.load(y_ptr + index)))


def variants() -> Iterator[Variant]:
    """Both, one element a thread (on AMD, half a wavefront repeats the other's)."""
    for kernel in (root_kernel, quotient_kernel):
        yield Variant(
            f"expansion/{kernel.__name__.removesuffix('_kernel')}",
            kernel,
            {"x_ptr": "*fp32", "y_ptr": "*fp32"},
            {"BLOCK": THREADS},
            elements=THREADS,
            traffic={"float32": 8.0},
        )
