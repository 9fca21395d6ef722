"""The sign and HELENE epilogues: every backend against their equations."""

import math

import numpy as np
import pytest
import torch

from adazeta.kernels import (
    gaussian,
    helene_update_,
    rademacher,
    sign_update_,
    square_update_,
    use_backend,
)
from adazeta.kernels.cpu import library
from adazeta.kernels.ops import rules

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DISTRIBUTIONS = {"gaussian": gaussian, "rademacher": rademacher}
SEEDS = [(k * 0x9E3779B97F4A7C15 + 3) % (1 << 63) for k in range(9)]
COEFFICIENTS = [0.3 * math.sin(k + 1) for k in range(9)]
HELENE = {"beta1": 0.9, "lr": 0.01, "gamma": 0.5, "scale": 1.7, "epsilon": 1e-8, "decay": 0.999}
RULES = ["sign", "square", "helene"]
# The C library is optional: it needs a compiler at the time of the installation.
BACKENDS = ["reference", "triton", *(["native"] if library.problem() is None else [])]


def f32(value):
    return np.float32(value)


def apply(rule, theta, m, h, seeds, coefficients, **options):
    if rule == "sign":
        sign_update_(theta, seeds, coefficients, lr=0.02, decay=0.98, **options)
    elif rule == "square":
        square_update_(h, seeds, coefficients, beta=0.99, gain=0.03, **options)
    else:
        floors = [0.4] * (1 if isinstance(theta, torch.Tensor) else len(theta))
        helene_update_(theta, m, h, floors, seeds, coefficients, **HELENE, **options)


def by_numpy(rule, theta, m, h, seeds, coefficients, offset, distribution):
    """The equations, one float32 rounding per operation."""
    theta, m, h = (t.float().numpy().reshape(-1) for t in (theta, m, h))
    g = np.zeros(theta.size, np.float32)
    for seed, c in zip(seeds, coefficients, strict=True):
        g = g + f32(c) * DISTRIBUTIONS[distribution](seed, offset, theta.size).numpy()
    if rule == "sign":
        return f32(0.98) * theta - f32(0.02) * np.sign(g), m, h
    if rule == "square":
        return theta, m, f32(0.99) * h + f32(0.03) * (g * g)
    m = f32(0.9) * m + g
    divisor = f32(0.5) * np.maximum(f32(1.7) * h, f32(0.4)) + f32(1e-8)
    return f32(0.999) * theta - f32(0.01) * (m / divisor), m, h


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "offset", "probes", "distribution"),
    [
        (1021, 5, 2, "gaussian"),
        (256, 128, 7, "rademacher"),
        (97, (1 << 33) + 3, 9, "gaussian"),
        (64, 0, 0, "gaussian"),
        (1, 7, 1, "rademacher"),
        (0, 4, 1, "gaussian"),
    ],
)
def test_updates_follow_their_equations(
    device, backend, rule, dtype, size, offset, probes, distribution
):
    generator = torch.Generator().manual_seed(size)
    theta = torch.randn(size, generator=generator).to(dtype)
    m, h = torch.randn(size, generator=generator), torch.rand(size, generator=generator)
    seeds, coefficients = SEEDS[:probes], COEFFICIENTS[:probes]
    expected = by_numpy(rule, theta, m, h, seeds, coefficients, offset, distribution)
    place = device if backend == "triton" else "cpu"
    theta, m, h = (value.to(place) for value in (theta, m, h))
    with use_backend(backend):
        apply(rule, theta, m, h, seeds, coefficients, offsets=offset, distribution=distribution)
    theta, m, h = (value.cpu() for value in (theta, m, h))
    assert torch.equal(theta, torch.from_numpy(expected[0]).to(dtype))
    assert torch.equal(m, torch.from_numpy(expected[1]))
    assert torch.equal(h, torch.from_numpy(expected[2]))


@pytest.mark.parametrize("rule", RULES)
def test_many_tensors_equal_one_at_a_time(rule):
    sizes, offsets = [7, 0, 300_007, 131], [0, 8, 8, 300_032]
    generator = torch.Generator().manual_seed(1)

    def make():
        generator.manual_seed(2)
        return [[torch.rand(n, generator=generator) for n in sizes] for _ in range(3)]

    together, alone = make(), make()
    apply(rule, *together, SEEDS[:2], COEFFICIENTS[:2], offsets=offsets)
    for theta, m, h, offset in zip(*alone, offsets, strict=True):
        apply(rule, theta, m, h, SEEDS[:2], COEFFICIENTS[:2], offsets=offset)
    for many, single in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(many, single, strict=True))


def test_each_tensor_has_its_own_floor():
    thetas = [torch.zeros(6), torch.zeros(6)]
    states = [[torch.zeros(6) for _ in thetas] for _ in range(2)]
    helene_update_(thetas, *states, [0.5, 2.0], SEEDS[:1], [1.0], beta1=0.9, lr=1.0, offsets=[0, 0])
    torch.testing.assert_close(thetas[0], 4 * thetas[1])


def test_without_curvatures_the_floor_is_the_divisor():
    theta, m = torch.randn(70), torch.randn(70)
    twin, again = theta.clone(), m.clone()
    helene_update_(theta, m, None, [0.3], SEEDS[:2], COEFFICIENTS[:2], **HELENE)
    helene_update_(twin, again, torch.zeros(70), [0.3], SEEDS[:2], COEFFICIENTS[:2], **HELENE)
    assert torch.equal(theta, twin) and torch.equal(m, again)


def test_sixteen_bit_states_are_right_in_the_mean_and_keep_apart():
    size = 200_000
    h = torch.ones(size, dtype=torch.bfloat16)
    square_update_(h, [5], [1.0], beta=1.0, gain=1e-4, rounding="stochastic", rounding_seed=3)
    nearest = torch.ones(size, dtype=torch.bfloat16)
    square_update_(nearest, [5], [1.0], beta=1.0, gain=1e-4)
    # 1e-4 of the mean square, in a format whose spacing above 1 is 2^-7: 1.3% of elements move.
    moved = h.float().mean().item() - 1
    assert abs(moved - 1e-4) < 5 * math.sqrt(1e-4 * 2**-7 / size)
    assert nearest.float().mean().item() - 1 < 2e-6  # but for some large normals, all is lost
    theta, m = (torch.ones(size, dtype=torch.bfloat16) for _ in range(2))
    one = torch.ones(size, dtype=torch.bfloat16)
    helene_update_(
        theta,
        m,
        one,
        [0.0],
        [5],
        [0.0],
        beta1=1 + 2**-9,
        lr=-(2.0**-9),
        rounding="stochastic",
        rounding_seed=3,
    )
    # Both move to 1 + 2^-7 with chance 1/4; with words in common they would move together.
    both = ((theta > 1) & (m > 1)).float().mean().item()
    assert abs(both - 1 / 16) < 5 * math.sqrt(1 / 16 / size)


@pytest.mark.parametrize("rule", RULES)
def test_the_registered_ops_pass_opcheck(rule):
    theta, m, h = torch.randn(70), torch.randn(70), torch.rand(70)
    seeds, coefficients = torch.tensor(SEEDS[:2]), torch.tensor(COEFFICIENTS[:2])
    if rule == "sign":
        op, arguments = rules.sign_update, ([theta], seeds, coefficients, [3], 0.1, 0.9)
    elif rule == "square":
        op, arguments = rules.square_update, ([h], seeds, coefficients, [3], 0.9, 0.1)
    else:
        op = rules.helene_update
        arguments = (
            [theta],
            [m],
            [h],
            torch.tensor([0.1]),
            seeds,
            coefficients,
            [3],
            *HELENE.values(),
        )
    torch.library.opcheck(op, (*arguments, "gaussian", None))


def test_bad_arguments_are_named():
    theta, m = torch.zeros(4), torch.zeros(4)
    with pytest.raises(ValueError, match="floors has shape"):
        helene_update_(theta, m, m.clone(), [0.1, 0.2], [1], [1.0], beta1=0.9, lr=0.1)
    with pytest.raises(ValueError, match="curvature 0"):
        helene_update_(theta, m, m.bfloat16(), [0.1], [1], [1.0], beta1=0.9, lr=0.1)
    with pytest.raises(ValueError, match="distribution"):
        sign_update_(theta, [1], [1.0], lr=0.1, distribution="cauchy")
    with pytest.raises(ValueError, match="rounding"):
        square_update_(m, [1], [1.0], beta=0.9, gain=0.1, rounding="up")
