"""The tables of what is learnt: the suites ``learning``, ``rates`` and ``forms``."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from adazeta.optim.rate import AUTO
from adazeta.tasks.intervals import wilson
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
NO_FORMS = "No rows yet: `python -m benchmarks forms --json FILE` makes them."
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
    found = _by_mode(rows, "rates")
    compared = [task for task in TASKS if len(found.get(task, {})) > 1 and AUTO in found[task]]
    if not compared:
        return NO_RATES
    rates = sorted({p for task in compared for p in found[task] if p != AUTO}, key=_rate)
    titles = ("task", *(f"{_rate(name):g}" for name in rates), "`auto`", "its rate",
              "`auto` less the best", "one standard error", "diverged")  # fmt: skip
    lines = head(titles)
    for task in compared:
        seeds = {row["x_value"] for name in rates for row in found[task][name]["test_accuracy"]}
        auto = {
            metric: [row for row in each if row["x_value"] in seeds]
            for metric, each in found[task][AUTO].items()
        }
        means = [_mean(found[task][name]["test_accuracy"]) for name in rates]
        best, ours = max(means), _mean(auto["test_accuracy"])
        winner = found[task][rates[means.index(best)]]["test_accuracy"]
        error = _error_of_difference(winner, auto["test_accuracy"])
        runs = found[task][AUTO]["diverged"]
        lines.append(line((
            TASKS[task], *(f"{100 * mean:.1f}%" for mean in (*means, ours)),
            ", ".join(f"{row['median']:.3g}" for row in auto["rate"]),
            f"{100 * (ours - best):+.1f} points", f"{100 * error:.1f} points",
            f"{sum(row['median'] for row in runs):.0f} of {len(runs)}",
        )))  # fmt: skip
    return "\n".join(lines)


def _error_of_difference(one: Sequence[Row], other: Sequence[Row]) -> float:
    """Return the standard error of a difference of accuracies.

    By the differences of the seeds; of one seed by the number of test texts alone.
    """
    values = {row["x_value"]: float(row["median"]) for row in one}
    both = [row["median"] - values[row["x_value"]] for row in other if row["x_value"] in values]
    if len(both) > 1:
        return statistics.stdev(both) / math.sqrt(len(both))
    mean = _mean(one)
    return math.sqrt(mean * (1 - mean) / one[0]["config"]["test"])


def forms_table(rows: Sequence[Row]) -> str:
    """Return what the forms of adapters reach on film reviews, a form a line."""
    found = _by_mode(rows, "forms")
    if not found:
        return NO_FORMS
    seeds = sorted({row["x_value"] for each in found.values() for row in each["adazeta"]["rate"]})
    lines = head(("`form`", *(f"seed {seed}" for seed in seeds), "mean", "95% interval",
                  "mean test loss", "seconds"))  # fmt: skip
    for form, providers in found.items():
        accuracies = providers["adazeta"]["test_accuracy"]
        each = [
            next(
                (f"{100 * row['median']:.1f}%" for row in accuracies if row["x_value"] == seed), ""
            )
            for seed in seeds
        ]
        # The seeds share their test texts, so that they do not narrow the interval of these.
        mean = _mean(accuracies)
        low, high = wilson(mean, accuracies[0]["config"]["test"])
        seconds = [row["median"] for row in providers["adazeta"]["seconds"]]
        lines.append(line((
            f"`{form}`", *each, f"{100 * mean:.1f}%", f"{100 * low:.1f} to {100 * high:.1f}%",
            f"{_mean(providers['adazeta']['test_loss']):.3f}",
            f"{min(seconds):.0f} to {max(seconds):.0f}",
        )))  # fmt: skip
    return "\n".join(lines)


def _by_mode(rows: Sequence[Row], benchmark: str) -> dict[str, dict[str, dict[str, list[Row]]]]:
    """Group the rows of a suite: mode, provider, metric, and those of the seeds."""
    found: dict[str, dict[str, dict[str, list[Row]]]] = {}
    for row in rows:
        if row["benchmark"] == benchmark:
            metrics = found.setdefault(row["mode"], {}).setdefault(row["provider"], {})
            metrics.setdefault(row["metric"], []).append(row)
    return found


def _rate(provider: str) -> float:
    return float(provider.removeprefix("rate_"))


def _mean(rows: Sequence[Row]) -> float:
    return sum(float(row["median"]) for row in rows) / len(rows)
