"""The table of training all weights by gradients: the suite ``low_memory``."""

from collections.abc import Sequence

from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import head, line

LABELS = {
    "adamw": "AdamW",
    "fused_sgd": "SGD, fused (LOMO without clipping)",
    "adalomo": "AdaLomo, fused",
    "adalomo_without_embeddings": "AdaLomo, fused, embeddings frozen",
}
NO_ROWS = "No rows yet: `python -m benchmarks low_memory --json FILE` makes them."


def low_memory_table(rows: Sequence[Row]) -> str:
    """Return what each rule holds and reaches, a rule a line."""
    found: dict[str, dict[str, float]] = {}
    rates: dict[str, float] = {}
    for row in rows:
        if row["benchmark"] == "low_memory":
            found.setdefault(row["provider"], {})[row["metric"]] = row["median"]
            if "learning_rate" in row["config"]:
                rates[row["provider"]] = row["config"]["learning_rate"]
    if not found:
        return NO_ROWS
    titles = (
        "rule", "state", "gradient alive", "peak above loading", "rate", "test loss",
        "test accuracy",
    )  # fmt: skip
    lines = head(titles)
    for name, label in LABELS.items():
        if "state" in found.get(name, {}):
            cell = found[name]
            share = cell["state"] / cell["parameters"]
            alive = cell["live_gradient"] / cell["parameters"]
            reached = ("-", "-", "-")
            if "test_loss" in cell:
                reached = (
                    f"{rates[name]:g}", f"{cell['test_loss']:.3f}", f"{cell['test_accuracy']:.1%}"
                )  # fmt: skip
            lines.append(
                line(
                    (
                        label,
                        f"{cell['state']:,.1f} MiB, {share:.2%} of the weights",
                        f"{cell['live_gradient']:,.0f} MiB, {alive:.0%}",
                        f"{cell['peak_above_loading']:,.0f} MiB",
                        *reached,
                    )
                )
            )
    return "\n".join(lines)
