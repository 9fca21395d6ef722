"""What a trained classifier is compared with: the model as it was, and the best bias of each label.

On some tasks most of the gain is the best number added to each label's logit, which takes no
training; an accuracy alone hides that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adazeta.adapters.attach import disable_adapters
from adazeta.tasks.calibration import accuracy_with_bias, fit_bias
from adazeta.tasks.examples import Examples
from adazeta.tasks.intervals import wilson
from adazeta.training.reproducible import ExactTrainer

FITTED = 2000
"""Training examples, at most, on which the biases are fitted."""

ROWS = {"zero_shot": "zero-shot", "bias_only": "bias only", "": "trained"}
"""Rows of the table, by the prefix of their metrics."""


def measure_baselines(
    trainer: ExactTrainer, examples: Mapping[str, Examples], names: Sequence[str]
) -> dict[str, float]:
    """Measure the model without its adapters on data sets, alone and with the best biases.

    Every process takes part, as in an evaluation of the trainer.

    Args:
        trainer: of a classification; outputs of its frozen blocks are taken from its cache.
        examples: ``"train"``, from which the biases are fitted, and what is measured.
        names: of what is measured.

    Returns:
        ``zero_shot_NAME_accuracy`` and ``bias_only_NAME_accuracy`` for each name, and under
        ``baseline_evaluations`` the forward passes of a batch that this took.
    """
    generator = torch.Generator().manual_seed(int(trainer.args.seed))
    order = torch.randperm(len(examples["train"]), generator=generator)[:FITTED]
    sets: dict[str, Any] = {"train": [examples["train"][index] for index in order.tolist()]}
    sets |= {name: examples[name] for name in names}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    with disable_adapters(trainer.unwrapped):
        for name, data in sets.items():
            output = trainer.predict(data)
            logits, labels = output.predictions, output.label_ids
            found[name] = torch.as_tensor(logits), torch.as_tensor(labels)
    bias = fit_bias(*found["train"])
    metrics: dict[str, float] = {}
    for name in names:
        metrics[f"zero_shot_{name}_accuracy"] = accuracy_with_bias(*found[name], 0 * bias)
        metrics[f"bias_only_{name}_accuracy"] = accuracy_with_bias(*found[name], bias)
    size = trainer.args.eval_batch_size * trainer.args.world_size
    metrics["baseline_evaluations"] = sum(-(-len(data) // size) for data in sets.values())
    return metrics


def with_intervals(
    metrics: Mapping[str, float], examples: Mapping[str, Examples]
) -> dict[str, float]:
    """Return the ends of the 95% interval of each accuracy, by its name and ``_low``, ``_high``."""
    found: dict[str, float] = {}
    for name, data in examples.items():
        for prefix in ROWS:
            key = f"{prefix}_{name}_accuracy".lstrip("_")
            if key in metrics:
                low, high = wilson(metrics[key], len(data))
                found |= {f"{key}_low": low, f"{key}_high": high}
    return found


def accuracy_table(metrics: Mapping[str, float], names: Sequence[str]) -> list[str]:
    """Return the lines of a table: a row for each of :data:`ROWS`, a column for each data set."""
    columns = [name for name in names if f"{name}_accuracy" in metrics]
    if not columns or f"zero_shot_{columns[0]}_accuracy" not in metrics:
        return []
    cells = [["accuracy", *columns]]
    for prefix, title in ROWS.items():
        row = [title]
        for name in columns:
            key = f"{prefix}_{name}_accuracy".lstrip("_")
            low, high = metrics[f"{key}_low"], metrics[f"{key}_high"]
            row.append(f"{metrics[key]:.1%} ({100 * low:.1f} to {100 * high:.1f})")
        cells.append(row)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
