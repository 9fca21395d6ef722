"""Hidden states of blocks, for adapters above that read them.

A reader is a sub-module ``tt_reader`` of its block, without tensors of its own, so that a model's
state dict stays as it is and copies of the model have their own readers.
"""

from collections.abc import Callable, Iterable, Iterator
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

    @staticmethod
    def watch(block: nn.Module, note: Callable[[Tensor], None]) -> RemovableHandle:
        """Call a function with what this reader reads of a block, in every forward of that."""

        def see(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            note(output[0] if isinstance(output, tuple) else output)

        return block.register_forward_hook(see)

    @contextmanager
    def given(self, hidden: Tensor) -> Iterator[None]:
        """Hand these states on inside the context, whatever the block returns."""
        self._given = hidden
        try:
            yield
        finally:
            self._given = None


class InputReader(StateReader):
    """Keeps what a block was given."""

    @staticmethod
    def watch(block: nn.Module, note: Callable[[Tensor], None]) -> RemovableHandle:
        """Call a function with what this reader reads of a block, in every forward of that."""

        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            note(first_input(args, kwargs))

        return block.register_forward_pre_hook(see, with_kwargs=True)


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the hidden states among the arguments of a block."""
    return args[0] if args else kwargs["hidden_states"]


def attached_readers(model: nn.Module) -> Iterator[tuple[str, StateReader]]:
    """Yield the readers of a model, with the path of each one's block."""
    for name, module in model.named_modules():
        if isinstance(module, StateReader):
            yield name.rpartition(".")[0], module


def readers_below(
    model: nn.Module, blocks: Iterable[nn.Module]
) -> list[tuple[nn.Module, StateReader]]:
    """Return the readers of some blocks with their blocks, in the order of the model.

    Args:
        model: the model.
        blocks: of which the readers count.
    """
    below = {id(block) for block in blocks}
    found = [(model.get_submodule(name), reader) for name, reader in attached_readers(model)]
    return [(block, reader) for block, reader in found if id(block) in below]


def attach_reader(block: nn.Module, reader: StateReader) -> None:
    """Let a reader keep what a block returns, or is given; adapters of it are attached later."""
    block.add_module(READER, reader)
    if isinstance(reader, InputReader):
        reader.handle = block.register_forward_pre_hook(_read_input, with_kwargs=True)
    else:
        reader.handle = block.register_forward_hook(_read)


def remove_readers(model: nn.Module) -> None:
    """Take all readers off a model."""
    for name, reader in list(attached_readers(model)):
        reader.handle.remove()
        delattr(model.get_submodule(name), READER)


# Functions of this module, not closures, so that models can be copied and pickled.
def _read_input(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    block.tt_reader(first_input(args, kwargs))


def _read(block: Any, _: tuple[Tensor, ...], output: Any) -> None:
    block.tt_reader(output[0] if isinstance(output, tuple) else output)
