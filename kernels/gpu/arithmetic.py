"""Triton: arithmetic with the same bits whatever compiles it.

Products and sums are each rounded by themselves, bfloat16 by integers where the
machine does not round to it: Triton's interpreter truncates, so bfloat16 tensors reach the kernels
as int16 views, as 16 bits that stand for a float32 of 24. Stochastic rounding is the twin of
``reference.noise.round_stochastically``.
"""

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

# Options of every launch whose results must be the same bits everywhere.
EXACT = {"enable_fp_fusion": False}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The assembler of triton 3.6 for Blackwell (ptxas 12.9) fuses mul.rn.f32x2 and add.rn.f32x2 in
# spite of the rounding they state and of --fmad=false; those before and after it do not. Products
# of one number each, which the compiler cannot see and so does not pack, it leaves alone.
PACKED = tl.constexpr(triton.__version__.startswith("3.6.") and not INTERPRETED)

# Roots and quotients of triton 3.4 and 3.5 flush subnormal numbers (sqrt.rn.ftz, div.rn.ftz); those
# of 3.6 and later do not.
FLUSHING = tl.constexpr(triton.__version__.startswith(("3.4.", "3.5.")) and not INTERPRETED)


def on_nvidia(**_: Any) -> tl.constexpr:
    """Say whether the code is compiled for a GPU of NVIDIA."""
    return tl.constexpr(not INTERPRETED and driver.active.get_current_target().backend == "cuda")


def on_blackwell(**_: Any) -> tl.constexpr:
    """Say whether the code is compiled for NVIDIA's compute capability 10 or later."""
    target = driver.active.get_current_target()
    return tl.constexpr(target.backend == "cuda" and target.arch >= 100)


def on_amd(**_: Any) -> tl.constexpr:
    """Say whether the code is compiled for a GPU of AMD."""
    return tl.constexpr(not INTERPRETED and driver.active.get_current_target().backend == "hip")


def on_cdna(**_: Any) -> tl.constexpr:
    """Say whether the code is compiled for one of AMD's data centre GPUs, gfx9.

    One instruction has to lie between an approximation there and what reads it. Others want waits
    that the compiler knows and cannot place in code that is written out.
    """
    if INTERPRETED:
        return tl.constexpr(False)
    target = driver.active.get_current_target()
    return tl.constexpr(target.backend == "hip" and str(target.arch).startswith("gfx9"))


for _builtin in (on_nvidia, on_blackwell, on_amd, on_cdna):  # called while the code is compiled
    _builtin.__triton_builtin__ = True  # type: ignore[attr-defined]


def times(a, b):
    """Return a * b, float32, for a sum that it must not be fused with."""
    if PACKED:
        if on_blackwell():
            return tl.inline_asm_elementwise("mul.rn.f32 $0, $1, $2;", "=f,f,f", [a, b],
                                             dtype=tl.float32, is_pure=True, pack=1)
        else:
            return a * b
    else:
        return a * b


def wide(a, b):
    """Return the 64-bit product of 32-bit words, one instruction for its high and low half."""
    if on_nvidia():
        return tl.inline_asm_elementwise("mul.wide.u32 $0, $1, $2;", "=l,r,r", [a, b],
                                         dtype=tl.uint64, is_pure=True, pack=1)
    else:
        return a.to(tl.uint64) * b


def fused(a, b, c):
    """Return a * b + c of an exact a * b, so that it does not show whether the two are fused.

    What is fused is said to be on GPUs, and nothing but that: the checks of the machine code count
    it.
    """
    if on_nvidia():
        return tl.inline_asm_elementwise("fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", [a, b, c],
                                         dtype=tl.float32, is_pure=True, pack=1)
    elif on_amd():
        return tl.fma(a, b, c)
    else:
        return a * b + c


def root(value):
    """Return the correctly rounded root of a normal number far from both ends of the range.

    On NVIDIA the instructions that sqrt.rn takes for such numbers, without its branch to those
    for all others. On AMD an approximation that is within a unit (v_rsq_f32) and as many fused
    corrections as make every radius right from one within two units; the compiler's own code
    scales numbers that may be subnormal.
    """
    if on_nvidia():
        return tl.inline_asm_elementwise(
            """{
            .reg .f32 y, s, h, e;
            rsqrt.approx.ftz.f32 y, $1;
            mul.ftz.f32 s, $1, y;
            mul.ftz.f32 h, y, 0f3F000000;
            neg.f32 e, s;
            fma.rn.f32 e, e, s, $1;
            fma.rn.f32 $0, e, h, s;
            }""", "=f,f", [value], dtype=tl.float32, is_pure=True, pack=1)
    elif on_cdna():
        # What reads an approximation comes one instruction after it at the earliest.
        inverse = tl.inline_asm_elementwise(
            """v_rsq_f32 $0, $4
            v_rsq_f32 $1, $5
            v_rsq_f32 $2, $6
            v_rsq_f32 $3, $7
            s_nop 0""", "=&v,=&v,=&v,=&v,v,v,v,v", [value], dtype=tl.float32, is_pure=True,
            pack=4)
        about = value * inverse
        half = inverse * 0.5
        error = tl.fma(-half, about, 0.5)
        half = tl.fma(half, error, half)
        about = tl.fma(about, error, about)
        return tl.fma(tl.fma(-about, about, value), half, about)
    else:
        return tl.sqrt_rn(value)


def quotient(a, b):
    """Return the correctly rounded a / b of numbers as in :func:`root`; a may be zero.

    On NVIDIA the instructions that div.rn takes for such numbers, without its branch; on AMD the
    same ones, and v_rcp_f32 is within a unit.
    """
    if on_nvidia():
        return tl.inline_asm_elementwise(
            """{
            .reg .f32 y, n, e, q, r;
            rcp.approx.ftz.f32 y, $2;
            neg.f32 n, $2;
            fma.rn.f32 e, n, y, 0f3F800000;
            fma.rn.f32 y, y, e, y;
            mul.rn.f32 q, $1, y;
            fma.rn.f32 r, n, q, $1;
            fma.rn.f32 $0, y, r, q;
            }""", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1)
    elif on_cdna():
        inverse = tl.inline_asm_elementwise(
            """v_rcp_f32 $0, $4
            v_rcp_f32 $1, $5
            v_rcp_f32 $2, $6
            v_rcp_f32 $3, $7
            s_nop 0""", "=&v,=&v,=&v,=&v,v,v,v,v", [b], dtype=tl.float32, is_pure=True, pack=4)
        inverse = tl.fma(inverse, tl.fma(-b, inverse, 1.0), inverse)
        about = a * inverse
        return tl.fma(inverse, tl.fma(-b, about, a), about)
    else:
        return tl.div_rn(a, b)


def full_root(value):
    """Return the correctly rounded root of any number, subnormal ones included."""
    if FLUSHING:
        if on_nvidia():
            return tl.inline_asm_elementwise("sqrt.rn.f32 $0, $1;", "=f,f", [value],
                                             dtype=tl.float32, is_pure=True, pack=1)
        else:
            return tl.sqrt_rn(value)
    else:
        return tl.sqrt_rn(value)


def full_quotient(a, b):
    """Return the correctly rounded a / b of any numbers, subnormal ones included."""
    if FLUSHING:
        if on_nvidia():
            return tl.inline_asm_elementwise("div.rn.f32 $0, $1, $2;", "=f,f,f", [a, b],
                                             dtype=tl.float32, is_pure=True, pack=1)
        else:
            return tl.div_rn(a, b)
    else:
        return tl.div_rn(a, b)


def with_sign(value, word):
    """Give positive float32 the highest bit of a uint32 word as its sign.

    On AMD written out, since not every compiler finds the one instruction for it.
    """
    if on_amd():
        return tl.inline_asm_elementwise("v_and_or_b32 $0, $1, $2, $3", "=v,v,s,v",
                                         [word, 0x80000000, value], dtype=tl.float32,
                                         is_pure=True, pack=1)
    else:
        bits = value.to(tl.uint32, bitcast=True) | (word & 0x80000000)
        return bits.to(tl.float32, bitcast=True)


def plain_nan(value):
    """Return a float32 scalar; on AMD a NaN as the one whose last 22 bits are zero.

    A product or a sum of such a NaN, or of one that was bfloat16, is again one whose last 16 bits
    are zero, as are those that the machine makes itself.
    """
    if on_amd():
        # The compiler may take one NaN for another; of integers it has kept the choice so far (seen
        # in the code for gfx942 of triton 3.4 to 3.9).
        bits = tl.where(value != value, 0x7FC00000, value.to(tl.int32, bitcast=True))
        return bits.to(tl.float32, bitcast=True)
    else:
        return value


def nearest_bfloat16(value, PLAIN: tl.constexpr):
    """Do what :func:`to_bits` does, by the machine's own conversion where it has one.

    Args:
        value: float32.
        PLAIN: the last 16 bits of every NaN in it are zero, if compiled for AMD, see
            :func:`plain_nan`; then rounding cannot carry out of it.
    """
    if on_nvidia():
        return value.to(tl.bfloat16).to(tl.int16, bitcast=True)
    elif on_amd() and PLAIN:
        bits = value.to(tl.int32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16)
    else:
        return to_bits(value)


if INTERPRETED:
    # There, a call of a jitted function takes longer than what is in it. They keep the attribute
    # by which the fingerprint of a kernel finds their code.
    for _function in (times, wide, fused, root, quotient, full_root, full_quotient, with_sign,
                      plain_nan, nearest_bfloat16):
        _function.fn = _function  # type: ignore[union-attr]
else:
    (times, wide, fused, root, quotient, full_root, full_quotient, with_sign, plain_nan,
     nearest_bfloat16) = map(
        triton.jit, (times, wide, fused, root, quotient, full_root, full_quotient, with_sign,
                     plain_nan, nearest_bfloat16))


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
