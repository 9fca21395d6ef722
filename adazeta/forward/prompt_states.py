"""Keys and values of prompts for adapters that act on the answer only.

Such adapters act on the last token of the prompt, from which the first token of the answer is
predicted, and on all that follow. What the model computes of the tokens before is that of the
frozen model: the same for all members of a population and for all steps, so it is computed once for
a prompt and kept (:mod:`adazeta.forward.cache`). A completion then costs its own tokens, however
long the prompt is.

:class:`adazeta.forward.suffix.FrozenContext` does the same for classification, where only the
blocks with adapters are computed again. Here every block is, since each new token is the member's.
"""

import inspect
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from adazeta.adapters.attach import disable_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.forward.cache import open_cache
from adazeta.forward.cache.base import Entry, through_cache
from adazeta.forward.fingerprint import fingerprint, frozen_tensors
from adazeta.support.batches import padded_width

_WIDTH = 16  # prompts are computed at multiples of this


class PromptStates:
    """Gives the caches that completions begin with, see :func:`adazeta.forward.decode.decode`.

    Args:
        model: a causal language model of transformers with adapters; not kept alive by this.
        cache: where the states of prompts are kept: ``"none"`` (those of the last batch are at
            hand), ``"memory"`` or ``"disk"``.
        limit: size of the cache in GiB.
        folder: of a cache on disk.

    Raises:
        ValueError: the model has no adapters, or trains something beside them.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        cache: str = "none",
        limit: float = 4.0,
        folder: str | Path | None = None,
    ) -> None:
        adapters = [adapter for _, adapter in attached_adapters(model)]
        own = {id(p) for adapter in adapters for p in adapter.parameters()}
        others = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in own]
        if not adapters or others:
            what = f"trains {others[0]!r}" if others else "has no adapters"
            raise ValueError(
                f"adapt='answer' is for adapters that alone are trained, and the model {what}; set "
                "adapt='all'"
            )
        self._model = weakref.ref(model)
        self._recent: dict[bytes, Entry] = {}
        self._shapes: list[list[list[int]]] | None = None
        accepted = inspect.signature(model.forward).parameters
        self._name = "cache" if "cache" in accepted else "past_key_values"
        digest = ""
        if cache != "none":
            digest = fingerprint(model, frozen_tensors(model, adapters), "states of prompts", 0, 0)
        self._cache = open_cache(cache, digest, limit=limit, folder=folder)
        self.computed = 0  # prompts that were run

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> DynamicCache:
        """Return a cache with the keys and values of every token but the last.

        Args:
            input_ids: int64 (N, T), padded on the left; rows may repeat.
            attention_mask: (N, T).

        Raises:
            ValueError: the model keeps something else of the past than keys and values.
        """
        width = input_ids.shape[1] - 1
        lengths = (attention_mask.sum(-1) - 1).tolist()
        host = input_ids.cpu()
        rows = [ids[width - n : width] for ids, n in zip(host, lengths, strict=True)]
        entries = self._entries(rows, input_ids.device)
        first = entries[0]
        states = first.new_zeros(len(entries), width, first.shape[-1])
        for row, entry in zip(states, entries, strict=True):
            row[width - len(entry) :] = entry
        assert self._shapes is not None
        sizes = [heads * size for layer in self._shapes for heads, size in layer]
        parts = iter(states.split(sizes, dim=-1))
        cache = _empty(self._model())
        if width == 0:  # prompts of one token
            return cache
        for layer, shape in zip(cache.layers, self._shapes, strict=True):
            keys, values = (
                next(parts).view(len(entries), width, *each).transpose(1, 2) for each in shape
            )
            layer.update(keys, values)
        return cache

    def _entries(self, rows: list[Tensor], device: torch.device) -> list[Tensor]:
        keys = [row.numpy().tobytes() for row in rows]

        def compute(chosen: list[int], width: int) -> list[Entry]:
            ids = torch.stack([functional.pad(rows[k], (0, width - len(rows[k]))) for k in chosen])
            lengths = torch.tensor([len(rows[k]) for k in chosen])
            mask = (torch.arange(width) < lengths[:, None]).long()
            return self._run(ids.to(device), mask.to(device), lengths.tolist())

        widths = [padded_width(len(row), None, _WIDTH) for row in rows]
        found = through_cache(self._cache, keys, widths, compute, at_hand=self._recent)
        assert found is not None
        self._recent = {
            key: {n: t if n == "shapes" else t.to(device) for n, t in entry.items()}
            for key, entry in found.items()
        }
        self._shapes = self._recent[keys[0]]["shapes"].tolist()
        return [self._recent[key]["states"] for key in keys]

    @torch.no_grad()
    def _run(self, ids: Tensor, mask: Tensor, lengths: list[int]) -> list[Entry]:
        """Run the frozen model on prompts, padded on the right."""
        model: Any = self._model()
        cache = _empty(model)
        self.computed += len(ids)
        with disable_adapters(model):
            body: Any = getattr(model, "base_model", model)  # no logits needed
            body(input_ids=ids, attention_mask=mask, use_cache=True, **{self._name: cache})
        layers: list[Any] = list(cache.layers)
        wrong = [layer for layer in layers if type(layer) is not DynamicLayer]
        if wrong or any(x.keys is None or x.keys.shape[-2] != ids.shape[1] for x in layers):
            kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
            raise ValueError(
                f"adapters cannot act on the answer alone in this model ({kind}): it keeps "
                "something else of a prompt than keys and values of each token and layer; set "
                "adapt='all'"
            )
        pairs = [(layer.keys, layer.values) for layer in layers]
        shapes = torch.tensor([[(x.shape[1], x.shape[-1]) for x in pair] for pair in pairs])
        states = torch.cat([x.transpose(1, 2).flatten(2) for pair in pairs for x in pair], dim=-1)
        return [
            {"states": row[:length].clone(), "shapes": shapes}
            for row, length in zip(states, lengths, strict=True)
        ]

    def close(self) -> None:
        """Let go of files; this is not used afterwards."""
        if self._cache is not None:
            self._cache.close()


def _empty(model: Any) -> DynamicCache:
    """Return an empty cache whose layers keep all tokens: windows are the masks' business."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer
        for layer in cache.layers
    ]
    return cache
