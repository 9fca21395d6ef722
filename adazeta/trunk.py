"""Run the frozen lower blocks of a model once for all perturbed evaluations.

Blocks below the first trainable parameter see the same input whatever the perturbation, so their
output is computed once per batch, and may be kept per example across epochs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.evaluation import rows_of


class _Reached(Exception):
    """Raised at the first trainable block to end a forward there; carries the block's input."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class SharedTrunk:
    """The frozen blocks below the first trainable one, found by module order.

    The blocks are the elements of the first ``nn.ModuleList`` with a trainable parameter in it.
    Nothing is shared, and every method falls back to plain forwards, where the lowest block is
    trainable, where something that is registered before the blocks (an embedding) is trainable,
    or where a block returns more than hidden states.

    Args:
        model: the model; which of its parameters are trainable must not change afterwards.
        keep: keep the trunk's output per example, by its tokens, in memory.

    Attributes:
        depth: number of blocks that are shared; 0 if none.
    """

    def __init__(self, model: nn.Module, *, keep: bool = False) -> None:
        self.model = model
        self.blocks, self.depth = blocks_with(
            model, [p for p in model.parameters() if p.requires_grad]
        )
        self.keep = keep
        self._kept: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def run(
        self, function: Callable[[Mapping[str, Any]], Any], inputs: Mapping[str, Any]
    ) -> Tensor | None:
        """Compute the trunk's output for a batch.

        Args:
            function: runs the model on such inputs (its result is not used).
            inputs: the batch, ``B`` rows.

        Returns:
            Hidden states ``(B, T, d)``, or None if nothing is shared.
        """
        if self.depth == 0:
            return None
        lengths = _lengths(inputs) if self.keep else None
        if lengths is None:
            return self._forward(function, inputs)
        keys = _keys(inputs, lengths)
        if any(key not in self._kept for key in keys):
            hidden = self._forward(function, inputs)
            if hidden is not None:
                for key, states, length in zip(keys, hidden, lengths, strict=True):
                    self._kept[key] = states[:length].clone()
            return hidden
        width = inputs["attention_mask"].shape[1]
        hidden = self._kept[keys[0]].new_zeros(len(keys), width, self._kept[keys[0]].shape[-1])
        for states, key, length in zip(hidden, keys, lengths, strict=True):
            states[:length] = self._kept[key]
        return hidden

    def _forward(
        self, function: Callable[[Mapping[str, Any]], Any], inputs: Mapping[str, Any]
    ) -> Tensor | None:
        """Run the model up to the first trainable block."""
        plain: list[bool] = []
        handles = [
            block.register_forward_hook(lambda *call: plain.append(isinstance(call[2], Tensor)))
            for block in self.blocks[: self.depth]
        ]
        handles.append(
            self.blocks[self.depth].register_forward_pre_hook(_stop, prepend=True, with_kwargs=True)
        )
        try:
            function(inputs)
        except _Reached as reached:
            if all(plain) and reached.hidden.shape[0] == rows_of(inputs):
                return reached.hidden
        finally:
            for handle in handles:
                handle.remove()
        self.depth = 0
        return None

    @contextmanager
    def replay(self, hidden: Tensor | None, times: int = 1) -> Iterator[None]:
        """Skip the trunk inside the context and go on from its output.

        Args:
            hidden: what :meth:`run` returned; with None the whole model runs.
            times: how often the batch is repeated along its rows.

        Raises:
            RuntimeError: the model is run more than once inside the context.
        """
        if hidden is None:
            yield
            return
        states = hidden if times == 1 else hidden.repeat(times, *[1] * (hidden.dim() - 1))
        with skipped(self.blocks, self.depth, states):
            yield


@contextmanager
def skipped(blocks: Sequence[nn.Module], depth: int, hidden: Tensor) -> Iterator[None]:
    """Skip the first blocks of a model inside the context, for one forward.

    Args:
        blocks: the blocks, of which the first ``depth`` are skipped.
        depth: their number.
        hidden: input of block ``depth``, (B, T, d), instead of what the skipped ones would give.

    Raises:
        RuntimeError: the model is run more than once inside the context.
    """
    forwards = 0

    def resume(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal forwards
        forwards += 1
        if forwards > 1:
            raise RuntimeError(
                "the loss function runs the model more than once, so the output of its lower "
                "blocks cannot be shared; set share_trunk=False"
            )
        return (hidden, *args[1:]), {k: v for k, v in kwargs.items() if k != "hidden_states"}

    handle = blocks[depth].register_forward_pre_hook(resume, prepend=True, with_kwargs=True)
    try:
        for block in blocks[:depth]:
            block.forward = _pass_through  # type: ignore[method-assign]
        yield
    finally:
        handle.remove()
        for block in blocks[:depth]:
            vars(block).pop("forward", None)


def _pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stand in for a block that is skipped."""
    return hidden_states


def _stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(args[0] if args else kwargs["hidden_states"])


def _lengths(inputs: Mapping[str, Any]) -> list[int] | None:
    """Return the number of tokens of each row if the batch is padded on the right only."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return None
    lengths = mask.sum(-1)
    expected = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    return lengths.tolist() if bool((mask.bool() == expected).all()) else None


def _keys(inputs: Mapping[str, Any], lengths: list[int]) -> list[bytes]:
    """Everything that tells the tokens of a row: ids, and segment or position ids if given."""
    shape = inputs["attention_mask"].shape
    columns = [
        value.cpu()
        for name, value in sorted(inputs.items())
        if isinstance(value, Tensor) and value.shape == shape and name != "labels"
    ]
    return [
        torch.cat([column[row, :length].long() for column in columns]).numpy().tobytes()
        for row, length in enumerate(lengths)
    ]


def blocks_with(
    model: nn.Module, parameters: Iterable[nn.Parameter]
) -> tuple[list[nn.Module], int]:
    """Find the blocks that hold some of the parameters, and the index of the first such block.

    The blocks are the elements of the first ``nn.ModuleList`` in module order with any of the
    parameters in it.

    Returns:
        All blocks, and how many lie below all the parameters: 0 where a parameter is registered
        before the blocks, or where a block's forward has been replaced.
    """
    wanted = {id(parameter) for parameter in parameters}

    def holds(module: nn.Module) -> bool:
        return any(id(p) in wanted for p in module.parameters())

    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and holds(module):
            blocks = list(module)
            depth = next(k for k, block in enumerate(blocks) if holds(block))
            clear = not any(holds(part) for part in _registered_before(model, name))
            unpatched = all("forward" not in vars(block) for block in blocks[:depth])
            return blocks, depth if clear and unpatched else 0
    return [], 0


def _registered_before(model: nn.Module, name: str) -> list[nn.Module]:
    """Modules that are registered before the named one, at its level or above."""
    found: list[nn.Module] = []
    parent = model
    for part in name.split("."):
        for child_name, child in parent.named_children():
            if child_name == part:
                break
            found.append(child)
        parent = parent.get_submodule(part)
    return found
