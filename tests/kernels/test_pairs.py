"""Noise version 2: what its bits mean, and that its samples are those of a normal distribution."""

import math

import numpy as np
import pytest
import torch

from adazeta.kernels import aligned_offsets, pairs
from adazeta.kernels.reference.arithmetic import square_root
from adazeta.kernels.reference.pairs import pair
from adazeta.kernels.reference.philox import philox

SEEDS = (1000, 1001, 1002, 1003)
COUNT = 1 << 21
# Of the moments 1 to 8 of a standard normal: their values, and the variances of one sample.
MOMENTS = (0, 1, 0, 3, 0, 15, 0, 105)
VARIANCES = (1, 2, 15, 96, 945, 10_170, 135_135, 2_016_000)


def exact(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Box-Muller in float64 of the bits of words, as ``pair`` describes it."""
    words = words.astype(np.int64)
    u = (words >> 1 & 0xFFFFF) * 2.0**-20 + 2.0**-21
    radius = np.sqrt(-2 * np.where(u > 0.5, np.log1p(u - 1), np.log(u)))
    angle = np.pi / 2 * ((words >> 21 & 511) + 0.5) / 512
    signs = (np.where(words >> bit & 1, -1.0, 1.0) for bit in (31, 30))
    return tuple(
        radius * part * sign
        for part, sign in zip((np.cos(angle), np.sin(angle)), signs, strict=True)
    )


def given(words: np.ndarray) -> list[np.ndarray]:
    return [part.numpy() for part in pair(torch.from_numpy(words).to(torch.int32))]


@pytest.fixture(scope="module")
def samples():
    return [pairs(seed, 0, COUNT).double().numpy() for seed in SEEDS]


def test_each_normal_is_within_5e_5_of_the_exact_map_of_its_bits():
    radii = np.arange(1 << 20) << 1
    rng = np.random.default_rng(1)
    for words in (radii | rng.integers(0, 1 << 11, radii.size) << 21,
                  rng.integers(0, 1 << 32, 1 << 20),
                  np.arange(1 << 11) << 21):  # fmt: skip
        for got, wanted in zip(given(words), exact(words), strict=True):
            assert got.dtype == np.float32
            assert np.abs(got - wanted).max() < 5e-5
    assert 5.39 < np.abs(given(np.arange(1 << 11) << 21)).max() < 5.40  # the largest that there is


def test_the_layout_is_two_elements_a_word_and_eight_a_counter():
    start = (1 << 40) + 3
    counters = torch.arange(start // 8, start // 8 + 4)
    key = (torch.tensor(7), torch.tensor(5))
    words = torch.stack(
        philox(counters & 0xFFFFFFFF, counters >> 32, torch.tensor(2), torch.tensor(0), *key)
    )
    wanted = torch.stack(pair(words.T.to(torch.int32)), dim=-1).flatten()
    found = pairs(7 | 5 << 32, start, 20, stream=2)
    assert torch.equal(found, wanted[start % 8 :][:20])


def test_signs_are_free_and_turn_no_magnitude():
    words = np.random.default_rng(2).integers(0, 1 << 30, 4096)
    x, y = given(words)
    for signs, (a, b) in ((0, (1, 1)), (1, (1, -1)), (2, (-1, 1)), (3, (-1, -1))):
        left, right = given(words | signs << 30)
        assert np.array_equal(left, a * x) and np.array_equal(right, b * y)


def test_what_signs_are_given_to_is_positive():
    # Kernels set the sign bit. Of every radius, the first and the last angle are nearest to zero.
    radii = np.arange(1 << 20) << 1
    for angle in (0, 511):
        assert all((part > 0).all() for part in given(radii | angle << 21))


def test_the_moments_of_all_words_are_those_of_a_normal_to_what_the_bits_allow():
    u = (np.arange(1 << 20) + 0.5) * 2.0**-20
    cosine = np.cos(np.pi / 2 * (np.arange(512) + 0.5) / 512)
    for order, bound in ((2, 1e-6), (4, 3e-5), (6, 1e-3), (8, 4e-2)):
        moment = ((-2 * np.log(u)) ** (order // 2)).mean() * (cosine**order).mean()
        assert abs(moment - MOMENTS[order - 1]) < bound


def test_moments_to_the_eighth_are_within_their_errors(samples):
    together = np.concatenate(samples)
    power = np.ones_like(together)
    for moment, variance in zip(MOMENTS, VARIANCES, strict=True):
        power *= together
        assert abs(power.mean() - moment) < 3 * math.sqrt(variance / together.size)


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return torch.special.ndtr(torch.from_numpy(x)).numpy()


def test_the_distribution_is_normal_by_kolmogorov_and_smirnov(samples):
    for z in samples:
        cdf, rank = normal_cdf(np.sort(z)), np.arange(z.size + 1) / z.size
        distance = max((cdf - rank[:-1]).max(), (rank[1:] - cdf).max())
        assert distance * math.sqrt(z.size) < 1.63  # the 1% point


def test_counts_in_cells_are_normal_by_chi_square(samples):
    edges = np.linspace(-5.5, 5.5, 441)
    expected = np.diff(normal_cdf(edges)) * COUNT * len(SEEDS)
    found = sum(np.histogram(z, edges)[0] for z in samples)
    kept = expected > 20
    chi_square = ((found - expected) ** 2 / expected)[kept].sum()
    freedom = kept.sum() - 1
    assert abs(chi_square - freedom) < 3 * math.sqrt(2 * freedom)


def test_tails_are_as_heavy_as_those_of_a_normal(samples):
    together = np.abs(np.concatenate(samples))
    for bound in (1, 2, 3, 4, 4.5):
        share = math.erfc(bound / math.sqrt(2))
        error = math.sqrt(share / together.size)
        assert abs((together > bound).mean() - share) < 3.5 * error


def test_neighbours_and_their_squares_are_uncorrelated(samples):
    for z in samples:
        for values, scale in ((z, 1.0), (z * z - 1, 2.0)):
            for lag in (1, 2, 3, 4, 7, 8, 16):
                mean = (values[:-lag] * values[lag:]).mean() / scale
                assert abs(mean) * math.sqrt(COUNT - lag) < 4


def test_ranges_of_a_space_begin_on_whole_counters():
    assert aligned_offsets([5, 8, 3], distribution="pairs") == [0, 8, 16]
    assert aligned_offsets([5, 8, 3]) == [0, 8, 16] and aligned_offsets([3, 3]) == [0, 4]
    assert aligned_offsets([3, 3], 1, distribution="pairs") == [8, 16]


def test_the_first_numbers_stay_what_they_are():
    # They belong to every log that was written with "pairs".
    bits = pairs(7, 0, 8).view(torch.int32).tolist()
    assert [f"{value & 0xFFFFFFFF:08x}" for value in bits] == FIRST
    # The sum of 2^16 of them, in an order that no library chooses.
    assert math.fsum(pairs(7, 0, 1 << 16).tolist()) == SUM


def test_the_root_is_correctly_rounded_for_every_radius():
    words = torch.arange(1 << 20, dtype=torch.int32) << 1
    left, right = pair(words)
    assert left.isfinite().all() and right.isfinite().all() and (left > 0).all()
    value = torch.rand(1 << 16) * 30
    assert torch.equal(square_root(value), value.double().sqrt().float())


FIRST = [
    "bf4fe15a",
    "c0322fd2",
    "bfc36e57",
    "bb1a1c00",
    "3ee7b61c",
    "3ec9be20",
    "3f8f4ce6",
    "3f2b2f73",
]
SUM = 21.386034842114896
