"""``evidence``: the tables of README.md and docs/, from the registry and measured rows."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from adazeta.methods import EXAMPLE, table
from benchmarks.measure.compare import RESULTS, load
from benchmarks.measure.harness import Row

_ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = _ROOT / "docs" / "methods.md"
BENCHMARKS = _ROOT / "docs" / "benchmarks.md"
LEARNING = _ROOT / "docs" / "learning.md"
QUANTISED = _ROOT / "docs" / "quantised.md"
README = _ROOT / "README.md"
ROWS = RESULTS / "methods.json"
ACCURACY = RESULTS / "accuracy.json"
TIMES = RESULTS / "cpu.json"
LEARNT = RESULTS / "learning.json"
HELD = RESULTS / "quantised.json"
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
# What the documents call the providers of the suite ``memory``.
MEMORY = {
    "inference": "inference",
    "adazeta_adapters": "AdaZeta, adapters",
    "adazeta_adapters_stacked": "AdaZeta, adapters, four evaluations in a forward",
    "adazeta_full": "AdaZeta, all parameters",
    "reference_adapters": "reference path, adapters",
    "reference_full": "reference path, all parameters",
    "lora_adamw": "AdamW, LoRA",
    "tt_adamw": "AdamW, TT adapters",
    "full_adamw": "AdamW, all parameters",
}
# Those that README.md shows, as a table and as a figure.
FEW = ("inference", "adazeta_adapters", "adazeta_full", "lora_adamw", "full_adamw")
# Widths of its batches, in README's words; 0 is the texts' own length.
WIDTHS = {128: "128 tokens a row", 0: "film reviews"}
# What docs/learning.md calls the tasks of benchmarks.subjects.learning_tasks.
TASKS = {
    "film": "film reviews",
    "source": "source of a sentence",
    "debian": "sections of Debian packages",
    "syllogism": "syllogisms",
}
# What docs/quantised.md calls the providers of benchmarks.suites.quantised.
BASES = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "gguf_kept": "`keep`, Q4_1, computed in float32",
    "gguf_kept_bfloat16": "`keep`, Q4_1, computed in bfloat16",
    "bnb_int8": "`bnb-int8`",
    "bnb_nf4": "`bnb-nf4`",
    "torchao_int8": "`torchao-int8`",
    "torchao_int8_dynamic": "`torchao-int8-dynamic`",
    "torchao_int4": "`torchao-int4`",
    "qlora": "QLoRA: `bnb-nf4`, LoRA of rank 8 by AdamW",
}
# Models, in billions of parameters; bits of a weight with its scales, and why; devices, in GB.
SIZES = (1, 3, 7, 13, 70)
BITS = {
    "float32": (32.0, "32"),
    "bfloat16": (16.0, "16"),
    "Q8_0": (8.5, "34 bytes of 32 weights: 8.5"),
    "Q4_1": (5.0, "20 bytes of 32 weights: 5"),
    "Q4_K, Q4_0, NF4": (4.5, "18 bytes of 32 weights: 4.5"),
}
DEVICES = (8, 16, 24, 80)
NOT_HELD = "No rows yet: `python -m benchmarks quantised --json FILE` makes them."
NOT_LEARNT = "No rows yet: `python -m benchmarks learning --json FILE` makes them."
NOTHING = "No rows yet: `python -m benchmarks accuracy --methods all --json FILE` makes them."


def main(arguments: Sequence[str]) -> int:
    """Write the tables into the documents.

    Returns:
        The exit status: 0, or 1 with ``--check`` if they were others.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks evidence", description=__doc__)
    parser.add_argument("--json", type=Path, default=ROWS, help="rows of accuracy, of all methods")
    parser.add_argument("--accuracy", type=Path, default=ACCURACY, help="rows of accuracy")
    parser.add_argument("--times", type=Path, default=TIMES, help="rows of step, noise and memory")
    parser.add_argument("--learning", type=Path, default=LEARNT, help="rows of learning")
    parser.add_argument("--quantised", type=Path, default=HELD, help="rows of quantised")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(arguments)
    compared, accuracies, times = (
        _summaries(given.json), _summaries(given.accuracy), _rows(given.times)
    )  # fmt: skip
    tables = {
        DOCUMENT: {
            "methods": methods_table(),
            "evidence": evidence_table(compared),
            "reading": reading(compared, _rows(given.json)),
        },
        BENCHMARKS: {
            "step": step_table(times),
            "stacked": stacked_table(times),
            "noise": noise_table(times),
            "memory": memory_table(times, MEMORY),
            "accuracy": accuracy_table(accuracies, LABELS),
        },
        LEARNING: {"learning": learning_table(_rows(given.learning))},
        QUANTISED: {
            "quantised": quantised_table(_rows(given.quantised)),
            "arithmetic": arithmetic_table(),
        },
        README: {
            "memory": memory_table(times, FEW),
            "learning": learning_table(_rows(given.learning), brief=True),
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


def reading(found: Sequence[Row], rows: Sequence[Row]) -> str:
    """Return in a sentence each how far methods on ``blocks`` differ, and how far rates do."""
    zero = next((row for row in found if row["provider"] == "zero_shot"), None)
    pilots = [r["median"] for r in rows if r["op"] == "pilot" and r["metric"] == "dev_loss"]
    blocks = [row["config"] for row in found if row["config"].get("trains") == "blocks"]
    untrained = 1.0 if zero is None else zero["config"]["mean"]
    above = [config for config in blocks if config["mean"] > untrained and "ci95_low" in config]
    if not above or not pilots:
        return NOTHING
    means = [100 * config["mean"] for config in above]
    widths = [100 * (config["ci95_high"] - config["ci95_low"]) for config in above]
    return (
        f"The untrained model reaches {100 * untrained:.1f}%. On `blocks`, {len(above)} of "
        f"{len(blocks)} methods end above it: their means lie within "
        f"{max(means) - min(means):.1f} points, and their intervals are {min(widths):.1f} to "
        f"{max(widths):.1f} points wide. Over all pilots the dev loss goes from "
        f"{min(pilots):.2f} to {max(pilots):.2f}."
    )


def accuracy_table(found: Sequence[Row], shown: Collection[str]) -> str:
    """Return the summaries of some of the methods that ``LABELS`` names, the best first."""
    titles = ("method", "rate", "test accuracy", "95% interval")
    lines = [_line(titles), _line(["---"] * len(titles))]
    for row in found:
        if row["provider"] == "zero_shot":
            lines.append(_line(("untrained", "-", *_measured(row))))
        elif row["provider"] in shown:
            rate = row["config"]["learning_rate"]
            lines.append(_line((LABELS[row["provider"]], f"{rate:g}", *_measured(row))))
    return "\n".join(lines)


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
    lines = [_line(titles), _line(["---"] * len(titles))]
    for task in found:
        ours = named[task, "adazeta", "test_accuracy"]
        share = named.get((task, "adazeta", "share_of_first_order"))
        cells: list[Any] = [TASKS[task]]
        for provider in accuracies:
            cells.append(_percent(named[task, provider, "test_accuracy"], interval=not brief))
        cells.append(_percent(share, digits=0, interval=not brief))
        if not brief:
            cells += [
                _percent(named[task, "adazeta", "gain_over_bias_only"], " points"),
                ours["classes"],
                *(f"{named[task, 'adazeta', metric]['mean']:,.0f}" for metric in costs),
                len(ours["values"]),
            ]
        lines.append(_line(cells))
    return "\n".join(lines)


def quantised_table(rows: Sequence[Row]) -> str:
    """Return the means over the seeds of ``quantised``, a way to hold the base a line."""
    found = {
        (row["op"], row["metric"]): row["config"] for row in rows if row["benchmark"] == "quantised"
    }
    if not found:
        return NOT_HELD
    titles = (
        "base", "base, MiB", "of float32's", "peak, MiB", "a step, s", "of float32's",
        "test accuracy", "test loss", "seeds",
    )  # fmt: skip
    lines = [_line(titles), _line(["---"] * len(titles))]

    def mean(name: str, metric: str) -> float:
        values = found[name, metric]["values"]
        return float(sum(values) / len(values))

    def times(name: str, metric: str) -> str:
        if ("float32", metric) not in found:
            return "-"
        return f"{mean(name, metric) / mean('float32', metric):.2f}"

    for name, label in BASES.items():
        if (name, "fails") in found:
            reason = found[name, "fails"]["reason"]
            lines.append(_line((label, f"does not run here: {reason}", *[""] * 7)))
        elif (name, "base") in found:
            lines.append(_line((
                label, f"{mean(name, 'base'):,.0f}", times(name, "base"),
                f"{mean(name, 'peak'):,.0f}", f"{mean(name, 'time'):.2f}", times(name, "time"),
                f"{100 * mean(name, 'test_accuracy'):.1f}%", f"{mean(name, 'test_loss'):.3f}",
                len(found[name, "base"]["values"]),
            )))  # fmt: skip
    return "\n".join(lines)


def arithmetic_table() -> str:
    """Return what weights take, and what they leave of devices, by the formula in each row."""
    titles = ("parameters", "weights", "GB = parameters x bits / 8", *(f"{d} GB" for d in DEVICES))
    lines = [_line(titles), _line(["---"] * len(titles))]
    for size in SIZES:
        for name, (bits, why) in BITS.items():
            taken = size * bits / 8
            left = [device - taken for device in DEVICES]
            lines.append(_line((
                f"{size}B", f"{name} ({why})", f"{size} x {bits:g} / 8 = {taken:.1f}",
                *(f"{rest:.1f} left" if rest > 0 else "no" for rest in left),
            )))  # fmt: skip
    return "\n".join(lines)


def _percent(
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


def step_table(rows: Sequence[Row]) -> str:
    """Return the medians of ``step`` with one query, and how many times the reference's speed."""
    titles = ("step", "reference", "bare forwards", "ours", "ours with the padding")
    lines = [_line(titles), _line(["---"] * len(titles))]
    found = _cells(rows, "step", "mode", "op", x_value=1)
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


def stacked_table(rows: Sequence[Row]) -> str:
    """Return the medians of ``step`` with adapters in all layers, one by one and stacked."""
    titles = ("adapters in all layers", "one evaluation a forward", "stacked", "ratio")
    lines = [_line(titles), _line(["---"] * len(titles))]
    found = _cells(rows, "step", "mode", "x_value", op="adapters_all", metric="time")
    for (mode, queries), cell in sorted(found.items(), key=_batch_and_queries):
        alone, stacked = cell["adazeta", "time"], cell["adazeta_stacked", "time"]
        named = f"batch {mode.removeprefix('batch_')}, queries {queries}"
        times = (f"{time / 1e3:.2f} s" for time in (alone, stacked))
        lines.append(_line((named, *times, f"**{alone / stacked:.2f} times**")))
    return "\n".join(lines)


def noise_table(rows: Sequence[Row]) -> str:
    """Return the medians of the noise of a pass and of a step on float32 parameters."""
    titles = ("noise of", "parameters", "reference", "ours", "bare multiplications in place")
    lines = [_line(titles), _line(["---"] * len(titles))]
    found = _cells(rows, "noise", "op", "x_value", dtype="float32")
    for (op, count), cell in sorted(found.items()):
        times = [f"{cell[name, 'time']:,.1f} ms" for name in ("reference", "adazeta", "floor")]
        times[1] += f", **{cell['adazeta', 'speedup_over_reference']:.1f} times**"
        times[2] = f"{'one' if op == 'pass' else 'three'}: {times[2]}"
        lines.append(_line((f"a {op}", f"{count:,}", *times)))
    return "\n".join(lines)


def memory_table(rows: Sequence[Row], shown: Collection[str]) -> str:
    """Return the peaks of some providers of ``memory`` over that of inference."""
    found = _cells(rows, "memory", "x_value")
    widths = [width for width in WIDTHS if (width,) in found]
    titles = ("peak memory", *(WIDTHS[width] for width in widths))
    lines = [_line(titles), _line(["---"] * len(titles))]
    for name, label in MEMORY.items():
        if name in shown:
            peaks = [_peak(found[width,], name) for width in widths]
            lines.append(_line((label, *peaks)))
    return "\n".join(lines)


def _peak(cell: Mapping[tuple[str, str], float], provider: str) -> str:
    if provider == "inference":
        return f"{cell[provider, 'peak']:,.0f} MiB"
    over = f"{cell[provider, 'peak_over_inference']:.2f} times"
    return f"**{over}**" if provider.startswith("adazeta") else over


def _cells(
    rows: Sequence[Row], benchmark: str, *keys: str, **wanted: object
) -> dict[tuple[Any, ...], dict[tuple[str, str], float]]:
    """Group the medians of a suite's rows by some of their keys, then by provider and metric."""
    found: dict[tuple[Any, ...], dict[tuple[str, str], float]] = {}
    for row in rows:
        if row["benchmark"] == benchmark and all(row[k] == v for k, v in wanted.items()):
            cell = found.setdefault(tuple(row[key] for key in keys), {})
            cell[row["provider"], row["metric"]] = row["median"]
    return found


def _batch_and_queries(item: tuple[tuple[Any, ...], object]) -> tuple[int, int]:
    mode, queries = item[0]
    return int(mode.removeprefix("batch_")), queries


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
