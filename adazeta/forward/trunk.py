"""Run the frozen lower blocks of a model once for all perturbed evaluations.

Blocks below the first trainable parameter see the same input whatever the perturbation, so their
output is computed once per batch, and may be kept per example across epochs and runs.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.adapters.readers import InputReader, attached_readers, first_input, readers_below
from adazeta.forward.cache import open_cache
from adazeta.forward.cache.base import StateCache
from adazeta.forward.fingerprint import fingerprint, frozen_tensors, versions
from adazeta.forward.reach import steady_length
from adazeta.forward.shortcuts import attempt, single_forward
from adazeta.forward.trunk_states import Rows, rows_to_keep, states_of, width_matters
from adazeta.models.structure import blocks_with
from adazeta.support.batches import has_rows, rows_of, same_values

logger = logging.getLogger(__name__)


class _Reached(Exception):
    """Raised at the first trainable block to end a forward there; carries the block's input."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class SharedTrunk:
    """The frozen blocks below the first trainable one, found by module order.

    The blocks are the elements of the first ``nn.ModuleList`` with a trainable parameter in it.
    Nothing is shared, and every method falls back to plain forwards, where the lowest block is
    trainable, where something that is registered before the blocks (an embedding) is trainable, or
    where a trial on the first batch shows that the model cannot go on from what a block returns:
    the outputs with and without sharing are compared there, bit for bit.

    What is shared within a batch changes no bit. What is kept across batches was computed at
    another padded width (see :mod:`adazeta.forward.trunk_states`) and agrees to rounding; where the
    first batch shows otherwise, nothing is kept.

    Where a mixer reads the inputs of K blocks of the trunk (:mod:`adazeta.adapters.mixer`), these
    stand in the hidden states before the trunk's output, along the last dimension.

    Args:
        model: the model; which of its parameters are trainable must not change afterwards.
        cache: keep the trunk's output per example, by everything the model is given for it:
            ``"none"``, in ``"memory"``, or on ``"disk"``, where later runs with the same frozen
            weights find it.
        cache_limit: size of the cache in GiB.
        cache_folder: of a cache on disk, see :func:`adazeta.forward.cache.open_cache`.

    Attributes:
        depth: number of blocks that are shared; 0 if none.
        cache: where outputs are kept, once there was one.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        cache: str = "none",
        cache_limit: float = 4.0,
        cache_folder: str | Path | None = None,
    ) -> None:
        self.model = model
        self.blocks, self.depth = blocks_with(
            model,
            [p for p in model.parameters() if p.requires_grad],
            # They need what their block returns.
            [r for _, r in attached_readers(model) if not isinstance(r, InputReader)],
        )
        self._taps = readers_below(model, self.blocks[: self.depth])
        self.cache: StateCache | None = None
        self._options = (cache, cache_limit, cache_folder)
        self._tried = False
        self._keeps: bool | None = None  # whether outputs can be kept, once that was tried
        self._is_skipped = False  # by the function that runs the model
        self._frozen = frozen_tensors(model, self.blocks[self.depth :]) if self.depth else {}
        self._versions: tuple[tuple[int, int], ...] = ()
        self._switches = [
            module
            for block in self.blocks[: self.depth]
            for module in block.modules()
            if hasattr(module, "enabled")
        ]

    @torch.no_grad()
    def run(
        self,
        function: Callable[[Mapping[str, Any]], Any],
        inputs: Mapping[str, Any],
        *,
        rows: int | None = None,
    ) -> Tensor | None:
        """Compute the trunk's output for a batch.

        Args:
            function: runs the model on such inputs, deterministically. Its result is used on the
                first batch only, to find out whether the trunk can be shared.
            inputs: the batch, ``B`` rows.
            rows: of the model's own inputs, where ``function`` lays out the batch anew; there is no
                state per example to keep then.

        Returns:
            Hidden states ``(B, T, d)``, or ``(B, T, (K + 1) d)``, of the inputs as the model gets
            them, or None if nothing is shared.
        """
        if self.depth and not self._tried:
            self._try(function, inputs, rows)
        if self.depth == 0:
            return None
        if rows is not None:
            return self._forward(function, inputs, rows)
        kept = None
        if self._options[0] != "none" and self._keeps is not False:
            config = getattr(self.model, "config", None)
            seen = bool(getattr(config, "is_encoder_decoder", False))
            kept = rows_to_keep(inputs, labels=seen, context=self._context())
        if kept is None:
            return self._forward(function, inputs)
        return self._kept_states(function, inputs, kept)

    def _kept_states(
        self, function: Callable[[Mapping[str, Any]], Any], inputs: Mapping[str, Any], kept: Rows
    ) -> Tensor | None:
        """Return the trunk's output from what is kept of it, if that is the same thing."""
        config, steady = getattr(self.model, "config", None), steady_length(self.model)
        if steady is not None and kept.width > steady:
            return self._forward(function, inputs)  # rotary frequencies depend on the width
        limits = (getattr(config, "max_position_embeddings", None), steady)
        options: dict[str, Any] = {
            "padding": getattr(config, "pad_token_id", None) or 0,
            "longest": min((n for n in limits if n is not None), default=None),
        }

        def forward(part: Mapping[str, Any]) -> Tensor | None:
            return self._forward(function, part)

        if self._keeps is None:
            reason = width_matters(kept, inputs, forward, **options)
            self._keeps = reason is None
            if reason is not None:
                logger.warning("the output of the frozen lower blocks is not kept: %s", reason)
                return forward(inputs)
        return states_of(self._current_cache(), kept, inputs, forward, **options)

    def _try(
        self,
        function: Callable[[Mapping[str, Any]], Any],
        inputs: Mapping[str, Any],
        rows: int | None,
    ) -> None:
        """Share nothing from now on if that changes the result on this batch."""
        self._tried = True
        whole = function(inputs)
        hidden, objection = attempt(lambda: self._forward(function, inputs, rows))
        if self._is_skipped:
            self.depth = 0
        elif hidden is None:
            objection = objection or "what the block is given is no state of every example"
        else:
            # What the blocks below leave behind must be nothing that those above go on from.
            attempt(lambda: self._forward(function, _rolled(inputs), rows))
            with self.replay(hidden):
                result, objection = attempt(lambda: function(inputs))
            if objection is None and not _same_bits(result, whole):
                objection = "the result changes"
        if objection is not None:
            logger.info("the blocks below the first trainable one are not shared: %s", objection)
            self.depth = 0

    @property
    def finding(self) -> bool | None:
        """Whether the trunk can be shared, as a trial has shown.

        None before one, and where the question does not arise: what runs the model skips the
        blocks itself.
        """
        return self.depth > 0 if self._tried and not self._is_skipped else None

    def take_over(self, finding: bool | None) -> None:
        """Go by what a trial has shown in an earlier part of the run; with None make one."""
        if finding is not None and not self._tried:
            self._tried = True
            self.depth = self.depth if finding else 0

    def _current_cache(self) -> StateCache:
        """Open the cache, anew if a frozen tensor has changed."""
        now = versions(self._frozen.values())
        if self.cache is None or now != self._versions:
            if self.cache is not None:
                self.cache.close()
            kind, limit, folder = self._options
            name = ""
            if kind == "disk":
                # Another way to train the blocks above finds what this one left.
                above = self.blocks[self.depth :]
                taps = [self.blocks.index(block) for block, _ in self._taps]
                read = ["inputs of", taps] if taps else []
                name = fingerprint(self.model, self._frozen, self.depth, *read, above=above)
            self.cache = open_cache(kind, name, limit=limit, folder=folder)
            assert self.cache is not None
            self._versions = now
        return self.cache

    def _context(self) -> str:
        """Describe what changes the output from one call to the next beside the inputs."""
        device = next(iter(self._frozen.values())).device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        return repr((autocast, [module.enabled for module in self._switches]))

    def _forward(
        self,
        function: Callable[[Mapping[str, Any]], Any],
        inputs: Mapping[str, Any],
        rows: int | None = None,
    ) -> Tensor | None:
        """Run the model up to the first trainable block.

        None if its input is not hidden states, or if the function skips the blocks below itself.
        """
        seen: list[Any] = []

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            below = self.blocks[: self.depth]
            self._is_skipped = any("forward" in vars(block) for block in below)
            raise _Reached(first_input(args, kwargs))

        handles = [
            self.blocks[self.depth].register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
        ]
        handles += [reader.watch(block, seen.append) for block, reader in self._taps]
        try:
            function(inputs)
        except _Reached as reached:
            hidden = reached.hidden
            whole = isinstance(hidden, Tensor) and hidden.shape[0] == (rows or rows_of(inputs))
            whole = whole and len(seen) == len(self._taps)
            if whole and not self._is_skipped and all(_alike(x, hidden) for x in seen):
                return torch.cat([*seen, hidden], -1) if seen else hidden
        finally:
            for handle in handles:
                handle.remove()
            for _, reader in self._taps:
                reader.free()
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
        parts = [hidden]
        if self._taps:  # blocks meet tensors of the layout that they are given without a trunk
            parts = [part.contiguous() for part in hidden.chunk(len(self._taps) + 1, -1)]
        if times > 1:
            parts = [part.repeat(times, *[1] * (part.dim() - 1)) for part in parts]
        *read, states = parts
        with ExitStack() as stack:
            for (_, reader), given in zip(self._taps, read, strict=True):
                stack.enter_context(reader.given(given))
            stack.enter_context(skipped(self.blocks, self.depth, states))
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
        with single_forward():
            yield
    finally:
        handle.remove()
        for block in blocks[:depth]:
            vars(block).pop("forward", None)


def _pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stand in for a block that is skipped."""
    return hidden_states


def _alike(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and (one.shape, one.dtype) == (other.shape, other.dtype)


def _rolled(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Give each example of a batch the place of another."""
    return {name: value.roll(1, 0) if has_rows(value) else value for name, value in batch.items()}


def _same_bits(one: Any, other: Any) -> bool:
    """Compare the tensors of two results of a function; NaN equals NaN."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and same_values(one, other)
    if isinstance(one, Mapping):
        return all(_same_bits(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return all(_same_bits(a, b) for a, b in zip(one, other, strict=True))
    return True
