"""Parameters laid out in contiguous buffers, so that one launch serves them all."""

from collections.abc import Sequence

import torch
from torch import Tensor


class FlatBuffers:
    """A copy of the parameters' values in one buffer per run of one dtype, with gaps for alignment.

    Args:
        parameters: tensors on one device.
        offsets: index of each tensor's first element, ascending.
        size: length of the index space.

    Attributes:
        buffers: one-dimensional, one per run of consecutive parameters of one dtype.
        starts: index of each buffer's first element.
        views: each parameter's part of its buffer, in its shape.
    """

    def __init__(self, parameters: Sequence[Tensor], offsets: Sequence[int], size: int) -> None:
        self._shapes = [parameter.shape for parameter in parameters]
        self._offsets = offsets
        self._runs = _runs_of_one_dtype(parameters, offsets, size)
        self.starts = [start for _, _, start, _ in self._runs]
        self.buffers = [
            torch.zeros(end - start, dtype=parameters[first].dtype, device=parameters[first].device)
            for first, _, start, end in self._runs
        ]
        self.views = self._views_into(self.buffers)
        for view, parameter in zip(self.views, parameters, strict=True):
            view.copy_(parameter.detach())
        self._scratch: list[Tensor] = []
        self._scratch_views: list[Tensor] = []

    def scratch(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return buffers like these and their views, uninitialised, the same at every call."""
        if not self._scratch:
            self._scratch = [torch.empty_like(buffer) for buffer in self.buffers]
            self._scratch_views = self._views_into(self._scratch)
        return self._scratch, self._scratch_views

    def _views_into(self, buffers: Sequence[Tensor]) -> list[Tensor]:
        return [
            buffer[offset - start : offset - start + shape.numel()].view(shape)
            for buffer, (first, last, start, _) in zip(buffers, self._runs, strict=True)
            for shape, offset in zip(
                self._shapes[first:last], self._offsets[first:last], strict=True
            )
        ]


def _runs_of_one_dtype(
    parameters: Sequence[Tensor], offsets: Sequence[int], size: int
) -> list[tuple[int, int, int, int]]:
    """Split into runs ``(first, last, start, end)`` of consecutive parameters of one dtype."""
    runs = []
    first = 0
    for index in range(1, len(parameters) + 1):
        if index == len(parameters) or parameters[index].dtype != parameters[first].dtype:
            end = offsets[index] if index < len(parameters) else size
            runs.append((first, index, offsets[first], end))
            first = index
    return runs
