"""The table of the feature mixer beside tensor trains, and what it says: the suite ``mixer``."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import NO_GAIN, head, line

ARMS = {
    "last_10": "tensor trains, last ten blocks",
    "last_2": "tensor trains, last two blocks",
    "last_1": "tensor trains, last block",
    "mixer": "mixer, last block",
    "mixer_2": "mixer, last block but one",
    "no_redundancy": "mixer, last block, each feature counted once",
    "no_features": "mixer, last block, without features",
}
EVALUATIONS, TIME, GRADIENTS = "equal evaluations", "equal time", "gradients at "
NO_MIXER = "No rows yet: `python -m benchmarks mixer --json FILE` makes them."
_COST = 0.25  # of an evaluation of last_10

# Arm and kind of run -> metric -> seed -> value.
Found = Mapping[tuple[str, str], Mapping[str, Mapping[float, float]]]


def mixer_table(rows: Sequence[Row]) -> str:
    """Return costs and accuracies of the arms, and below what docs/related.md asks of them."""
    found: dict[tuple[str, str], dict[str, dict[float, float]]] = {}
    texts: Any = None
    for row in rows:
        if (row["benchmark"], row["op"]) == ("mixer", "train"):
            kind = row["mode"].partition(", ")[2]
            metrics = found.setdefault((row["provider"], kind), {})
            metrics.setdefault(row["metric"], {})[row["x_value"]] = row["median"]
            metrics.setdefault("steps", {})[row["x_value"]] = row["config"]["steps"]
            texts = row["config"]["test"]
    arms = [arm for arm in ARMS if (arm, EVALUATIONS) in found]
    if not arms:
        return NO_MIXER
    lines = head(
        (
            "adapters", "trained numbers", "an evaluation", "kept of a text", "equal evaluations",
            "equal time", "steps in that time", "seeds",
        )
    )  # fmt: skip
    for arm in arms:
        of = found[arm, EVALUATIONS]
        timed = of if arm == "last_10" else found.get((arm, TIME), {})
        in_time = timed.get("test_accuracy")
        steps = timed.get("steps")
        cells = (
            ARMS[arm],
            f"{_mean(of['trained_numbers']):,.0f}",
            f"{1000 * _seconds(of):,.0f} ms",
            f"{_mean(of['kept_bytes']) / 1024:,.0f} KiB",
            f"{_mean(of['test_accuracy']):.1%}",
            f"{_mean(in_time):.1%}" if in_time else "-",
            f"{_mean(steps):,.0f}" if steps else "-",
            len(of["test_accuracy"]),
        )
        lines.append(line(cells))
    said = verdicts(found)
    said += by_gradients(found)
    return "\n".join([*lines, "", f"{texts:,} test texts.", *(["", *said] if said else [])])


def by_gradients(found: Found) -> list[str]:
    """Return the accuracies that the adapters reach by gradients, with the better rate of each."""
    best: dict[str, tuple[float, str, float]] = {}
    for (arm, kind), metrics in found.items():
        if kind.startswith(GRADIENTS):
            accuracy, steps = _mean(metrics["test_accuracy"]), _mean(metrics["steps"])
            rate = kind.removeprefix(f"{GRADIENTS}rate_")
            best[arm] = max(best.get(arm, (0.0, "", 0.0)), (accuracy, rate, steps))
    if not best:
        return []
    told = "; ".join(
        f"{ARMS[arm]} {accuracy:.1%} (rate {rate})" for arm, (accuracy, rate, _) in best.items()
    )
    steps = max(steps for _, _, steps in best.values())
    return [f"- By gradients, {steps:.0f} steps of AdamW: {told}."]


def verdicts(found: Found) -> list[str]:
    """Return what the rows say by the criterion, as far as there are seeds of all that it asks."""
    needed = [("mixer", TIME), ("last_1", TIME), ("no_features", TIME)]
    if not all(key in found for key in [*needed, ("last_10", EVALUATIONS), ("mixer", EVALUATIONS)]):
        return []
    over_last = _gain(found, "mixer", "last_1", TIME)
    over_none = _gain(found, "mixer", "no_features", TIME)
    costs = _seconds(found["mixer", EVALUATIONS]) / _seconds(found["last_10", EVALUATIONS])
    word = NO_GAIN
    if over_last < -1 - 1e-9:
        word = "worse"
    elif over_last >= 1 - 1e-9 and over_none >= -1e-9 and costs <= _COST:
        word = "works"
    last, none, ten = (
        _gain(found, "mixer", other, EVALUATIONS) for other in ("last_1", "no_features", "last_10")
    )
    return [
        f"- The mixer: **{word}**. An evaluation costs {costs:.2f} of one of the last ten blocks; "
        f"in equal time it has {over_last:+.1f} points over tensor trains in the last block, and "
        f"{over_none:+.1f} over itself without features.",
        f"- At equal evaluations these are {last:+.1f} and {none:+.1f} points. Over the last ten "
        f"blocks it has {ten:+.1f} points then, and {_over_base(found):+.1f} in equal time.",
    ]


def _gain(found: Found, arm: str, other: str, kind: str) -> float:
    """Return the points of accuracy of one arm over another, over the seeds that both have."""
    return _points(found[arm, kind]["test_accuracy"], found[other, kind]["test_accuracy"])


def _over_base(found: Found) -> float:
    base = found["last_10", EVALUATIONS]["test_accuracy"]
    return _points(found["mixer", TIME]["test_accuracy"], base)


def _points(one: Mapping[float, float], other: Mapping[float, float]) -> float:
    seeds = one.keys() & other.keys()
    return 100 * sum(one[seed] - other[seed] for seed in seeds) / max(len(seeds), 1)


def _seconds(of: Mapping[str, Mapping[float, float]]) -> float:
    """Return the processors' seconds of an evaluation, steps and all, the mean over the seeds."""
    seconds, evaluations = of["processor_seconds"], of["evaluations"]
    return _mean({seed: seconds[seed] / evaluations[seed] for seed in seconds})


def _mean(values: Mapping[float, float]) -> float:
    return sum(values.values()) / len(values)
