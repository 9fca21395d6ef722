"""The rate that is measured before the first step, and its guard."""

import math

import pytest
import torch
from torch import nn

from adazeta import HELENE, ZOSGD, ParameterSpace, ZOAdam, ZOSign, replay
from adazeta.estimation.displacement import tolerable_scale
from adazeta.estimation.probes import Probes
from adazeta.optim.extrapolated import ZOExtrapolated
from adazeta.optim.rate import AutoRate
from adazeta.optim.relative import ZOAdaLomo
from adazeta.recording.identity import fingerprint_of_state
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.runs import adapted, make, stopped
from tests.helpers.toy import Regression, regression_batch


def parabola(curvature):
    seen = []

    def rise_at(scale):
        seen.append(scale)
        return curvature * scale**2

    return rise_at, seen


@pytest.mark.parametrize("scale", [1e-5, 3e-3, 0.02, 0.5, 7.0])
def test_the_scale_of_a_parabola_is_found(scale):
    rise_at, seen = parabola(1 / scale**2)
    assert tolerable_scale(rise_at, {}, 1.0) == pytest.approx(scale, rel=1e-6)
    assert len(seen) == len(set(seen))


def test_the_scale_of_a_wall_is_found():
    for scale in (0.02, 0.5):

        def rise_at(s, scale=scale):
            return math.exp(20 * (s / scale - 1)) - 0.01

        assert tolerable_scale(rise_at, {}, 1.0) == pytest.approx(scale, rel=0.1)


def test_what_is_known_is_not_measured_again():
    rise_at, seen = parabola(1.0)
    known = {0.1: 1e-2, 0.3: 0.09, 1.0: 1.0}
    assert tolerable_scale(rise_at, known, 0.25) == pytest.approx(0.5, rel=1e-6)
    assert len(seen) == 2 and all(0.3 < scale < 1.0 for scale in seen)


def test_a_loss_that_falls_again_far_away_counts_where_it_rises_first():
    rises = {0.1: -1e-3, 0.3: 0.4, 1.0: 0.05, 3.0: 0.5}
    assert 0.1 < tolerable_scale(lambda s: s**2, rises, 0.1) < 0.4


def test_a_loss_that_never_or_always_rises_gives_the_ends():
    assert tolerable_scale(lambda s: 0.0, {}, 0.1) == 10.0
    assert tolerable_scale(lambda s: math.inf, {}, 0.1) == 1e-6
    assert tolerable_scale(lambda s: math.nan if s > 0.2 else 0.01, {}, 0.1) <= 0.2


class Plane(nn.Module):
    def __init__(self, size=4000):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(size))


RULES = {
    "sgd": lambda p: ZOSGD(p),
    "momentum": lambda p: ZOSGD(p, momentum=0.9),
    "fzoo": lambda p: ZOSGD(p, normalize=True, queries=8),
    "sign": lambda p: ZOSign(p),
    "adam": lambda p: ZOAdam(p),
    "adalomo": lambda p: ZOAdaLomo(p, clip=1e9),
    "extrapolated": lambda p: ZOExtrapolated(p),
    "adam-element": lambda p: ZOAdam(p, second_moment="element"),
    "helene": lambda p: HELENE(p, annealing=0),
    "helene-none": lambda p: HELENE(p, annealing=0, hessian="none"),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_unit_of_a_rule_is_the_size_of_its_random_moves(rule):
    """Steps without a signal move each element by unit x root of their number."""
    model = Plane()
    optimizer = RULES[rule](model)
    count, steps = 8, 150
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        slopes = 3.0 * torch.randn(count, generator=generator)
        seeds = torch.arange(count) + 1000 * step
        optimizer.apply(Probes(seeds, slopes / count, slopes, loss=1.0, evaluations=1, queries=1))
    moved = float(model.theta.detach().square().mean().sqrt()) / math.sqrt(steps)
    unit = optimizer.unit(optimizer.param_groups[0], 9.0, count)
    # A momentum of 0.9 still has about 6% of the way of 150 steps before it.
    assert moved == pytest.approx(unit, rel=0.12)


def test_the_guard_ignores_noise_and_answers_a_rise():
    rate = AutoRate()
    rate.chosen = 0.1
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    for value in noise:
        rate.note(1.0 + 0.2 * value)
    assert rate.rate == 0.1 and rate.last == 0.1
    for value in noise[:10]:
        rate.note(2.0 + 0.2 * value)
    assert rate.rate == 0.05 and rate.last == 0.1
    rate.note(math.nan)
    assert rate.rate == 0.025


def test_the_guard_goes_on_as_it_was():
    rate, other = AutoRate(), AutoRate()
    rate.chosen = 1.0
    for loss in (1.0, 1.1, 0.9) * 5:
        rate.note(loss)
    other.load_state_dict(rate.state_dict())
    for loss in [5.0, 5.1] * 10:
        rate.note(loss)
        other.note(loss)
    assert rate.state_dict() == other.state_dict()
    assert rate.shrunk == 0.5


@pytest.mark.parametrize("rule", ["sgd", "momentum", "sign", "adam", "helene"])
def test_it_learns_and_never_diverges_in_20_seeds(rule):
    kinds = {"sgd": (ZOSGD, {}), "momentum": (ZOSGD, {"momentum": 0.9}), "sign": (ZOSign, {}),
             "adam": (ZOAdam, {}), "helene": (HELENE, {})}  # fmt: skip
    kind, options = kinds[rule]
    batch = regression_batch(16)
    for seed in range(20):
        model = Regression()
        before = model.losses(batch).mean().item()
        optimizer = kind(model, probes="example", seed=seed, **options)
        for _ in range(60):
            optimizer.step(model.losses, batch)
        assert model.losses(batch).mean().item() < 0.8 * before


def test_the_evaluations_of_the_choice_are_counted():
    model, batch, calls = Regression(), regression_batch(16), []

    def losses(rows):
        calls.append(len(rows["x"]))
        return model.losses(rows)

    optimizer = ZOAdam(model, probes="example")
    optimizer.step(losses, batch)
    assert optimizer.evaluations == len(calls)
    optimizer.step(losses, batch)
    assert optimizer.evaluations == len(calls)


def test_groups_have_factors_that_a_schedule_changes():
    model, batch = Regression(), regression_batch(16)
    first, second = ZOAdam(model, seed=3), None
    first.step(model.losses, batch)
    found = [p.detach().clone() for p in model.parameters()]
    start = [p.detach().clone() for p in Regression().parameters()]
    half = Regression()
    second = ZOAdam(half, seed=3)
    second.param_groups[0]["lr"] = 0.5
    second.step(half.losses, batch)
    assert second.auto_rate.chosen == first.auto_rate.chosen
    for a, b, c in zip(start, found, half.parameters(), strict=True):
        torch.testing.assert_close(c - a, (b - a) / 2, rtol=1e-3, atol=1e-6)


def test_a_group_with_a_rate_of_its_own_is_refused():
    model = Regression()
    groups = [{"params": list(model.parameters()), "lr": 0.1}]
    with pytest.raises(ValueError, match=r"group 0 has lr=0.1 while the rate is measured"):
        ZOAdam(groups, space=ParameterSpace(model))


@pytest.mark.parametrize("lr", ["fast", -1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(lr):
    with pytest.raises(ValueError, match="lr must be 0 or more, or 'auto'"):
        ZOAdam(Regression(), lr=lr)


def test_a_run_replays_and_resumes_to_the_same_bits(tmp_path):
    whole = make(tmp_path / "whole", learning_rate="auto")
    whole.train()
    optimizer = whole.zo_optimizer
    assert optimizer.auto_rate.chosen > 0
    again = replay(tmp_path / "whole" / "probes.log", adapted())
    assert fingerprint_of_state(again) == fingerprint_of_state(optimizer)
    for step in (1, 5):
        folder = tmp_path / f"stopped-{step}"
        stopped(folder, step=step, learning_rate="auto")
        resumed = make(folder, learning_rate="auto")
        resumed.train(resume_from_checkpoint=True)
        assert fingerprint_of_state(resumed.zo_optimizer) == fingerprint_of_state(optimizer)
        assert_same_bits(resumed.model, bits(whole.model))


def test_the_log_of_a_trainer_shows_the_rate_itself(tmp_path):
    trainer = make(tmp_path, learning_rate="auto", logging_steps=1, lr_scheduler_type="constant")
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == [trainer.zo_optimizer.auto_rate.chosen] * 6
    assert trainer.zo_optimizer.auto_rate.horizon == 6


def test_the_horizon_is_the_schedules(tmp_path):
    trainer = make(tmp_path, learning_rate="auto", max_steps=3)  # linear: 1, 2/3, 1/3
    trainer.train()
    assert trainer.zo_optimizer.auto_rate.horizon == pytest.approx(1 + 4 / 9 + 1 / 9)


@pytest.mark.parametrize(
    "options",
    [
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
        {"lr_scheduler_type": "greedy", "eval_strategy": "steps"},
    ],
)
def test_schedules_that_hold_rates_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="learning_rate='auto' is measured"):
        make(tmp_path, learning_rate="auto", **options)


def test_newton_needs_no_rate():
    from adazeta import ZOTrainingArguments

    assert ZOTrainingArguments(method="newton", report_to="none").learning_rate == 1.0
