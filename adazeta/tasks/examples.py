"""Encoded examples, and an order of them that alternates between labels."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from adazeta.support.batches import on_device

Example = dict[str, Any]


class Examples(Dataset[Example]):
    """Encoded examples as a map-style data set."""

    def __init__(self, examples: list[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        """Return one example."""
        return self._examples[index]

    @property
    def labels(self) -> Tensor:
        """The labels of all examples, int64 (N,), where they are classes."""
        return torch.tensor([example["labels"] for example in self._examples])


def collated(
    collate: Callable[[Sequence[Example]], dict[str, Any]],
    examples: Examples | Sequence[Example],
    order: Sequence[int],
    size: int,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    """Collate examples by the batch, and put their tensors on a device.

    Args:
        collate: of the task.
        examples: the examples.
        order: places of those that are wanted.
        size: examples of a batch; the last one may have fewer.
        device: of the tensors; other values stay as they are.
    """
    for begin in range(0, len(order), size):
        batch = collate([examples[index] for index in order[begin : begin + size]])
        yield on_device(batch, device)


def alternating(examples: Sequence[Example]) -> list[Example]:
    """Order examples so that their labels take turns, as far as they are equally frequent.

    Directions that groups of consecutive rows share (``probes=N``) then see examples of different
    labels. Their gradients are nearly opposite in the one direction that makes every answer the
    same word; in the mean over a group that part cancels, and with it most of the variance of the
    estimate. The mean loss of the batch is what it was.
    """
    turns: dict[Any, int] = {}
    keys = []
    for example in examples:
        label = example["labels"]
        keys.append((turns.get(label, 0), label))
        turns[label] = turns.get(label, 0) + 1
    return [examples[index] for index in sorted(range(len(examples)), key=lambda i: keys[i])]
