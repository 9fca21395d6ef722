"""Stacked evaluation and directions of examples on models of every task."""

import pytest
import torch

from adazeta import (
    ParameterSpace,
    RandomizedGradientEstimator,
    TTAdapterConfig,
    ZOAdam,
    add_tt_adapters,
)
from adazeta.forward.losses import losses_only
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.tiny_models import (
    CLASSES,
    LANGUAGE,
    tiny_bert_cls,
    tiny_gpt2_cls,
    tiny_llama,
    tiny_llama_cls,
    tiny_roberta_cls,
)

EPS = 1e-2
# Losses are near 5 and carry a rounding of about 5e-7; their differences are divided by 2 eps.
TOLERANCE = {"atol": 5e-7 / EPS, "rtol": 1e-3}
SMALL = {"rank": 2, "bottleneck": 8, "init": "paper"}
# The classification head frozen, trained whole, or trained as a tensor train.
HEADS = ("frozen", "dense", "tt")
CASES = [(make, "frozen") for make in LANGUAGE] + [
    (make, head) for make in CLASSES for head in HEADS
]


def build(make, head):
    options = {"tt_head_rank": 2} if head == "tt" else {}
    if head == "dense":
        options["modules_to_save"] = ["score" if make in (tiny_gpt2_cls, tiny_llama_cls)
                                      else "classifier"]  # fmt: skip
    return add_tt_adapters(make(layers=1), TTAdapterConfig(**SMALL, **options))


def batch(make, rows=4, tokens=8):
    ids = torch.randint(5, 50, (rows, tokens), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(tokens) < torch.tensor([tokens, 5, 3, 7])[:rows, None]).long()
    labels = ids.where(mask.bool(), -100)
    if make not in LANGUAGE:
        labels = torch.tensor([0, 1, 1, 0])[:rows]
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def estimate(model, inputs, **options):
    space = ParameterSpace(model)
    estimator = RandomizedGradientEstimator(space, eps=EPS, check_eps=False, **options)
    return estimator(lambda part: losses_only(model, part), inputs, step=3)


@pytest.mark.parametrize("make, head", CASES)
def test_stacked_and_sequential_losses_agree(make, head):
    model, inputs = build(make, head), batch(make)
    before = bits(model)
    assert ParameterSpace(model).stackable
    expected = estimate(model, inputs, queries=3)
    for together in (2, 6):
        found = estimate(model, inputs, queries=3, probes_per_forward=together)
        assert torch.equal(found.seeds, expected.seeds)
        torch.testing.assert_close(found.projected, expected.projected, **TOLERANCE)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert_same_bits(model, before)
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("make, head", CASES)
@pytest.mark.parametrize("probes", ["example", 2])
def test_directions_of_examples_give_what_each_alone_gives(make, head, probes):
    model, inputs = build(make, head), batch(make)
    found = estimate(model, inputs, probes=probes, queries=2, probes_per_forward=3)
    groups = 4 if probes == "example" else 2
    rows = 4 // groups
    space, by_hand = ParameterSpace(model), []
    with torch.no_grad():
        for k, seed in enumerate(found.seeds.tolist()):
            start = k % groups * rows
            part = {name: value[start : start + rows] for name, value in inputs.items()}
            sides = []
            for scale in (EPS, -EPS):
                with space.perturbed(seed, scale):
                    sides.append(losses_only(model, part).double().mean())
            by_hand.append((sides[0] - sides[1]) / (2 * EPS))
    expected = torch.stack(by_hand).float()
    torch.testing.assert_close(found.projected, expected, **TOLERANCE)
    torch.testing.assert_close(found.coefficients, found.projected / len(found))
    assert len(set(found.seeds.tolist())) == 2 * groups


@pytest.mark.parametrize("make, head", [(tiny_llama, "frozen"), (tiny_bert_cls, "dense")])
def test_directions_of_examples_move_the_loss_down(make, head):
    model, inputs = build(make, head), batch(make)
    optimizer = ZOAdam(model, lr=1e-2, eps=EPS, probes="example", check_eps=False)
    losses = [optimizer.step(lambda part: losses_only(model, part), inputs) for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_failing_stack_leaves_the_head_as_it_was():
    model, inputs = build(tiny_roberta_cls, "dense"), batch(tiny_roberta_cls)
    before = bits(model)
    model.classifier.out_proj.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        estimate(model, inputs, probes_per_forward=2)
    assert_same_bits(model, before)
    assert all("forward" not in vars(module) for module in model.modules())


def test_what_cannot_be_stacked_is_refused():
    model = build(tiny_bert_cls, "frozen")
    model.bert.embeddings.LayerNorm.requires_grad_(True)
    with pytest.raises(ValueError, match="probes_per_forward=1"):
        estimate(model, batch(tiny_bert_cls), probes="example")
