import pytest
import torch

from adazeta import TTAdapterConfig, add_tt_adapters
from adazeta.estimation.findings import Findings
from adazeta.forward.batch_losses import BatchLosses
from adazeta.forward.losses import example_losses
from adazeta.forward.trained_loss import TrainedLoss
from adazeta.support.batches import repeat_rows
from tests.helpers.packing import batch
from tests.helpers.tiny_models import tiny_llama


def upper_adapters():
    config = TTAdapterConfig(rank=2, bottleneck=8, init="paper", layers="last:1")
    return add_tt_adapters(tiny_llama(), config).eval()


def no_batch(module, inputs):
    raise AssertionError("the loss is of the examples")


def mean_of_squares(module, inputs):
    return module(inputs["input_ids"]).logits.square().mean()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding_free": False},
        {"share_trunk": False},
        {"padding_free": False, "cache": "memory"},
    ],
)
@torch.no_grad()
def test_losses_and_logits_are_those_of_the_plain_forward(options):
    model, inputs, found = upper_adapters(), batch(13, 3, 1, 6, 7), Findings()
    expected, logits = example_losses(model, inputs)
    losses = BatchLosses(model, TrainedLoss(example_losses, no_batch), **options)
    for times in (1, 3):
        evaluate = losses.of(model, inputs, found)
        value = evaluate(repeat_rows(inputs, times))
        # The same sums over keys, in fewer rows.
        torch.testing.assert_close(value, expected.repeat(times), atol=2e-6, rtol=2e-6)
    value, same = losses.examples(model, inputs)
    torch.testing.assert_close(value, expected, atol=2e-6, rtol=2e-6)
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(same[mask], logits[mask], atol=2e-6, rtol=2e-5)
    again = losses.of(model, inputs, found, gives="logits")(inputs)
    torch.testing.assert_close(again[mask], logits[mask], atol=2e-6, rtol=2e-5)
    shares, packs = options.get("share_trunk", True), options.get("padding_free", "auto")
    assert found.shortcuts.get("shared trunk") == (True if shares else None)
    assert found.packs == (True if packs == "auto" else None)


@torch.no_grad()
def test_a_loss_of_the_batch_is_computed_as_it_is():
    model, inputs, found = upper_adapters(), batch(13, 3, 6), Findings()
    loss = TrainedLoss(example_losses, mean_of_squares, compare=False)
    loss.take_batch("a user's function computes")
    value = BatchLosses(model, loss).of(model, inputs, found)(inputs)
    assert torch.equal(value, mean_of_squares(model, inputs))
    assert found.packs is None and "shared trunk" not in found.shortcuts


@torch.no_grad()
def test_findings_of_an_earlier_part_are_gone_by(monkeypatch):
    inputs, found = batch(13, 3, 1, 6, 7), Findings()
    model = upper_adapters()
    first = BatchLosses(model, TrainedLoss(example_losses, no_batch)).of(model, inputs, found)
    expected = first(inputs)

    def never(*args, **kwargs):
        raise AssertionError("compared again")

    for name in ("trunk.attempt", "logits.attempt", "losses.attempt", "packing._objection"):
        monkeypatch.setattr(f"adazeta.forward.{name}", never)
    taken, model = Findings(), upper_adapters()
    taken.load_state_dict(found.state_dict())
    losses = BatchLosses(model, TrainedLoss(example_losses, no_batch))
    assert torch.equal(losses.of(model, inputs, taken)(inputs), expected)
    assert taken == found


def test_findings_have_the_form_that_old_logs_and_checkpoints_have():
    assert Findings().state_dict() == {"packs": None}
    found = Findings(True, {"b": False, "a": True})
    assert list(found.state_dict()["shortcuts"].items()) == [("a", True), ("b", False)]
    old = Findings(True, {"a": True})
    old.load_state_dict({"eps": 0.1})
    assert old == Findings()
