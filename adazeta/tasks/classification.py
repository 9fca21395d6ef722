"""What tasks share whose examples belong to one of several named classes."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction, PreTrainedTokenizerBase

from adazeta.support.batches import TEACHER
from adazeta.tasks.base import Task
from adazeta.tasks.examples import Example, Examples, alternating
from adazeta.tasks.label_words import Labels, with_class_names
from adazeta.tasks.metrics import CLASSES, checked, of_classes
from adazeta.tasks.records import Records


class ClassificationTask(Task):
    """A task whose examples belong to one of several named classes.

    Args:
        tokenizer: of the model.
        labels: values of the label column, in the order of the classes.
        label_column: column of the label, whose value is compared as text, so that ``1``, ``1.0``
            and ``"1"`` are the same label, see :class:`~adazeta.tasks.label_words.Labels`.
        max_length: longest example in tokens.
        metrics: names of :data:`adazeta.tasks.metrics.CLASSES`.

    Attributes:
        labels: label values as text, in the order of the classes.
        words: what stands for each label where predictions are shown, in the same order.

    Raises:
        ValueError: two labels are the same, one is missing, or a metric is unknown.
    """

    words: list[str]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        labels: Labels,
        *,
        label_column: str = "label",
        max_length: int | None = None,
        metrics: Sequence[str] = ("accuracy",),
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.label_column = label_column
        self.metric_names = checked(metrics, CLASSES)
        self._labels = labels
        self.labels = labels.texts

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Names of the columns that an example's text is made of."""

    @abstractmethod
    def encode_prompt(self, record: Mapping[str, Any]) -> Example:
        """Turn a record without a label into what :meth:`collate` takes, but for the label.

        Raises:
            ValueError: a column is missing.
        """

    def encode(self, record: Mapping[str, Any]) -> Example:
        """Turn a record into ``{"input_ids": [...], "labels": class}``.

        Raises:
            ValueError: a column is missing, or the label is not one of the task's.
        """
        if self.label_column not in record:
            raise ValueError(
                f"no column {self.label_column!r} for the label; there are "
                f"{', '.join(map(repr, record))}"
            )
        label = self._labels.index(record[self.label_column])
        return {**self.encode_prompt(record), "labels": label}

    def encode_all(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Encode records; where the labels are class names, numbers are taken as names.

        Raises:
            ValueError: a record is unusable; the message says where it came from.
        """
        return super().encode_all(self.named(records) if isinstance(records, Records) else records)

    def encode_taught(
        self, records: Sequence[Mapping[str, Any]], probabilities: Tensor
    ) -> Examples:
        """Encode records whose classes a teacher tells; labels of their own are not read.

        Args:
            records: with the template's columns.
            probabilities: of the classes, (N, C); the likeliest one stands as the label.

        Returns:
            Examples whose loss is the cross entropy with these probabilities.

        Raises:
            ValueError: a record is unusable; the message says where it came from.
        """
        labels = probabilities.argmax(-1).tolist()
        rows = probabilities.float().tolist()
        encoded = self._encoded(records, self.encode_prompt)
        return Examples(
            [
                {**example, "labels": label, TEACHER: row}
                for example, label, row in zip(encoded, labels, rows, strict=True)
            ]
        )

    def named(self, records: Records) -> Records:
        """Replace numbers of classes by their names where the task's labels are names.

        Raises:
            ValueError: see :func:`~adazeta.tasks.label_words.with_class_names`.
        """
        return with_class_names(records, self.label_column, self._labels)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Add a teacher's probabilities, float32 (B, C), where the examples have them."""
        return with_teacher(super().collate(examples), examples)

    def collate_mixed(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Collate with the labels taking turns, see :func:`alternating`."""
        return self.collate(alternating(examples))

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute the task's metrics of the class with the largest output."""
        predicted = np.asarray(prediction.predictions).argmax(-1)
        return of_classes(self.metric_names, predicted, np.asarray(prediction.label_ids))


def with_teacher(batch: dict[str, Tensor], examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return a batch with what a teacher says of its examples, if it says something."""
    if not all(TEACHER in example for example in examples):
        return batch
    return {**batch, TEACHER: torch.tensor([example[TEACHER] for example in examples])}
