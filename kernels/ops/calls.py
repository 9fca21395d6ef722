"""Calls that were checked and prepared once, and are found again by all that was looked at."""

from collections.abc import Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Call = TypeVar("Call")
Description = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device, int]


class Calls(Generic[Call]):
    """Prepared calls by what sets them apart.

    A model has a few kinds of layers, but each length of a batch is another key, so the oldest
    make room.

    Args:
        most: calls that are kept.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._known: dict[Hashable, Call] = {}
        self.get = self._known.get

    def keep(self, key: Hashable, call: Call) -> Call:
        """Keep a call, and return it."""
        if len(self._known) >= self._most:
            # Another thread may have been here before.
            self._known.pop(next(iter(self._known)), None)
        self._known[key] = call
        return call


def described(tensor: Tensor | None) -> Description | None:
    """Return all of a tensor but its values and where it lies.

    Of the address only what a compiled kernel depends on: its remainder by 16.
    """
    if tensor is None:
        return None
    return (
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.device,
        tensor.data_ptr() & 15,
    )
