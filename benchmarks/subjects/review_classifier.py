"""A small BERT and a new head that tell good film reviews from bad ones, all weights trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
)

from adazeta.training.first_order import FOTrainer
from adazeta.training.first_order_arguments import FOTrainingArguments
from benchmarks.subjects.encoder import encoder_folder

SIZES = {"train": 2048, "dev": 1000, "test": 2000}
BATCH = 32
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": 128,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 0.0,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def review_trainer(
    train: Sequence[Mapping[str, Any]],
    looked: Mapping[str, Sequence[Mapping[str, Any]]],
    output: str,
    *,
    seed: int,
    device: str,
    **settings: Any,
) -> FOTrainer:
    """Return a trainer of the small BERT with a head that the seed draws.

    Args:
        train: texts that :func:`benchmarks.subjects.encoder.encoded` made.
        looked: sets of such texts that are evaluated while it trains, by name.
        output: folder of the trainer.
        seed: of the head and of the order of the texts.
        device: ``"cpu"`` or another.
        **settings: of :class:`FOTrainingArguments`, beside :data:`COMMON`.
    """
    folder = encoder_folder()
    torch.manual_seed(seed)
    return FOTrainer(
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2),
        FOTrainingArguments(
            output_dir=output, seed=seed, use_cpu=device == "cpu", **{**COMMON, **settings}
        ),
        train_dataset=train,  # type: ignore[arg-type]
        eval_dataset=dict(looked),  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(folder)),
        compute_metrics=accuracy_of,
    )


def accuracy_of(found: EvalPrediction) -> dict[str, float]:
    """Return the share of right answers."""
    return {"accuracy": float(np.mean(np.argmax(found.predictions, -1) == found.label_ids))}
