"""Triton: arithmetic with the same bits whatever compiles it.

Products and sums are each rounded by themselves, 16-bit numbers by integers: Triton's interpreter
truncates to bfloat16 where a GPU rounds to nearest even, so bfloat16 tensors reach the kernels as
int16 views, as 16 bits that stand for a float32 of 24. Stochastic rounding is the twin of
``reference.noise.round_stochastically``.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

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


@triton.jit
def from_bits(bits):
    """Widen int16 bfloat16 bits to float32 (exact)."""
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def to_bits(value):
    """Round float32 to the nearest bfloat16, ties to even, as int16 bits; NaN stays NaN."""
    bits = value.to(tl.int32, bitcast=True)
    # Of a NaN, or the round-up could carry its mantissa into the exponent.
    rounded = tl.where(value != value, 0x7FC00000, bits + 0x7FFF + ((bits >> 16) & 1))
    return (rounded >> 16).to(tl.int16)


def kernel_view(tensor: Tensor) -> Tensor:
    """Return a bfloat16 tensor as int16 for the kernels, and any other as it is."""
    tensor = tensor.detach()
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


@triton.jit
def stochastic_bfloat16(value, random):
    """Round float32 to int16 bfloat16 bits with uint32 random words; NaN stays NaN."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    total = magnitude + (random >> 16).to(tl.int32)
    # From 0x7F7F8000 on, half a spacing beyond the largest bfloat16, nearest is infinity.
    total = tl.where(magnitude < 0x7F7F8000, tl.minimum(total, 0x7F7FFFFF), total)
    total = tl.where(value != value, 0x7FC00000, total)
    return ((total | (bits & -0x80000000)) >> 16).to(tl.int16)


@triton.jit
def stochastic_float16(value, random):
    """Round float32 to float16 with uint32 random words; NaN stays NaN."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = (bits & 0x7FFFFFFF).to(tl.float32, bitcast=True)
    size = tl.minimum(magnitude, 65536.0)
    # Below 2^-14 (exponent field 113) the spacing of float16 is constant.
    exponent = tl.maximum(size.to(tl.int32, bitcast=True) >> 23, 113)
    scaled = times(size, ((264 - exponent) << 23).to(tl.float32, bitcast=True))
    whole = scaled.to(tl.int32)
    rest = ((scaled - whole.to(tl.float32)) * 16777216.0).to(tl.int32)
    whole += (rest + (random >> 8).to(tl.int32)) >> 24
    rounded = whole.to(tl.float32) * ((exponent - 10) << 23).to(tl.float32, bitcast=True)
    rounded = tl.where(size < 65520.0, tl.minimum(rounded, 65504.0), rounded)
    signed = rounded.to(tl.int32, bitcast=True) | (bits & -0x80000000)
    return tl.where(value != value, value, signed.to(tl.float32, bitcast=True)).to(tl.float16)
