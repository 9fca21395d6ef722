"""Lines and numbers of the tables, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure.harness import Row

NO_GAIN = "no gain at this scale"
"""What an experiment says that neither works, by its criterion, nor is worse."""


def line(cells: Sequence[object]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(titles: Sequence[str]) -> list[str]:
    """Return the first two lines of a table."""
    return [line(titles), line(["---"] * len(titles))]


def percent(
    config: Mapping[str, Any] | None, unit: str = "%", digits: int = 1, interval: bool = True
) -> str:
    """Return a mean, with its interval, of what is a fraction; a dash for nothing."""
    if config is None:
        return "-"
    mean = f"{100 * config['mean']:.{digits}f}{unit}"
    if "ci95_low" not in config or not interval:
        return mean
    low, high = (f"{100 * config[end]:.{digits}f}" for end in ("ci95_low", "ci95_high"))
    return f"{mean} ({low} to {high})"


def measured(row: Row) -> tuple[str, str]:
    """Return mean and interval in percent."""
    config = row["config"]
    low, high = config.get("ci95_low"), config.get("ci95_high")
    interval = "-" if low is None else f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{100 * config['mean']:.1f}%", interval


def cells_of(
    rows: Sequence[Row], benchmark: str, *keys: str, **wanted: object
) -> dict[tuple[Any, ...], dict[tuple[str, str], float]]:
    """Group the medians of a suite's rows by some of their keys, then by provider and metric."""
    found: dict[tuple[Any, ...], dict[tuple[str, str], float]] = {}
    for row in rows:
        if row["benchmark"] == benchmark and all(row[k] == v for k, v in wanted.items()):
            cell = found.setdefault(tuple(row[key] for key in keys), {})
            cell[row["provider"], row["metric"]] = row["median"]
    return found
