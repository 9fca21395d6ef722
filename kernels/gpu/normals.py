"""Triton: the noise itself, as device functions that every kernel shares.

The maths repeats ``philox.py`` operation by operation in float32, and the launches forbid fused
multiply-add, so the results are the same bits.
"""

import triton
import triton.language as tl
from triton.language.random import philox_impl

from ..reference import philox
from .arithmetic import times

LOG = tl.constexpr(philox.LOG)
SIN = tl.constexpr(philox.SIN)
COS = tl.constexpr(philox.COS)
SIN_HEAD, SIN_TAIL = tl.constexpr(philox.SIN_HEAD), tl.constexpr(philox.SIN_TAIL)
COS_HEAD, COS_TAIL = tl.constexpr(philox.COS_HEAD), tl.constexpr(philox.COS_TAIL)
LOG4_HEAD, LOG4_TAIL = tl.constexpr(philox.LOG4_HEAD), tl.constexpr(philox.LOG4_TAIL)
BITS_SHIFT = tl.constexpr(philox.ONE_BITS - philox.SQRT_HALF_BITS)
EXPONENT_BITS = tl.constexpr(philox.EXPONENT_BITS)
TWELVE_BITS = tl.constexpr(philox.TWELVE_BITS)
SIX_BITS = tl.constexpr(philox.SIX_BITS)


@triton.jit
def _short(value, mask: tl.constexpr):
    return (value.to(tl.int32, bitcast=True) & mask).to(tl.float32, bitcast=True)


@triton.jit
def _horner(x, coefficients: tl.constexpr, degree: tl.constexpr):
    total = times(x, coefficients[degree])
    for step in tl.static_range(1, degree):
        total = times(total + coefficients[degree - step], x)
    return total + coefficients[0]


@triton.jit
def _radius(word):
    """Return sqrt(-2 log u) of the word's uniform as a 12-bit head and a tail, float32."""
    whole = (word >> 8).to(tl.int32).to(tl.float32)
    bits = (whole + 0.5).to(tl.int32, bitcast=True) + BITS_SHIFT
    power = bits & EXPONENT_BITS
    inverse = (0x7F000000 - power).to(tl.float32, bitcast=True)
    f = times((whole - power.to(tl.float32, bitcast=True)) + 0.5, inverse)
    octaves = (151 - (bits >> 23)).to(tl.float32)
    square = f * f
    log = (times(square, 0.5) - times(_horner(f, LOG, 7), square * f)) - f
    high = times(octaves, LOG4_HEAD)
    low = times(octaves, LOG4_TAIL) + (log + log)
    radius = tl.sqrt_rn(high + low)
    head = _short(radius, TWELVE_BITS)
    return head, tl.div_rn((high - times(head, head)) + low, radius + head)


@triton.jit
def _box_muller(first, second):
    """Turn two uint32 words into two normals; twin of ``philox.box_muller``."""
    rh, rl = _radius(first)
    k = (second >> 8).to(tl.int32)
    quarter = (k + (1 << 21)) >> 22
    t = times((k - (quarter << 22)).to(tl.float32) + 0.5, 5.9604644775390625e-08)
    head = _short(t, SIX_BITS)
    tail = t - head
    square = t * t
    exact = times(head, SIN_HEAD)
    rest = times(times(_horner(square, SIN, 2), square) + SIN_TAIL, t) + times(tail, SIN_HEAD)
    value = exact + rest
    short = _short(value, TWELVE_BITS)
    sine = times(short, rh) + (times((exact - short) + rest, rh) + times(value, rl))
    exact = times(head * head, COS_HEAD)
    rest = times(times(_horner(square, COS, 2), square) + COS_TAIL, square)
    rest = rest + times((t + head) * tail, COS_HEAD)
    value = (exact + rest) + 1.0
    short = _short(value, TWELVE_BITS)
    cosine = times(short, rh) + (times((1.0 - short) + exact + rest, rh) + times(value, rl))
    odd = (quarter & 1) != 0
    cosine_sign = (1 - ((quarter + 1) & 2)).to(tl.float32)
    sine_sign = (1 - (quarter & 2)).to(tl.float32)
    return tl.where(odd, sine, cosine) * cosine_sign, tl.where(odd, cosine, sine) * sine_sign


@triton.jit
def _words(seed, counter, stream):
    zero = counter.to(tl.uint32) * 0
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c0 = (counter & 0xFFFFFFFF).to(tl.uint32)
    c1 = ((counter >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return philox_impl(c0, c1, zero + stream.to(tl.uint32), zero, zero + k0, zero + k1)


@triton.jit
def _normals(seed, counter, stream):
    w0, w1, w2, w3 = _words(seed, counter, stream)
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    return z0, z1, z2, z3


@triton.jit
def _four(a, b, c, d):
    """Return a[0], b[0], c[0], d[0], a[1], ..."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def _eight(a, b, c, d, e, f, g, h):
    """Return a[0], ..., h[0], a[1], ..."""
    return tl.interleave(_four(a, c, e, g), _four(b, d, f, h))


@triton.jit
def uniform_words(seed, base, stream, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Return the uint32 words of the elements base .. base + BLOCK - 1, one each.

    Args:
        seed: int64 scalar.
        base: int64 index of the first element, a multiple of 4.
        stream: third counter word.
        BLOCK: elements.
        VECTOR: consecutive elements that one thread holds, 4 or 8. The layout follows from it:
            it is that of 16-byte accesses of 4-byte or 2-byte elements, so nothing moves between
            threads.
    """
    counter = base // 4 + tl.arange(0, BLOCK // VECTOR).to(tl.int64) * (VECTOR // 4)
    w0, w1, w2, w3 = _words(seed, counter, stream)
    if VECTOR == 4:
        return _four(w0, w1, w2, w3)
    else:
        w4, w5, w6, w7 = _words(seed, counter + 1, stream)
        return _eight(w0, w1, w2, w3, w4, w5, w6, w7)


@triton.jit
def sign_of(words):
    """Return 1.0 with the highest bits of uint32 words as signs."""
    return ((words & 0x80000000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def noise(seed, base, stream, RADEMACHER: tl.constexpr, BLOCK: tl.constexpr,
          VECTOR: tl.constexpr = 4):
    """Return z(seed, base .. base + BLOCK - 1), float32 (BLOCK,).

    Arguments as in :func:`uniform_words`; for signs (RADEMACHER) base is a multiple of 128.
    """
    if RADEMACHER:
        counter = base // 128 + tl.arange(0, BLOCK // 128).to(tl.int64)
        w0, w1, w2, w3 = _words(seed, counter, stream)
        words = _four(w0, w1, w2, w3)
        # The bit that says +1, turned round, is the sign of one.
        signs = (words ^ 0xFFFFFFFF)[:, None] << (31 - tl.arange(0, 32))[None, :].to(tl.uint32)
        return tl.reshape(sign_of(signs), (BLOCK,))
    else:
        counter = base // 4 + tl.arange(0, BLOCK // VECTOR).to(tl.int64) * (VECTOR // 4)
        z0, z1, z2, z3 = _normals(seed, counter, stream)
        if VECTOR == 4:
            return _four(z0, z1, z2, z3)
        else:
            z4, z5, z6, z7 = _normals(seed, counter + 1, stream)
            return _eight(z0, z1, z2, z3, z4, z5, z6, z7)


@triton.jit
def add_terms(value, seeds_ptr, coefficients_ptr, probes, base, RADEMACHER: tl.constexpr,
              BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Return value + c_0 z(s_0) + c_1 z(s_1) + ..., each product and sum rounded, in order."""
    # Not a range over a tensor: interpreters before triton 3.9 fail there with NumPy 2.4.
    probe = 0
    while probe < probes:
        seed = tl.load(seeds_ptr + probe)
        coefficient = tl.load(coefficients_ptr + probe)
        stream = probe * 0
        value = value + times(coefficient, noise(seed, base, stream, RADEMACHER, BLOCK, VECTOR))
        probe += 1
    return value
