"""Adapters on a prompt's last tokens only: what comes before is a frozen context.

With adapters that act only on the tokens of the template after the text (two tokens in
``"{text} It was"``), the keys and values of the text never change. They are computed once, by the
frozen model, and an evaluation at perturbed adapters costs only those few tokens, in the blocks
that have adapters. (Restricting an intervention to some positions is the idea of ReFT, 2404.03592;
here it serves zeroth-order training, which lives on many cheap evaluations.)
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from adazeta.adapters import attached_adapters, disable_adapters
from adazeta.batches import padded_width
from adazeta.fingerprint import fingerprint, frozen_tensors
from adazeta.state_cache import Entry, open_cache, through_cache
from adazeta.trunk import blocks_with, skipped

_WIDTH = 16  # prompts are computed at multiples of this


@dataclass
class _Example:
    """What the frozen model leaves of one example."""

    cache: Tensor  # (blocks with adapters, 2, heads, P, head size): keys and values of the context
    hidden: Tensor  # (S, d): input of the first block with adapters, at the suffix


class FrozenContext:
    """Evaluates a causal model whose adapters act on the last tokens of each row only.

    Args:
        model: a causal language model of transformers with adapters.
        suffix: number of last tokens S on which the adapters act.
        cache: keep the context of every example that was seen, by its tokens, in ``"memory"`` or
            on ``"disk"``: for each token of the context the keys and values of the blocks with
            adapters. With ``"none"`` only the last batch's are at hand.
        limit: size of the cache in GiB.
        folder: of a cache on disk, see :func:`adazeta.state_cache.open_cache`.

    Raises:
        ValueError: ``suffix`` is below 1, or the cache is of an unknown kind.
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
        self.model = model
        self.suffix = suffix
        own = [p for _, adapter in attached_adapters(model) for p in adapter.parameters()]
        self._blocks, self._depth = blocks_with(model, own)
        names = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._recent: dict[bytes, Entry] = {}
        digest = ""
        if cache != "none":
            # Contexts are those of the model without its adapters, trainable or not.
            frozen = frozen_tensors(model, (adapter for _, adapter in attached_adapters(model)))
            digest = fingerprint(model, frozen, "frozen context", suffix, self._depth)
        self._cache = open_cache(cache, digest, limit=limit, folder=folder)

    @contextmanager
    def inputs(self, input_ids: Tensor, attention_mask: Tensor) -> Iterator[dict[str, Any]]:
        """Give the model's inputs for the suffix; inside the context the model runs on from there.

        Args:
            input_ids: int64 (B, T), padded on the right; rows may repeat.
            attention_mask: (B, T).

        Yields:
            Inputs of B rows and S tokens, to be used for one forward.
        """
        examples = self._examples(input_ids, attention_mask)
        lengths = torch.tensor([example.cache.shape[-2] for example in examples])
        width = int(lengths.max())
        first = examples[0].cache
        states = first.new_zeros(len(examples), *first.shape[:-2], width, first.shape[-1])
        for row, example in zip(states, examples, strict=True):
            row[..., width - example.cache.shape[-2] :, :] = example.cache
        cache = DynamicCache(config=self.model.config)
        # The blocks below are skipped, but the first one tells the model how long the context is.
        placeholder = first.new_zeros(1, 1, width, 1)
        for index, layer in enumerate(cache.layers):
            above = index - self._depth
            keys, values = states[:, above].unbind(1) if above >= 0 else (placeholder, placeholder)
            layer.update(keys, values)
        lengths = lengths.to(input_ids.device)
        steps = torch.arange(width + self.suffix, device=input_ids.device)
        inputs = {
            "input_ids": torch.stack(
                [ids[n : n + self.suffix] for ids, n in zip(input_ids, lengths, strict=True)]
            ),
            "attention_mask": (steps >= width - lengths[:, None]).long(),
            "position_ids": lengths[:, None] + steps[: self.suffix],
            self._cache_name: cache,
            "use_cache": True,
        }
        hidden = torch.stack([example.hidden for example in examples])
        with skipped(self._blocks, self._depth, hidden):
            yield inputs

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

        longest = getattr(self.model.config, "max_position_embeddings", None)
        widths = [padded_width(length, longest, _WIDTH) for length in lengths]
        found = through_cache(self._cache, keys, widths, compute, at_hand=self._recent)
        assert found is not None
        # The last batch's stay at hand: its perturbed evaluations follow one another.
        self._recent = {
            key: {name: tensor.to(device) for name, tensor in entry.items()}
            for key, entry in found.items()
        }
        return [_Example(**self._recent[key]) for key in keys]

    @torch.no_grad()
    def _run(self, input_ids: Tensor, attention_mask: Tensor) -> list[_Example]:
        """Run the frozen model on whole prompts and keep what the suffix needs."""
        seen: list[Tensor] = []

        def watch(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        handle = self._blocks[self._depth].register_forward_pre_hook(watch, with_kwargs=True)
        cache = DynamicCache(config=self.model.config)
        arguments = {self._cache_name: cache, "use_cache": True}
        try:
            with disable_adapters(self.model):
                body: Any = getattr(self.model, "base_model", self.model)  # no logits needed
                body(input_ids=input_ids, attention_mask=attention_mask, **arguments)
        finally:
            handle.remove()
        layers = cache.layers[self._depth :]
        examples = []
        for row, length in enumerate(attention_mask.sum(-1).tolist()):
            end = length - self.suffix
            states = [torch.stack([x.keys[row, :, :end], x.values[row, :, :end]]) for x in layers]
            examples.append(_Example(torch.stack(states), seen[0][row, end:length].clone()))
        return examples
