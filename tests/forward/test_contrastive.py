"""MPM-NCE: against loops, its special case, and what a trainer makes of such a loss."""

import pytest
import torch
from torch.nn import functional

from adazeta import (
    FOTrainer,
    FOTrainingArguments,
    ZOTrainer,
    ZOTrainingArguments,
    multi_positive_margin_nce,
)
from tests.helpers.runs import adapted, class_data


def embeddings(rows=7, width=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(rows, width, generator=generator, dtype=dtype) for _ in range(2))


LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def slow(f, g, labels, temperature, margin, smoothing):
    f, g = functional.normalize(f, dim=1), functional.normalize(g, dim=1)
    count = len(labels)
    found = []
    s = [[(float(f[i] @ g[j]) + (labels[i] != labels[j]) * margin) / temperature
          for j in range(count)] for i in range(count)]  # fmt: skip
    s = torch.tensor(s, dtype=torch.float64)
    for i in range(count):
        same = [j for j in range(count) if labels[j] == labels[i]]
        total = 0.0
        for j in range(count):
            y = (1 - smoothing) / len(same) if j in same else smoothing / (count - len(same))
            row = s[i, j] - s[i].logsumexp(0)
            column = s[j, i] - s[:, i].logsumexp(0)
            total -= y * (row + column) / 2
        found.append(total)
    return torch.stack(found)


@pytest.mark.parametrize("numbers", [(0.01, 0.05, 0.02), (0.5, 0.1, 0.2), (1.0, 0.0, 0.0)])
def test_it_is_the_sum_that_it_says(numbers):
    f, g = embeddings()
    names = ("temperature", "margin", "smoothing")
    found = multi_positive_margin_nce(f, g, LABELS, **dict(zip(names, numbers, strict=True)))
    torch.testing.assert_close(found, slow(f, g, LABELS, *numbers))


def test_with_distinct_labels_and_no_margin_it_is_info_nce():
    f, g = embeddings()
    labels = torch.arange(7)
    found = multi_positive_margin_nce(f, g, labels, temperature=0.07, margin=0.0, smoothing=0.0)
    scores = functional.normalize(f, dim=1) @ functional.normalize(g, dim=1).T / 0.07
    cross = functional.cross_entropy
    expected = cross(scores, labels, reduction="none") + cross(scores.T, labels, reduction="none")
    torch.testing.assert_close(found, expected / 2, atol=1e-7, rtol=0)


def test_the_order_of_the_batch_is_that_of_the_losses():
    f, g = embeddings()
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    shuffled = multi_positive_margin_nce(f[order], g[order], LABELS[order])
    torch.testing.assert_close(shuffled, multi_positive_margin_nce(f, g, LABELS)[order])


def test_losses_and_gradients_are_finite_where_exponentials_are_not():
    f, g = embeddings(dtype=torch.float32)
    f.requires_grad_()
    losses = multi_positive_margin_nce(f, -f.detach(), LABELS, temperature=1e-3)
    losses.sum().backward()
    assert losses.isfinite().all() and losses.dtype == torch.float32 and f.grad.isfinite().all()
    one = multi_positive_margin_nce(f, g, torch.zeros(7, dtype=torch.int64))
    assert one.isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"g": torch.zeros(7, 4)}, r"got \(7, 5\), \(7, 4\) and \(7,\)"),
        ({"labels": LABELS[:3]}, r"and \(3,\)"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"smoothing": 1.0}, "smoothing must be 0 or more"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    f, g = embeddings()
    with pytest.raises(ValueError, match=message):
        multi_positive_margin_nce(**{"f": f, "g": g, "labels": LABELS, **change})


def coupled(model, inputs):
    states = model(inputs["input_ids"], output_hidden_states=True).hidden_states[-1]
    prompts = model.get_input_embeddings().weight[inputs["labels"]]
    return multi_positive_margin_nce(states[:, -1], prompts, inputs["labels"]), states


coupled.couples_examples = True
QUIET = {"max_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
         "save_strategy": "no", "per_device_train_batch_size": 4, "logging_steps": 1}  # fmt: skip


@pytest.mark.parametrize(
    "trainer, kind", [(ZOTrainer, ZOTrainingArguments), (FOTrainer, FOTrainingArguments)]
)
def test_a_trainer_takes_it_as_one_loss_of_the_batch(tmp_path, trainer, kind):
    made = trainer(adapted(), kind(output_dir=str(tmp_path), **QUIET), loss_fn=coupled,
                   train_dataset=class_data(8), eval_dataset=class_data(4))  # fmt: skip
    made.train()
    assert "couples the examples of a batch" in made._loss.batch
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    assert made.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(
    "options", [{"probes": "example"}, {"probes_per_forward": "2"}, {"cache_trunk": "memory"}]
)
def test_settings_that_divide_or_repeat_the_batch_are_refused(tmp_path, options):
    arguments = ZOTrainingArguments(output_dir=str(tmp_path), **QUIET, **options)
    with pytest.raises(ValueError, match=f"couples the examples.*{next(iter(options))}"):
        ZOTrainer(adapted(), arguments, loss_fn=coupled, train_dataset=class_data(8))
