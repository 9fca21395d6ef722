"""Multiplications and additions that are each rounded by themselves, whatever compiles them."""

import os

import triton
import triton.language as tl

# Options of every launch whose results must be the same bits everywhere.
EXACT = {"enable_fp_fusion": False}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The assembler of triton 3.6 for Blackwell (ptxas 12.9) fuses mul.rn.f32x2 and add.rn.f32x2 in
# spite of the rounding they state and of --fmad=false; those before and after it do not. Products
# of one number each, which the compiler cannot see and so does not pack, it leaves alone.
PACKED = tl.constexpr(triton.__version__.startswith("3.6.") and not INTERPRETED)
if PACKED:
    from triton.language.target_info import cuda_capability_geq


def times(a, b):
    """Return a * b, float32, for a sum that it must not be fused with."""
    if PACKED:
        if cuda_capability_geq(10):
            return tl.inline_asm_elementwise("mul.rn.f32 $0, $1, $2;", "=f,f,f", [a, b],
                                             dtype=tl.float32, is_pure=True, pack=1)
        else:
            return a * b
    else:
        return a * b


if not INTERPRETED:  # there, a call of a jitted function takes longer than the product
    times = triton.jit(times)
