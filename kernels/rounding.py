"""Triton: stochastic rounding to bfloat16 and float16; twin of ``round_stochastically``."""

import triton
import triton.language as tl

from .exact import times


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
