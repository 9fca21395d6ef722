import pytest
import torch
from torch import nn

from adazeta.forward.losses import example_losses, losses_only
from adazeta.models.structure import plain_head
from tests.helpers.tiny_models import (
    CAUSAL,
    CLASSES,
    MASKED,
    VOCABULARY_SIZE,
    tiny_bart,
    tiny_bert_cls,
    tiny_llama,
    tiny_t5,
    tokens,
)

PAIRS = [tiny_t5, tiny_bart]


def by_hand(model, inputs, shift):
    """The loss of each example alone, from the definition."""
    labels = inputs["labels"]
    given = {name: value for name, value in inputs.items() if name != "labels"}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
    logits = model(**given)[0].log_softmax(-1)
    found = []
    for row in range(len(labels)):
        terms = [
            -logits[row, t - shift, labels[row, t]]
            for t in range(labels.shape[1])
            if labels[row, t] != -100 and t - shift >= 0
        ]
        found.append(torch.stack(terms).mean())
    return torch.stack(found)


@pytest.mark.parametrize("make", CAUSAL + MASKED + PAIRS)
def test_losses_are_means_over_the_labels_of_each_example(make):
    model, inputs = make(), tokens()
    with torch.no_grad():
        expected = by_hand(model, inputs, shift=int(make in CAUSAL))
        # Sums of at most 112 exponentials in another order.
        torch.testing.assert_close(example_losses(model, inputs)[0], expected, atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(losses_only(model, inputs), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("make", CAUSAL + MASKED + PAIRS)
def test_no_logits_are_made_where_nothing_is_labelled(make):
    model, inputs = make(), tokens()
    losses_only(model, inputs)  # the first call may compare with all logits
    made = []
    model.register_forward_hook(lambda *call: made.append(call[2]["logits"].shape))
    losses_only(model, inputs)
    labels = inputs["labels"][:, 1:] if make in CAUSAL else inputs["labels"]
    assert made == [((labels != -100).sum(), 1, VOCABULARY_SIZE)]
    assert "forward" not in vars(plain_head(model))


@pytest.mark.parametrize("make", CLASSES)
def test_losses_of_classes_and_numbers(make):
    inputs = tokens()
    inputs["labels"] = torch.tensor([0, 1, 1, 0])
    model = make()
    with torch.no_grad():
        losses, logits = example_losses(model, inputs)
        assert losses.shape == (4,) and logits.shape == (4, 2)
        torch.testing.assert_close(losses.mean(), model(**inputs).loss)
        assert torch.equal(losses_only(model, inputs), losses)
        numbers = {**inputs, "labels": torch.tensor([0.0, 1.0, 0.5, -1.0])}
        losses = losses_only(make(num_labels=1), numbers)
        torch.testing.assert_close(losses.mean(), make(num_labels=1)(**numbers).loss)


@pytest.mark.parametrize("compute", [lambda m, i: example_losses(m, i)[0], losses_only])
def test_examples_without_labels_count_nothing(compute):
    model, inputs = tiny_llama(), tokens()
    inputs["labels"][1] = -100
    with torch.no_grad():
        losses = compute(model, inputs)
        assert losses[1] == 0 and (losses[[0, 2, 3]] > 0).all()
        inputs["labels"][:] = -100
        assert torch.equal(compute(model, inputs), torch.zeros(4))


def test_a_head_that_is_not_plain_computes_everything():
    model, inputs = tiny_llama(), tokens()
    with torch.no_grad():
        expected, _ = example_losses(model, inputs)
        model.lm_head.register_forward_hook(lambda module, args, output: output.clone())
        assert torch.equal(losses_only(model, inputs), expected)


@pytest.mark.parametrize("compute", [example_losses, losses_only])
def test_mistakes_are_named(compute):
    inputs = tokens()
    labels = inputs.pop("labels")
    with pytest.raises(ValueError, match="no 'labels'"):
        compute(tiny_llama(), inputs)
    with pytest.raises(ValueError, match="no loss is known"):
        compute(tiny_bert_cls(), {**inputs, "labels": labels})
    with pytest.raises(ValueError, match="number of examples"):
        compute(tiny_bert_cls(), {**inputs, "labels": torch.zeros(5, dtype=torch.long)})


class Wrapped(nn.Module):
    """A model of no library: only logits come back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_bert_cls()

    def forward(self, **inputs):
        return (self.inner(**inputs).logits,)


def test_models_of_no_library_serve():
    inputs = tokens()
    inputs["labels"] = torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        expected, _ = example_losses(tiny_bert_cls(), inputs)
        assert torch.equal(losses_only(Wrapped(), inputs), expected)
