"""The ops as torch sees them: schemas, fake tensors, and torch.compile without a graph break."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from adazeta.kernels import (
    FactorLayer,
    FactorPlan,
    Factors,
    adam_update_,
    add_noise_,
    gaussian,
    low_rank_add,
    momentum_update_,
    perturbed_copies,
    sign_update_,
    stacked_factors,
    tt_adapter,
    tt_apply,
    use_backend,
)

SEEDS = torch.tensor([3, 1 << 40])
COEFFICIENTS = torch.tensor([0.5, -0.25])
OPS = torch.ops.adazeta


def tensors():
    return [torch.randn(7), torch.randn(2, 3).bfloat16(), torch.zeros(0).half()]


def states():
    return [torch.rand(7), torch.rand(2, 3), torch.zeros(0)]


OFFSETS = [0, 8, 16]
CALLS = {
    "draw": (SEEDS, 5, 9, 0, "gaussian"),
    "add_noise_": (tensors(), SEEDS, COEFFICIENTS, OFFSETS, 0.9, "gaussian", SEEDS[:1]),
    "add_noise_out": (tensors(), tensors(), SEEDS, COEFFICIENTS, OFFSETS, 1.0, "rademacher", None),
    "perturbed_copies": (torch.randn(3, 5).half(), SEEDS, COEFFICIENTS, 4, "gaussian"),
    "momentum_update_": (
        tensors(),
        states(),
        SEEDS,
        COEFFICIENTS,
        OFFSETS,
        0.9,
        0.1,
        1.0,
        "gaussian",
        SEEDS[:1],
    ),
    "adam_update_": (
        tensors(),
        states(),
        states(),
        SEEDS,
        COEFFICIENTS,
        OFFSETS,
        0.9,
        0.99,
        0.1,
        1e-8,
        0.1,
        0.01,
        1.0,
        None,
        "gaussian",
        None,
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    torch.library.opcheck(getattr(OPS, name).default, CALLS[name])


def test_schemas_say_what_is_written():
    for name in CALLS:
        schema = getattr(OPS, name).default._schema
        written = {a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write}
        expected = {
            "add_noise_": {"tensors"},
            "add_noise_out": {"out"},
            "momentum_update_": {"tensors", "momenta"},
            "adam_update_": {"tensors", "first", "second"},
        }
        assert written == expected.get(name, set())


def update(theta, half, m, v, seeds, coefficients):
    """A step with every op in it."""
    copies = perturbed_copies(theta, seeds, coefficients, offset=4)
    out = torch.empty_like(half)
    add_noise_([half], seeds, coefficients, out=[out])
    add_noise_(
        [theta, half], seeds, coefficients * 2, decay=0.5, rounding="stochastic", rounding_seed=7
    )
    momentum_update_([theta, half], [m[0], m[1]], seeds, coefficients, momentum=0.9, lr=0.1)
    adam_update_(
        [theta, half],
        [m[0], m[1]],
        [v[0], v[1]],
        seeds,
        coefficients,
        beta1=0.9,
        beta2=0.99,
        lr=0.1,
        epsilon=1e-8,
        correction1=0.1,
        correction2=0.01,
    )
    adam_update_(
        theta,
        m[0],
        None,
        seeds,
        coefficients,
        beta1=0.9,
        beta2=0.99,
        lr=0.1,
        epsilon=1e-8,
        correction1=0.1,
        correction2=0.01,
        inverse_root=2.0,
    )
    return copies.sum(0) + theta, out, gaussian(seeds, 3, 11)


def arguments():
    generator = torch.Generator().manual_seed(0)
    theta, half = torch.randn(11, generator=generator), torch.randn(11, generator=generator).half()
    m = [torch.rand(11, generator=generator) for _ in range(2)]
    v = [torch.rand(11, generator=generator) for _ in range(2)]
    return theta, half, m, v, SEEDS.clone(), COEFFICIENTS.clone()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(backend):
    expected, got = arguments(), arguments()
    outputs = update(*expected)
    compiled = torch.compile(update, fullgraph=True, backend=backend)(*got)
    for a, b in zip(outputs, compiled, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(
        (*expected[:2], *expected[2], *expected[3]), (*got[:2], *got[2], *got[3]), strict=True
    ):
        assert torch.equal(a, b)


def test_new_values_of_seeds_and_coefficients_do_not_recompile():
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(
        lambda t, s, c: add_noise_(t, s, c), fullgraph=True, backend=counter, dynamic=True
    )
    for count in (2, 3, 7):
        theta = torch.zeros(11)
        compiled(theta, torch.arange(count) + count, torch.ones(count))
        assert torch.equal(
            theta, add_noise_(torch.zeros(11), torch.arange(count) + count, torch.ones(count))
        )
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_no_backend_is_asked_for_fake_tensors(backend, device):
    pytest.importorskip("triton")
    plan = FactorPlan((FactorLayer((0, 24), ((1, 8, 3), (3, 5, 1)), 1, 8, 5, None),))
    assert len(plan.code)  # made here, where tensors are real
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, device, use_backend(backend), torch.no_grad():
        x, a, b = torch.ones(6, 8), torch.ones(8, 3), torch.ones(3, 8)
        seeds, scales = torch.ones(2, dtype=torch.int64), torch.ones(2)
        assert tt_apply(x, Factors(a, b)).shape == (6, 8)
        assert tt_adapter(x, Factors(a, b), Factors(a, b)).shape == (6, 8)
        assert low_rank_add(x, x, a, b).shape == (6, 8)
        assert stacked_factors(torch.ones(39), plan, seeds, scales).shape == (2, plan.size)
        assert perturbed_copies(x, seeds, scales).shape == (2, 6, 8)
        add_noise_(x, seeds, scales)
        momentum_update_(x, x, seeds, scales, momentum=0.9, lr=0.1)
        sign_update_(x, seeds, scales, lr=0.1)
