"""Stochastic rounding: its grid, its mean, and the same bits on every backend."""

import math

import pytest
import torch

from adazeta.kernels import add_noise_, gaussian, use_backend
from adazeta.kernels.reference.noise import round_stochastically
from adazeta.kernels.reference.philox import words

HALVES = [torch.bfloat16, torch.float16]
LARGEST = {dtype: torch.finfo(dtype).max for dtype in HALVES}


def neighbours(value, dtype):
    """The largest representable at most, and the smallest at least, |value|, by searching bits."""
    size = value.abs()
    near = size.to(dtype)
    bits = near.view(torch.int16)
    down = torch.where(near.float() > size, bits - 1, bits).view(dtype).float()
    up = torch.where(near.float() < size, bits + 1, bits).view(dtype).float()
    return down, up


def sampled(dtype):
    """Float32 values of all magnitudes that the dtype knows, and its edges."""
    exponents = (
        torch.linspace(-40, 17, 4000)
        if dtype == torch.float16
        else (torch.linspace(-148, 128, 4000))
    )
    values = torch.randn(4000).sign() * (1 + torch.rand(4000)) * torch.exp2(exponents.double())
    tiny, largest = torch.finfo(dtype).tiny, LARGEST[dtype]
    edges = [
        0.0,
        -0.0,
        tiny,
        tiny * (1 + 2**-20),
        tiny * (1 - 2**-20),
        tiny / 3,
        largest,
        -largest,
        1.0,
        1 + 2**-23,
        65503.9,
        65504.1,
        65519.9,
        65520.0,
        65535.9,
        65536.0,
        3.38e38,
        3.395e38,
        3.4e38,
    ]
    return torch.cat([values.float(), torch.tensor(edges), -torch.tensor(edges)])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("word", [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_the_result_is_a_neighbour_and_infinite_only_where_nearest_is(dtype, word):
    values = sampled(dtype)
    got = round_stochastically(values, torch.full(values.shape, word), dtype)
    assert got.dtype == dtype
    down, up = neighbours(values, dtype)
    size = got.float().abs()
    assert ((size == down) | (size == up)).all()
    assert torch.equal(got.signbit(), values.signbit())
    nearest = values.to(dtype)
    assert not (got.isinf() & ~nearest.isinf()).any()
    exact = values.to(dtype).float() == values
    assert torch.equal(got.float()[exact], values[exact])
    if word == 0:
        assert torch.equal(size[~nearest.isinf()], down[~nearest.isinf()])


@pytest.mark.parametrize("dtype", HALVES)
def test_numbers_that_are_none_pass_through(dtype):
    values = torch.tensor([math.inf, -math.inf, math.nan, -math.nan])
    for word in (0, 0xFFFFFFFF):
        got = round_stochastically(values, torch.full((4,), word), dtype)
        assert got[0] == math.inf and got[1] == -math.inf and got[2:].isnan().all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("value", [1.001, -0.01999, 3e-5, 4.1e-6, 1e-7, 700.3])
def test_the_mean_is_the_value(dtype, value):
    n = 400_000
    values = torch.full((n,), value)
    got = round_stochastically(values, words(torch.tensor([77]), 0, n, 1)[0], dtype).double()
    down, up = (bound.double().item() for bound in neighbours(values[:1], dtype))
    exact = values[0].double().item()
    share = (abs(exact) - down) / (up - down)
    error = (up - down) * math.sqrt(share * (1 - share) / n)
    # fp16 subnormals keep 24 bits of the fraction: a bias below 2^-24 spacings.
    assert abs(got.mean().item() - exact) < 5 * error + (up - down) * 2.0**-24


@pytest.mark.parametrize("dtype", HALVES)
def test_the_words_are_those_of_stream_1_at_the_index(dtype):
    theta = torch.randn(1003).to(dtype)
    exact = add_noise_(theta.float(), [5], [1e-3], offsets=(1 << 33) + 2)
    rounded = add_noise_(
        theta.clone(), [5], [1e-3], offsets=(1 << 33) + 2, rounding="stochastic", rounding_seed=99
    )
    random = words(torch.tensor([99]), (1 << 33) + 2, 1003, 1)[0]
    assert torch.equal(rounded, round_stochastically(exact, random, dtype))
    default = add_noise_(theta.clone(), [5], [1e-3], rounding="stochastic")
    assert torch.equal(
        default,
        add_noise_(
            theta.clone(), [5], [1e-3], rounding="stochastic", rounding_seed=torch.tensor(5)
        ),
    )


def test_float32_is_the_same_either_way():
    theta = torch.randn(64)
    nearest = add_noise_(theta.clone(), [5], [1e-3])
    assert torch.equal(add_noise_(theta, [], [], rounding="stochastic"), theta)
    assert torch.equal(nearest, add_noise_(theta, [5], [1e-3], rounding="stochastic"))


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_rounding_follows_the_update_that_nearest_rounding_loses(dtype):
    """Fact 3 of the field: at lr |c| = 3e-6 most of the update of weights of 0.02 is lost.

    The update u = -3e-6 z is applied 20 times along one z. In the mean over the weights, the
    projection of the drift on z must be that of 20 exact updates, within 5 standard errors.
    """
    n, steps, size = 100_000, 20, 3e-6
    start = (torch.randn(n) * 0.02).to(dtype)
    z = gaussian(1, 0, n).double()
    projections = {}
    for rounding in ("nearest", "stochastic"):
        theta = start.clone()
        for step in range(steps):
            add_noise_(theta, [1], [-size], rounding=rounding, rounding_seed=1000 + step)
        moved = theta.double() - start.double()
        along = moved * z / (-size * steps)  # its mean is E z^2 = 1 for exact updates
        projections[rounding] = (along.mean().item(), along.std().item() / math.sqrt(n))
    mean, error = projections["stochastic"]
    assert abs(mean - z.square().mean().item()) < 5 * error
    if dtype == torch.bfloat16:  # its spacing at 0.02 is 1.2e-4, and that of float16 1.5e-5
        assert error < 0.03
        assert projections["nearest"][0] < 0.8


# The interpreter casts by NumPy, which warns of the infinities that belong here.
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "pairs"])
def test_triton_rounds_to_the_same_bits(device, dtype, distribution):
    pytest.importorskip("triton")
    values = sampled(dtype)
    values = values[values.to(dtype).isfinite()].to(device, dtype)
    results = []
    for backend in ("reference", "triton"):
        out = torch.full_like(values, math.nan)
        with use_backend(backend):
            add_noise_(
                values,
                [3],
                [1e-4],
                decay=1 + 2.0**-9,
                out=out,
                distribution=distribution,
                rounding="stochastic",
                rounding_seed=(1 << 63) - 1,
            )
        results.append(out.view(torch.int16))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rounding": "down"}, ValueError, "rounding is 'down'"),
        ({"rounding": "stochastic", "rounding_seed": -1}, ValueError, "rounding_seed -1"),
        (
            {"rounding": "stochastic", "rounding_seed": torch.zeros(2, dtype=torch.int64)},
            TypeError,
            "rounding_seed",
        ),
        ({"rounding": "stochastic", "rounding_seed": torch.zeros(1)}, TypeError, "float32"),
    ],
)
def test_bad_rounding_arguments(options, error, message):
    theta = torch.zeros(4, dtype=torch.bfloat16)
    with pytest.raises(error, match=message):
        add_noise_(theta, [1], [1.0], **options)
    assert not theta.any()


def test_stochastic_rounding_without_any_seed_names_the_remedy():
    with pytest.raises(ValueError, match="pass rounding_seed"):
        add_noise_(torch.zeros(4).half(), [], [], rounding="stochastic")
