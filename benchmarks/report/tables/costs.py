"""The tables of time and memory: ``step``, ``noise``, ``memory`` and ``orders``."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import cells_of, head, line

# What README.md calls the placements of benchmarks.suites.step.
PLACEMENTS = {
    "adapters_all": "adapters in all layers",
    "adapters_last10": "adapters in the last 10 layers",
    "full": "all parameters",
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
# What the documents call the providers of the suite ``orders``.
ORDERS = {"zeroth": "forward passes", "first": "`--order first`: AdamW"}
NO_ORDERS = "No rows yet: `python -m benchmarks orders --json FILE` makes them."
# Widths of its batches, in README's words; 0 is the texts' own length.
WIDTHS = {128: "128 tokens a row", 0: "film reviews"}


def step_table(rows: Sequence[Row]) -> str:
    """Return the medians of ``step`` with one query, and how many times the reference's speed."""
    titles = ("step", "reference", "bare forwards", "ours", "ours with the padding")
    lines = head(titles)
    found = cells_of(rows, "step", "mode", "op", x_value=1)
    for mode in ("batch_16", "batch_4"):
        for op, label in PLACEMENTS.items():
            cell = found.get((mode, op), {})
            if not cell:
                continue
            named = f"{label}, batch {mode.removeprefix('batch_')}"
            times = [_time(cell, name) for name in ("reference", "floor", "adazeta")]
            lines.append(line((named, *times, _time(cell, "adazeta_padded"))))
            if ("adazeta_cached", "time") in cell:
                lines.append(
                    line(('the same, `cache_trunk="memory"`, warm', "", "", "",
                           _time(cell, "adazeta_cached")))
                )  # fmt: skip
    return "\n".join(lines)


def stacked_table(rows: Sequence[Row]) -> str:
    """Return the medians of ``step`` with adapters in all layers, one by one and stacked."""
    titles = ("adapters in all layers", "one evaluation a forward", "stacked", "ratio")
    lines = head(titles)
    found = cells_of(rows, "step", "mode", "x_value", op="adapters_all", metric="time")
    for (mode, queries), cell in sorted(found.items(), key=_batch_and_queries):
        alone, stacked = cell["adazeta", "time"], cell["adazeta_stacked", "time"]
        named = f"batch {mode.removeprefix('batch_')}, queries {queries}"
        times = (f"{time / 1e3:.2f} s" for time in (alone, stacked))
        lines.append(line((named, *times, f"**{alone / stacked:.2f} times**")))
    return "\n".join(lines)


def noise_table(rows: Sequence[Row]) -> str:
    """Return the medians of the noise of a pass and of a step on float32 parameters."""
    titles = ("noise of", "parameters", "reference", "ours", "bare multiplications in place")
    lines = head(titles)
    found = cells_of(rows, "noise", "op", "x_value", dtype="float32")
    for (op, count), cell in sorted(found.items()):
        times = [f"{cell[name, 'time']:,.1f} ms" for name in ("reference", "adazeta", "floor")]
        times[1] += f", **{cell['adazeta', 'speedup_over_reference']:.1f} times**"
        times[2] = f"{'one' if op == 'pass' else 'three'}: {times[2]}"
        lines.append(line((f"a {op}", f"{count:,}", *times)))
    return "\n".join(lines)


def memory_table(rows: Sequence[Row], shown: Collection[str]) -> str:
    """Return the peaks of some providers of ``memory`` over that of inference."""
    found = cells_of(rows, "memory", "x_value")
    widths = [width for width in WIDTHS if (width,) in found]
    titles = ("peak memory", *(WIDTHS[width] for width in widths))
    lines = head(titles)
    for name, label in MEMORY.items():
        if name in shown:
            peaks = [_peak(found[width,], name) for width in widths]
            lines.append(line((label, *peaks)))
    return "\n".join(lines)


def orders_table(rows: Sequence[Row]) -> str:
    """Return what the demo's file costs and reaches by either order: means over the seeds."""
    named = {
        (row["provider"], row["metric"]): row["config"]["values"]
        for row in rows
        if row["benchmark"] == "orders"
    }
    if not named:
        return NO_ORDERS
    titles = ("demo's settings", "test accuracy", "minutes", "peak memory")
    lines = head(titles)
    for order, label in ORDERS.items():
        accuracy, minutes, peak = (
            sum(named[order, metric]) / len(named[order, metric])
            for metric in ("test_accuracy", "minutes", "peak")
        )
        lines.append(line((label, f"{accuracy:.1%}", f"{minutes:.1f}", f"{peak:,.0f} MiB")))
    return "\n".join(lines)


def _peak(cell: Mapping[tuple[str, str], float], provider: str) -> str:
    if provider == "inference":
        return f"{cell[provider, 'peak']:,.0f} MiB"
    over = f"{cell[provider, 'peak_over_inference']:.2f} times"
    return f"**{over}**" if provider.startswith("adazeta") else over


def _batch_and_queries(item: tuple[tuple[Any, ...], object]) -> tuple[int, int]:
    mode, queries = item[0]
    return int(mode.removeprefix("batch_")), queries


def _time(cell: Mapping[tuple[str, str], float], provider: str) -> str:
    """Return a time, and if it is ours also the ratio."""
    time = f"{cell[provider, 'time'] / 1e3:.2f} s"
    if not provider.startswith("adazeta"):
        return time
    return f"{time}, **{cell[provider, 'speedup_over_reference']:.2f} times**"
