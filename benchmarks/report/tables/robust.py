"""The table of shares of adapters on other domains, and what it says: the suite ``robust``."""

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import head, line

ARMS = ("linear", "drop", "average", "all", "relu")
OTHERS = ("tweet", "amazon", "editorial")
NO_ROBUST = "No rows yet: `python -m benchmarks robust --json FILE` makes them."
_NOTHING = "no gain at this scale of things"

Found = dict[tuple[str, str], list[Row]]


def robust_table(rows: Sequence[Row]) -> str:
    """Return the accuracies at each scale, and below what docs/related.md asks of them."""
    found: Found = {}
    for row in rows:
        if (row["benchmark"], row["op"], row["metric"]) == ("robust", "train", "accuracy"):
            found.setdefault((row["mode"], row["provider"]), []).append(row)
    arms = [arm for arm in ARMS if (arm, "film") in found]
    if not arms:
        return NO_ROBUST
    scales = found[arms[0], "film"][0]["config"]["scales"]
    titles = ("arm", "texts", *(f"scale {scale:g}" for scale in scales), "seeds")
    lines = head(titles)
    for arm in arms:
        seeds = len(found[arm, "film"])
        for name, values in (("film reviews", _film(found, arm)), ("others", _others(found, arm))):
            lines.append(line((arm, name, *(f"{value:.1%}" for value in values), seeds)))
    return "\n".join([*lines, "", *(f"- {text}" for text in verdicts(found, arms, scales))])


def verdicts(found: Found, arms: Sequence[str], scales: Sequence[float]) -> list[str]:
    """Return a sentence for each of what would count, as far as there are rows."""
    said = []
    if {"linear", "relu"} <= set(arms):
        change = 100 * (_film(found, "linear")[-1] - _film(found, "relu")[-1])
        word = "works" if change >= -1 else "worse"
        said.append(f"Without an activation: **{word}**, {change:+.1f} points on film reviews.")
    said += [f"Re-scaling, {arm}: {_rescaling(found, arm, scales)}." for arm in arms]
    if {"linear", "drop"} <= set(arms):
        with_it, without = (max(_others(found, arm)) for arm in ("drop", "linear"))
        bound = _error(found, "linear", _others(found, "linear").index(without))
        word = _NOTHING
        if abs(with_it - without) > bound:
            word = "works" if with_it > without else "worse"
        said.append(
            f"Dropping: **{word}**, {100 * (with_it - without):+.1f} points at the best scale of "
            f"each, where a standard error is {100 * bound:.1f}."
        )
    if {"linear", "average"} <= set(arms):
        changes = [
            100 * (one - other)
            for one, other in zip(
                _by_seed(found, "average"), _by_seed(found, "linear"), strict=False
            )
        ]
        word = "works" if min(changes) >= -0.5 else "worse"
        shown = ", ".join(f"{change:+.1f}" for change in changes)
        said.append(f"An average and a constant rate: **{word}**, {shown} points on the dev texts.")
    return said


def _rescaling(found: Found, arm: str, scales: Sequence[float]) -> str:
    film, others = _film(found, arm), _others(found, arm)
    ends, least = max(others[0], others[-1]), (film[0] + film[-1]) / 2
    fine = [
        place
        for place in range(1, len(scales) - 1)
        if others[place] >= ends - _error(found, arm, place) and film[place] >= least
    ]
    best = max(fine or range(1, len(scales) - 1), key=lambda place: others[place])
    word = "works" if fine else _NOTHING
    gain, error = 100 * (others[best] - ends), 100 * _error(found, arm, best)
    return (
        f"**{word}**, at {scales[best]:g} the others have {gain:+.1f} points over the better end "
        f"(a standard error is {error:.1f}), film reviews {100 * (film[best] - film[-1]):+.1f} "
        "over scale 1"
    )


def _mean(of: Sequence[Row]) -> list[float]:
    """Return the mean accuracies over the seeds, at each scale."""
    values = [row["config"]["accuracies"] for row in of]
    return [sum(each) / len(each) for each in zip(*values, strict=True)]


def _film(found: Found, arm: str) -> list[float]:
    return _mean(found[arm, "film"])


def _others(found: Found, arm: str) -> list[float]:
    """Return the means over the other domains, at each scale."""
    every = [_mean(found[arm, name]) for name in OTHERS]
    return [sum(each) / len(each) for each in zip(*every, strict=True)]


def _error(found: Found, arm: str, place: int) -> float:
    """Return the standard error of such a mean, from the numbers of texts."""
    squares = 0.0
    for name in OTHERS:
        share: float = _mean(found[arm, name])[place]
        squares += share * (1 - share) / found[arm, name][0]["config"]["texts"]
    return math.sqrt(squares) / len(OTHERS)


def _by_seed(found: Found, arm: str) -> list[Any]:
    """Return the accuracies on the dev texts at scale 1, in the order of the seeds."""
    ordered = sorted(found[arm, "dev"], key=lambda row: row["x_value"])
    return [row["config"]["accuracies"][-1] for row in ordered]
