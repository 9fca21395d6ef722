import warnings

import pytest
import torch

from adazeta import ParameterSpace, QuerySchedule, RandomizedGradientEstimator
from adazeta.kernels import gaussian
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.toy import Regression, regression_batch


def make(**options):
    model = Regression()
    defaults = {"eps": 1e-2, "check_eps": False}
    estimator = RandomizedGradientEstimator(ParameterSpace(model), **{**defaults, **options})
    return model, estimator


def gradient_of(probes, space):
    """The estimate as a vector without the padding of the index space."""
    total = probes.coefficients @ gaussian(probes.seeds, 0, space.size)
    return torch.cat(
        [total[o : o + p.numel()] for p, o in zip(space.parameters, space.offsets, strict=True)]
    )


def test_projected_gradients_are_directional_derivatives():
    model, estimator = make(queries=4, eps=1e-3)
    batch = regression_batch()
    probes = estimator(model.losses, batch)
    exact = model.gradient(batch)
    for seed, c in zip(probes.seeds, probes.projected, strict=True):
        probes_of_one = gaussian(int(seed), 0, estimator.space.size)
        direction = torch.cat(
            [
                probes_of_one[o : o + p.numel()]
                for p, o in zip(model.parameters(), estimator.space.offsets, strict=True)
            ]
        )
        # Rounding of a float32 loss near 1: 1e-7 / (2 eps) = 5e-5; curvature: O(eps^2) = 1e-5.
        assert c.item() == pytest.approx((direction @ exact).item(), abs=2e-3)
    assert probes.evaluations == 8 and probes.queries == 4


@pytest.mark.parametrize("probes", ["batch", "example", 3])
@pytest.mark.parametrize("one_sided", [False, True])
def test_unbiased(probes, one_sided):
    model, estimator = make(probes=probes, one_sided=one_sided, eps=1e-3, queries=5)
    batch = regression_batch()
    exact = model.gradient(batch)
    count = 100
    total = torch.zeros_like(exact)
    square = 0.0
    for step in range(count):
        estimate = gradient_of(estimator(model.losses, batch, step=step), estimator.space)
        total += estimate
        square += (estimate - exact).square().sum().item() / count
    error = (total / count - exact).square().sum().item()
    # E |mean - g|^2 = E |estimate - g|^2 / count; 2 is far out in the tail for a sum of 20 terms.
    assert error < 2 * square / count


def test_directions_of_examples_cut_the_variance():
    batch = regression_batch()
    spread = {}
    for probes in ("batch", "example"):
        model, estimator = make(probes=probes)
        exact = model.gradient(batch)
        errors = [
            (gradient_of(estimator(model.losses, batch, step=k), estimator.space) - exact)
            .square().sum() for k in range(200)
        ]  # fmt: skip
        spread[probes] = torch.stack(errors).mean().item()
    assert spread["example"] < 0.6 * spread["batch"]


@pytest.mark.parametrize("per_forward", [1, 2, 3, 100])
@pytest.mark.parametrize("probes", ["batch", "example", 2])
@pytest.mark.parametrize("one_sided", [False, True])
def test_stacking_changes_nothing_but_rounding(per_forward, probes, one_sided):
    batch = regression_batch()
    options = {"queries": 3, "probes": probes, "one_sided": one_sided}
    model, estimator = make(**options)
    expected = estimator(model.losses, batch, step=7)
    model, estimator = make(**options, probes_per_forward=per_forward)
    found = estimator(model.losses, batch, step=7)
    assert torch.equal(found.seeds, expected.seeds)
    # Float32 roundings of losses near 1, divided by 2 eps = 0.02 (one-sided: 0.01).
    torch.testing.assert_close(found.projected, expected.projected, atol=2e-4, rtol=1e-4)
    assert found.evaluations == expected.evaluations == (4 if one_sided else 6)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_seeds_depend_on_run_step_and_query_only():
    model, estimator = make(queries=2, seed=3)
    batch = regression_batch()
    torch.manual_seed(1)
    first = estimator(model.losses, batch, step=5)
    torch.manual_seed(2)
    again = estimator(model.losses, batch, step=5, micro_step=1)
    assert torch.equal(first.seeds, again.seeds)
    other = estimator(model.losses, batch, step=6)
    assert set(first.seeds.tolist()).isdisjoint(other.seeds.tolist())


def test_examples_of_different_micro_batches_have_their_own_directions():
    model, estimator = make(probes="example")
    batch = regression_batch()
    first = estimator(model.losses, batch, step=5, micro_step=0)
    second = estimator(model.losses, batch, step=5, micro_step=1)
    assert set(first.seeds.tolist()).isdisjoint(second.seeds.tolist())


def test_groups_divide_the_rows():
    model, estimator = make(probes=4)
    assert len(estimator(model.losses, regression_batch(6))) == 3
    assert len(estimator(model.losses, regression_batch(8))) == 4
    assert len(estimator(model.losses, regression_batch(1))) == 1


def test_parameters_are_never_touched():
    model, estimator = make(queries=2)
    before = bits(model)
    estimator(model.losses, regression_batch())
    assert_same_bits(model, before)

    calls = 0

    def failing(batch):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("out of memory")
        return model.losses(batch)

    with pytest.raises(RuntimeError, match="out of memory"):
        estimator(failing, regression_batch())
    assert_same_bits(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_closure_without_a_batch():
    model, estimator = make(queries=2)
    batch = regression_batch()
    expected = estimator(model.losses, batch)
    found = estimator(lambda: model.losses(batch).mean())
    torch.testing.assert_close(found.projected, expected.projected, atol=1e-4, rtol=1e-4)


def test_query_schedule_follows_the_epoch():
    model, estimator = make(queries=QuerySchedule(1.0, 1.0, 3))
    batch = regression_batch()
    assert [len(estimator(model.losses, batch, epoch=e)) for e in (0.0, 2.9, 9.0)] == [1, 2, 3]


def test_probes_with_infinite_losses_are_dropped():
    model, estimator = make(probes="example", queries=2)

    def losses(batch):
        values = model.losses(batch)
        values[1] = float("inf")
        return values

    probes = estimator(losses, regression_batch(6))
    assert probes.dropped == 2 and len(probes) == 10
    assert probes.coefficients.isfinite().all() and probes.loss == probes.loss
    torch.testing.assert_close(probes.coefficients, probes.projected / 10)

    nothing = estimator(lambda batch: model.losses(batch) * float("nan"), regression_batch(6))
    assert len(nothing) == 0 and nothing.dropped == 12 and nothing.loss != nothing.loss


def test_eps_auto_finds_the_plateau_of_a_noisy_loss():
    model, estimator = make(eps="auto", queries=2, probes="example")
    batch = regression_batch(8)

    def coarse(inputs):
        # A forward pass in bfloat16 carries about 3 digits: eps 1e-4 must be hopeless.
        return model.losses(inputs).bfloat16().float()

    probes = estimator(coarse, batch)
    report = estimator.eps_report
    assert estimator.eps == report.eps and 1e-2 <= report.eps <= 1e-1
    assert report.reliability_at(1e-4) < 0.6 < 0.9 < report.reliability_at(report.eps)
    assert probes.evaluations > 4
    assert estimator(coarse, batch, step=1).evaluations == 4


def test_fixed_eps_in_the_noise_warns_once_with_the_remedy():
    model, estimator = make(eps=1e-5, check_eps=True)
    batch = regression_batch()

    def coarse(inputs):
        return model.losses(inputs).bfloat16().float()

    with pytest.warns(UserWarning, match="eps=1e-05 lies in the noise.*eps='auto'"):
        estimator(coarse, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator(coarse, batch, step=1)
        model, quiet = make(eps=1e-2, check_eps=True)
        quiet(model.losses, batch)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"queries": 0}, "queries"),
        ({"eps": 0.0}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"eps": "big"}, "eps"),
        ({"probes": "row"}, "probes"),
        ({"probes": 0}, "probes"),
        ({"probes_per_forward": 0}, "probes_per_forward"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("options", [{"probes": "example"}, {"probes_per_forward": 2}])
def test_stacking_needs_stackable_parameters(options):
    space = ParameterSpace(torch.nn.Linear(2, 1))
    with pytest.raises(ValueError, match="probes_per_forward=1"):
        RandomizedGradientEstimator(space, **options)


def test_wrong_shape_of_the_losses():
    model, estimator = make(probes_per_forward=2)
    with pytest.raises(ValueError, match=r"shape \(\) for 12 examples"):
        estimator(lambda batch: model.losses(batch).mean(), regression_batch(6))
    with pytest.raises(ValueError, match="batch"):
        estimator(lambda: model.losses(regression_batch()).mean())
    model, estimator = make()
    with pytest.raises(ValueError, match="one number"):
        estimator(lambda: model.losses(regression_batch()))


def test_batch_of_unequal_lengths():
    model, estimator = make(probes="example")
    with pytest.raises(ValueError, match="disagree"):
        estimator(model.losses, {"x": torch.zeros(3, 5), "y": torch.zeros(2)})
