"""The roots and quotients that the kernels write out are correctly rounded for all radii.

``arithmetic.root`` and ``arithmetic.quotient`` are an approximation and fused corrections without a
branch, on NVIDIA and on AMD. Here these are repeated step by step, each fused operation rounded
once, from an approximation that is the nearest float32 or up to 2 units away from it, and compared
with the correctly rounded results that ``reference`` takes, for the radii of both versions of the
noise. The approximations of AMD are within a unit of the exact value, so within 2 of the nearest.
"""

import numpy as np
import pytest

from adazeta.kernels.reference import pairs, philox

F = np.float32


def fma(a, b, c):
    """a * b + c of float32, rounded once: the sum in float64 is rounded to odd, then to float32."""
    a, b, c = (np.asarray(x, np.float64) for x in (a, b, c))
    product = a * b  # exact
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    up = (error > 0) == (total > 0)
    odd = np.where((error != 0) & (bits & 1 == 0), np.where(up, bits + 1, bits - 1), bits)
    return odd.view(np.float64).astype(F)


def root(value, units):
    y = shifted((1 / np.sqrt(value.astype(np.float64))).astype(F), units)
    s, h = value * y, y * F(0.5)
    return fma(fma(-s, s, value), h, s)


def root_of_amd(value, units):
    y = shifted((1 / np.sqrt(value.astype(np.float64))).astype(F), units)
    s, h = value * y, y * F(0.5)
    e = fma(-h, s, F(0.5))
    h, s = fma(h, e, h), fma(s, e, s)
    return fma(fma(-s, s, value), h, s)


def quotient(a, b, units):
    y = shifted((1 / b.astype(np.float64)).astype(F), units)
    y = fma(y, fma(-b, y, F(1)), y)
    q = a * y
    return fma(y, fma(-b, q, a), q)


def shifted(value, units):
    return (value.view(np.int32) + np.int32(units)).view(F)


def horner(x, coefficients):
    total = x * F(coefficients[-1])
    for coefficient in coefficients[-2:0:-1]:
        total = (total + F(coefficient)) * x
    return total + F(coefficients[0])


def operands(k):
    """Of version 1, for the uniforms (k + 1/2) 2^-24: what the root is of, and high and low."""
    whole = k.astype(F)
    bits = (whole + F(0.5)).view(np.int32) + np.int32(philox.ONE_BITS - philox.SQRT_HALF_BITS)
    power = bits & np.int32(philox.EXPONENT_BITS)
    f = ((whole - power.view(F)) + F(0.5)) * (np.int32(0x7F000000) - power).view(F)
    octaves = (151 - (bits >> 23)).astype(F)
    square = f * f
    log = (square * F(0.5) - horner(f, philox.LOG) * (square * f)) - f
    # The kernels' form of twice the logarithm, with doubled coefficients, has the same bits.
    doubled = [2 * value for value in philox.LOG]
    assert np.array_equal((square - horner(f, doubled) * (square * f)) - F(2) * f, log + log)
    high, low = octaves * F(philox.LOG4_HEAD), octaves * F(philox.LOG4_TAIL) + (log + log)
    return high + low, high, low


def check_version_1(k, spread=2):
    value, high, low = operands(k)
    assert value.min() > 5e-8 and value.max() < 35  # normal, and far from both ends
    exact = np.sqrt(value.astype(np.float64)).astype(F)
    # Two radii would be wrong if the approximation were low by a unit wherever it is not exact.
    assert (root(value, 0) != exact).sum() == 0
    assert sum((root(value, units) != exact).sum() for units in (-1, 1)) <= 2
    for units in range(-spread, spread + 1):
        assert np.array_equal(root_of_amd(value, units), exact)
    head = (exact.view(np.int32) & np.int32(philox.TWELVE_BITS)).view(F)
    a, b = (high - head * head) + low, exact + head
    assert np.abs(a[a != 0]).min() > 1e-14
    wanted = (a.astype(np.float64) / b.astype(np.float64)).astype(F)
    for units in range(-spread, spread + 1):
        assert np.array_equal(quotient(a, b, units), wanted)


def test_roots_and_quotients_of_some_radii():
    step = 61
    check_version_1(np.arange(7, 1 << 24, step, dtype=np.int32))
    check_version_1(np.arange(1 << 12, dtype=np.int32))
    check_version_1((1 << 24) - 1 - np.arange(1 << 12, dtype=np.int32))


@pytest.mark.slow
def test_roots_and_quotients_of_every_radius():
    for start in range(0, 1 << 24, 1 << 20):
        check_version_1(np.arange(start, start + (1 << 20), dtype=np.int32))


def test_roots_of_every_radius_of_pairs():
    whole = (2 * np.arange(1 << 20, dtype=np.int32) + 1).astype(F)
    power = (whole.view(np.int32) - np.int32(pairs.SQRT_HALF_BITS)) & np.int32(pairs.EXPONENT_MASK)
    f = (whole.view(np.int32) - power).view(F) - F(1)
    value = horner(f, pairs.LOG) * f + (power.astype(F) * F(pairs.OCTAVE) + F(pairs.TOP))
    assert value.min() > 9e-7 and value.max() < 30
    exact = np.sqrt(value.astype(np.float64)).astype(F)
    assert (root(value, 0) != exact).sum() == 0
    for units in range(-2, 3):
        assert np.array_equal(root_of_amd(value, units), exact)
