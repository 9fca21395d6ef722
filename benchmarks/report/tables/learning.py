"""The tables of what is learnt: the suite ``learning``."""

from collections.abc import Sequence
from typing import Any

from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import line, percent

# What docs/learning.md calls the tasks of benchmarks.subjects.learning_tasks.
TASKS = {
    "film": "film reviews",
    "source": "source of a sentence",
    "debian": "sections of Debian packages",
    "syllogism": "syllogisms",
}
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
    lines = [line(titles), line(["---"] * len(titles))]
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
