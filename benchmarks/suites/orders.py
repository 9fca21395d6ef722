"""``orders``: the demo's own file of settings, trained by forward passes and by gradients.

What ``adazeta train config.yaml`` and ``adazeta train config.yaml --order first`` do, each in a
process of its own, with the demo's data and three seeds: test accuracy, minutes from start to end,
and peak memory of the process. Both train the same adapters from the same start for two epochs.
What the frozen blocks compute is cached on disk by the first run, and found by the others, so a run
before the clock fills the cache.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from adazeta.cli import main as adazeta
from adazeta.demo.data import film_reviews, model_file
from adazeta.demo.run import TASKS, configure
from adazeta.support.memory import PeakMemory
from benchmarks.measure.harness import Cell, Options, Refused, Row
from benchmarks.measure.process import ProcessFailed, figures

ORDERS = ("zeroth", "first")
UNITS = {"test_accuracy": "fraction", "minutes": "min", "peak": "MiB"}


def rows(options: Options) -> list[Row]:
    """Train by both orders with every seed."""
    sizes = {"train": 128, "dev": 64, "test": 64} if options.quick else None
    cell = Cell("orders", "train", "film", "seeds", len(options.seeds), options.device)
    found: dict[str, list[dict[str, float]]] = {order: [] for order in ORDERS}
    with tempfile.TemporaryDirectory() as folder:
        data = film_reviews(sizes)
        for number, seed in enumerate(options.seeds):
            configure(model_file(), data, Path(folder), seed, None, TASKS["film"])
            if number == 0:
                measured(Path(folder), "zeroth", options)
            for order in ORDERS:
                found[order].append(measured(Path(folder), order, options))
    config = {"model": model_file().name, "seeds": list(options.seeds)}
    return [
        cell.row(order, metric, unit, values, {**config, "values": values})
        for order, runs in found.items()
        for metric, unit in UNITS.items()
        for values in [[run[metric] for run in runs]]
    ]


def measured(folder: Path, order: str, options: Options) -> dict[str, float]:
    """Run ``adazeta train`` in a process; return its figures."""
    output = folder / order
    began = time.monotonic()
    try:
        peak = figures(
            "benchmarks.suites.orders",
            [folder / "config.yaml", order, "--output", output, "--device", options.device],
        )
    except ProcessFailed as error:
        raise Refused(f"order {order}: {error}") from None
    minutes = (time.monotonic() - began) / 60
    results = json.loads((output / "all_results.json").read_text())
    return {"test_accuracy": results["test_accuracy"], "minutes": minutes, "peak": peak}


def main() -> int:
    """Train in this process; the last line is its peak memory in MiB."""
    parser = argparse.ArgumentParser(description="one run; the suite `orders` starts these")
    parser.add_argument("config")
    parser.add_argument("order", choices=ORDERS)
    parser.add_argument("--output", required=True)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    flags = ["--order", given.order, "--output_dir", given.output]
    flags += ["--use_cpu", str(given.device == "cpu")]
    with PeakMemory() as peak:
        status = adazeta(["train", given.config, *flags])
    print(peak.mebibytes)
    return status
