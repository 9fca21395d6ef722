"""All factors of a model in one launch: the bits of add_noise_ and of chains in a fixed order."""

from dataclasses import replace
from math import prod

import pytest
import torch
from torch import Tensor

from adazeta.kernels import (
    FactorLayer,
    FactorPlan,
    add_noise_,
    stacked_factors,
    tt_factors,
    use_backend,
)
from adazeta.kernels.ops.factors import stacked_factors_op
from adazeta.kernels.reference import factors as reference

# (in_features, out_features, input modes, output modes, rank, bias)
SPECS = [
    (61, 67, (8, 8), (7, 10), 5, True),
    (13, 1, (13,), (1,), 3, False),
    (11, 9, (2, 2, 3), (2, 5), 2, True),
    (61, 67, (8, 8), (7, 10), 5, True),
    (7, 40, (7,), (2, 2, 2, 5), 1, False),
]


def plan_of(specs: list[tuple], start: int = 8) -> FactorPlan:
    layers = []
    for n, m, in_modes, out_modes, rank, bias in specs:
        modes = in_modes + out_modes
        ranks = [1, *[rank] * (len(modes) - 1), 1]
        shapes = tuple((ranks[k], mode, ranks[k + 1]) for k, mode in enumerate(modes))
        offsets = []
        for shape in shapes:
            offsets.append(start)
            start += -(-prod(shape) // 4) * 4
        layers.append(
            FactorLayer(tuple(offsets), shapes, len(in_modes), n, m, start if bias else None)
        )
        start += -(-m // 4) * 4 if bias else 0
    return FactorPlan(tuple(layers))


def in_order(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices by the normative order: float32, term after term from the first."""
    total = left[:, :1] * right[:1]
    for t in range(1, left.shape[1]):
        total = total + left[:, t : t + 1] * right[t : t + 1]
    return total


def expected(theta: Tensor, layer: FactorLayer) -> tuple[Tensor, Tensor]:
    cores = [
        theta[offset : offset + prod(shape)].view(shape)
        for offset, shape in zip(layer.offsets, layer.shapes, strict=True)
    ]
    a = cores[0].flatten(0, 1)
    for core in cores[1 : layer.cut]:
        a = in_order(a, core.flatten(1)).reshape(-1, core.shape[2])
    b = cores[-1].flatten(1)
    for core in reversed(cores[layer.cut : -1]):
        b = in_order(core.flatten(0, 1), b).reshape(core.shape[0], -1)
    return a[: layer.in_features], b[:, : layer.out_features]


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", None])
def test_bits_of_noise_and_chains(device, backend, distribution):
    if backend == "triton":
        pytest.importorskip("triton")
    plan = plan_of(SPECS)
    theta = torch.randn(plan.extent + 3)
    theta[::7] = -0.0
    seeds, scales = torch.tensor([5, 5]), torch.tensor([0.1, -0.3])
    with use_backend(backend):
        if distribution is None:
            factors = stacked_factors(theta.to(device), plan)
        else:
            factors = stacked_factors(
                theta.to(device),
                plan,
                seeds.to(device),
                scales.to(device),
                distribution=distribution,
            )
    assert factors.shape == (1 if distribution is None else 2, plan.size)
    for p in range(len(factors)):
        moved = theta.clone()
        if distribution is not None:
            add_noise_(moved, [int(seeds[p])], [float(scales[p])], distribution=distribution)
        for layer, views in zip(plan.layers, plan.views(factors.cpu()), strict=True):
            a, b = expected(moved, layer)
            assert torch.equal(views.a[p], a) and torch.equal(views.b[p], b)
            assert (views.bias is None) == (layer.bias is None)
            if views.bias is not None:
                assert torch.equal(views.bias[p], moved[layer.bias : layer.bias + b.shape[1]])


def test_layers_at_unequal_distances_and_many_pieces(monkeypatch):
    monkeypatch.setattr(reference, "PIECE", 700)
    plan = plan_of([SPECS[0], SPECS[1], SPECS[0], SPECS[0], SPECS[2], SPECS[0]])
    theta = torch.randn(plan.extent)
    for layer, views in zip(plan.layers, plan.views(stacked_factors(theta, plan)), strict=True):
        a, b = expected(theta, layer)
        assert torch.equal(views.a[0], a) and torch.equal(views.b[0], b)


def test_the_table_of_a_plan_describes_the_contractions():
    plan = plan_of(SPECS)
    theta = torch.randn(plan.extent, dtype=torch.float64)
    out = torch.full((1, plan.size), float("nan"), dtype=torch.float64)
    for row in plan.items.tolist():
        (
            offset,
            terms,
            stride,
            across,
            columns,
            points,
            outer,
            outer_modulus,
            inner,
            inner_modulus,
            inner_stride,
            point_stride,
            limit,
            start,
            steps,
        ) = row[:15]
        for point in range(points):
            v = [1.0]
            for k in range(steps):
                (o, count, t_stride, divisor, mode, digit, r_stride, ranks) = row[
                    15 + 8 * k : 23 + 8 * k
                ]
                o += point // divisor % mode * digit
                v = [
                    sum(v[t] * theta[o + t * t_stride + r * r_stride] for t in range(count))
                    for r in range(ranks)
                ]
            for c in range(columns):
                place = c // inner % inner_modulus * inner_stride + point * point_stride
                if place < limit:
                    out[0, start + c // outer % outer_modulus * limit + place] = sum(
                        v[t] * theta[offset + t * stride + c * across] for t in range(terms)
                    )
    for got, wanted in zip(
        plan.views(out), plan.views(stacked_factors(theta.float(), plan)), strict=True
    ):
        for value, other in zip(got, wanted, strict=True):
            if value is not None:
                torch.testing.assert_close(value, other.double(), rtol=1e-5, atol=1e-5)


def test_plans_are_hashable_and_survive_their_code():
    plan, same = plan_of(SPECS), plan_of(SPECS)
    assert plan == same and hash(plan) == hash(same) and plan != plan_of(SPECS[:2])
    assert FactorPlan.decode(plan.code.tolist()) == plan
    empty = FactorPlan(())
    assert (
        stacked_factors(torch.zeros(3), empty).shape == (1, 0)
        and empty.views(torch.zeros(1, 0)) == []
    )


def test_gradient_of_theta():
    plan = plan_of(SPECS[1:3])
    theta = torch.randn(plan.extent, requires_grad=True)
    weights = torch.randn(1, plan.size)
    [grad] = torch.autograd.grad(
        [v for views in plan.views(stacked_factors(theta, plan)) for v in views if v is not None],
        theta,
        [v for views in plan.views(weights) for v in views if v is not None],
    )
    wide = theta.detach().double().requires_grad_()
    total = 0.0
    for layer, views in zip(plan.layers, plan.views(weights), strict=True):
        cores = [
            wide[o : o + prod(s)].view(s) for o, s in zip(layer.offsets, layer.shapes, strict=True)
        ]
        a, b = tt_factors(
            cores, cut=layer.cut, in_features=layer.in_features, out_features=layer.out_features
        )
        total = total + (a * views.a[0]).sum() + (b * views.b[0]).sum()
        if layer.bias is not None:
            total = total + (wide[layer.bias : layer.bias + layer.out_features] * views.bias).sum()
    torch.testing.assert_close(
        grad.double(), torch.autograd.grad(total, wide)[0], rtol=1e-5, atol=1e-5
    )


def test_op_passes_opcheck_and_compiles(device):
    # Without padding between the blocks, so that every element of the output is defined.
    plan = plan_of([(4, 4, (2, 2), (4,), 2, True)])
    assert plan.size == 20
    theta = torch.randn(plan.extent, device=device)
    seeds = torch.tensor([3, 4], device=device)
    scales = torch.tensor([0.1, 0.2], device=device)
    torch.library.opcheck(
        stacked_factors_op,
        (theta.clone().requires_grad_(), plan.code, seeds, scales, plan.size, "gaussian"),
    )

    def function(theta: Tensor) -> Tensor:
        return stacked_factors(theta, plan, seeds, scales).cos()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(theta), function(theta))


@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
@pytest.mark.parametrize("probes", [None, 2])
def test_factors_are_written_to_memory_that_is_there(device, backend, probes):
    plan = plan_of(SPECS[1:3])
    place = device if backend == "triton" else torch.device("cpu")
    theta = torch.randn(plan.extent, device=place)
    seeds = None if probes is None else torch.tensor([3, 4], device=place)
    scales = None if probes is None else torch.tensor([0.1, 0.2], device=place)
    with use_backend(backend):
        expected = stacked_factors(theta, plan, seeds, scales)
        out = torch.full_like(expected, torch.nan)
        version = out._version
        assert stacked_factors(theta, plan, seeds, scales, out=out) is out
    assert out._version > version
    for got, wanted in zip(plan.views(out), plan.views(expected), strict=True):
        assert all(g is w or torch.equal(g, w) for g, w in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"theta": torch.zeros(5)}, ValueError, "the plan needs"),
        ({"theta": torch.zeros(9000, dtype=torch.float64)}, TypeError, "float64"),
        ({"theta": torch.zeros(9000)[::2]}, ValueError, "stride"),
        ({"scales": None}, ValueError, "go together"),
        ({"scales": torch.zeros(2)}, ValueError, "one scale per seed"),
        ({"seeds": torch.zeros(1)}, TypeError, "pass int64"),
        ({"distribution": "cauchy"}, ValueError, "'cauchy'"),
        ({"out": torch.zeros(1, 3)}, ValueError, "pass contiguous float32"),
        (
            {
                "out": torch.zeros(1, plan_of(SPECS).size),
                "theta": torch.zeros(9000).requires_grad_(),
            },
            ValueError,
            "leave out one",
        ),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {
        "theta": torch.zeros(9000),
        "plan": plan_of(SPECS),
        "seeds": torch.tensor([1]),
        "scales": torch.zeros(1),
        "distribution": "gaussian",
    } | change
    with pytest.raises(error, match=message):
        stacked_factors(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut": 0}, "cut after 0"),
        ({"offsets": (0, 8)}, "one non-negative index"),
        ({"bias": -4}, "non-negative"),
        ({"in_features": 65}, "choose larger modes"),
        ({"shapes": ((1, 8, 5), (4, 8, 5), (5, 7, 5), (5, 10, 1))}, "do not chain"),
        ({"shapes": ((1, 8, 65), (65, 8, 5), (5, 7, 5), (5, 10, 1))}, "from 1 to 64"),
    ],
)
def test_bad_layers(change, message):
    with pytest.raises(ValueError, match=message):
        replace(plan_of(SPECS).layers[0], **change)
