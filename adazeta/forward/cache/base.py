"""Kept results of frozen computations: tensors by key, bounded, in memory or on disk.

What a frozen part of a model computes for an example never changes, so it is worth keeping across
epochs (in memory) and across runs (on disk). A full cache stops adding instead of evicting: the
examples come round once an epoch, and under such a cycle a least-recently-used cache that is a
little too small evicts everything just before it is needed.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Entry = dict[str, Tensor]
GIB = 2**30


class StateCache(ABC):
    """Tensors by key.

    Attributes:
        limit: bytes that it may hold.
        hits: calls of :meth:`get` that found something.
        misses: calls that did not.
    """

    def __init__(self, limit: int) -> None:
        """Start empty.

        Args:
            limit: bytes that it may hold.

        Raises:
            ValueError: ``limit`` is not above 0.
        """
        if limit <= 0:
            raise ValueError(f"a cache needs a limit above 0 bytes, got {limit}")
        self.limit = limit
        self.hits = 0
        self.misses = 0
        self._full = False

    def get(self, key: bytes) -> Entry | None:
        """Return what was put under a key, or None.

        Args:
            key: any bytes, e.g. the tokens of an example.

        Returns:
            Tensors on the CPU with the bits that were put; not to be changed in place.
        """
        entry = self._find(key)
        if entry is None:
            self.misses += 1
        else:
            self.hits += 1
        return entry

    def put(self, key: bytes, tensors: Mapping[str, Tensor]) -> bool:
        """Keep copies of tensors under a key that is not there yet.

        Args:
            key: see :meth:`get`.
            tensors: by name, on any device.

        Returns:
            Whether they are kept: False once the cache is full.
        """
        if self._full:
            return False
        if not self._add(key, {name: tensor.detach() for name, tensor in tensors.items()}):
            self._full = True
            logger.warning(
                "the cache %s is full (%.2f GiB); further examples are computed each time",
                self,
                self.limit / GIB,
            )
        return not self._full

    @abstractmethod
    def _find(self, key: bytes) -> Entry | None:
        """Look a key up."""

    @abstractmethod
    def _add(self, key: bytes, tensors: Entry) -> bool:
        """Store; return False where the limit forbids it."""

    def close(self) -> None:  # noqa: B027 - only a cache on disk has something to close
        """Let go of files; the cache is not used afterwards."""


class MemoryCache(StateCache):
    """A cache in the memory of the process (of the host, not of the accelerator)."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._kept: dict[bytes, Entry] = {}
        self._bytes = 0

    def __str__(self) -> str:
        """Name the cache in messages."""
        return "in memory"

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._kept)

    def _find(self, key: bytes) -> Entry | None:
        return self._kept.get(key)

    def _add(self, key: bytes, tensors: Entry) -> bool:
        if key in self._kept:
            return True
        size = len(key) + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if self._bytes + size > self.limit:
            return False
        # Copies: a slice would keep the whole batch alive.
        self._kept[key] = {
            name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        self._bytes += size
        return True


def through_cache(
    cache: StateCache | None,
    keys: Sequence[bytes],
    widths: Sequence[int],
    compute: Callable[[list[int], int], Sequence[Entry] | None],
    *,
    at_hand: Mapping[bytes, Entry] | None = None,
) -> dict[bytes, Entry] | None:
    """Return what belongs to the rows of a batch, from a cache as far as possible.

    Args:
        cache: where results are kept, if anywhere.
        keys: of each row; rows may repeat.
        widths: padded width at which each row is to be computed.
        compute: takes the indices of rows of one width, and that width; returns an entry for each,
            or None where it cannot.
        at_hand: entries that need not be looked up.

    Returns:
        The entry of every key, or None if ``compute`` returned that.
    """
    found: dict[bytes, Entry] = {}
    missing: dict[int, dict[bytes, int]] = {}  # width -> key -> row
    for row, (key, width) in enumerate(zip(keys, widths, strict=True)):
        if key in found or key in missing.get(width, {}):
            continue
        entry = at_hand.get(key) if at_hand is not None else None
        if entry is None and cache is not None:
            entry = cache.get(key)
        if entry is None:
            missing.setdefault(width, {})[key] = row
        else:
            found[key] = entry
    for width, group in sorted(missing.items()):
        entries = compute(list(group.values()), width)
        if entries is None:
            return None
        for key, entry in zip(group, entries, strict=True):
            if cache is not None:
                cache.put(key, entry)
            found[key] = entry
    return found
