"""``evidence``: the tables of docs/methods.md, from the registry and from measured rows."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from adazeta.methods import EXAMPLE, table
from benchmarks.harness import Row

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
ROWS = Path(__file__).resolve().parent / "results" / "methods.json"
NOTHING = "No rows yet: `python -m benchmarks accuracy --methods all --json FILE` makes them."


def main(arguments: Sequence[str]) -> int:
    """Write the tables into the document.

    Returns:
        The exit status: 0, or 1 with ``--check`` if they were others.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks evidence", description=__doc__)
    parser.add_argument("--json", type=Path, default=ROWS, help="rows of accuracy")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(arguments)
    before = DOCUMENT.read_text(encoding="utf-8")
    rows = json.loads(given.json.read_text(encoding="utf-8")) if given.json.is_file() else []
    after = filled(filled(before, "methods", methods_table()), "evidence", evidence_table(rows))
    if not given.check:
        DOCUMENT.write_text(after, encoding="utf-8")
    return int(given.check and after != before)


def filled(text: str, name: str, content: str) -> str:
    """Return a document with what stands between the marks of a section replaced.

    Raises:
        ValueError: the document has no such section.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"the document has no section {name!r}: put {begin!r} and {end!r} in it")
    head, rest = text.split(begin, 1)
    return f"{head}{begin}{content}\n{end}{rest.split(end, 1)[1]}"


def methods_table() -> str:
    """Return the registry as a table."""
    titles = (
        "method", "paper", f"trained of {EXAMPLE} x {EXAMPLE}", "bytes beside it",
        "state, bytes each", "forwards", "passes",
    )  # fmt: skip
    lines = [_line(titles), _line(["---"] * len(titles))]
    for row in table():
        passes = f"{row['passes']}, refresh 1" if "refresh" in row["settings"] else row["passes"]
        lines.append(_line((
            f"`{row['method']}`", row["paper"], f"{row['trained']:,}",
            f"{row['direction_bytes']:,}", row["state_bytes"], row["forwards"], passes,
        )))  # fmt: skip
    return "\n".join(lines)


def evidence_table(rows: Sequence[Row]) -> str:
    """Return ``accuracy``'s summaries as a table: by what is trained, the best first."""
    found = [r for r in rows if r["benchmark"] == "accuracy" and r["op"] == "fine_tune"]
    if not found:
        return NOTHING
    found.sort(key=lambda row: (row["config"].get("trains", ""), -row["config"]["mean"]))
    titles = ("method", "trains", "rate", "test accuracy", "95% interval", "seeds", "evaluations")
    lines = [_line(titles), _line(["---"] * len(titles))]
    for row in found:
        config = row["config"]
        low, high = config.get("ci95_low"), config.get("ci95_high")
        interval = "-" if low is None else f"{100 * low:.1f} to {100 * high:.1f}"
        lines.append(_line((
            f"`{row['provider']}`", config.get("trains", "-"), config.get("learning_rate", "-"),
            f"{100 * config['mean']:.1f}%", interval, len(config["values"]), row["x_value"],
        )))  # fmt: skip
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
