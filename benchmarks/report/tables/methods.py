"""The tables of methods and of the suite ``accuracy``."""

from collections.abc import Collection, Sequence

from adazeta.methods import EXAMPLE, table
from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import head, line, measured

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


def methods_table() -> str:
    """Return the registry as a table."""
    titles = (
        "method", "paper", f"trained of {EXAMPLE} x {EXAMPLE}", "bytes beside it",
        "state, bytes each", "forwards", "passes",
    )  # fmt: skip
    lines = head(titles)
    for row in table():
        passes = f"{row['passes']}, refresh 1" if "refresh" in row["settings"] else row["passes"]
        lines.append(line((
            f"`{row['method']}`", row["paper"], f"{row['trained']:,}",
            f"{row['direction_bytes']:,}", row["state_bytes"], row["forwards"], passes,
        )))  # fmt: skip
    return "\n".join(lines)


def evidence_table(found: Sequence[Row]) -> str:
    """Return ``accuracy``'s summaries as a table, by what is trained."""
    if not found:
        return NOTHING
    titles = ("method", "trains", "rate", "test accuracy", "95% interval", "seeds", "evaluations")
    lines = head(titles)
    for row in sorted(found, key=lambda row: row["config"].get("trains", "")):
        config = row["config"]
        lines.append(line((
            f"`{row['provider']}`", config.get("trains", "-"), config.get("learning_rate", "-"),
            *measured(row), len(config["values"]), row["x_value"],
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
    lines = head(titles)
    for row in found:
        if row["provider"] == "zero_shot":
            lines.append(line(("untrained", "-", *measured(row))))
        elif row["provider"] in shown:
            rate = row["config"]["learning_rate"]
            lines.append(line((LABELS[row["provider"]], f"{rate:g}", *measured(row))))
    return "\n".join(lines)
