"""The table of a benchmark: our results beside those that papers print."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from adazeta.tasks.intervals import wilson


def table_of(
    cells: Sequence[Mapping[str, Any]],
    published: Sequence[Mapping[str, Any]],
    *,
    model: str,
) -> dict[str, Any]:
    """Put results together.

    Args:
        cells: of :meth:`adazeta.protocols.cells.Bench.run`.
        published: of :func:`adazeta.protocols.suites.published_rows`.
        model: that was run here.

    Returns:
        ``tasks``, and ``rows`` with ``model``, ``method``, ``origin`` (``"here"`` or
        ``"published"``), ``source`` and, in percent by task, ``values``; ours have ``spread``, the
        standard deviation over seeds, or the 95% ``interval`` of an accuracy of one seed.
    """
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    rows: list[dict[str, Any]] = []
    for method in dict.fromkeys(cell["method"] for cell in cells):
        ours = [cell for cell in cells if cell["method"] == method]
        row: dict[str, Any] = {
            "model": model,
            "method": method,
            "origin": "here",
            "source": "this run",
            "seeds": sorted({cell["seed"] for cell in ours}),
            "steps": sorted({cell["steps"] for cell in ours}),
            "values": {},
            "spread": {},
            "interval": {},
        }
        for task in tasks:
            found = [cell for cell in ours if cell["task"] == task]
            values = [cell["metrics"][cell["metric"]] for cell in found]
            if not values:
                continue
            row["values"][task] = 100 * statistics.fmean(values)
            if len(values) > 1:
                row["spread"][task] = 100 * statistics.stdev(values)
            elif found[0]["metric"] == "accuracy":
                low, high = wilson(values[0], found[0]["examples"]["test"])
                row["interval"][task] = [100 * low, 100 * high]
        rows.append(row)
    for other in published:
        printed = {task: other["values"][task] for task in tasks if task in other["values"]}
        if printed:
            rows.append(
                {
                    "model": other["model"],
                    "method": other["method"],
                    "origin": "published",
                    "source": other["source"],
                    "values": printed,
                }
            )
    metrics = {cell["task"]: cell["metric"] for cell in cells}
    return {"tasks": tasks, "metrics": metrics, "rows": rows}


def as_markdown(table: Mapping[str, Any]) -> str:
    """Write a table as Markdown; a cell without a number is empty."""
    heads = [f"{task} ({table['metrics'][task]})" for task in table["tasks"]]
    lines = [
        "| model | method | from | " + " | ".join(heads) + " |",
        "|---" * 3 + "|---:" * len(heads) + "|",
    ]
    for row in table["rows"]:
        origin = "here" if row["origin"] == "here" else f"published: {row['source']}"
        if row["origin"] == "here":
            origin += f" ({_plural(len(row['seeds']), 'seed')}, {_range(row['steps'])} steps)"
        shown = [_shown(row, task) for task in table["tasks"]]
        lines.append(f"| {row['model']} | {row['method']} | {origin} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _shown(row: Mapping[str, Any], task: str) -> str:
    if task not in row["values"]:
        return ""
    text = f"{row['values'][task]:.1f}"
    if task in row.get("spread", {}):
        text += f" ± {row['spread'][task]:.1f}"
    elif task in row.get("interval", {}):
        low, high = row["interval"][task]
        text += f" [{low:.1f}, {high:.1f}]"
    return text


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _range(numbers: Sequence[int]) -> str:
    low, high = numbers[0], numbers[-1]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
