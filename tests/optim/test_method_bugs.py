"""Published bugs of the field's codes that concern rules, each by its name: none of them here.

The codes are named beside each test. Those that concern subspaces are in their own tests, and
others were tests before: the step is taken from the directions that were evaluated
(``test_equals_the_slow_reference_for_100_steps``), parameters are restored exactly
(``test_space``, ``test_streaming``), sub-ulp updates (``test_stochastic_rounding_...``).
"""

import copy

import pytest
import torch
from torch import nn

from adazeta import ZOSGD, ParameterSpace, RandomizedGradientEstimator, ZOSign, make_optimizer
from adazeta.kernels import gaussian, rademacher
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.toy import Regression, regression_batch


def vector(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_sign_is_of_each_coordinate_and_not_of_the_scalar():
    """ZO-Bench's ZO-SGD-Sign steps by sign(c) z, which has elements of every size."""
    model, batch = Regression(), regression_batch()
    before = vector(model)
    optimizer = ZOSign(model, lr=0.5, queries=3, eps=1e-2, check_eps=False)
    optimizer.step(model.losses, batch)
    step = vector(model) - before
    torch.testing.assert_close(step.abs(), torch.full_like(step, 0.5), atol=1e-6, rtol=0)
    assert 0 < (step > 0).sum() < len(step)


class Candidates:
    """The loss of a conservative step's candidates, found by hand."""

    def __init__(self, settings):
        self.model = Regression()
        self.optimizer = make_optimizer(
            self.model, "zo-conservative", lr=0.6, method_settings=settings, eps=1e-2,
            check_eps=False, weight_decay=0.05,
        )  # fmt: skip
        self.momentum = torch.zeros_like(vector(self.model))

    def step(self, batch):
        """Do a step; return the parameters as they are to be, and the choice."""
        before = vector(self.model)
        self.optimizer.step(self.model.losses, batch)
        probes, space = self.optimizer.last, self.optimizer.space
        z = gaussian(int(probes.seeds[0]), 0, space.size)
        z = torch.cat(
            [z[o : o + p.numel()] for o, p in zip(space.offsets, space.parameters, strict=True)]
        )
        factor = self.optimizer.param_groups[0]["momentum"]
        self.momentum = factor * self.momentum + probes.coefficients[0] * z
        update = 0.6 * (self.momentum + 0.05 * before)
        twin = copy.deepcopy(self.model)
        losses = {}
        for choice in (0, 1, -1):
            torch.nn.utils.vector_to_parameters(before - choice * update, twin.parameters())
            losses[choice] = twin.losses(batch).mean().item()
        best, second = sorted(losses, key=losses.get)[:2]
        if losses[second] - losses[best] < 1e-5 * losses[best]:  # as good as equal
            best = self.optimizer.param_groups[0]["choice"]
        return before - best * update, best


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_conservative_advances_the_state_once_whatever_is_chosen(momentum):
    """ZO-Bench tries the candidates by optimizer steps of +1 and -2: three steps of a momentum."""
    run, batch = Candidates({"momentum": momentum}), regression_batch()
    chosen = set()
    for _ in range(100):
        expected, best = run.step(batch)
        assert run.optimizer.param_groups[0]["choice"] == best
        torch.testing.assert_close(vector(run.model), expected, atol=2e-4, rtol=2e-4)
        chosen.add(best)
    assert {0, 1} <= chosen


def test_conservative_goes_the_other_way_if_that_is_lower():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.zero_()

    def loss():  # falls to the left at 0, and is lowest far to the right
        w = model.weight.sum()
        return torch.where(w > 0.5, w - 1000, w)

    optimizer = make_optimizer(model, "zo-conservative", lr=100.0, eps=1e-2, check_eps=False)
    optimizer.step(loss)
    assert optimizer.param_groups[0]["choice"] == -1 and model.weight.item() > 0.5


def test_conservative_never_keeps_a_worse_point():
    model, batch = Regression(), regression_batch()
    optimizer = make_optimizer(model, "zo-conservative", lr=5.0, eps=1e-2, check_eps=False)
    losses = [model.losses(batch).mean().item()]
    for _ in range(30):
        optimizer.step(model.losses, batch)
        losses.append(model.losses(batch).mean().item())
    assert all(later <= earlier for earlier, later in zip(losses, losses[1:], strict=False))


@pytest.mark.parametrize("when", range(2, 5))
def test_conservative_leaves_everything_as_it_was_if_a_candidate_fails(when):
    model, batch = Regression(), regression_batch()
    settings = {"momentum": 0.9}
    optimizer = make_optimizer(model, "zo-conservative", lr=0.1, method_settings=settings,
                               eps=1e-2, check_eps=False)  # fmt: skip
    optimizer.step(model.losses, batch)
    before, state = bits(model), optimizer.buffers["momentum_buffer"].clone()
    calls = []

    def fragile(rows):
        calls.append(1)
        if len(calls) == when + 1:
            raise KeyboardInterrupt
        return model.losses(rows)

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(fragile, batch)
    assert_same_bits(model, before)
    assert torch.equal(optimizer.buffers["momentum_buffer"], state)
    optimizer.step(model.losses, batch)
    assert optimizer.steps == 2


def test_conservative_counts_a_candidate_without_a_finite_loss_as_the_worst():
    model, batch = Regression(), regression_batch()
    optimizer = make_optimizer(model, "zo-conservative", lr=0.1, eps=1e-2, check_eps=False)
    before, start = bits(model), vector(model)

    def guarded(rows):
        near = (vector(model) - start).norm() < 0.07  # the perturbed points are, the others not
        return model.losses(rows) if near else model.losses(rows) * float("nan")

    optimizer.step(guarded, batch)
    assert optimizer.param_groups[0]["choice"] == 0
    assert_same_bits(model, before)


def test_conservative_sees_all_micro_batches():
    batch = regression_batch(8)
    whole, parts = Regression(), Regression()
    one = make_optimizer(whole, "zo-conservative", lr=0.3, eps=1e-2, check_eps=False)
    two = make_optimizer(parts, "zo-conservative", lr=0.3, eps=1e-2, check_eps=False)
    for _ in range(5):
        one.step(whole.losses, batch)
        for half in (slice(0, 4), slice(4, 8)):
            two.accumulate(parts.losses, {name: value[half] for name, value in batch.items()})
        two.step()
        assert one.param_groups[0]["choice"] == two.param_groups[0]["choice"]
        torch.testing.assert_close(vector(whole), vector(parts), atol=1e-4, rtol=1e-4)
    assert (one.evaluations, two.evaluations) == (25, 50)


def test_fzoo_divides_by_the_deviation_of_its_losses():
    """DKmiyan/FZOO: coefficient (L_i - L_0) / (N std), N + 1 forwards, no update in between."""
    model, batch = Regression(), regression_batch()
    start, seen = vector(model), []

    def losses(rows):
        seen.append(model.losses(rows).mean().item())
        return model.losses(rows)

    optimizer = make_optimizer(model, "fzoo", lr=0.1, queries=6, eps=1e-2, check_eps=False)
    optimizer.step(losses, batch)
    base, *others = seen
    assert len(others) == 6
    deviation = torch.tensor(others, dtype=torch.float64).std(correction=0)
    space, step = optimizer.space, torch.zeros(optimizer.space.size)
    for seed, loss in zip(optimizer.last.seeds, others, strict=True):
        step += (loss - base) / (6 * deviation) * rademacher(int(seed), 0, space.size)
    step = torch.cat(
        [step[o : o + p.numel()] for o, p in zip(space.offsets, space.parameters, strict=True)]
    )
    torch.testing.assert_close(vector(model), start - 0.1 * step, atol=2e-5, rtol=1e-4)


def test_fzoo_takes_the_same_step_whatever_the_scale_of_the_loss():
    models = [Regression(), Regression()]
    for model, scale in zip(models, (1.0, 64.0), strict=True):
        optimizer = make_optimizer(model, "fzoo", lr=0.1, eps=1e-2, check_eps=False)
        optimizer.step(lambda b, m=model, s=scale: s * m.losses(b), regression_batch())
    torch.testing.assert_close(vector(models[0]), vector(models[1]), atol=1e-6, rtol=1e-6)


def test_fzoo_without_a_difference_in_its_losses_changes_nothing():
    model = Regression()
    before = bits(model)
    optimizer = make_optimizer(model, "fzoo", lr=0.1, eps=1e-2, check_eps=False)
    optimizer.step(lambda batch: torch.ones(6), regression_batch())
    assert_same_bits(model, before)
    with pytest.raises(ValueError, match="2 or more"):
        make_optimizer(Regression(), "fzoo", lr=0.1, queries=1)


def test_an_update_has_no_hidden_factor():
    """AdaMeZO's code multiplies the estimate by 100."""
    model = nn.Linear(3, 1, bias=False)
    x = torch.tensor([[1.0, -2.0, 3.0]])
    optimizer = ZOSGD(model, lr=0.01, queries=4000, eps=1e-2, check_eps=False)
    before = model.weight.detach().clone()
    optimizer.step(lambda: model(x).sum())
    step = (before - model.weight.detach()) / 0.01
    # Deviation of an element's mean: sqrt((|grad|^2 + grad_i^2) / Q), at most 0.076.
    torch.testing.assert_close(step, x, atol=0.35, rtol=0)


@pytest.mark.parametrize("draw", [gaussian, rademacher])
def test_tensors_of_one_shape_have_noise_of_their_own(draw):
    """es-at-scale seeds every tensor alike, so tensors of one shape get the same noise."""
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    space = ParameterSpace(model)
    z = draw(7, 0, space.size)
    first, second = (z[o : o + 256] for o in space.offsets)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.25
    assert not torch.equal(first[:64], second[:64])


def test_tied_embeddings_are_perturbed_and_updated_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.out = nn.Linear(4, 7, bias=False)
            self.out.weight = self.embed.weight

    model = Tied()
    space = ParameterSpace(model)
    assert len(space.parameters) == 1
    before = model.embed.weight.detach().clone()
    z = gaussian(3, 0, 28).view(7, 4)
    with space.perturbed(3, 0.5):
        torch.testing.assert_close(model.out.weight.detach(), before + 0.5 * z)
        assert model.out.weight is model.embed.weight
    assert torch.equal(model.out.weight, before)


def test_both_sides_see_the_same_batch_and_no_dropout(tmp_path):
    from adazeta import ZOTrainer
    from tests.helpers.runs import arguments, causal_data
    from tests.helpers.tiny_models import tiny_gpt2

    model = tiny_gpt2()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    batches = []

    def losses(module, inputs):
        assert not module.training
        batches.append(inputs["input_ids"].clone())
        from adazeta.forward.losses import example_losses

        return example_losses(module, inputs)

    options = {"method": "mezo", "queries": 2, "max_steps": 1, "probes": "batch",
               "share_trunk": False, "learning_rate": 1e-5, "eps": "1e-2"}  # fmt: skip
    args = arguments(tmp_path, **options)
    trainer = ZOTrainer(model, args, loss_fn=losses, train_dataset=causal_data(8))
    trainer.train()
    assert len(batches) >= 4 and all(torch.equal(b, batches[0]) for b in batches)


def test_projected_gradients_are_not_rounded_to_half_precision():
    """MeZO's code takes differences of losses in the model's dtype."""
    model = nn.Linear(4, 1, bias=False)
    estimator = RandomizedGradientEstimator(ParameterSpace(model), eps=1e-2, check_eps=False)
    base = torch.tensor(300.0, dtype=torch.float64)
    probes = estimator(lambda: base + 1e-4 * model.weight.double().sum(), step=0)
    z = gaussian(int(probes.seeds[0]), 0, 4)
    # The difference is 2e-6 z of 300: nothing in float32, whose spacing there is 3e-5.
    torch.testing.assert_close(probes.projected[0], 1e-4 * z.sum(), atol=1e-8, rtol=1e-3)
