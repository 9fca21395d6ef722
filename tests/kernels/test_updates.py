"""The optimizer epilogues: the reference against its equations, Triton against the reference."""

import math

import numpy as np
import pytest
import torch

from adazeta.kernels import (
    adam_update_,
    add_noise_,
    gaussian,
    momentum_update_,
    rademacher,
    use_backend,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DISTRIBUTIONS = {"gaussian": gaussian, "rademacher": rademacher}
SEEDS = [(k * 0x9E3779B97F4A7C15 + 3) % (1 << 63) for k in range(40)]
COEFFICIENTS = [0.3 * math.sin(k + 1) for k in range(40)]
ADAM = {
    "beta1": 0.9,
    "beta2": 0.99,
    "lr": 0.01,
    "epsilon": 1e-8,
    "correction1": 1 - 0.9**3,
    "correction2": 1 - 0.99**3,
    "decay": 0.999,
}
MOMENTUM = {"momentum": 0.9, "lr": 0.02, "decay": 0.98}
RULES = ["momentum", "element", "scalar"]


def apply(rule, tensors, first, second, seeds, coefficients, **options):
    if rule == "momentum":
        momentum_update_(tensors, first, seeds, coefficients, **{**MOMENTUM, **options})
    elif rule == "element":
        adam_update_(tensors, first, second, seeds, coefficients, **{**ADAM, **options})
    else:
        adam_update_(
            tensors, first, None, seeds, coefficients, inverse_root=3.7, **{**ADAM, **options}
        )


def states_of(tensors):
    return (
        [torch.randn(t.shape).to(t.device) for t in tensors],
        [torch.rand(t.shape).to(t.device) for t in tensors],
    )


def f32(value):
    return np.float32(value)


def by_numpy(rule, theta, m, v, seeds, coefficients, offset, distribution):
    """The equations of the contract, one float32 rounding per operation."""
    theta, m, v = (t.float().numpy().reshape(-1) for t in (theta, m, v))
    g = np.zeros(theta.size, np.float32)
    for seed, c in zip(seeds, coefficients, strict=True):
        g = g + f32(c) * DISTRIBUTIONS[distribution](seed, offset, theta.size).numpy()
    if rule == "momentum":
        m = f32(0.9) * m + g
        return f32(0.98) * theta - f32(0.02) * m, m, v
    m = f32(0.9) * m + f32(1 - 0.9) * g
    u = m * f32(1 / ADAM["correction1"])
    if rule == "element":
        v = f32(0.99) * v + f32(1 - 0.99) * (g * g)
        u = u / (np.sqrt(v * f32(1 / ADAM["correction2"])) + f32(1e-8))
    else:
        u = u * f32(3.7)
    return f32(0.999) * theta - f32(0.01) * u, m, v


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "offset", "probes", "distribution"),
    [
        (1021, 5, 2, "gaussian"),
        (256, 128, 7, "rademacher"),
        (97, (1 << 33) + 3, 40, "gaussian"),
        (64, 0, 0, "gaussian"),
        (1, 7, 1, "rademacher"),
        (300_007, 2, 1, "gaussian"),
    ],
)
def test_updates_follow_their_equations(rule, dtype, size, offset, probes, distribution):
    theta = torch.randn(size).to(dtype)
    (m,), (v,) = states_of([theta])
    seeds, coefficients = SEEDS[:probes], COEFFICIENTS[:probes]
    expected = by_numpy(rule, theta, m, v, seeds, coefficients, offset, distribution)
    apply(rule, theta, m, v, seeds, coefficients, offsets=offset, distribution=distribution)
    assert torch.equal(theta, torch.from_numpy(expected[0]).to(dtype))
    assert torch.equal(m, torch.from_numpy(expected[1]))
    assert torch.equal(v, torch.from_numpy(expected[2]))


def mixed(device, seed=0):
    """Tensors of all dtypes, odd, prime and empty sizes, one of them misaligned."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [
        (7, torch.float32),
        (0, torch.bfloat16),
        (1100, torch.bfloat16),
        (1, torch.float16),
        (0, torch.float32),
        (131, torch.float16),
        (1030, torch.float32),
    ]
    tensors = [torch.randn(n, generator=generator).to(device, dtype) for n, dtype in sizes]
    for dtype in DTYPES:
        tensors.append(torch.randn(70, generator=generator).to(device, dtype)[1:])
    return tensors


def both(rule, make, probes, device, **options):
    """The tensors and states after the update on the reference and on the Triton path."""
    pytest.importorskip("triton")
    results = []
    seeds = torch.tensor(SEEDS[:probes], dtype=torch.int64, device=device)
    coefficients = torch.tensor(COEFFICIENTS[:probes], device=device)
    for backend in ("reference", "triton"):
        tensors = make()
        torch.manual_seed(5)
        first, second = states_of(tensors)
        with use_backend(backend):
            apply(rule, tensors, first, second, seeds, coefficients, **options)
        results.append([*tensors, *first, *second])
    return results


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_mixed_lists_are_the_same_bits_in_triton(device, rule, distribution, rounding):
    expected, got = both(
        rule,
        lambda: mixed(device),
        2,
        device,
        distribution=distribution,
        rounding=rounding,
        rounding_seed=(1 << 62) + 11,
    )
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("rule", "dtype", "probes"),
    [
        ("momentum", torch.bfloat16, 0),
        ("element", torch.float16, 1),
        ("scalar", torch.float32, 7),
        ("element", torch.bfloat16, 7),
        ("momentum", torch.float16, 40),
    ],
)
def test_any_number_of_probes_is_the_same_bits_in_triton(device, rule, dtype, probes):
    # One program each: the interpreter takes some 50 ms per probe and program.
    def make():
        return [torch.randn(131, generator=torch.Generator().manual_seed(1)).to(device, dtype)]

    expected, got = both(
        rule, make, probes, device, rounding="stochastic", rounding_seed=9, offsets=[(1 << 40) + 4]
    )
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_only_the_elements_of_the_tensors_are_written(device, rule):
    pytest.importorskip("triton")
    for backend in ("reference", "triton"):
        storages = [torch.full((400,), math.nan, device=device) for _ in range(3)]
        windows = [slice(5, 70), slice(101, 160), slice(200, 330)]
        for storage in storages:
            for window in windows:
                storage[window] = 1.0
        theta, m, v = ([storage[window] for window in windows] for storage in storages)
        with use_backend(backend):
            apply(rule, theta, m, v, SEEDS[:1], [1.0], offsets=[2, 1001, 128])
        outside = torch.ones(400, dtype=torch.bool, device=device)
        for window in windows:
            outside[window] = False
        for storage in storages:
            assert storage[outside].isnan().all() and storage[~outside].isfinite().all()


@pytest.mark.parametrize("rule", RULES)
def test_infinite_and_missing_numbers_pass_through_to_their_element_only(rule):
    theta, clean = torch.ones(8), torch.ones(8)
    theta[3], theta[5] = math.nan, math.inf
    for tensor in (theta, clean):
        first, second = [torch.zeros(8)], [torch.ones(8)]
        apply(rule, tensor, first, second, SEEDS[:2], COEFFICIENTS[:2])
    assert theta[3].isnan() and theta[5].isinf()
    others = [0, 1, 2, 4, 6, 7]
    assert torch.equal(theta[others], clean[others])


def test_momentum_without_momentum_is_add_noise():
    """With m = 0 the rule reduces to theta - lr g, up to the order of the products."""
    theta = torch.randn(500)
    plain = theta.clone()
    momentum_update_(theta, torch.zeros(500), SEEDS[:3], COEFFICIENTS[:3], momentum=0.0, lr=0.5)
    add_noise_(plain, SEEDS[:3], [-0.5 * c for c in COEFFICIENTS[:3]])
    torch.testing.assert_close(theta, plain, atol=1e-6, rtol=1e-6)


def test_inverse_root_may_be_a_tensor():
    theta, twin = torch.randn(9), torch.zeros(9)
    twin.copy_(theta)
    for tensor, root in ((theta, 0.3), (twin, torch.tensor(0.3))):
        adam_update_(tensor, torch.zeros(9), None, [1], [1.0], inverse_root=root, **ADAM)
    assert torch.equal(theta, twin)


def test_empty_lists_are_updated():
    momentum_update_([], [], [1], [1.0], **MOMENTUM)
    adam_update_([], [], None, [1], [1.0], inverse_root=1.0, **ADAM)
    empty = torch.zeros(0, 3)
    momentum_update_(empty, torch.zeros(0, 3), [1], [1.0], **MOMENTUM)


def test_states_and_parameters_keep_their_identity_and_move_their_versions():
    parameter = torch.nn.Parameter(torch.zeros(8))
    m = torch.zeros(8)
    versions = parameter._version, m._version
    momentum_update_([parameter], [m], [1], [1.0], **MOMENTUM)
    assert parameter.is_leaf and parameter.grad_fn is None
    assert parameter._version > versions[0] and m._version > versions[1]


t4 = torch.zeros(4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((t4, torch.zeros(5), [1], [1.0]), {}, ValueError, "momentum 0"),
        ((t4, t4.half(), [1], [1.0]), {}, ValueError, "float32"),
        ((t4, [t4, t4], [1], [1.0]), {}, ValueError, "2 momentum tensors for 1"),
        ((t4.double(), t4, [1], [1.0]), {}, TypeError, "float64"),
        ((t4, t4, [1, 2], [1.0]), {}, ValueError, "one coefficient per seed"),
        ((t4, t4, [1], [1.0]), {"offsets": [0, 4]}, ValueError, "2 offsets for 1"),
        ((t4, t4, [1], [1.0]), {"distribution": "uniform"}, ValueError, "uniform"),
        ((t4, t4, [1], [1.0]), {"rounding": "up"}, ValueError, "rounding is 'up'"),
        ((t4.half(), t4, [], []), {"rounding": "stochastic"}, ValueError, "rounding_seed"),
    ],
)
def test_bad_arguments_of_momentum_update(arguments, options, error, message):
    with pytest.raises(error, match=message):
        momentum_update_(*arguments, **{**MOMENTUM, **options})
    assert not t4.any()


@pytest.mark.parametrize(
    ("second", "options", "error", "message"),
    [
        (None, {}, ValueError, "inverse_root"),
        (t4, {"inverse_root": 1.0}, ValueError, "not both"),
        (torch.zeros(3), {}, ValueError, "second moment 0"),
        (t4, {"beta1": 1.0}, ValueError, "beta1 is 1.0"),
        (t4, {"correction2": 0.0}, ValueError, "correction2 is 0.0"),
        (None, {"inverse_root": torch.zeros(2)}, TypeError, "inverse_root"),
    ],
)
def test_bad_arguments_of_adam_update(second, options, error, message):
    with pytest.raises(error, match=message):
        adam_update_(t4, torch.zeros(4), second, [1], [1.0], **{**ADAM, **options})
    assert not t4.any()
