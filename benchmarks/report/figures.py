"""Draw the figures of the README from committed rows: ``python -m benchmarks plot``.

Nothing is measured here; a figure whose rows are missing is left out.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "adazeta"  # the same rows draw the same file

from matplotlib import pyplot as plt  # noqa: E402

from benchmarks.measure.compare import RESULTS, load  # noqa: E402
from benchmarks.measure.harness import Row  # noqa: E402
from benchmarks.report.tables.costs import FEW, MEMORY  # noqa: E402

COLOURS = {
    "reference": "#9a9a9a",
    "floor": "#d9d9d9",
    "inference": "#d9d9d9",
    "adazeta": "#1f6fb4",
    "adazeta_stacked": "#7db8e0",
    "adazeta_cached": "#0b3d6b",
    "adazeta_padded": "#3aa6a0",
    "adazeta_rademacher": "#7db8e0",
    "lora": "#d98b2b",
    "full": "#b5541c",
}
STEP_PROVIDERS = (
    "reference", "adazeta", "adazeta_stacked", "adazeta_cached", "adazeta_padded", "floor",
    "lora_adamw",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Draw all figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks plot", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="file or folder of rows")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the figures")
    parser.add_argument("--device", help="machine class; needed if the rows are of several")
    given = parser.parse_args(arguments)
    rows = load(given.results)
    # What is learnt is not the machine's.
    timed = [row for row in rows if row["benchmark"] != "accuracy"]
    devices = sorted({row["device"] for row in timed})
    if given.device is None and len(devices) > 1:
        parser.error(f"the rows are of several machine classes; choose --device: {devices}")
    kept = select(timed, device=given.device) if given.device else timed
    rows = kept + select(rows, benchmark="accuracy")
    given.output.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        figure = draw(rows)
        if figure is None:
            continue
        figure.savefig(given.output / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
        print(f"wrote {given.output / name}.svg")
    return 0


def select(rows: list[Row], **wanted: Any) -> list[Row]:
    """Return the rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def noise(rows: list[Row]) -> Any:
    """Nanoseconds per element of a pass, by number of elements."""
    found = select(rows, benchmark="noise", op="pass", metric="per_element", dtype="float32")
    if not found:
        return None
    figure, axes = plt.subplots(figsize=(6, 3.2))
    sizes = sorted({row["x_value"] for row in found})
    providers = ("reference", "torch", "adazeta", "adazeta_rademacher", "floor")
    _bars(axes, found, [(size, f"{size:,.0f} elements") for size in sizes], providers)
    axes.set_ylabel("ns per element")
    axes.set_title("Perturbing parameters, one pass (lower is better)", fontsize=10)
    _legend(figure)
    return figure


def step(rows: list[Row]) -> Any:
    """Time of a step over the bare forwards it needs."""
    found = select(rows, benchmark="step", metric="time")
    placements = [p for p in ("adapters_all", "adapters_last10", "full") if select(found, op=p)]
    if not placements:
        return None
    figure, grid = plt.subplots(
        1, len(placements), figsize=(4 * len(placements), 3.4), sharey=False, squeeze=False
    )
    for axes, placement in zip(grid[0], placements, strict=True):
        of_placement = select(found, op=placement)
        batches = {r["mode"]: int(r["mode"].removeprefix("batch_")) for r in of_placement}
        cells = sorted({(batches[r["mode"]], r["x_value"]) for r in of_placement})
        scaled = []
        for batch, queries in cells:
            cell = select(of_placement, mode=f"batch_{batch}", x_value=queries)
            floor = select(cell, provider="floor")[0]["median"]
            for row in cell:
                values = {k: row[k] / floor for k in ("median", "p20", "p80")}
                scaled.append({**row, **values, "x_value": (batch, queries)})
        labels = [(cell, f"B {cell[0]}\nQ {cell[1]:.0f}") for cell in cells]
        _bars(axes, scaled, labels, STEP_PROVIDERS)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_title(placement.replace("_", ", "), fontsize=10)
    grid[0][0].set_ylabel("time over 2 Q bare forwards")
    figure.tight_layout()
    _legend(figure)
    return figure


def memory(rows: list[Row]) -> Any:
    """Peak memory of the providers that README.md names, over that of inference."""
    found = select(rows, benchmark="memory", metric="peak")
    if not found:
        return None
    widest = max(row["x_value"] for row in found)
    peaks = {row["provider"]: row["median"] for row in select(found, x_value=widest)}
    if "inference" not in peaks:
        return None
    shown = [name for name in FEW if name in peaks]
    figure, axes = plt.subplots(figsize=(4.4, 1.9))  # legible on a phone
    values = [peaks[name] / peaks["inference"] for name in shown]
    bars = axes.barh(
        [MEMORY[name] for name in shown], values, height=0.62,
        color=[_colour(name) for name in shown],
    )  # fmt: skip
    axes.bar_label(
        bars, [f"{value:.2f}" for value in values], padding=4, fontsize=10, color="#333333"
    )
    axes.axvline(1, color="#333333", linewidth=0.8, linestyle=":")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(values))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("peak memory of the process, times that of inference", fontsize=9)
    return figure


def accuracy(rows: list[Row]) -> Any:
    """Test accuracy with its confidence interval, a panel for each budget and kind of training."""
    found = select(rows, benchmark="accuracy", op="fine_tune", metric="test_accuracy")
    panels: dict[tuple[int, str], list[Row]] = {}
    for row in found:
        if row["provider"] != "zero_shot":
            key = (row["x_value"], row["provider"].partition(":")[2])
            panels.setdefault(key, []).append(row)
    if not panels:
        return None
    before = select(found, provider="zero_shot")
    figure, grid = plt.subplots(
        1, len(panels), squeeze=False,
        figsize=(5 * len(panels), 0.3 * max(map(len, panels.values())) + 1.2),
    )  # fmt: skip
    for axes, ((budget, _), of_panel) in zip(grid[0], sorted(panels.items()), strict=True):
        best_first = sorted(of_panel, key=lambda row: -row["config"]["mean"])
        for place, row in enumerate(best_first):
            _interval(axes, place, row)
        names = [row["provider"] for row in best_first]
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        if before:
            axes.axvline(100 * before[0]["median"], color="black", linewidth=0.8, linestyle=":")
        axes.set_xlabel(f"test accuracy, %, after {budget:,} evaluations", fontsize=9)
    figure.tight_layout()
    return figure


def _interval(axes: Any, place: int, row: Row) -> None:
    """Draw a mean with its 95% interval, and the seeds as dots."""
    config = row["config"]
    mean = 100 * config["mean"]
    low, high = (100 * config.get(f"ci95_{side}", config["mean"]) for side in ("low", "high"))
    axes.errorbar(
        mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3,
        color=_colour(row["provider"]),
    )  # fmt: skip
    axes.plot([100 * v for v in config["values"]], [place] * len(config["values"]), "k.", ms=3)


FIGURES: dict[str, Callable[[list[Row]], Any]] = {
    "noise": noise,
    "step": step,
    "memory": memory,
    "accuracy": accuracy,
}


def _bars(
    axes: Any, rows: list[Row], groups: list[tuple[Any, str]], providers: tuple[str, ...]
) -> None:
    """Draw one group of bars per x value, with the spread as error bars."""
    present = [name for name in providers if select(rows, provider=name)]
    width = 0.8 / len(present)
    for k, name in enumerate(present):
        for place, (x_value, _) in enumerate(groups):
            for row in select(rows, provider=name, x_value=x_value):
                low, high = row["median"] - row["p20"], row["p80"] - row["median"]
                axes.bar(
                    place + (k - (len(present) - 1) / 2) * width, row["median"], width,
                    yerr=[[low], [high]], color=_colour(name), ecolor="#444444",
                    label=name if place == 0 else None,
                )  # fmt: skip
    axes.set_xticks(range(len(groups)), [label for _, label in groups], fontsize=8)


def _legend(figure: Any) -> None:
    """Name the providers once, below all panels."""
    named = [axes.get_legend_handles_labels() for axes in figure.axes]
    unique = {label: bar for bars, labels in named for bar, label in zip(bars, labels, strict=True)}
    figure.legend(
        unique.values(), unique.keys(), fontsize=8, ncol=len(unique), frameon=False,
        loc="upper center", bbox_to_anchor=(0.5, 0.0),
    )  # fmt: skip


def _colour(provider: str) -> str:
    return COLOURS.get(provider) or COLOURS.get(provider.partition("_")[0], "#5f9e6e")
