"""The tables of what is learnt: the suites ``learning`` and ``rates``."""

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import head, line, percent

# What docs/learning.md calls the tasks of benchmarks.subjects.learning_tasks.
TASKS = {
    "film": "film reviews",
    "source": "source of a sentence",
    "debian": "sections of Debian packages",
    "syllogism": "syllogisms",
}
NO_RATES = "No rows yet: `python -m benchmarks rates --json FILE` makes them."
NOT_LEARNT = "No rows yet: `python -m benchmarks learning --json FILE` makes them."


def learning_table(rows: Sequence[Row], brief: bool = False) -> str:
    """Return the means over the seeds of ``learning``, a task a line.

    Args:
        rows: of all suites.
        brief: only the accuracies and the share of AdamW's gain, without intervals.
    """
    named = {
        (row["mode"], row["provider"], row["metric"]): row["config"]
        for row in rows
        if (row["benchmark"], row["op"]) == ("learning", "summary")
    }
    found = [task for task in TASKS if (task, "adazeta", "test_accuracy") in named]
    if not found:
        return NOT_LEARNT
    accuracies = ("zero_shot", "bias_only", "adazeta", "adamw")
    costs = ("trained_parameters", "evaluations", "seconds")
    titles: tuple[str, ...] = (
        "task", "zero-shot", "bias only", "AdaZeta", "AdamW, same numbers", "share of AdamW's gain"
    )  # fmt: skip
    if not brief:
        titles += (
            "AdaZeta over bias only",
            "classes",
            "numbers",
            "evaluations",
            "seconds",
            "seeds",
        )
    lines = head(titles)
    for task in found:
        ours = named[task, "adazeta", "test_accuracy"]
        share = named.get((task, "adazeta", "share_of_first_order"))
        cells: list[Any] = [TASKS[task]]
        for provider in accuracies:
            cells.append(percent(named[task, provider, "test_accuracy"], interval=not brief))
        cells.append(percent(share, digits=0, interval=not brief))
        if not brief:
            cells += [
                percent(named[task, "adazeta", "gain_over_bias_only"], " points"),
                ours["classes"],
                *(f"{named[task, 'adazeta', metric]['mean']:,.0f}" for metric in costs),
                len(ours["values"]),
            ]
        lines.append(line(cells))
    return "\n".join(lines)


def rates_table(rows: Sequence[Row]) -> str:
    """Return what the measured rate reached beside the rates of the grid, a task a line."""
    grid = _by_provider(rows, "grid")
    many = _by_provider(rows, "auto")
    if not grid:
        return NO_RATES
    rates = sorted({p for task in grid.values() for p in task if p != "auto"}, key=_rate)
    titles = ("task", *(f"{_rate(name):g}" for name in rates), "`auto`", "its rate",
              "`auto` less the best", "one standard error", "diverged")  # fmt: skip
    lines = head(titles)
    for task in (task for task in TASKS if task in grid):
        found = grid[task]
        means = {name: _mean(metrics["test_accuracy"]) for name, metrics in found.items()}
        best, auto = max(means[name] for name in rates), found["auto"]
        count = sum(row["config"]["test"] for row in auto["test_accuracy"])
        error = math.sqrt(best * (1 - best) / count)
        runs = [*auto["diverged"], *many.get(task, {}).get("auto", {}).get("diverged", [])]
        lines.append(line((
            TASKS[task], *(f"{100 * means[name]:.1f}%" for name in (*rates, "auto")),
            ", ".join(f"{row['median']:.3g}" for row in auto["rate"]),
            f"{100 * (means['auto'] - best):+.1f} points", f"{100 * error:.1f} points",
            f"{sum(row['median'] for row in runs):.0f} of {len(runs)}",
        )))  # fmt: skip
    return "\n".join(lines)


def _by_provider(rows: Sequence[Row], op: str) -> dict[str, dict[str, dict[str, list[Row]]]]:
    """Group the rows of the suite ``rates``: task, rate, metric, and those of the seeds."""
    found: dict[str, dict[str, dict[str, list[Row]]]] = {}
    for row in rows:
        if (row["benchmark"], row["op"]) == ("rates", op):
            metrics = found.setdefault(row["mode"], {}).setdefault(row["provider"], {})
            metrics.setdefault(row["metric"], []).append(row)
    return found


def _rate(provider: str) -> float:
    return float(provider.removeprefix("rate_"))


def _mean(rows: Sequence[Row]) -> float:
    return sum(float(row["median"]) for row in rows) / len(rows)
