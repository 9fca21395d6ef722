"""Embeddings that are moved against the model: closed forms, bounds, and nothing left behind."""

import sys

import pytest
import torch
from torch import nn

from adazeta import FOTrainer, FOTrainingArguments, TTAdapterConfig, add_tt_adapters
from adazeta.forward.losses import example_losses
from adazeta.training import adversarial
from adazeta.training.adversarial import SHARE, Adversary
from adazeta.training.first_order_arguments import RULES
from adazeta.training.gradients import _steps_of
from adazeta.training.order import training_arguments
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.runs import CONFIG, causal_data, crash_after
from tests.helpers.tiny_models import tiny_llama


class Linear(nn.Module):
    """``w x`` of the sum of two embeddings, as a regression."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.w = nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 0.3]))
        self.seen = []

    def get_input_embeddings(self):
        return self.table

    def losses(self, inputs):
        embedded = self.table(inputs["input_ids"])
        self.seen.append(embedded.detach())
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        value = ((embedded * mask[..., None]) @ self.w).sum(1)
        return (value - inputs["y"]).square()


def batch(**more):
    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 7, 8]])
    return {"input_ids": ids, "y": torch.tensor([1.0, -2.0, 0.5]), **more}


def evaluate(adversary, model, inputs, step=5):
    found = []

    def backward():
        losses = model.losses(inputs)
        losses.mean().backward()
        found.append(losses.detach())
        return losses.mean().detach()

    adversary.evaluate(backward, lambda: model.losses(inputs).mean(), model, inputs, (step, 0))
    return found[0]


def move(model):
    return model.seen[-1] - model.seen[0]


@pytest.fixture
def model():
    torch.manual_seed(1)
    return Linear()


@pytest.mark.parametrize("step, radius", [(None, 0.3), (0.3, 5.0), (7.0, 0.3)])
def test_a_regression_reaches_its_worst_case(model, step, radius):
    """All T tokens move alike: the norm of the slope along them is |w| sqrt(T)."""
    inputs = batch()
    plain = model.losses(inputs).detach()
    losses = evaluate(Adversary("gradient", radius, step, 0, 3), model, inputs)
    expected = (plain.sqrt() + 0.3 * model.w.detach().norm() * 3**0.5).square()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["gradient", "random"])
@pytest.mark.parametrize("radius", [0.2, "auto"])
def test_moves_have_their_norm_and_spare_padding(model, kind, radius):
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    inputs = batch(attention_mask=mask)
    model.losses(inputs)
    evaluate(Adversary(kind, radius, None, 0, 3), model, inputs)
    delta = move(model)
    wanted = torch.full((3,), 0.2)
    if radius == "auto":
        wanted = SHARE * model.table.weight.detach().norm(dim=1).mean() * mask.sum(1).sqrt()
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), wanted, rtol=1e-4, atol=1e-6)
    assert (delta[mask == 0] == 0).all()


def test_gradients_of_parameters_are_those_at_the_moved_embeddings(model):
    inputs = batch()
    evaluate(Adversary("gradient", 0.3, None, 0, 3), model, inputs)
    found = model.w.grad.clone()
    value = model.seen[-1] @ model.w.detach()
    slope = 2 * (value.sum(1) - inputs["y"]) / 3
    torch.testing.assert_close(found, (slope[:, None, None] * model.seen[-1]).sum((0, 1)))


def test_a_small_move_uphill_raises_the_loss_and_more_than_a_random_one(model):
    inputs = batch()
    plain = model.losses(inputs).detach()
    uphill = evaluate(Adversary("gradient", 1e-2, None, 0, 3), model, inputs)
    random = evaluate(Adversary("random", 1e-2, None, 0, 3), model, inputs)
    assert (uphill > plain).all() and (uphill > random).all()


def test_an_example_is_moved_without_regard_to_its_neighbours(model):
    inputs = batch()
    model.losses(inputs)
    evaluate(Adversary("gradient", 0.3, None, 0, 3), model, inputs)
    whole = move(model)
    alone = {name: value[1:2] for name, value in inputs.items()}
    model.seen = []
    model.losses(alone)
    evaluate(Adversary("gradient", 0.3, None, 0, 3), model, alone)
    torch.testing.assert_close(move(model), whole[1:2])


def test_before_its_start_it_is_one_plain_evaluation(model):
    evaluate(Adversary("gradient", 0.3, None, 6, 3), model, batch(), step=5)
    assert len(model.seen) == 1


@pytest.mark.parametrize("fails_at", [1, 2])
def test_nothing_is_left_behind_also_after_an_exception(model, fails_at):
    inputs, calls = batch(), []
    evaluate(Adversary("gradient", 0.3, None, 0, 3), model, inputs)
    assert not model.table._forward_hooks
    before = [p.grad.clone() for p in model.parameters()]

    def fragile():
        calls.append(1)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return model.losses(inputs).mean()

    adversary = Adversary("gradient", 0.3, None, 0, 3)
    with pytest.raises(KeyboardInterrupt):
        adversary.evaluate(fragile, fragile, model, inputs, (0, 0))
    assert not model.table._forward_hooks
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_what_has_no_one_embedding_is_refused(model):
    inputs = batch()
    adversary = Adversary("gradient", 0.3, None, 0, 3)

    def twice():
        return model.losses(inputs).mean() + model.losses(inputs).mean()

    with pytest.raises(ValueError, match="more than once a batch"):
        adversary.evaluate(twice, twice, model, inputs, (0, 0))
    with pytest.raises(ValueError, match="does not run the model's input embedding"):
        adversary.evaluate(twice, lambda: model.w.sum(), model, inputs, (0, 0))
    with pytest.raises(ValueError, match="Linear has no get_input_embeddings"):
        adversary.evaluate(twice, twice, nn.Linear(1, 1), inputs, (0, 0))
    with pytest.raises(ValueError, match=r"mask is \(1, 3\)"):
        evaluate(adversary, model, batch(attention_mask=torch.ones(1, 3)))
    assert not model.table._forward_hooks


def make(folder, config=CONFIG, **options):
    model = add_tt_adapters(tiny_llama(layers=1), TTAdapterConfig(**{**CONFIG, **config}))
    defaults = {
        "output_dir": str(folder), "max_steps": 5, "per_device_train_batch_size": 4,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_steps": 2, "seed": 3,
    }  # fmt: skip
    args = FOTrainingArguments(**{**defaults, **options})
    return FOTrainer(model, args, train_dataset=causal_data(12))


def test_a_run_differs_from_its_start_on_and_resumes_bit_for_bit(tmp_path):
    options = {"adversarial_radius": "auto", "rule": "adalomo"}
    plain = make(tmp_path / "plain", rule="adalomo", max_steps=2, lr_scheduler_type="constant")
    plain.train()
    start = make(tmp_path / "start", **options, lr_scheduler_type="constant")
    crash_after(start, 2)
    assert_same_bits(start.model, bits(plain.model))
    whole = make(tmp_path / "whole", **options, extrapolation="none")
    whole.train()
    crash_after(make(tmp_path / "parts", **options), 3)
    again = make(tmp_path / "parts", **options)
    again.train(resume_from_checkpoint=True)
    assert_same_bits(again.model, bits(whole.model))
    none = make(tmp_path / "none", rule="adalomo")
    none.train()
    assert any(
        not torch.equal(a, b) for a, b in zip(bits(none.model), bits(whole.model), strict=True)
    )


@pytest.mark.parametrize("kind", ["gradient", "random"])
def test_with_extrapolation_both_evaluations_are_adversarial(tmp_path, kind):
    """And all of a micro-batch leave the same adapters out."""
    trainer = make(
        tmp_path, max_steps=4, adversarial_radius=0.1, adversarial_start=0.0, adversarial_kind=kind,
        extrapolation="local", save_strategy="no", config={"drop": 0.5},
    )  # fmt: skip
    seen = []

    def losses(*arguments):
        seen.append(tuple(module.enabled for module in trainer._droppable))
        return example_losses(*arguments)

    trainer._loss.examples, trainer._loss._open = losses, False
    trainer.train()
    count = 4 if kind == "gradient" else 2
    steps = [seen[start : start + count] for start in range(0, len(seen), count)]
    assert len(steps) == 4 and all(len(set(step)) == 1 for step in steps)
    assert len(set(seen)) > 1 and len(seen[0]) > 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"adversarial_start": 0.2}, "means nothing with adversarial_radius=0"),
        ({"adversarial_kind": "random"}, "means nothing with adversarial_radius=0"),
        ({"adversarial_radius": -1.0}, "adversarial_radius must be 0 or more"),
        ({"adversarial_radius": "much"}, "must be a number or 'auto', got 'much'"),
        ({"adversarial_radius": 1.0, "adversarial_kind": "gradients"}, "did you mean 'gradient'"),
        ({"adversarial_radius": 1.0, "adversarial_start": 1.0}, "adversarial_start must be in"),
        ({"adversarial_radius": 1.0, "adversarial_step": 0.0}, "adversarial_step must be above 0"),
        ({"adversarial_radius": 1.0, "cache_trunk": "memory"}, "leave one of them out"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)


@pytest.mark.parametrize("name", ["radius", "step", "start", "kind"])
def test_zeroth_order_says_why_it_is_refused(tmp_path, name):
    settings = {"output_dir": str(tmp_path), f"adversarial_{name}": "0.5"}
    with pytest.raises(ValueError, match="the best of a few random moves gains next to nothing"):
        training_arguments(settings)


def test_contexts_that_are_computed_apart_are_refused(tmp_path):
    trainer = make(tmp_path, adversarial_radius=0.1)
    trainer.model.tt_adapter_suffix = 2
    with pytest.raises(ValueError, match="set adapt='all'"):
        trainer.train()


def test_lamb_is_its_equations(tmp_path):
    pytest.importorskip("pytorch_optimizer")
    args = make(tmp_path, rule="lamb", learning_rate=0.1, weight_decay=0.2).args
    w, g = torch.tensor([3.0, -1.0, 0.5]), torch.tensor([0.2, 0.1, -0.4])
    parameter = nn.Parameter(w.clone())
    optimizer = args.make_optimizer([parameter])
    m = v = torch.zeros(3)
    for _ in range(3):
        parameter.grad = g.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        update = m / (v.sqrt() + 1e-8) + 0.2 * w
        w = w - 0.1 * w.norm() / update.norm() * update
    torch.testing.assert_close(parameter.detach(), w, rtol=1e-5, atol=1e-6)


def test_lamb_says_what_it_needs(tmp_path, monkeypatch):
    assert RULES["lamb"].adam
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ImportError, match=r"pip install 'adazeta\[first-order\]'"):
        make(tmp_path, rule="lamb")


class Scaled(nn.Embedding):
    """Returns its rows times four, as embeddings of some models do."""

    def forward(self, ids):
        return 4 * super().forward(ids)


class Held(nn.Module):
    """An embedding whose rows lie elsewhere, as packed ones do."""

    def __init__(self, table):
        super().__init__()
        self.num_embeddings, self.weight = len(table), torch.zeros(3, dtype=torch.uint8)
        self.table = [table]

    def forward(self, ids):
        return self.table[0][ids]


def test_the_usual_radius_is_of_what_an_embedding_returns(monkeypatch):
    monkeypatch.setattr(adversarial, "_ROWS", 4)  # of nine
    inputs = batch()
    norms = []
    for change in ("none", "scaled", "held"):
        torch.manual_seed(1)
        model = Linear()
        table = model.table.weight.detach().clone()
        if change == "scaled":
            model.table = Scaled(9, 4)
            model.table.weight = nn.Parameter(table)
        if change == "held":
            model.table = Held(table)
        evaluate(Adversary("random", "auto", None, 0, 3), model, inputs)
        found = []
        model.table.register_forward_hook(lambda _, __, output, found=found: found.append(output))
        model.losses(inputs)
        norms.append((model.seen[0] - found[0]).flatten(1).norm(dim=1))
    expected = SHARE * table.norm(dim=1).mean() * torch.full((3,), 3.0).sqrt()
    for norm, factor in zip(norms, (1, 4, 1), strict=True):
        torch.testing.assert_close(norm, factor * expected, atol=1e-6, rtol=1e-4)


def test_what_cannot_be_moved_is_told_at_the_first_step(tmp_path):
    def twice(model, inputs):
        model.get_input_embeddings()(inputs["input_ids"])
        return example_losses(model, inputs)

    made = make(tmp_path, max_steps=10, adversarial_radius=0.1)  # from the fifth step on
    trainer = FOTrainer(made.model, made.args, loss_fn=twice, train_dataset=causal_data(12))
    with pytest.raises(ValueError, match="more than once a batch"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("share, steps", [(0.55, 55), (0.07, 7), (0.4, 40), (1.0, 100), (0.001, 1)])
def test_a_share_of_the_steps_is_exact(share, steps):
    assert _steps_of(100, share) == steps
