"""Frozen contexts at hand: one for a model and a number of last tokens, as long as the model lives.

So a task, a trainer and a prediction that meet the same model share what is known of its contexts,
and none of them has to hand it on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from adazeta.forward.logits import candidate_logits
from adazeta.forward.suffix import FrozenContext


@dataclass
class _Kept:
    """The frozen contexts of a model, by the number of last tokens, and how they are kept."""

    options: dict[str, Any] = field(default_factory=dict)
    contexts: dict[int, FrozenContext] = field(default_factory=dict)

    def drop(self, suffix: int) -> None:
        self.contexts.pop(suffix).close()


_kept: "WeakKeyDictionary[nn.Module, _Kept]" = WeakKeyDictionary()


def keep_contexts(
    model: nn.Module,
    cache: str = "none",
    *,
    limit: float = 4.0,
    folder: str | Path | None = None,
) -> None:
    """Say where the frozen contexts of a model's examples are kept from now on.

    Without this only the last batch's are at hand, as with ``"none"``.

    Args:
        model: the model.
        cache: see :class:`FrozenContext`.
        limit: see :class:`FrozenContext`.
        folder: see :class:`FrozenContext`.
    """
    options = {"cache": cache, "limit": limit, "folder": folder}
    kept = _kept.setdefault(model, _Kept(options))
    if kept.options != options:
        kept.options = options
        for suffix in list(kept.contexts):
            kept.drop(suffix)


def context_of(model: nn.Module, suffix: int) -> FrozenContext:
    """Return the frozen context of a model whose adapters act on the last tokens only.

    It lives as long as the model, and is made anew when the model has other adapters or other
    weights.

    Args:
        model: see :class:`FrozenContext`.
        suffix: see :class:`FrozenContext`.

    Raises:
        ValueError: see :class:`FrozenContext`.
    """
    kept = _kept.setdefault(model, _Kept())
    known = kept.contexts.get(suffix)
    if known is not None and not known.serves:
        kept.drop(suffix)
        known = None
    if known is None:
        known = kept.contexts[suffix] = FrozenContext(model, suffix, **kept.options)
        model.tt_adapter_suffix = suffix  # type: ignore[assignment]  # no weight can stand for it
    return known


def suffix_logits(
    model: nn.Module, inputs: Mapping[str, Any], candidates: Tensor, suffix: int
) -> Tensor:
    """Compute logits after the last token of each row, the adapters acting on the last ones only.

    Args:
        model: see :class:`FrozenContext`.
        inputs: ``input_ids`` and ``attention_mask``, (B, T), padded on the right.
        candidates: int64 (C,), the token ids whose logits are needed.
        suffix: number of last tokens on which the adapters act.

    Returns:
        (B, C) in the dtype of the model's logits.

    Raises:
        ValueError: see :meth:`FrozenContext.inputs`.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    last = ids.new_full((len(ids),), suffix - 1)
    with context_of(model, suffix).inputs(ids, mask) as tokens:
        return candidate_logits(model, tokens, last, candidates)
