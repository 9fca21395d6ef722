import math

import numpy as np
import pytest
import torch

from adazeta.kernels import add_noise_, gaussian, perturbed_copies, rademacher
from adazeta.kernels.reference.philox import box_muller, draw, philox

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
DRAWS = [gaussian, rademacher]


def words_of(seed: int, counters: torch.Tensor, stream: int = 0) -> torch.Tensor:
    """The words of design section 4, shape (4, len(counters)), by the plain generator."""
    arguments = [
        counters & 0xFFFFFFFF,
        counters >> 32,
        torch.tensor(stream),
        torch.tensor(0),
        torch.tensor(seed & 0xFFFFFFFF),
        torch.tensor(seed >> 32),
    ]
    return torch.stack(philox(*arguments))


def exact_normals(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Box-Muller in float64 of the uniforms of two arrays of words."""
    k = (first >> 8).astype(np.float64)
    # log1p beside 1, where 1 - u = (2^24 - k - 1/2) 2^-24 is exact.
    log = np.where(
        k > 2**23, np.log1p(-(2.0**24 - k - 0.5) * 2.0**-24), np.log((k + 0.5) * 2.0**-24)
    )
    angle = 2 * np.pi * ((second >> 8) + 0.5) * 2.0**-24
    return np.sqrt(-2 * log) * np.cos(angle), np.sqrt(-2 * log) * np.sin(angle)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, expected):
    words = philox(*(torch.tensor(word) for word in (*counter, *key)))
    assert tuple(int(word) for word in words) == expected


def sampled_words(name: str, count: int = 1_000_000) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of words, all over or where the rounding errors are largest."""
    rng = np.random.default_rng(1)
    first, second = (rng.integers(0, 1 << 32, count) for _ in range(2))
    if name == "far tail":
        first = rng.integers(0, 1 << 16, count)
    elif name == "tail":
        first = rng.integers(0, 1 << 24, count)
    elif name == "diagonal":
        first = rng.integers(0, 1 << 20, count)
        second = ((1 << 29) + rng.integers(-(1 << 24), 1 << 24, count)) % (1 << 32)
    elif name == "axis":
        first = rng.integers(0, 1 << 20, count)
        second = rng.integers(-(1 << 20), 1 << 20, count) % (1 << 32)
    elif name == "near one":
        first = (1 << 32) - 1 - rng.integers(0, 1 << 20, count)
    elif name == "octaves":
        power = np.arange(8, 33)[:, None]
        near = (1 << power) + np.arange(-4, 5)[None] * 128
        rooted = ((1 << power) * math.sqrt(0.5)).astype(np.int64) + np.arange(-4, 5)[None] * 128
        first = np.clip(np.concatenate([near, rooted]).ravel(), 0, (1 << 32) - 1).repeat(1000)
        second = rng.integers(0, 1 << 32, first.size)
    elif name == "extreme":
        edge = np.array(
            [
                0,
                255,
                256,
                0x3FFFFFFF,
                0x40000000,
                0x7FFFFFFF,
                0x80000000,
                0xBFFFFFFF,
                0xC0000000,
                0xFFFFFEFF,
                0xFFFFFF00,
                0xFFFFFFFF,
            ]
        )
        first, second = (axis.ravel() for axis in np.meshgrid(edge, edge))
    return first, second


@pytest.mark.parametrize(
    "name", ["everywhere", "far tail", "tail", "diagonal", "axis", "near one", "octaves", "extreme"]
)
def test_every_normal_is_within_4e_7_of_its_exact_value(name):
    first, second = sampled_words(name)
    got = box_muller(*(torch.from_numpy(words).to(torch.int32) for words in (first, second)))
    for value, exact in zip(got, exact_normals(first, second), strict=True):
        assert value.dtype == torch.float32
        assert np.abs(value.numpy() - exact).max() < 4e-7


@pytest.mark.parametrize("seed", [0, 7, (1 << 63) - 1, 0x1234_5678_9ABC])
@pytest.mark.parametrize("stream", [0, 2])
@pytest.mark.parametrize("start", [0, 1, (1 << 34) - 6, (1 << 62) + 3])
def test_gaussian_follows_the_counter_layout(seed, stream, start):
    counters = torch.arange(start // 4, start // 4 + 5)
    w0, w1, w2, w3 = words_of(seed, counters, stream).numpy()
    lanes = [*exact_normals(w0, w1), *exact_normals(w2, w3)]
    exact = np.stack(lanes, axis=-1).ravel()[start % 4 :][:14]
    got = gaussian(seed, start, 14, stream=stream)
    assert got.dtype == torch.float32 and got.shape == (14,)
    assert np.abs(got.numpy() - exact).max() < 4e-7


@pytest.mark.parametrize("start", [0, 77, (1 << 39) - 200])
def test_rademacher_follows_the_bit_layout(start):
    seed, count = 0xABCDEF0123, 700
    got = rademacher(seed, start, count)
    counters = torch.arange(start // 128, (start + count) // 128 + 1)
    words = words_of(seed, counters)
    for index in range(count):
        element = start + index
        word = int(words[element // 32 % 4, element // 128 - start // 128])
        assert got[index] == (1.0 if word >> element % 32 & 1 else -1.0)


@pytest.mark.parametrize("function", DRAWS)
def test_noise_does_not_depend_on_how_it_is_cut(function):
    whole = function(5, 0, 1000)
    assert torch.equal(function(5, 5, 100), whole[5:105])
    assert torch.equal(torch.cat([function(5, begin, 125) for begin in range(0, 1000, 125)]), whole)
    seeds = torch.tensor([9, 5, 5])
    single = [function(int(seed), 3, 50) for seed in seeds]
    assert torch.equal(function(seeds, 3, 50), torch.stack(single))
    assert torch.equal(function(torch.tensor(5), 0, 1000), whole)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "pairs"])
def test_long_draws_equal_short_ones(distribution):
    # Longer than the pieces that the reference works in.
    seeds = torch.tensor([3, 1 << 40])
    start, count = (1 << 33) + 2, 600_001
    long = draw(seeds, start, count, 0, distribution)
    for begin in (0, 131_070, 262_139, 524_281, count - 101):
        assert torch.equal(
            long[:, begin : begin + 101], draw(seeds, start + begin, 101, 0, distribution)
        )


def test_streams_differ():
    draws = torch.stack([gaussian(1, 0, 4096, stream=stream) for stream in range(4)])
    correlation = torch.corrcoef(draws).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(4096)


@pytest.mark.parametrize("function", DRAWS)
def test_empty_draws(function):
    assert function(1, 5, 0).shape == (0,)
    assert function(torch.tensor([1, 2]), 5, 0).shape == (2, 0)
    assert function(torch.tensor([], dtype=torch.int64), 5, 3).shape == (0, 3)


@pytest.mark.parametrize("function", DRAWS)
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((-1, 0, 4), ValueError),
        ((1 << 63, 0, 4), ValueError),
        ((1, -1, 4), ValueError),
        ((1, 0, -4), ValueError),
        ((1, (1 << 63) - 3, 4), ValueError),
        ((1, 0.5, 4), TypeError),
        ((torch.tensor([1.0]), 0, 4), TypeError),
        ((torch.ones(2, 2, dtype=torch.int64), 0, 4), TypeError),
    ],
)
def test_bad_arguments_of_the_draws(function, arguments, error):
    with pytest.raises(error):
        function(*arguments)
    with pytest.raises(ValueError, match="stream"):
        function(1, 0, 4, stream=1 << 32)


def test_moments_and_correlations():
    n = 10_000_000
    z = gaussian(2026, 0, n)
    wide = z.double()
    # Standard errors of the sample moments of a standard normal: Var z^k = (2k-1)!! - (k-1)!!^2.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        mean = wide.pow(power).mean().item()
        assert abs(mean - moment) < 5 * math.sqrt(variance / n), power
    bound = 5 / math.sqrt(n / 4)
    lanes = z.view(-1, 4).T
    assert torch.corrcoef(lanes).fill_diagonal_(0).abs().max() < bound
    assert torch.corrcoef(lanes.square()).fill_diagonal_(0).abs().max() < bound
    shifted = torch.cat([lanes[:, :-1], lanes[:, 1:]])
    assert torch.corrcoef(shifted).fill_diagonal_(0).abs().max() < bound
    assert lanes.mean(1).abs().max() < bound


def test_seeds_are_uncorrelated():
    n = 100_000
    seeds = torch.tensor([0, 1, 2, 3, 1 << 32, 2 << 32, (1 << 32) + 1, 1 << 62])
    z = gaussian(seeds, 0, n)
    assert torch.corrcoef(z).fill_diagonal_(0).abs().max() < 5 / math.sqrt(n)
    assert z.mean(1).abs().max() < 5 / math.sqrt(n)


def test_tails_and_quantiles_are_normal():
    n = 2_000_000
    z = gaussian(99, 1 << 35, n)
    for limit in (0.5, 1.0, 2.0, 3.0, 4.0):
        share = math.erfc(limit / math.sqrt(2)) / 2
        for tail in ((z > limit), (z < -limit)):
            spread = math.sqrt(share * (1 - share) / n)
            assert abs(tail.double().mean().item() - share) < 5 * spread


def test_rademacher_is_balanced():
    n = 4_000_000
    signs = rademacher(2026, 0, n)
    assert torch.equal(signs.abs(), torch.ones(n))
    assert abs(signs.mean().item()) < 5 / math.sqrt(n)
    bits = signs.view(-1, 128)
    bound = 5 / math.sqrt(len(bits))
    assert bits.mean(0).abs().max() < bound
    assert torch.corrcoef(bits.T).fill_diagonal_(0).abs().max() < bound
    assert abs((signs[:-1] * signs[1:]).mean().item()) < 5 / math.sqrt(n)


def step_by_step(theta, seeds, coefficients, offset, decay, function=gaussian):
    """The update as its equation reads, one float32 rounding per operation, by NumPy."""
    value = theta.float().numpy().reshape(-1) * np.float32(decay)
    for seed, coefficient in zip(seeds, coefficients, strict=True):
        noise = function(seed, offset, theta.numel()).numpy()
        value = value + np.float32(coefficient) * noise
    return torch.from_numpy(np.asarray(value, dtype=np.float32)).to(theta.dtype).view(theta.shape)


SEEDS = [3, 1 << 40, 3, 12345, 0, (1 << 63) - 1, 8]
COEFFICIENTS = [0.1, -0.01, 1e-3, 2.5, -1.0, 0.3, 1e-8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("probes", [0, 1, 2, 7])
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_add_noise_follows_its_equation(dtype, probes, decay):
    theta = torch.randn(7, 19).to(dtype)
    expected = step_by_step(theta, SEEDS[:probes], COEFFICIENTS[:probes], 6, decay)
    result = add_noise_(theta, SEEDS[:probes], COEFFICIENTS[:probes], offsets=6, decay=decay)
    assert result is theta
    assert torch.equal(theta, expected)


def test_lists_are_laid_out_one_after_another_on_multiples_of_4():
    tensors = [
        torch.zeros(5),
        torch.zeros(0),
        torch.zeros(2, 3, dtype=torch.bfloat16),
        torch.zeros(4),
    ]
    add_noise_(tensors, [11], [1.0])
    assert torch.equal(tensors[0], gaussian(11, 0, 5))
    assert torch.equal(tensors[2], gaussian(11, 8, 6).bfloat16().view(2, 3))
    assert torch.equal(tensors[3], gaussian(11, 16, 4))


def test_many_small_tensors_in_any_order_with_gaps_and_overlaps():
    sizes = torch.randint(0, 40, (60,)).tolist()
    offsets = torch.randint(0, 100_000, (60,)).tolist()
    offsets[10], offsets[11], sizes[10], sizes[11] = 50, 50, 9, 30
    offsets[12:16], sizes[12:16] = [200, 210, 225, 225], [10, 10, 3, 0]
    tensors = [torch.randn(size) for size in sizes]
    expected = [
        step_by_step(tensor, SEEDS[:3], COEFFICIENTS[:3], offset, 0.5)
        for tensor, offset in zip(tensors, offsets, strict=True)
    ]
    add_noise_(tensors, SEEDS[:3], COEFFICIENTS[:3], offsets=offsets, decay=0.5)
    for tensor, reference in zip(tensors, expected, strict=True):
        assert torch.equal(tensor, reference)


def test_a_tensor_longer_than_one_piece():
    theta = torch.randn(300_007)
    expected = step_by_step(theta, SEEDS[:2], COEFFICIENTS[:2], (1 << 32) + 1, 1.0)
    add_noise_(theta, SEEDS[:2], COEFFICIENTS[:2], offsets=(1 << 32) + 1)
    assert torch.equal(theta, expected)


@pytest.mark.usefixtures("poisoned_empty")
def test_out_leaves_the_input_untouched():
    theta = torch.randn(33)
    before, out = theta.clone(), torch.full_like(theta, math.nan)
    result = add_noise_(theta, [4], [0.5], out=out, distribution="rademacher")
    assert result is out
    assert torch.equal(theta, before)
    assert torch.equal(out, step_by_step(theta, [4], [0.5], 0, 1.0, rademacher))


def test_tensor_probes_equal_listed_ones():
    theta = torch.randn(50)
    listed = theta.clone()
    add_noise_(theta, torch.tensor(SEEDS), torch.tensor(COEFFICIENTS))
    add_noise_(listed, SEEDS, COEFFICIENTS)
    assert torch.equal(theta, listed)


def test_parameters_are_updated_in_place_without_a_graph():
    parameter = torch.nn.Parameter(torch.zeros(8))
    version = parameter._version
    add_noise_([parameter], [1], [1.0])
    assert parameter.is_leaf and parameter.grad_fn is None and parameter._version > version
    assert torch.equal(parameter.detach(), gaussian(1, 0, 8))


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "pairs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0, 5])
def test_perturbed_copies_equal_single_perturbations(distribution, dtype, offset):
    theta = torch.randn(3, 43).to(dtype)
    before = theta.clone()
    seeds, coefficients = [8, 2, 8, 1 << 50], [0.1, 0.2, -0.1, 1.0]
    copies = perturbed_copies(theta, seeds, coefficients, offset=offset, distribution=distribution)
    assert copies.shape == (4, 3, 43) and copies.dtype == dtype
    assert torch.equal(theta, before)
    for row, seed, coefficient in zip(copies, seeds, coefficients, strict=True):
        single = add_noise_(
            theta,
            [seed],
            [coefficient],
            offsets=offset,
            distribution=distribution,
            out=torch.empty_like(theta),
        )
        assert torch.equal(row, single)


def test_perturbed_copies_of_a_long_tensor():
    theta = torch.randn(70_001)
    seeds, coefficients = list(range(9)), [0.1 * k for k in range(9)]
    copies = perturbed_copies(theta, seeds, coefficients, offset=3)
    for row, seed, coefficient in zip(copies, seeds, coefficients, strict=True):
        assert torch.equal(row, step_by_step(theta, [seed], [coefficient], 3, 1.0))


def test_empty_perturbed_copies():
    assert perturbed_copies(torch.zeros(0, 3), [1, 2], [0.1, 0.2]).shape == (2, 0, 3)
    assert perturbed_copies(torch.zeros(3), [], []).shape == (0, 3)
    assert add_noise_([], [1], [1.0]) == []


theta_ = torch.zeros(4, 6)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((theta_.T, [1], [1.0]), {}, ValueError, "contiguous"),
        ((theta_.double(), [1], [1.0]), {}, TypeError, "float64"),
        (([1.0], [1], [1.0]), {}, TypeError, "float"),
        ((theta_, [1, 2], [1.0]), {}, ValueError, "one coefficient per seed"),
        ((theta_, torch.tensor([1.0]), [1.0]), {}, TypeError, "int64"),
        ((theta_, [-1], [1.0]), {}, ValueError, "seed -1"),
        ((theta_, [1], [1.0]), {"offsets": [0, 4]}, ValueError, "2 offsets for 1"),
        ((theta_, [1], [1.0]), {"offsets": -4}, ValueError, "index space"),
        ((theta_, [1], [1.0]), {"offsets": (1 << 63) - 8}, ValueError, "index space"),
        ((theta_, [1], [1.0]), {"out": torch.zeros(6, 4)}, ValueError, "out 0"),
        ((theta_, [1], [1.0]), {"out": torch.zeros(4, 6).half()}, ValueError, "float16"),
        ((theta_, [1], [1.0]), {"out": torch.zeros(6, 4).T}, ValueError, "contiguous"),
        ((theta_, [1], [1.0]), {"out": [theta_, theta_]}, ValueError, "2 out tensors for 1"),
        ((theta_, [1], [1.0]), {"distribution": "uniform"}, ValueError, "uniform"),
        (([theta_, torch.zeros(2, device="meta")], [1], [1.0]), {}, ValueError, "meta"),
    ],
)
def test_bad_arguments_of_add_noise(arguments, options, error, message):
    with pytest.raises(error, match=message):
        add_noise_(*arguments, **options)
    assert not theta_.any()


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((theta_.T, [1], [1.0]), {}, ValueError),
        ((theta_.long(), [1], [1.0]), {}, TypeError),
        ((theta_, [1], [1.0, 2.0]), {}, ValueError),
        ((theta_, [1], [1.0]), {"offset": -1}, ValueError),
        ((theta_, [1], [1.0]), {"offset": 0.0}, TypeError),
        ((theta_, [1], [1.0]), {"distribution": ""}, ValueError),
    ],
)
def test_bad_arguments_of_perturbed_copies(arguments, options, error):
    with pytest.raises(error):
        perturbed_copies(*arguments, **options)
