"""A teacher's probabilities in the place of labels: the losses of tasks, and what refuses them."""

import math

import pytest
import torch
from torch.nn import functional

from adazeta.optim.linearised import Responses, fit_core
from adazeta.support.batches import TEACHER, repeat_rows
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.head import HeadTask
from adazeta.tasks.phrases import PhraseTask
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.registry import make_task
from tests.helpers.tiny_models import tiny_llama, tiny_llama_cls, tiny_tokenizer

TEXTS = [{"text": text} for text in ("a dull film", "the plot was funny", "boring", "good story")]
WORDS = {"a": "terrible", "b": "great", "c": "boring"}
LONG = {"a": "terrible film", "b": "great", "c": "not boring"}
KINDS = ("prompt", "suffix", "phrases", "head")


def made(kind):
    tokenizer = tiny_tokenizer()
    if kind == "phrases":
        return PhraseTask(tokenizer, "{text} it was", LONG), tiny_llama()
    if kind == "head":
        return HeadTask(tokenizer, "{text}", list(WORDS)), tiny_llama_cls(num_labels=3)
    adapt = "suffix" if kind == "suffix" else "all"
    return PromptTask(tokenizer, "{text} it was", WORDS, adapt=adapt), tiny_llama()


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_is_sure_gives_the_bits_of_labels(kind):
    task, model = made(kind)
    classes = torch.tensor([0, 2, 1, 2])
    sure = task.collate(list(task.encode_taught(TEXTS, functional.one_hot(classes, 3).float())))
    labelled = [{**r, "label": list("abc")[c]} for r, c in zip(TEXTS, classes, strict=True)]
    plain = task.collate(list(task.encode_all(labelled)))
    assert TEACHER not in plain and sure[TEACHER].shape == (4, 3)
    assert torch.equal(sure["labels"], plain["labels"])
    with torch.no_grad():
        soft, same = task.losses(model, sure)
        hard, logits = task.losses(model, plain)
    assert torch.equal(soft, hard) and torch.equal(same, logits)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_cross_entropy_with_the_teacher(kind):
    task, model = made(kind)
    share = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    batch = repeat_rows(task.collate(list(task.encode_taught(TEXTS, share))), 2)
    with torch.no_grad():
        losses, logits = task.losses(model, batch)
        smooth, _ = task.losses(model, batch, label_smoothing=0.1)
    likelihoods = logits.double().log_softmax(-1)
    expected = -(share.double().repeat(2, 1) * likelihoods).sum(-1)
    assert torch.allclose(losses.double(), expected, atol=1e-6)
    if kind != "phrases":  # whose rounding is its own
        spread = 0.9 * expected - 0.1 * likelihoods.mean(-1)
        assert torch.allclose(smooth.double(), spread, atol=1e-6)


def test_labels_of_taught_texts_are_the_teachers_and_their_own_are_not_read():
    task, _ = made("prompt")
    share = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    examples = task.encode_taught([{"text": "good", "label": "no such"}, {"text": "bad"}], share)
    assert [example["labels"] for example in examples] == [2, 0]
    with pytest.raises(ValueError, match="record 1: .*'text'"):
        task.encode_taught([{"text": "good"}, {"words": "bad"}], share)


def test_a_core_is_fitted_to_probabilities_as_to_labels():
    generator = torch.Generator().manual_seed(0)
    features, slopes = (torch.randn(n, generator=generator) for n in ((40, 5), (40, 2, 3)))
    logits, labels = torch.zeros(40, 3), torch.randint(3, (40,), generator=generator)
    start = torch.zeros(5, 2)
    hard = fit_core(Responses(logits, labels, features, slopes), start)
    sure = functional.one_hot(labels, 3).float()
    soft = fit_core(Responses(logits, sure, features, slopes), start)
    assert torch.equal(hard.core, soft.core) and hard.expected == soft.expected
    # A teacher that says what the model says has nothing to teach.
    logits = torch.randn(40, 3, generator=generator)
    same = fit_core(Responses(logits, logits.softmax(-1), features, slopes), start)
    assert same.core.abs().max() < 1e-5


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"completion": "{text}"}, "whole vocabulary for each token"),
        ({"choices": "options"}, "candidates of its own"),
        ({"reward": "length"}, "a score needs none"),
        ({"label_words": WORDS, "objective": "accuracy"}, "counts right answers"),
        ({"label_words": WORDS, "hardest": 0.0}, "above 0 and at most 1"),
        ({"label_words": WORDS, "hardest": math.nan}, "above 0 and at most 1"),
        ({"label_words": WORDS, "hardest": 0.5, "teacher": None}, "there is none; set teacher"),
    ],
)  # fmt: skip
def test_what_a_teacher_cannot_teach_is_refused(settings, message):
    arguments = TaskArguments(**{"template": "{text} it was", "teacher": "x", **settings})
    with pytest.raises(ValueError, match=message):
        make_task(arguments, tiny_tokenizer())
