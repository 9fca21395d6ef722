"""Decoding of a population: one batch whose rows are members times prompts.

The rows of a stack (:meth:`adazeta.parameters.space.ParameterSpace.stacked`) are decoded together,
so the frozen weights are read once a token for all members. It is the loop of transformers'
``generate`` for greedy search and for sampling, with three differences: rows that have ended leave
the batch, and their group the stack; the noise of sampling is that of :mod:`adazeta.forward.gumbel`
and belongs to the row; and the keys and values of the prompts may come from elsewhere
(:mod:`adazeta.forward.prompt_states`).
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from adazeta.forward.gumbel import gumbel
from adazeta.forward.head import contiguous_head

_WORTH = 0.75  # rows are dropped once at most this share of them would be left

Ended = Callable[[int, Sequence[int]], bool]
Start = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Decoding:
    """How completions are made.

    Attributes:
        max_new_tokens: most tokens of a completion.
        temperature: 0 takes the likeliest token; else logits are divided by it and sampled from.
        ends: tokens that end a completion and do not belong to it.

    Raises:
        ValueError: a value is out of its range.
    """

    max_new_tokens: int
    temperature: float = 0.0
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be 0 (the likeliest token) or above, got {self.temperature}"
            )


@torch.no_grad()
def decode(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    decoding: Decoding,
    *,
    seeds: Tensor | None = None,
    groups: int = 1,
    keep_groups: Callable[[Tensor], None] | None = None,
    ended: Ended | None = None,
    start: Start | None = None,
    seen: list[Tensor] | None = None,
) -> list[list[int]]:
    """Complete prompts.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        input_ids: int64 (N, T), padded on the left.
        attention_mask: (N, T).
        decoding: how.
        seeds: int64 (N,), of the rows' noise; needed with a temperature.
        groups: equal, consecutive groups of rows that are computed with parameters of their own.
        keep_groups: called with the indices of the groups that are left when some have ended; None
            where groups cannot be taken away.
        ended: tells, from a row's index and its tokens, whether it has ended otherwise, e.g. by a
            stop string.
        start: returns a cache with the keys and values of all tokens but the last, given
            ``(input_ids, attention_mask)``; by default the model computes them.
        seen: gets the logits of each token, float (rows, V), for tests.

    Returns:
        The tokens of each completion, without one of ``decoding.ends``.

    Raises:
        ValueError: sampling without seeds, or the last column is padding.
    """
    count = len(input_ids)
    if decoding.temperature and seeds is None:
        raise ValueError(f"temperature={decoding.temperature:g} samples, which needs seeds of rows")
    if not bool(attention_mask[:, -1].all()):
        raise ValueError("prompts are to be padded on the left, and none is empty")
    accepted = inspect.signature(model.forward).parameters
    few = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    named = "cache" if "cache" in accepted else "past_key_values"
    ends = set(decoding.ends)
    tokens: list[list[int]] = [[] for _ in range(count)]
    rows = torch.arange(count).view(groups, -1)  # where each row of the batch came from
    alive = torch.ones(count, dtype=torch.bool)
    mask = attention_mask.long()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    cache: Any = DynamicCache(config=model.config)
    ids = input_ids
    if start is not None:
        cache, ids, positions = start(input_ids, mask), ids[:, -1:], positions[:, -1:]
    for place in range(decoding.max_new_tokens):
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **few}
        if "position_ids" in accepted:
            inputs["position_ids"] = positions
        with contiguous_head(model):
            logits = model(**inputs, **{named: cache}, use_cache=True).logits[:, -1]
        if seen is not None:
            seen.append(logits)
        chosen = _choose(logits, decoding.temperature, seeds, place)
        for row, token in zip(rows.flatten().tolist(), chosen.tolist(), strict=True):
            if not alive[row]:
                continue
            if token in ends:
                alive[row] = False
                continue
            tokens[row].append(token)
            if ended is not None and ended(row, tokens[row]):
                alive[row] = False
        if place + 1 == decoding.max_new_tokens or not bool(alive.any()):
            break
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = functional.pad(mask, (0, 1), value=1)
        kept = _left(alive[rows], keep_groups is not None)
        if kept is None:
            continue
        which, places = kept
        if len(which) < len(rows):
            assert keep_groups is not None
            keep_groups(which)
        chosen_rows = (which[:, None] * rows.shape[1] + places).flatten()
        rows = rows[which].gather(1, places)
        at = chosen_rows.to(ids.device)
        ids, positions, mask = ids[at], positions[at], mask[at]
        seeds = None if seeds is None else seeds[at]
        cache.batch_select_indices(at)
    return tokens


def _choose(logits: Tensor, temperature: float, seeds: Tensor | None, place: int) -> Tensor:
    """Return the next token of each row, int64 (N,)."""
    if not temperature:
        return logits.argmax(-1)
    assert seeds is not None
    different, index = seeds.unique(return_inverse=True)
    noise = gumbel(different, place, logits.shape[-1])
    return (logits.float() / temperature + noise[index]).argmax(-1)


def _left(alive: Tensor, whole: bool) -> tuple[Tensor, Tensor] | None:
    """Choose what stays in the batch, if dropping the rest is worth its copies.

    Groups stay equally large: one with fewer rows left keeps some that have ended.

    Args:
        alive: bool (groups, rows of each).
        whole: whether groups may go.

    Returns:
        The groups that stay, (G,), and the places in each of the rows that do, (G, R).
    """
    counts = alive.sum(1)
    which = counts.nonzero()[:, 0] if whole else torch.arange(len(alive))
    size = int(counts.max())
    if len(which) * size > _WORTH * alive.numel():
        return None
    order = (~alive[which]).long().argsort(dim=1, stable=True)
    return which, order[:, :size].sort(dim=1).values
