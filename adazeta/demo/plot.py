"""The demo's figure: loss and accuracy against evaluations of the loss."""

from pathlib import Path
from typing import Any


def plot(history: list[dict[str, Any]], references: dict[str, float], path: Path) -> None:
    """Draw the training loss and the dev accuracy and save them as PNG.

    Args:
        history: ``trainer.state.log_history``.
        references: accuracies (0 to 1) to draw as horizontal lines, by label.
        path: where to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("the plot needs matplotlib: pip install 'adazeta[demo]'") from None
    losses = [(entry["evaluations"], entry["loss"]) for entry in history if "loss" in entry]
    steps = {entry["step"]: entry["evaluations"] for entry in history if "evaluations" in entry}
    accuracies = [
        (steps.get(entry["step"], 0), 100 * entry["eval_accuracy"])
        for entry in history
        if "eval_accuracy" in entry
    ]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*losses, strict=True), color="tab:blue")
    left.set(xlabel="evaluations of a batch", ylabel="training loss")
    right.plot(
        *zip(*accuracies, strict=True), color="tab:green", marker="o", markersize=3, label="dev"
    )
    for (label, value), style in zip(references.items(), ("--", ":"), strict=False):
        right.axhline(100 * value, color="tab:gray", linestyle=style, linewidth=1, label=label)
    right.set(xlabel="evaluations of a batch", ylabel="accuracy (%)")
    for axes in (left, right):
        axes.set_xlim(left=0)
    # Above the axes: nowhere among the lines is sure to be free.
    right.legend(
        fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3
    )
    figure.savefig(path, dpi=150)
