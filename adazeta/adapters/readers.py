"""Hidden states of blocks, for adapters above that read them.

A reader is a sub-module ``tt_reader`` of its block, without tensors of its own, so that a model's
state dict stays as it is and copies of the model have their own readers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

READER = "tt_reader"


class StateReader(nn.Module):
    """Keeps what a block returned until the adapters above have read it.

    Attributes:
        enabled: whether anything is kept.
        handle: of the hook on the block, once there is one.
    """

    enabled = True
    handle: RemovableHandle

    def __init__(self) -> None:
        super().__init__()
        self._kept: Tensor | None = None
        self._given: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Keep the hidden states ``(B, T, d)`` of a forward, and return them."""
        if self.enabled and self._given is None:
            self._kept = hidden
        return hidden

    def states(self, shape: torch.Size) -> Tensor:
        """Return what was kept, or given.

        Args:
            shape: that it must have, ``(B, T, d)``.

        Raises:
            RuntimeError: it has not; the block was skipped, or another forward ran in between.
        """
        found = self._given if self._given is not None else self._kept
        if found is None or found.shape != shape:
            was = "nothing" if found is None else f"states of shape {tuple(found.shape)}"
            raise RuntimeError(
                f"an adapter reads a block of which there is {was} where {tuple(shape)} is needed: "
                "the block was skipped or ran on other inputs; set share_trunk=False"
            )
        return found

    def free(self) -> None:
        """Let go of what was kept."""
        self._kept = None

    @contextmanager
    def given(self, hidden: Tensor) -> Iterator[None]:
        """Hand these states on inside the context, whatever the block returns."""
        self._given = hidden
        try:
            yield
        finally:
            self._given = None


def attached_readers(model: nn.Module) -> Iterator[tuple[str, StateReader]]:
    """Yield the readers of a model, with the path of each one's block."""
    for name, module in model.named_modules():
        if isinstance(module, StateReader):
            yield name.rpartition(".")[0], module


def attach_reader(block: nn.Module, reader: StateReader) -> None:
    """Let a reader keep what a block returns. Adapters of the block are attached after it."""
    block.add_module(READER, reader)
    reader.handle = block.register_forward_hook(_read)


def remove_readers(model: nn.Module) -> None:
    """Take all readers off a model."""
    for name, reader in list(attached_readers(model)):
        reader.handle.remove()
        delattr(model.get_submodule(name), READER)


# A function of this module, not a closure, so that models can be copied and pickled.
def _read(block: Any, _: tuple[Tensor, ...], output: Any) -> None:
    block.tt_reader(output[0] if isinstance(output, tuple) else output)
