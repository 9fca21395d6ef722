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
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from adazeta.adapters import attached_adapters, disable_adapters
from adazeta.trunk import blocks_with, skipped


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
        keep: keep the context of every example that was seen, by its tokens, in memory: for each
            token of the context the keys and values of the blocks with adapters.

    Raises:
        ValueError: ``suffix`` is below 1.
    """

    def __init__(self, model: nn.Module, suffix: int, *, keep: bool = True) -> None:
        if suffix < 1:
            raise ValueError(f"the adapters need one token or more at the end, got {suffix}")
        self.model = model
        self.suffix = suffix
        self.keep = keep
        own = [p for _, adapter in attached_adapters(model) for p in adapter.parameters()]
        self._blocks, self._depth = blocks_with(model, own)
        names = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._kept: dict[bytes, _Example] = {}

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
        known = self._kept if self.keep else {}
        missing = {key: row for row, key in enumerate(keys) if key not in known}
        if missing:
            rows = torch.tensor(list(missing.values()), device=input_ids.device)
            found = self._run(input_ids[rows], attention_mask[rows])
            known.update(zip(missing, found, strict=True))
        return [known[key] for key in keys]

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
