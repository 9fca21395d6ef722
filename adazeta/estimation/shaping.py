"""From the scores of a population to the numbers that are differenced: shaping.

The objective is to be raised, and a probe's coefficient is a difference of losses; so what is
shaped here are losses, scores with the other sign. A table has a row for each member (evaluation)
and a column for each prompt of the batch. A score that is missing is NaN and stays so.

- ``"none"``: the scores as they are.
- ``"z-score"``: less the mean of all, divided by their standard deviation (OpenAI-ES in
  "Evolution strategies at scale", 2509.24372, does so with the members' mean scores).
- ``"prompt"``: less the mean of the prompt, divided by one standard deviation, that of all scores
  (EGGROLL, 2511.16652). A prompt on which all members score alike says nothing.
- ``"leave-one-out"``: less the mean of the prompt's other members (RLOO, 2402.14740).
- ``"rank"``: the centred rank among the members of the prompt, in [-1/2, 1/2]; equal scores share
  their mean rank (centred ranks as in OpenAI-ES, 1703.03864).
- ``"pass@K"``: what a member adds to the best of K, averaged over all sets of K members of the
  prompt that hold it (the transformed rewards of PKPO, 2505.15201), then as ``"prompt"``.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

SHAPES = ("none", "z-score", "prompt", "leave-one-out", "rank", "pass@K")


@dataclass(frozen=True)
class ScoreSummary:
    """What the scores of one estimate were.

    Attributes:
        mean: of all scores, NaN if all are missing.
        spread: their standard deviation.
        informative: share of pairs (a direction's two sides on one prompt) whose scores differ.
        pairs: number of pairs with both scores.
        missing: scores that are missing.
    """

    mean: float
    spread: float
    informative: float
    pairs: int
    missing: int


def check_shape(name: str) -> None:
    """Refuse a name that is none of :data:`SHAPES`, with a number for K.

    Raises:
        ValueError: it is not.
    """
    if name not in SHAPES[:-1] and not re.fullmatch(r"pass@[1-9]\d*", name):
        raise ValueError(
            f"shaping must be one of {', '.join(map(repr, SHAPES))} (K a number, e.g. 'pass@4'), "
            f"got {name!r}"
        )


class Shaping:
    """Shapes the losses of an estimate.

    Args:
        name: one of :data:`SHAPES`.
        share: for ``eps="auto"``: share of the completions that a perturbation is to change.

    Attributes:
        name, share: those.
        seen: summaries of the estimates since somebody took them away.

    Raises:
        ValueError: the name is unknown, or the share is not between 0 and 1.
    """

    def __init__(self, name: str = "prompt", *, share: float = 0.5) -> None:
        check_shape(name)
        if not 0 < share < 1:
            raise ValueError(f"the share of completions to change is between 0 and 1, got {share}")
        self.name, self.share = name, share
        self.seen: list[ScoreSummary] = []

    def check_members(self, members: int) -> None:
        """Refuse a shape that the members of a step are too few for.

        Args:
            members: evaluations of a step.

        Raises:
            ValueError: pass@K with fewer than K members.
        """
        if self.name.startswith("pass@") and members < (k := int(self.name[5:])):
            raise ValueError(
                f"shaping={self.name!r} takes the best of {k} members, and a step has {members} "
                "evaluations of each prompt; raise queries or choose a smaller K"
            )

    def __call__(self, tables: Sequence[Tensor], *, one_sided: bool) -> list[Tensor]:
        """Shape the losses of one estimate.

        Args:
            tables: float64 (members, prompts), of each data shard.
            one_sided: whether the first member is the parameters themselves; else members 2 q and
                2 q + 1 are the two sides of direction q.

        Returns:
            As many, in the same shapes. Scores that do not differ become 0.
        """
        whole = torch.cat(list(tables), 1)
        self.seen.append(summarise(whole, one_sided=one_sided))
        shaped = _shaped(self.name)(whole)
        return list(shaped.split([table.shape[1] for table in tables], 1))


def summarise(losses: Tensor, *, one_sided: bool) -> ScoreSummary:
    """Summarise losses (members, prompts), see :class:`Shaping`."""
    first, second = (losses[1:], losses[:1]) if one_sided else (losses[0::2], losses[1::2])
    gaps = (first - second)[(first - second).isfinite()]
    known = losses[losses.isfinite()]
    some = len(known) > 0
    return ScoreSummary(
        mean=-known.mean().item() if some else float("nan"),
        spread=known.std(correction=0).item() if some else float("nan"),
        informative=float((gaps != 0).double().mean()) if len(gaps) else 0.0,
        pairs=len(gaps),
        missing=losses.numel() - len(known),
    )


def _shaped(name: str) -> Callable[[Tensor], Tensor]:
    if name.startswith("pass@"):
        return lambda losses: _by_prompt(-best_of(-losses, int(name[5:])))
    return {
        "none": lambda losses: losses,
        "z-score": lambda losses: _over_spread(losses - losses.nanmean(), losses),
        "prompt": _by_prompt,
        "leave-one-out": _leave_one_out,
        "rank": _centred_ranks,
    }[name]


def _over_spread(shaped: Tensor, losses: Tensor) -> Tensor:
    known = losses[losses.isfinite()]
    spread = known.std(correction=0).item() if len(known) else 0.0
    return shaped / spread if spread > 0 else torch.zeros_like(shaped) * losses


def _by_prompt(losses: Tensor) -> Tensor:
    return _over_spread(losses - losses.nanmean(0), losses)


def _leave_one_out(losses: Tensor) -> Tensor:
    count = losses.isfinite().sum(0)
    others = (losses.nansum(0) - losses) / (count - 1)
    return torch.where(count > 1, losses - others, losses * 0)


def _centred_ranks(losses: Tensor) -> Tensor:
    # The number of smaller ones plus half of the equal ones: equal scores share a mean rank.
    below = (losses[None] < losses[:, None]).sum(1).double()
    equal = (losses[None] == losses[:, None]).sum(1).double() - 1
    count = losses.isfinite().sum(0)
    ranks = (below + equal / 2) / (count - 1).clamp_min(1) - 0.5
    return torch.where(count > 1, ranks, 0.0) + losses * 0  # a missing score stays missing


def best_of(scores: Tensor, k: int) -> Tensor:
    """Return what each member adds to the best of k of its prompt.

    The mean of a prompt's column, times the members over k, is the mean best score over all sets of
    k members; a member's number is its own part of that: the sum over the sets that hold it of the
    set's best score, over the number of all sets.

    Args:
        scores: float64 (members, prompts), NaN where one is missing.
        k: size of the sets.

    Returns:
        float64 (members, prompts); NaN where a score is missing, or fewer than k are there.
    """
    result = torch.full_like(scores, float("nan"))
    for column in range(scores.shape[1]):
        known = scores[:, column].isfinite().nonzero()[:, 0]
        count = len(known)
        if count < k:
            continue
        values, order = scores[known, column].sort()
        # The best of a set that holds member i is i itself, if the others are among those below,
        # else the largest one j: the rest of the set is then below j.
        own = [comb(i, k - 1) for i in range(count)]
        above = [comb(j - 1, k - 2) if k > 1 and j > 0 else 0 for j in range(count)]
        weighted = values * torch.tensor(above, dtype=values.dtype)
        tail = weighted.flip(0).cumsum(0).flip(0)
        tail = torch.cat([tail[1:], tail.new_zeros(1)])
        parts = values * torch.tensor(own, dtype=values.dtype) + tail
        result[known[order], column] = parts / comb(count, k)
    return result
