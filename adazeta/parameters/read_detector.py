"""Finds reads of parameters that point to their unperturbed values."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adazeta.parameters.checks import addresses


class ReadDetector(TorchDispatchMode):
    """Shows every tensor that an operation is about to read to a function that may rebind it.

    Costs some microseconds an operation, so it is for a first evaluation, not for all.

    Args:
        serve: called with each tensor argument; returns whether it took care of the tensor (is it
            a parameter, whose values it has rebound if need be).
        forbidden: tensors by name, whose memory nothing else may read.
        stale: returns the buffers that nothing may read at this moment.

    Raises:
        RuntimeError: an operation reads memory that it must not.
    """

    def __init__(
        self,
        serve: Callable[[Tensor], bool],
        forbidden: Sequence[tuple[str, Tensor]],
        stale: Callable[[], Sequence[Tensor]],
    ) -> None:
        super().__init__()
        self._serve = serve
        self._stale = stale
        self._ranges = sorted((*addresses(tensor), name) for name, tensor in forbidden)
        self._starts = [start for start, _, _ in self._ranges]
        self._device = forbidden[0][1].device if forbidden else None
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let every read pass inside the context."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Look at the arguments of an operation, then run it."""
        if not self._paused:
            for tensor in _tensors((args, kwargs or {})):
                if not self._serve(tensor):
                    self._refuse(tensor, func)
        return func(*args, **(kwargs or {}))

    def _refuse(self, tensor: Tensor, func: Any) -> None:
        """Raise if a tensor that is no parameter views memory that must not be read."""
        if tensor.layout is not torch.strided or tensor.device != self._device:
            return
        if not tensor.numel():
            return
        start, end = addresses(tensor)
        below = bisect_right(self._starts, end - 1) - 1
        if below >= 0 and self._ranges[below][1] > start:
            raise RuntimeError(
                f"{func} reads {self._ranges[below][2]!r} through a tensor that was made from it "
                "before the evaluation (a kept view or .data), so it would miss the perturbation; "
                "read the parameter itself"
            )
        for buffer in self._stale():
            low, high = addresses(buffer)
            if start < high and low < end:
                raise RuntimeError(
                    f"{func} reads a module's weights after that module has ended, through a "
                    "tensor that it kept; use perturbation='buffer'"
                )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
