"""Compare fresh rows with committed ones of the same machine class."""

import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.measure.harness import Row

RESULTS = Path(__file__).parents[1] / "results"
IDENTITY = (
    "benchmark", "op", "provider", "mode", "dtype", "x_name", "x_value", "metric", "device",
)  # fmt: skip
# Ratios of two runs on one machine differ by a tenth or so; this much is worth a look. Times are
# judged only where nothing was timed beside them, since the machine's own speed varies by more.
TOLERANCE = 1.25


def identity(row: Row) -> tuple[object, ...]:
    """Return what two rows of the same measurement share."""
    return tuple(row[key] for key in IDENTITY)


def _is_ratio(row: Row) -> bool:
    return str(row["metric"]).startswith("speedup_over_")


def _timed(row: Row) -> tuple[object, ...]:
    """Return what the rows of one timing share."""
    return tuple(row[key] for key in IDENTITY if key != "metric")


def load(place: Path) -> list[Row]:
    """Read the rows of a JSON file, or of all JSON files of a folder."""
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    return [row for file in files for row in _list_of(file)]


def _list_of(file: Path) -> list[Row]:
    """Return a file's rows; other JSON in the results (not a list of rows) counts as none."""
    content = json.loads(file.read_text())
    if not isinstance(content, list):
        return []
    return [row for row in content if isinstance(row, dict) and "provider" in row]


def report(fresh: Iterable[Row], committed: Iterable[Row]) -> tuple[list[str], int]:
    """Describe how fresh times and speed-ups relate to committed ones.

    Args:
        fresh: rows of this run.
        committed: rows to compare with; those of other machine classes are ignored.

    Returns:
        One line per row that both have, and how many of them got worse by more than ``TOLERANCE``:
        of ratios to what was timed in turn with it, or of a time that has none.
    """
    known = {identity(row): row for row in committed}
    fresh = list(fresh)
    compared = {_timed(row) for row in fresh if _is_ratio(row) and identity(row) in known}
    lines = []
    worse = 0
    for row in fresh:
        before = known.get(identity(row))
        higher_is_better = _is_ratio(row)
        if before is None or not (row["metric"] == "time" or higher_is_better):
            continue
        ratio = row["median"] / before["median"]
        loss = 1 / ratio if higher_is_better else ratio
        mark = ""
        judged = higher_is_better or _timed(row) not in compared
        # What the floor, or torch, takes is not ours to lose.
        if loss > TOLERANCE and judged and row["provider"].startswith("adazeta"):
            mark, worse = "  WORSE", worse + 1
        name = f"{row['benchmark']} {row['op']} {row['mode']} {row['x_name']}={row['x_value']:,}"
        lines.append(
            f"{name:44} {row['provider']:20} {row['metric']:22} {row['median']:10.3f} "
            f"{row['unit']:6} now / committed {ratio:5.2f}{mark}"
        )
    if fresh and not lines:
        device = fresh[0]["device"]
        classes = sorted({str(row["device"]) for row in known.values()})
        lines = [
            f"no committed result is of this machine class, {device!r}; there are "
            f"{', '.join(map(repr, classes)) or 'none'}. To compare later runs here, add one: "
            f"python -m benchmarks all --json benchmarks/results/NAME.json"
        ]
    return lines, worse
