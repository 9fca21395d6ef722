"""``orders``: the demo's own file of settings, trained by forward passes and by gradients.

What ``adazeta train config.yaml`` and ``adazeta train config.yaml --order first`` do, each in a
process of its own, with the demo's data and three seeds: test accuracy, minutes from start to end,
and peak memory of the process. Both train the same adapters from the same start for the same steps.
What the frozen blocks compute is cached on disk by the first run, and found by the others, so a run
before the clock fills the cache.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from adazeta.cli import main as adazeta
from adazeta.demo.data import film_reviews, model_file
from adazeta.demo.run import TASKS, configure
from benchmarks.measure.harness import Cell, Options, Row, require

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
    command = [
        sys.executable, "-m", "benchmarks.suites.orders", str(folder / "config.yaml"), order,
        "--output", str(folder / order), "--device", options.device,
    ]  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    began = time.monotonic()
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **threads}
    )
    minutes = (time.monotonic() - began) / 60
    last = (run.stderr.strip().splitlines() or ["no message"])[-1]
    require(run.returncode == 0, f"order {order}: {last}")
    results = json.loads((folder / order / "all_results.json").read_text())
    peak = float(run.stdout.splitlines()[-1])
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
    status = adazeta(["train", given.config, *flags])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return status


if __name__ == "__main__":
    sys.exit(main())
