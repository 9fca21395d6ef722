"""The table of what rounded models win back, and what it says: the suite ``recovery``."""

import math
from collections.abc import Sequence

from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import NO_GAIN, head, line

ARMS = {
    "none": "nothing trained",
    "bias": "best bias, generated texts",
    "random": "random tokens",
    "generated": "generated texts",
    "hardest": "generated, the hardest half of twice as many",
    "real": "film reviews without labels",
    "labels": "film reviews with labels, no teacher",
}
NO_RECOVERY = "No rows yet: `python -m benchmarks recovery --json FILE` makes them."
SHARE = 0.3  # of the agreement lost by rounding that is to be won back

Found = dict[tuple[str, str], dict[int, Row]]


def recovery_table(rows: Sequence[Row]) -> str:
    """Return the arms' agreement and accuracy, and below what docs/related.md asks of them."""
    of: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in rows:
        if (row["benchmark"], row["op"]) == ("recovery", "train"):
            student, arm = row["mode"].split(" ")
            of.setdefault((student, arm, row["metric"]), {})[row["x_value"]] = row
    if not of:
        return NO_RECOVERY
    students = sorted({student for student, _, _ in of}, reverse=True)
    lines = head(("student", "texts", "agreement", "won back", "accuracy", "divergence", "seeds"))
    for student in students:
        lost = 1 - _mean(of.get((student, "none", "agreement"), {}))
        for arm, title in ARMS.items():
            found = of.get((student, arm, "agreement"))
            if found:
                gain = _mean(found) - (1 - lost)
                won = "-" if arm == "none" or not lost > 0 else f"{gain / lost:.0%}"
                accuracy, divergence = (
                    _mean(of[student, arm, metric]) for metric in ("accuracy", "divergence")
                )
                lines.append(
                    line((student, title, f"{_mean(found):.1%}", won, f"{accuracy:.1%}",
                          f"{divergence:.3f}", len(found)))
                )  # fmt: skip
    agreements: Found = {
        (s, a): found for (s, a, metric), found in of.items() if metric == "agreement"
    }
    said = [text for student in students for text in verdicts(agreements, student)]
    first = next(iter(of.values()))
    teacher = next(iter(first.values()))["config"]["teacher_accuracy"]
    return "\n".join(
        [*lines, "", f"- The teacher's accuracy is {teacher:.1%}.", *(f"- {text}" for text in said)]
    )


def verdicts(found: Found, student: str) -> list[str]:
    """Return a sentence for each of what would count, as far as there are rows."""
    none = found.get((student, "none"))
    if not none:
        return []
    if (student, "generated") not in found:
        with_bias = next(iter(none.values()))["config"]["with_bias"]
        return [
            f"{student}: nothing was trained; with the best bias its accuracy is {with_bias:.1%}, "
            "before any training."
        ]
    said = []
    generated, bound = found[student, "generated"], _error(none)
    seeds = sorted(set(none) & set(generated))
    shares = [
        (_value(generated[seed]) - _value(none[seed])) / max(1 - _value(none[seed]), 1e-12)
        for seed in seeds
    ]
    shown = ", ".join(f"{share:.0%}" for share in shares)
    random = found.get((student, "random"))
    if random and len(seeds) >= 3:
        beats = _mean(generated) > _mean(random)
        fine = min(shares) >= SHARE and beats
        worse = _mean(generated) < _mean(none) - bound
        word = "works" if fine else "worse" if worse else NO_GAIN
        said.append(
            f"{student}, generated texts: **{word}**; they win back {shown} of the agreement lost, "
            f"and have {100 * (_mean(generated) - _mean(random)):+.1f} points over random tokens."
        )
    else:
        said.append(
            f"{student}, generated texts: open, as there are {len(seeds)} seeds of three"
            f"{'' if random else ' and no random tokens'}; so far {shown} of the agreement lost."
        )
    if (student, "bias") in found:
        said.append(_compared(found, student, "generated", "bias", "more than a bias"))
    if (student, "hardest") in found:
        said.append(_compared(found, student, "hardest", "generated", "the hardest half"))
    if {(student, "real"), (student, "labels")} <= found.keys():
        change = _mean(found[student, "real"]) - _mean(found[student, "labels"])
        said.append(
            f"{student}: on the same reviews the teacher gives {100 * change:+.1f} points of "
            "agreement over labels."
        )
    return said


def _compared(found: Found, student: str, arm: str, other: str, what: str) -> str:
    """Say whether one arm agrees more with the teacher than another."""
    change = _mean(found[student, arm]) - _mean(found[student, other])
    bound = _error(found[student, other])
    word = NO_GAIN
    if abs(change) > bound:
        word = "works" if change > 0 else "worse"
    return (
        f"{student}, {what}: **{word}**, {100 * change:+.1f} points of agreement, where a "
        f"standard error is {100 * bound:.1f}."
    )


def _value(row: Row) -> float:
    return float(row["median"])


def _mean(found: dict[int, Row]) -> float:
    values = [_value(row) for row in found.values()]
    return sum(values) / len(values) if values else math.nan


def _error(found: dict[int, Row]) -> float:
    """Return the standard error of an agreement, from the number of texts."""
    share = _mean(found)
    return math.sqrt(share * (1 - share) / next(iter(found.values()))["config"]["test"])
