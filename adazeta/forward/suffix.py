"""Adapters on a prompt's last tokens only: what comes before is a frozen context.

With adapters that act only on the tokens of the template after the text (two tokens in
``"{text} It was"``), the keys and values of the text never change. They are computed once, by the
frozen model, and an evaluation at perturbed adapters costs only those few tokens, in the blocks
that have adapters. (Restricting an intervention to some positions is the idea of ReFT, 2404.03592;
here it serves zeroth-order training, which lives on many cheap evaluations.)

Keys and values are kept of every token, whatever window a layer has: the model's own mask does the
rest. Models that keep something else of the past (recurrent layers) are refused, and so are those
whose logits come out otherwise than from the whole prompt.
"""

import inspect
import operator
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from adazeta.adapters.attach import disable_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.readers import READER, InputReader, readers_below
from adazeta.forward.cache import open_cache
from adazeta.forward.cache.base import Entry, through_cache
from adazeta.forward.fingerprint import fingerprint, frozen_tensors, versions
from adazeta.forward.logits import logits_at
from adazeta.forward.packing import packed
from adazeta.forward.reach import relative_error, roundings, steady_length
from adazeta.forward.trunk import skipped
from adazeta.models.structure import blocks_with
from adazeta.support.batches import padded_width
from adazeta.support.memory import is_out_of_memory

_WIDTH = 16  # prompts are computed at multiples of this
_COMPARED = 4  # rows of a batch of which the logits are compared with the whole model's
# What a model may raise that cannot go on from kept keys and values.
_UNFIT = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)


@dataclass
class _Example:
    """What the frozen model leaves of one example."""

    cache: Tensor  # (P, F): keys and values of the context, of all blocks from the first adapter's
    shapes: Tensor  # int64 (layers, 2, 2), on the CPU: heads and head size of keys and of values
    hidden: Tensor  # (S, d): input of the first block with adapters, at the suffix
    read: Tensor  # (R, S, d): what the adapters read of the blocks below, at the suffix


class FrozenContext:
    """Evaluates a causal model whose adapters act on the last tokens of each row only.

    The first batch, and each one with a longer or a shorter row than before, is compared with the
    whole model without its adapters: a few rows, in one forward each way.

    Args:
        model: a causal language model of transformers with adapters; it is not kept alive by this.
        suffix: number of last tokens S on which the adapters act.
        cache: keep the context of every example that was seen, by its tokens, in ``"memory"`` or
            on ``"disk"``: for each token of the context the keys and values of the blocks with
            adapters. With ``"none"`` only the last batch's are at hand.
        limit: size of the cache in GiB.
        folder: of a cache on disk, see :func:`adazeta.forward.cache.open_cache`.

    Raises:
        ValueError: ``suffix`` is below 1, the cache is of an unknown kind, or no adapter lies in a
            block of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        suffix: int,
        *,
        cache: str = "none",
        limit: float = 4.0,
        folder: str | Path | None = None,
    ) -> None:
        if suffix < 1:
            raise ValueError(f"the adapters need one token or more at the end, got {suffix}")
        self._model = weakref.ref(model)
        self.suffix = suffix
        adapters = [adapter for _, adapter in attached_adapters(model)]
        own = [parameter for adapter in adapters for parameter in adapter.parameters()]
        self._blocks, self._depth = blocks_with(model, own)
        if not self._blocks:
            raise self._refusal("no adapter lies in one of its blocks")
        self._first = adapters[0]
        self._readers = readers_below(model, self._blocks[: self._depth])
        read = [index for index, block in enumerate(self._blocks) if READER in block._modules]
        # Contexts are those of the model without its adapters, trainable or not.
        frozen = frozen_tensors(model, adapters)
        self._frozen = [t for t in frozen.values() if _has_version(t)]
        self._versions = versions(self._frozen)
        self._accepted = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in self._accepted else "past_key_values"
        self._recent: dict[bytes, Entry] = {}
        self._padded: tuple[list[Tensor], list[tuple[Tensor, Tensor]]] = [], []
        self._shapes: list[list[list[int]]] | None = None
        self._steady = steady_length(model)
        self._compared: tuple[int, int] | None = None  # shortest and longest row so far
        digest = ""
        if cache != "none":
            digest = fingerprint(model, frozen, "whole frozen context", suffix, self._depth, read)
        self._cache = open_cache(cache, digest, limit=limit, folder=folder)

    @property
    def model(self) -> nn.Module:
        """The model.

        Raises:
            ReferenceError: it is gone.
        """
        model = self._model()
        if model is None:
            raise ReferenceError("the model of this frozen context is gone; keep it alive")
        return model

    @property
    def serves(self) -> bool:
        """Whether the model is what it was: its adapters are the same, and no weight was written.

        Cheap enough for every evaluation.
        """
        _, first = next(attached_adapters(self.model), ("", None))
        return first is self._first and versions(self._frozen) == self._versions

    @property
    def bytes_of_a_row(self) -> float:
        """Mean bytes that are kept of a row of the last batch."""
        sizes = [t.nbytes for entry in self._recent.values() for t in entry.values()]
        return sum(sizes) / max(len(self._recent), 1)

    def close(self) -> None:
        """Let go of files; the context is not used afterwards."""
        if self._cache is not None:
            self._cache.close()

    @contextmanager
    def inputs(self, input_ids: Tensor, attention_mask: Tensor) -> Iterator[dict[str, Any]]:
        """Give the model's inputs for the suffix; inside the context the model runs on from there.

        Args:
            input_ids: int64 (B, T), padded on the right; rows may repeat.
            attention_mask: (B, T).

        Yields:
            Inputs of B rows and S tokens, to be used for one forward.

        Raises:
            ValueError: the model does not go on from the kept keys and values of a context as from
                the context itself; the message names its type and the remedy.
        """
        lengths: list[int] = attention_mask.sum(-1).tolist()
        if self._steady is not None and max(lengths) > self._steady:
            raise self._refusal(
                f"its rotary frequencies depend on the length of a batch beyond {self._steady} "
                f"tokens, and a prompt has {max(lengths)}",
                f"max_length={self._steady} or ",
            )
        try:
            examples = self._examples(input_ids, attention_mask)
            reason = self._objection(input_ids, attention_mask, examples)
        except _UNFIT as error:
            if is_out_of_memory(error) or self._compared is not None:
                raise
            named = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            reason = f"{named}{error}".splitlines()[0].rstrip(".")
        if reason is not None:
            raise self._refusal(reason)
        with self._continued(input_ids, examples) as inputs:
            yield inputs

    @contextmanager
    def _continued(
        self, input_ids: Tensor, examples: Sequence[_Example]
    ) -> Iterator[dict[str, Any]]:
        """Do what :meth:`inputs` does, given what was kept of the rows."""
        lengths = torch.tensor([len(example.cache) for example in examples])
        pairs = self._pairs(examples)
        width = int(lengths.max())
        cache = self._new_cache()
        # The blocks below are skipped, but the first one tells the model how long the context is.
        placeholder = examples[0].cache.new_zeros(1, 1, width, 1)
        above = self._slots(cache)
        for index, layer in enumerate(cache.layers):
            if index < self._depth and type(layer) is DynamicLayer:
                layer.update(placeholder, placeholder)
        for layer, (keys, values) in zip(above, pairs, strict=True):
            layer.update(keys[:, :, :0], values[:, :, :0])  # it sets itself up
            layer.keys, layer.values = keys, values  # without a copy; it never writes into them
        lengths = lengths.to(input_ids.device)
        steps = torch.arange(width + self.suffix, device=input_ids.device)
        inputs = {
            "input_ids": torch.stack(
                [ids[n : n + self.suffix] for ids, n in zip(input_ids, lengths, strict=True)]
            ),
            "attention_mask": (steps >= width - lengths[:, None]).long(),
            self._cache_name: cache,
            "use_cache": True,
        }
        if "position_ids" in self._accepted:
            inputs["position_ids"] = lengths[:, None] + steps[: self.suffix]
        hidden = torch.stack([example.hidden for example in examples])
        with ExitStack() as stack:
            for place, (_, reader) in enumerate(self._readers):
                states = torch.stack([example.read[place] for example in examples])
                stack.enter_context(reader.given(states))
            stack.enter_context(skipped(self._blocks, self._depth, hidden))
            yield inputs

    def _pairs(self, examples: Sequence[_Example]) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values (B, heads, T, size) of each block, padded on the left.

        The last ones stay at hand, as the evaluations of a batch follow one another.
        """
        contexts = [example.cache for example in examples]
        known, pairs = self._padded
        if len(known) == len(contexts) and all(map(operator.is_, known, contexts)):
            return pairs
        self._padded = [], []  # let go of the last ones first
        width = max(map(len, contexts))
        states = contexts[0].new_zeros(len(contexts), width, contexts[0].shape[-1])
        for row, context in zip(states, contexts, strict=True):
            row[width - len(context) :] = context
        if self._shapes is None:
            self._shapes = examples[0].shapes.tolist()
        parts = iter(states.split([h * size for of in self._shapes for h, size in of], dim=-1))
        pairs = []
        for shape in self._shapes:
            keys, values = (
                next(parts).view(len(contexts), width, *shape[k]).transpose(1, 2).contiguous()
                for k in (0, 1)
            )
            pairs.append((keys, values))
        self._padded = contexts, pairs
        return pairs

    def _objection(
        self, input_ids: Tensor, attention_mask: Tensor, examples: Sequence[_Example]
    ) -> str | None:
        """Say what speaks against going on from what was kept; None if nothing does."""
        lengths = [len(example.cache) + self.suffix for example in examples]
        known, seen = self._compared, (min(lengths), max(lengths))
        if known is not None:
            if known[0] <= seen[0] and seen[1] <= known[1]:
                return None
            seen = min(known[0], seen[0]), max(known[1], seen[1])
        order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
        picks = [order[k * (len(order) - 1) // (_COMPARED - 1)] for k in range(_COMPARED)]
        rows = list(dict.fromkeys(picks))
        where = torch.tensor(rows, device=input_ids.device)
        ids, mask = (x[where][:, : max(lengths)] for x in (input_ids, attention_mask))
        error, accepted = self._error(ids, mask, [examples[row] for row in rows])
        if error <= accepted:
            self._compared = seen
            return None
        return (
            f"the logits after a kept context are others than after the context itself (by "
            f"{error:.2g} of their spread, where {accepted:.2g} is rounding)"
        )

    @torch.no_grad()
    def _error(
        self, input_ids: Tensor, attention_mask: Tensor, examples: Sequence[_Example]
    ) -> tuple[float, float]:
        """Compare with whole prompts: return the relative error, and what may be rounding."""
        count = len(input_ids)
        rows = torch.arange(count, device=input_ids.device).repeat_interleave(self.suffix)
        steps = torch.arange(self.suffix, device=input_ids.device).repeat(count)
        positions = attention_mask.sum(-1)[rows] - self.suffix + steps
        whole = {"input_ids": input_ids, "attention_mask": attention_mask}
        with packed(None), disable_adapters(self.model):
            with self._continued(input_ids, examples) as inputs:
                found = logits_at(self.model, inputs, rows, steps)
            expected = logits_at(self.model, whole, rows, positions)
        return relative_error(found, expected), roundings(found, *self.model.parameters())

    def _refusal(self, reason: str, remedy: str = "") -> ValueError:
        config = getattr(self.model, "config", None)
        name = getattr(config, "model_type", None) or type(self.model).__name__
        return ValueError(
            f"adapters cannot act on the suffix of prompts alone in this model ({name}): {reason}; "
            f"set {remedy}adapt='all'"
        )

    def _longest(self) -> int | None:
        """Most tokens of a row at which it computes what it does at any other width."""
        limits = (getattr(self.model.config, "max_position_embeddings", None), self._steady)
        return min((n for n in limits if n is not None), default=None)

    def _new_cache(self) -> DynamicCache:
        """Return an empty cache whose layers keep all tokens: windows are the masks' business."""
        cache = DynamicCache(config=self.model.config)
        cache.layers = [
            DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer
            for layer in cache.layers
        ]
        return cache

    def _slots(self, cache: DynamicCache) -> list[DynamicLayer]:
        """Return the layers of a cache, from the first block with adapters, that keep tokens."""
        return [layer for layer in cache.layers[self._depth :] if type(layer) is DynamicLayer]

    def _examples(self, input_ids: Tensor, attention_mask: Tensor) -> list[_Example]:
        lengths = attention_mask.sum(-1).tolist()
        host = input_ids.cpu().numpy()
        keys = [ids[:length].tobytes() for ids, length in zip(host, lengths, strict=True)]
        device = input_ids.device

        def compute(chosen: list[int], width: int) -> list[Entry]:
            rows = torch.tensor(chosen, device=device)
            ids, mask = (
                functional.pad(x[rows][:, :width], (0, max(width - x.shape[1], 0)))
                for x in (input_ids, attention_mask)
            )
            return [vars(example) for example in self._run(ids, mask)]

        widths = [padded_width(length, self._longest(), _WIDTH) for length in lengths]
        found = through_cache(self._cache, keys, widths, compute, at_hand=self._recent)
        assert found is not None
        # The last batch's stay at hand: its perturbed evaluations follow one another.
        self._recent = {
            key: {n: t if n == "shapes" else t.to(device) for n, t in entry.items()}
            for key, entry in found.items()
        }
        return [_Example(**self._recent[key]) for key in keys]

    @torch.no_grad()
    def _run(self, input_ids: Tensor, attention_mask: Tensor) -> list[_Example]:
        """Run the frozen model on whole prompts and keep what the suffix needs."""
        seen: list[Tensor] = []
        read: list[Tensor] = []
        handles = [InputReader.watch(self._blocks[self._depth], seen.append)]
        handles += [reader.watch(block, read.append) for block, reader in self._readers]
        cache = self._new_cache()
        arguments = {self._cache_name: cache, "use_cache": True}
        try:
            with disable_adapters(self.model):
                body: Any = getattr(self.model, "base_model", self.model)  # no logits needed
                body(input_ids=input_ids, attention_mask=attention_mask, **arguments)
        finally:
            for handle in handles:
                handle.remove()
        layers, width = self._slots(cache), input_ids.shape[1]
        if not seen or seen[0].dim() != 3 or seen[0].shape[:2] != input_ids.shape:
            raise ValueError("its blocks do not take hidden states of each token")
        for layer in cache.layers[self._depth :]:
            kept = getattr(layer, "keys", layer)  # None: it uses another layer's, or has none
            if type(layer) is not DynamicLayer and kept is not None:
                raise ValueError(f"it keeps a {type(layer).__name__} of the context")
        if not layers or any(x.keys is None or x.keys.shape[-2] != width for x in layers):
            raise ValueError("it does not keep keys and values of each token and layer")
        pairs = [(layer.keys, layer.values) for layer in layers]
        shapes = torch.tensor([[(x.shape[1], x.shape[-1]) for x in pair] for pair in pairs])
        states = torch.cat([x.transpose(1, 2).flatten(2) for pair in pairs for x in pair], dim=-1)
        examples = []
        for row, length in enumerate(attention_mask.sum(-1).tolist()):
            end = length - self.suffix
            # A copy of its own: it must not keep the whole batch alive.
            kept = seen[0][row, end:length].clone()
            below = kept.new_zeros(len(read), *kept.shape)
            for place, output in enumerate(read):
                below[place] = output[row, end:length]
            examples.append(_Example(states[row, :end].clone(), shapes, kept, below))
        return examples


def _has_version(tensor: Tensor) -> bool:
    """Tell whether a tensor says when it is written: not one with a storage of its own kind."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_inference()
