"""The table of training all weights by gradients: the suite ``low_memory``."""

import math
from collections.abc import Mapping, Sequence

from benchmarks.measure.harness import Row
from benchmarks.report.tables.best_rate import Best
from benchmarks.report.tables.markdown import NO_GAIN, head, line

LABELS = {
    "adamw": "AdamW",
    "fused_sgd": "SGD, fused (LOMO without clipping)",
    "adalomo": "AdaLomo, fused",
    "adalomo_without_embeddings": "AdaLomo, fused, embeddings frozen",
}
NO_ROWS = "No rows yet: `python -m benchmarks low_memory --json FILE` makes them."


def low_memory_table(rows: Sequence[Row]) -> str:
    """Return what each rule holds and reaches, a rule a line, and what docs/related.md asks."""
    own = [row for row in rows if row["benchmark"] == "low_memory"]
    held: dict[str, dict[str, float]] = {}
    for row in own:
        if row["mode"] == "memory":
            held.setdefault(row["provider"], {})[row["metric"]] = row["median"]
    reached = {
        name: Best(runs)
        for name in LABELS
        if (runs := [row for row in own if (row["op"], row["mode"]) == ("reached", name)])
    }
    if not held:
        return NO_ROWS
    titles = (
        "rule", "state", "gradient alive", "peak above loading", "rate", "dev accuracy",
        "test accuracy", "seeds",
    )  # fmt: skip
    lines = head(titles)
    for name, label in LABELS.items():
        if name not in held:
            continue
        cell, best = held[name], reached.get(name)
        cells: list[object] = [
            label,
            f"{cell['state']:,.1f} MiB, {cell['state'] / cell['parameters']:.2%} of the weights",
            f"{cell['live_gradient']:,.0f} MiB, {cell['live_gradient'] / cell['parameters']:.0%}",
            f"{cell['peak_above_loading']:,.0f} MiB",
        ]
        if best is None:
            cells += ["-"] * 4
        else:
            cells += [
                best.shown_rate(), f"{best.mean('dev_accuracy'):.1%}",
                f"{best.mean('test_accuracy'):.1%}", len(best.seeds),
            ]  # fmt: skip
        lines.append(line(cells))
    if {"adamw", "fused_sgd", "adalomo"} <= reached.keys():
        texts = next(row["config"]["test"] for row in own if row["op"] == "reached")
        lines += ["", _verdict(held["adalomo"], reached, texts)]
    return "\n".join(lines)


def _verdict(held: Mapping[str, float], reached: Mapping[str, Best], texts: int) -> str:
    accuracy = {name: best.mean("test_accuracy") for name, best in reached.items()}
    own, adamw, sgd = (accuracy[name] for name in ("adalomo", "adamw", "fused_sgd"))
    error = math.sqrt(adamw * (1 - adamw) / texts)
    small = held["state"] <= 0.01 * held["parameters"]
    small = small and held["live_gradient"] <= held["largest"]
    word = NO_GAIN
    if small and own >= adamw - error and own > sgd:
        word = "works"
    elif own < min(adamw - error, sgd):
        word = "worse"
    return (
        f"- AdaLomo: **{word}**. Its accuracy is {100 * (own - adamw):+.1f} points from AdamW's "
        f"(a standard error of the test is {100 * error:.1f}) and {100 * (own - sgd):+.1f} from "
        "that of fused SGD."
    )
