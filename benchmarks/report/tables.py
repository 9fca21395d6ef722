"""``evidence``: tables of docs/methods.md and README.md, from the registry and measured rows."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from adazeta.methods import EXAMPLE, table
from benchmarks.measure.compare import RESULTS, load
from benchmarks.measure.harness import Row

_ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = _ROOT / "docs" / "methods.md"
README = _ROOT / "README.md"
ROWS = RESULTS / "methods.json"
ACCURACY = RESULTS / "accuracy.json"
TIMES = RESULTS / "cpu.json"
# What README.md calls the placements of benchmarks.suites.step.
PLACEMENTS = {
    "adapters_all": "adapters in all layers",
    "adapters_last10": "adapters in the last 10 layers",
    "full": "all parameters",
}
# What README.md calls the methods of benchmarks.subjects.accuracy_methods.methods.
LABELS = {
    "adazeta_shared": "AdaZeta, one direction for the batch, eps 0.01",
    "adazeta_shared_auto": 'AdaZeta, one direction for the batch, `eps="auto"`',
    "adazeta_pairs": "AdaZeta, a direction for each pair, eps 0.01",
    "adazeta_example": "AdaZeta, a direction for each example, eps 0.01",
    "adazeta_example_auto": 'AdaZeta, a direction for each example, `eps="auto"`',
    "zo_sgd_tt": "ZO-SGD on TT adapters",
    "mezo_lora": "MeZO-LoRA, rank 8 in the same blocks",
    "mezo_full": "MeZO, all parameters",
    "tt_adamw": "TT adapters, AdamW (first-order, 40 steps)",
    "lora_adamw": "LoRA, rank 8 in the same blocks, AdamW (first-order, 40 steps)",
}
NOTHING = "No rows yet: `python -m benchmarks accuracy --methods all --json FILE` makes them."


def main(arguments: Sequence[str]) -> int:
    """Write the tables into the documents.

    Returns:
        The exit status: 0, or 1 with ``--check`` if they were others.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks evidence", description=__doc__)
    parser.add_argument("--json", type=Path, default=ROWS, help="rows of accuracy, of all methods")
    parser.add_argument("--accuracy", type=Path, default=ACCURACY, help="rows of README's table")
    parser.add_argument("--times", type=Path, default=TIMES, help="rows of step, for README")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(arguments)
    tables = {
        DOCUMENT: {"methods": methods_table(), "evidence": evidence_table(_summaries(given.json))},
        README: {
            "step": step_table(_rows(given.times)),
            "accuracy": accuracy_table(_summaries(given.accuracy)),
        },
    }
    changed = False
    for document, sections in tables.items():
        before = after = document.read_text(encoding="utf-8")
        for name, content in sections.items():
            after = filled(after, name, content)
        if not given.check:
            document.write_text(after, encoding="utf-8")
        changed = changed or after != before
    return int(given.check and changed)


def _rows(file: Path) -> list[Row]:
    return load(file) if file.is_file() else []


def _summaries(file: Path) -> list[Row]:
    """Return the rows of accuracy that summarise the runs of a method, the best first."""
    found = [r for r in _rows(file) if (r["benchmark"], r["op"]) == ("accuracy", "fine_tune")]
    return sorted(found, key=lambda row: -row["config"]["mean"])


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


def evidence_table(found: Sequence[Row]) -> str:
    """Return ``accuracy``'s summaries as a table, by what is trained."""
    if not found:
        return NOTHING
    titles = ("method", "trains", "rate", "test accuracy", "95% interval", "seeds", "evaluations")
    lines = [_line(titles), _line(["---"] * len(titles))]
    for row in sorted(found, key=lambda row: row["config"].get("trains", "")):
        config = row["config"]
        lines.append(_line((
            f"`{row['provider']}`", config.get("trains", "-"), config.get("learning_rate", "-"),
            *_measured(row), len(config["values"]), row["x_value"],
        )))  # fmt: skip
    return "\n".join(lines)


def accuracy_table(found: Sequence[Row]) -> str:
    """Return the summaries of the methods that README.md names."""
    titles = ("method", "rate", "test accuracy", "95% interval")
    lines = [_line(titles), _line(["---"] * len(titles))]
    for row in found:
        if row["provider"] in LABELS:
            rate = row["config"]["learning_rate"]
            lines.append(_line((LABELS[row["provider"]], f"{rate:g}", *_measured(row))))
    return "\n".join(lines)


def step_table(rows: Sequence[Row]) -> str:
    """Return the medians of ``step`` with one query, and how many times the reference's speed."""
    titles = ("step", "reference", "bare forwards", "ours", "ours with the padding")
    lines = [_line(titles), _line(["---"] * len(titles))]
    found: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for row in rows:
        if (row["benchmark"], row["x_name"], row["x_value"]) == ("step", "queries", 1):
            cell = found.setdefault((row["mode"], row["op"]), {})
            cell[row["provider"], row["metric"]] = row["median"]
    for mode in ("batch_16", "batch_4"):
        for op, label in PLACEMENTS.items():
            cell = found.get((mode, op), {})
            if not cell:
                continue
            named = f"{label}, batch {mode.removeprefix('batch_')}"
            times = [_time(cell, name) for name in ("reference", "floor", "adazeta")]
            lines.append(_line((named, *times, _time(cell, "adazeta_padded"))))
            if ("adazeta_cached", "time") in cell:
                lines.append(
                    _line(('the same, `cache_trunk="memory"`, warm', "", "", "",
                           _time(cell, "adazeta_cached")))
                )  # fmt: skip
    return "\n".join(lines)


def _time(cell: Mapping[tuple[str, str], float], provider: str) -> str:
    """Return a time, and if it is ours also the ratio."""
    time = f"{cell[provider, 'time'] / 1e3:.2f} s"
    if not provider.startswith("adazeta"):
        return time
    return f"{time}, **{cell[provider, 'speedup_over_reference']:.2f} times**"


def _measured(row: Row) -> tuple[str, str]:
    """Return mean and interval in percent."""
    config = row["config"]
    low, high = config.get("ci95_low"), config.get("ci95_high")
    interval = "-" if low is None else f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{100 * config['mean']:.1f}%", interval


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
