"""Training batches whose random parts are a function of the run's seed, the epoch and the batch.

A collator that masks tokens, or a data set that augments, draws from the global generators. Drawn
in the order of the batches, a run that skips the batches it has done would draw something else, and
so would one with another number of workers. Here each batch has a seed of its own.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from adazeta.generators import seeded_generators


class SeededDataset(Dataset[Any]):
    """A map-style data set that fetches every batch under the batch's own seed.

    Args:
        dataset: the data set.
        seed: of the run.

    Attributes:
        batch_seed: of the batch that was fetched last in this process.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        # In shared memory, for workers that outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.batch_seed = 0

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, before its first batch is fetched."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        """Return one example."""
        return self._dataset[index]

    def __getitems__(self, indices: Sequence[Any]) -> Sequence[Any]:
        """Return the examples of a batch; torch's data loader calls it."""
        key = repr((self._seed, int(self._epoch), list(indices)))
        self.batch_seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little")
        fetch = getattr(self._dataset, "__getitems__", None)
        with seeded_generators(self.batch_seed):
            return fetch(indices) if fetch else [self._dataset[index] for index in indices]


class SeededCollator:
    """A collator that works under the seed of the batch that was just fetched.

    Args:
        dataset: it fetches in the process where this collates.
        collate: the collator.
    """

    def __init__(self, dataset: SeededDataset, collate: Callable[[Any], Any]) -> None:
        self._dataset, self._collate = dataset, collate

    def __call__(self, examples: Any) -> Any:
        """Collate."""
        with seeded_generators(self._dataset.batch_seed + 1):
            return self._collate(examples)


@contextmanager
def seeded_batches(trainer: Any, seed: int) -> Iterator[None]:
    """Let a trainer make its training data loader over a :class:`SeededDataset`.

    A stream (``IterableDataset``) stays as it is: a resumed run reads it from the start of the
    epoch, with the generators as they were then, and so draws the same.

    Args:
        trainer: has ``train_dataset`` and ``data_collator``, which are put back in the end.
        seed: of the run.
    """
    dataset, collator = trainer.train_dataset, trainer.data_collator
    if hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset):
        trainer.train_dataset = SeededDataset(dataset, seed)
        trainer.data_collator = SeededCollator(trainer.train_dataset, collator)
    try:
        yield
    finally:
        trainer.train_dataset, trainer.data_collator = dataset, collator
