import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForQuestionAnswering,
)
from transformers.trainer_pt_utils import LabelSmoother

from adazeta.forward.losses import example_losses, losses_only, smoothed_losses
from tests.helpers.tiny_models import (
    CAUSAL,
    CLASSES,
    MASKED,
    SMALL,
    seeded,
    tiny_bert_cls,
    tiny_gpt2_cls,
    tiny_llama,
    tiny_llama_cls,
    tiny_t5,
    tokens,
)


def inputs(labels):
    return {**{k: v for k, v in tokens().items() if k != "labels"}, "labels": labels}


def single(batch, row):
    return {name: value[row : row + 1] for name, value in batch.items()}


def assert_agrees(model, batch, own=None):
    """The loss of each example is the model's own of that example alone, and so is the mean."""
    own = batch if own is None else own
    with torch.no_grad():
        losses = example_losses(model, batch)[0]
        alone = torch.stack([model(**single(own, row)).loss for row in range(len(losses))])
        # The same terms, in batches of other sizes.
        torch.testing.assert_close(losses, alone.float(), atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(losses.mean(), model(**own).loss, atol=2e-6, rtol=2e-6)
        assert torch.equal(losses_only(model, batch), losses)


NUMBERS = [0, 1, 3, -2]


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("problem", [None, "regression"])
@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor(NUMBERS),
        torch.tensor(NUMBERS, dtype=torch.int32),
        torch.tensor(NUMBERS, dtype=torch.float64),
        torch.tensor(NUMBERS)[:, None],
        torch.tensor(NUMBERS, dtype=torch.float32)[:, None],
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
def test_one_number_of_any_dtype_and_shape(make, problem, labels):
    model = make(num_labels=1)
    model.config.problem_type = problem
    own = inputs(labels.reshape(4, 1).float())  # transformers cannot reduce integers
    assert_agrees(model, inputs(labels), own)
    assert_agrees(model, inputs(labels.reshape(4, 1)), own)


def test_one_number_of_integers_is_no_class():
    model, batch = tiny_bert_cls(num_labels=1), inputs(torch.tensor([0, 0, 0, 0]))
    with torch.no_grad():
        losses, logits = example_losses(model, batch)
    assert torch.equal(losses, logits[:, 0].square()) and (losses > 0).all()


@pytest.mark.parametrize("make", CLASSES)
def test_several_numbers(make):
    model, batch = make(num_labels=3), inputs(torch.randn(4, 3))
    model.config.problem_type = "regression"
    assert_agrees(model, batch)
    whole = inputs(torch.arange(12).reshape(4, 3))
    assert_agrees(model, whole, inputs(whole["labels"].float()))


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("problem", [None, "single_label_classification"])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_one_class_of_any_dtype_and_shape(make, problem, shape, dtype):
    model, labels = make(num_labels=3), torch.tensor([0, 2, 1, 2]).reshape(shape)
    model.config.problem_type = problem
    assert_agrees(model, inputs(labels.to(dtype)), inputs(labels))


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_several_labels_an_example(make, problem):
    model, labels = make(num_labels=3), torch.randint(0, 2, (4, 3))
    model.config.problem_type = problem
    assert_agrees(model, inputs(labels.float()))
    model.config.problem_type = "multi_label_classification"
    for dtype in (torch.int64, torch.bool, torch.float64):
        assert_agrees(model, inputs(labels.to(dtype)), inputs(labels.float()))


@pytest.mark.parametrize(
    "problem, labels",
    [
        (None, torch.zeros(4, 3, dtype=torch.long)),
        (None, torch.zeros(4)),
        ("single_label_classification", torch.zeros(4)),
        ("single_label_classification", torch.zeros(4, 3)),
        ("regression", torch.zeros(4)),
        ("multi_label_classification", torch.zeros(4, dtype=torch.long)),
        ("multi_label_classification", torch.zeros(4, 2)),
        ("ranking", torch.zeros(4)),
    ],
    ids=str,
)
def test_labels_that_do_not_fit_the_problem_are_refused(problem, labels):
    model = tiny_bert_cls(num_labels=3)
    model.config.problem_type = problem
    with pytest.raises(ValueError, match=r"no loss is known .*problem_type .* loss_fn"):
        example_losses(model, inputs(labels))


@seeded
def bert(kind, **options):
    return kind(BertConfig(**SMALL, **options))


@seeded
def llama_spans():
    return LlamaForQuestionAnswering(LlamaConfig(**SMALL))


def test_classes_of_tokens():
    batch = tokens()
    batch["labels"] = (batch["labels"] % 3).where(batch["labels"] >= 0, -100)
    model = bert(BertForTokenClassification, num_labels=3)
    with torch.no_grad():
        losses = example_losses(model, batch)[0]
        alone = torch.stack([model(**single(batch, row)).loss for row in range(4)])
        torch.testing.assert_close(losses, alone, atol=2e-6, rtol=2e-6)


def test_choices():
    ids = torch.randint(5, 60, (4, 3, 7), generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 2, 1, 2])
    assert_agrees(bert(BertForMultipleChoice), {"input_ids": ids, "labels": labels})


@pytest.mark.parametrize("make", [lambda: bert(BertForQuestionAnswering), llama_spans])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_spans(make, shape):
    batch = {k: v for k, v in tokens().items() if k != "labels"}
    batch["start_positions"] = torch.tensor([1, 0, 3, 2]).reshape(shape)
    batch["end_positions"] = torch.tensor([4, 2, 3, 5]).reshape(shape)
    model = make()
    assert_agrees(model, batch)
    batch["end_positions"] = torch.tensor([4, 2, 3, 99])
    with torch.no_grad():
        losses, (start, end) = example_losses(model, batch)
    assert losses.isfinite().all() and start.shape == end.shape == (4, 9)


def test_spans_of_a_model_without_them_and_models_without_logits_are_named():
    batch = {k: v for k, v in tokens().items() if k != "labels"}
    spans = {"start_positions": torch.zeros(4).long(), "end_positions": torch.zeros(4).long()}
    with pytest.raises(ValueError, match="start_logits and end_logits"):
        example_losses(tiny_bert_cls(), {**batch, **spans})
    with pytest.raises(ValueError, match=r"no 'logits'.*loss_fn"):
        example_losses(tiny_bert_cls().bert, tokens())
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        example_losses(bert(BertForQuestionAnswering), {**batch, **spans}, label_smoothing=0.1)


class Regressor(nn.Module):
    """A model of no library, without a configuration."""

    def forward(self, input_ids, attention_mask):
        return (input_ids[:, :3].float() / 60,)


def test_numbers_of_a_model_of_no_library():
    batch = inputs(torch.rand(4, 3))
    losses, logits = example_losses(Regressor(), batch)
    torch.testing.assert_close(losses, (logits - batch["labels"]).square().mean(-1))


@pytest.mark.parametrize("make", CAUSAL + MASKED + [tiny_t5])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_smoothed_losses_of_tokens_are_those_of_transformers(make, share):
    model, batch = make(), tokens()
    smoother = LabelSmoother(epsilon=share)
    with torch.no_grad():
        losses, logits = example_losses(model, batch, label_smoothing=share)
        expected = torch.stack(
            [
                smoother({"logits": logits[r : r + 1]}, batch["labels"][r : r + 1], make in CAUSAL)
                for r in range(4)
            ]
        )
        # Sums of 112 logarithms in another order.
        torch.testing.assert_close(losses, expected, atol=5e-6, rtol=5e-6)
        short = losses_only(model, batch, label_smoothing=share)
        torch.testing.assert_close(short, expected, atol=5e-6, rtol=5e-6)
        smoothed, plain = smoothed_losses(model, batch, label_smoothing=share)
        assert torch.equal(smoothed, short) and torch.equal(plain, losses_only(model, batch))


def test_smoothed_losses_where_the_head_is_not_plain():
    model, batch = tiny_llama(), tokens()
    with torch.no_grad():
        expected = smoothed_losses(model, batch, label_smoothing=0.2)
        model.lm_head.register_forward_hook(lambda module, args, output: output.clone())
        found = smoothed_losses(model, batch, label_smoothing=0.2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=5e-6, rtol=5e-6)
    assert not torch.equal(*found)


@pytest.mark.parametrize("make", [tiny_bert_cls, tiny_gpt2_cls, tiny_llama_cls])
def test_smoothed_losses_of_classes_are_those_of_transformers(make):
    model, batch = make(num_labels=3), inputs(torch.tensor([0, 2, 1, 2]))
    with torch.no_grad():
        losses, logits = example_losses(model, batch, label_smoothing=0.3)
        expected = LabelSmoother(epsilon=0.3)({"logits": logits}, batch["labels"])
    torch.testing.assert_close(losses.mean(), expected)
    with pytest.raises(ValueError, match="label_smoothing_factor=0.3 is for classes"):
        example_losses(model, inputs(torch.rand(4, 3)), label_smoothing=0.3)
    with pytest.raises(ValueError, match="this is regression"):
        example_losses(make(num_labels=1), inputs(torch.rand(4)), label_smoothing=0.3)
