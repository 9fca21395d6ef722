"""What training and evaluation need to know of a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedTokenizerBase

from adazeta.support.batches import padded
from adazeta.tasks.examples import Example, Examples
from adazeta.tasks.records import Records


class Task(ABC):
    """What training and evaluation need to know of a task.

    Args:
        tokenizer: of the model.
        max_length: longest example in tokens; at most, and by default, the tokenizer's own limit.

    Attributes:
        reads_only_the_batch: whether the losses depend on nothing that changes but the parameters
            and the batch, and ask the device for no number, so that they can be recorded as a graph
            (:mod:`adazeta.estimation.graphs`).
    """

    reads_only_the_batch = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> None:
        limit = tokenizer.model_max_length
        self.tokenizer = tokenizer
        # transformers writes "no limit" as a huge number.
        limits = [n for n in (max_length, limit if limit < 10**9 else None) if n]
        self.max_length = min(limits, default=None)

    @abstractmethod
    def encode(self, record: Mapping[str, Any]) -> Example:
        """Turn a record into ``{"input_ids": [...], "labels": ...}``.

        Raises:
            ValueError: a column is missing or its value is unusable.
        """

    @abstractmethod
    def losses(
        self, model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the losses of the examples of a batch, for ``ZOTrainer(loss_fn=task.losses)``.

        Args:
            model: the model.
            inputs: what :meth:`collate` returned, on the model's device; its rows may be repeated.
            label_smoothing: share of each target that is spread over all classes; the trainer's
                ``label_smoothing_factor``.

        Returns:
            The losses, float32 ``(B,)``, and what :meth:`metrics` needs, ``(B, C)``.
        """

    @abstractmethod
    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute the metrics, for ``Trainer(compute_metrics=task.metrics)``."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Describe the task in JSON types; :func:`task_from_dict` reads it."""

    def encode_all(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Encode records.

        Raises:
            ValueError: a record is unusable; the message says where it came from.
        """
        return Examples(self._encoded(records, self.encode))

    @staticmethod
    def _encoded(
        records: Sequence[Mapping[str, Any]], encode: Callable[[Mapping[str, Any]], Example]
    ) -> list[Example]:
        examples = []
        for index, record in enumerate(records):
            try:
                examples.append(encode(record))
            except ValueError as error:
                place = records.place(index) if isinstance(records, Records) else f"record {index}"
                raise ValueError(f"{place}: {error}") from None
        return examples

    def encode_training(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Encode records to train on; here as :meth:`encode_all` does."""
        return self.encode_all(records)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Pad examples on the right and stack them.

        Returns:
            int64 ``input_ids`` and ``attention_mask``, ``(B, T)``, and ``labels``.
        """
        return {
            "input_ids": padded([e["input_ids"] for e in examples], self.padding),
            "attention_mask": padded([[1] * len(e["input_ids"]) for e in examples], 0),
            "labels": self._collate_labels(examples),
        }

    def collate_mixed(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Collate in an order of the task's choice that suits training; here the given one."""
        return self.collate(examples)

    def _collate_labels(self, examples: Sequence[Example]) -> Tensor:
        return torch.tensor([e["labels"] for e in examples])

    @property
    def padding(self) -> int:
        """The token that pads batches, under the attention mask."""
        return padding_of(self.tokenizer)


def padding_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that pads batches: the tokenizer's own, else its end token, else 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0  # the attention mask hides it
