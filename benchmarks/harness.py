"""Interleaved timing of providers of one operation, and the rows that report it."""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

import adazeta


def compare(
    providers: dict[str, Callable[[], Any]],
    *,
    op: str,
    x_name: str,
    x_value: int,
    device: str,
    repeats: int,
    config: dict[str, Any],
) -> list[dict[str, Any]]:
    """Time providers in turn, so that a drift of the machine hits all of them.

    Returns:
        One row per provider: milliseconds, and for all but the first the ratio to the first
        ("reference"), round by round.
    """
    times: dict[str, list[float]] = {name: [] for name in providers}
    for repeat in range(repeats + 1):
        for name, run in providers.items():
            _synchronise(device)
            began = time.perf_counter()
            run()
            _synchronise(device)
            if repeat:  # the first round warms up
                times[name].append(1e3 * (time.perf_counter() - began))
    common = {
        "benchmark": "ops",
        "op": op,
        "mode": "inference",
        "dtype": "float32",
        "x_name": x_name,
        "x_value": x_value,
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "adazeta": adazeta.__version__,
        },
        "config": {**config, "threads": torch.get_num_threads(), "repeats": repeats},
    }
    rows = []
    reference = next(iter(providers))
    for name, values in times.items():
        rows.append({**common, "provider": name, "metric": "time", "unit": "ms", **spread(values)})
        if name != reference:
            ratios = [a / b for a, b in zip(times[reference], values, strict=True)]
            measured = {"metric": "speedup", "unit": "times", **spread(ratios)}
            rows.append({**common, "provider": name, **measured})
    return rows


def spread(values: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    if len(values) < 2:
        return {"median": values[0], "p20": values[0], "p80": values[0]}
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": statistics.median(values), "p20": fifths[0], "p80": fifths[3]}


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)
