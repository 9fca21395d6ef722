"""Triton: the noise itself, as device functions that every kernel shares.

The maths repeats ``philox.py`` operation by operation in float32, and the launches forbid fused
multiply-add, so the results are the same bits.
"""

import triton
import triton.language as tl

from ..reference import pairs, philox
from .arithmetic import fused, plain_nan, quotient, root, times, wide, with_sign

PAIR_LOG, PAIR_LOG_DEGREE = tl.constexpr(pairs.LOG), tl.constexpr(len(pairs.LOG) - 1)
PAIR_EVEN, PAIR_EVEN_DEGREE = tl.constexpr(pairs.EVEN), tl.constexpr(len(pairs.EVEN) - 1)
PAIR_ODD, PAIR_ODD_DEGREE = tl.constexpr(pairs.ODD), tl.constexpr(len(pairs.ODD) - 1)
PAIR_OCTAVE, PAIR_TOP = tl.constexpr(pairs.OCTAVE), tl.constexpr(pairs.TOP)
EXPONENT_MASK = tl.constexpr(pairs.EXPONENT_MASK)
# Of twice the logarithm: doubled numbers round as the numbers do.
TWICE_LOG = tl.constexpr(tuple(2 * value for value in philox.LOG))
SIN = tl.constexpr(philox.SIN)
COS = tl.constexpr(philox.COS)
SIN_HEAD, SIN_TAIL = tl.constexpr(philox.SIN_HEAD), tl.constexpr(philox.SIN_TAIL)
COS_HEAD, COS_TAIL = tl.constexpr(philox.COS_HEAD), tl.constexpr(philox.COS_TAIL)
SQRT_HALF_BITS = tl.constexpr(philox.SQRT_HALF_BITS)
BITS_SHIFT = tl.constexpr(philox.ONE_BITS - philox.SQRT_HALF_BITS)
EXPONENT_BITS = tl.constexpr(philox.EXPONENT_BITS)
TWELVE_BITS = tl.constexpr(philox.TWELVE_BITS)
SIX_BITS = tl.constexpr(philox.SIX_BITS)
# The exponent's bits are 2^23 times the number of octaves.
OCTAVES = tl.constexpr(151.0 * 2**23)
LOG4_HIGH = tl.constexpr(philox.LOG4_HEAD * 2.0**-23)
LOG4_LOW = tl.constexpr(philox.LOG4_TAIL * 2.0**-23)
MULTIPLIER0, MULTIPLIER1 = (tl.constexpr(value) for value in philox.MULTIPLIERS)
WEYL0, WEYL1 = (tl.constexpr(value) for value in philox.WEYL)
ROUNDS = tl.constexpr(philox.ROUNDS)


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
    octaves = OCTAVES - power.to(tl.float32)
    square = times(f, f)
    logs = fused(f, -2.0, square - times(_horner(f, TWICE_LOG, 7), times(square, f)))
    high = times(octaves, LOG4_HIGH)
    low = times(octaves, LOG4_LOW) + logs
    radius = root(high + low)
    head = _short(radius, TWELVE_BITS)
    return head, quotient(fused(-head, head, high) + low, radius + head)


@triton.jit
def _box_muller(first, second):
    """Turn two uint32 words into two normals; twin of ``philox.box_muller``."""
    rh, rl = _radius(first)
    # u = quarter / 4 + t with |t| < 1/8: t is the low 22 of the word's 24 bits, signed.
    quarters = second + 0x20000000
    t = fused(((second << 2).to(tl.int32, bitcast=True) >> 10).to(tl.float32),
              5.9604644775390625e-08, 2.98023223876953125e-08)
    head = _short(t, SIX_BITS)
    tail = t - head
    square = t * t
    rest = times(times(_horner(square, SIN, 2), square) + SIN_TAIL, t) + times(tail, SIN_HEAD)
    value = fused(head, SIN_HEAD, rest)
    short = _short(value, TWELVE_BITS)
    rest = fused(head, SIN_HEAD, -short) + rest
    sine = fused(short, rh, times(rest, rh) + times(value, rl))
    power = head * head
    rest = times(times(_horner(square, COS, 2), square) + COS_TAIL, square)
    rest = rest + times((t + head) * tail, COS_HEAD)
    value = fused(power, COS_HEAD, rest) + 1.0
    short = _short(value, TWELVE_BITS)
    rest = fused(power, COS_HEAD, 1.0 - short) + rest
    cosine = fused(short, rh, times(rest, rh) + times(value, rl))
    # In quarters 0 to 3: cosine, -sine, -cosine, sine; and sine, cosine and so on.
    odd = (quarters & 0x40000000) != 0
    return _signed(tl.where(odd, -sine, cosine), quarters), _signed(tl.where(odd, cosine, sine),
                                                                    quarters)


@triton.jit
def _signed(value, word):
    """Change the sign of float32 where the highest bit of a uint32 word is set."""
    return (value.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _pair(word):
    """Turn a uint32 word into two normals of version 2; twin of ``pairs.pair``."""
    whole = ((word & 0x1FFFFE) | 1).to(tl.int32).to(tl.float32)
    bits = whole.to(tl.int32, bitcast=True)
    power = (bits - SQRT_HALF_BITS) & EXPONENT_MASK
    f = (bits - power).to(tl.float32, bitcast=True) - 1.0
    start = fused(power.to(tl.float32), PAIR_OCTAVE, PAIR_TOP)
    radius = root(times(_horner(f, PAIR_LOG, PAIR_LOG_DEGREE), f) + start)
    s = (((word >> 7) & 0x007FC000) | 0x3F802000).to(tl.float32, bitcast=True) - 1.5
    square = s * s
    even = times(radius, _horner(square, PAIR_EVEN, PAIR_EVEN_DEGREE))
    odd = times(times(radius, s), _horner(square, PAIR_ODD, PAIR_ODD_DEGREE))
    return with_sign(even - odd, word), with_sign(even + odd, word << 1)


@triton.jit
def _words(seed, counter, stream):
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c0 = (counter & 0xFFFFFFFF).to(tl.uint32)
    c1 = ((counter >> 32) & 0xFFFFFFFF).to(tl.uint32)
    # The first round, in which two of the counter's words are the same for all elements.
    p0 = wide(c0, MULTIPLIER0)
    p1 = stream.to(tl.uint32).to(tl.uint64) * MULTIPLIER1
    c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
    c1 = p1.to(tl.uint32)
    c2 = (p0 >> 32).to(tl.uint32) ^ k1
    c3 = p0.to(tl.uint32)
    for _ in tl.static_range(1, ROUNDS):
        k0 = k0 + WEYL0
        k1 = k1 + WEYL1
        p0 = wide(c0, MULTIPLIER0)
        p1 = wide(c2, MULTIPLIER1)
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
    return c0, c1, c2, c3


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
    counter = (base >> 2) + tl.arange(0, BLOCK // VECTOR).to(tl.int64) * (VECTOR // 4)
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
def noise(seed, base, stream, DISTRIBUTION: tl.constexpr, BLOCK: tl.constexpr,
          VECTOR: tl.constexpr = 4):
    """Return z(seed, base .. base + BLOCK - 1), float32 (BLOCK,).

    Args:
        seed: int64 scalar.
        base: int64 index of the first element, a multiple of the distribution's grain.
        stream: third counter word.
        DISTRIBUTION: its name.
        BLOCK: elements, a multiple of 128.
        VECTOR: as in :func:`uniform_words`; pairs are 8.
    """
    if DISTRIBUTION == "rademacher":
        counter = (base >> 7) + tl.arange(0, BLOCK // 128).to(tl.int64)
        w0, w1, w2, w3 = _words(seed, counter, stream)
        words = _four(w0, w1, w2, w3)
        # The bit that says +1, turned round, is the sign of one.
        signs = (words ^ 0xFFFFFFFF)[:, None] << (31 - tl.arange(0, 32))[None, :].to(tl.uint32)
        return tl.reshape(sign_of(signs), (BLOCK,))
    elif DISTRIBUTION == "pairs":
        counter = (base >> 3) + tl.arange(0, BLOCK // 8).to(tl.int64)
        w0, w1, w2, w3 = _words(seed, counter, stream)
        # Words change threads where these hold 4 elements each; normals would be twice as many.
        even, odd = _pair(_four(w0, w1, w2, w3))
        return tl.interleave(even, odd)
    else:
        counter = (base >> 2) + tl.arange(0, BLOCK // VECTOR).to(tl.int64) * (VECTOR // 4)
        z0, z1, z2, z3 = _normals(seed, counter, stream)
        if VECTOR == 4:
            return _four(z0, z1, z2, z3)
        else:
            z4, z5, z6, z7 = _normals(seed, counter + 1, stream)
            return _eight(z0, z1, z2, z3, z4, z5, z6, z7)


@triton.jit
def sum_terms(value, seeds_ptr, coefficients_ptr, probes, base, DISTRIBUTION: tl.constexpr,
              BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Return value + c_0 z(s_0) + c_1 z(s_1) + ..., each product and sum rounded, in order."""
    # Not a range over a tensor: interpreters before triton 3.9 fail there with NumPy 2.4.
    probe = 0
    while probe < probes:
        seed = tl.load(seeds_ptr + probe)
        coefficient = tl.load(coefficients_ptr + probe)
        z = noise(seed, base, probe * 0, DISTRIBUTION, BLOCK, VECTOR)
        value = value + times(coefficient, z)
        probe += 1
    return value


@triton.jit
def add_terms(value, factor, one, seeds_ptr, coefficients_ptr, probes, base,
              DISTRIBUTION: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
              PLAIN: tl.constexpr):
    """Return factor value + c_0 z(s_0) + c_1 z(s_1) + ..., rounded as in :func:`sum_terms`.

    The value is not touched before the first noise is drawn, so that it may be on its way from
    memory meanwhile. ``one`` is 1.0, and not a constant: the compiler would see that the product
    belongs to the first turn of the loop and move it before that. PLAIN passes the coefficients
    through ``plain_nan``.
    """
    if probes == 0:
        value = times(value, factor)
    probe = 0
    while probe < probes:
        seed = tl.load(seeds_ptr + probe)
        coefficient = tl.load(coefficients_ptr + probe)
        if PLAIN:
            coefficient = plain_nan(coefficient)
        z = noise(seed, base, probe * 0, DISTRIBUTION, BLOCK, VECTOR)
        value = times(value, factor) + times(coefficient, z)
        factor = one
        probe += 1
    return value
