"""``memory``: peak resident memory of each way to run or train, in a fresh process each.

Two figures a provider: the peak itself, and the peak above what the process held once the model was
loaded and set up for training (parameters, adapters, but no optimizer state yet).
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

from torch import nn

from adazeta.support.memory import PeakMemory
from benchmarks.measure.harness import Cell, Options, Refused, Row
from benchmarks.measure.process import ProcessFailed, figures, return_freed_memory
from benchmarks.subjects.steps import (
    FirstOrderStep,
    OurStep,
    check,
    forward,
    lora_model,
    reference_step,
)
from benchmarks.subjects.workload import Batch, Workload, workload

STACK = 4  # evaluations per forward of the stacked provider: all of a step
STEPS = 2  # optimizer state exists from the second on

Setup = Callable[[Workload, Batch], Callable[[], Any]]


def _model(work: Workload, placement: str) -> nn.Module:
    """Return a model without a second copy of the weights, which ``work.model("full")`` makes."""
    return work.base.requires_grad_(True) if placement == "full" else work.model(placement)


def _inference(work: Workload, batch: Batch) -> Callable[[], Any]:
    model = work.model("bare")
    return lambda: forward(work, model, batch)


def _zo(placement: str, stacked: bool = False) -> Setup:
    def setup(work: Workload, batch: Batch) -> Callable[[], Any]:
        together = str(STACK if stacked else 1)
        return OurStep(work, _model(work, placement), batch, queries=2, probes_per_forward=together)

    return setup


def _reference(placement: str) -> Setup:
    def setup(work: Workload, batch: Batch) -> Callable[[], Any]:
        official = reference_step(work, _model(work, placement), batch, queries=2)
        return lambda: official.step(batch)

    return setup


PROVIDERS: dict[str, Setup] = {
    "inference": _inference,
    "adazeta_adapters": _zo("adapters_all"),
    "adazeta_adapters_stacked": _zo("adapters_all", stacked=True),
    "adazeta_full": _zo("full"),
    "reference_adapters": _reference("adapters_all"),
    "reference_full": _reference("full"),
    "lora_adamw": lambda work, batch: FirstOrderStep(work, lora_model(work), batch),
    "tt_adamw": lambda work, batch: FirstOrderStep(work, work.model("adapters_all"), batch),
    "full_adamw": lambda work, batch: FirstOrderStep(work, _model(work, "full"), batch),
}


def rows(options: Options) -> list[Row]:
    """Measure every provider on batches of short and of long texts."""
    check(workload(options), "adapters_all")
    model = "random-llama" if options.small else "SmolLM2-135M"
    found: list[Row] = []
    for batch, width in [(4, 16)] if options.small else [(16, 0), (16, 128)]:
        cell = Cell("memory", "train_step", f"batch_{batch}", "width", width, options.device)
        peaks: dict[str, tuple[float, float]] = {}
        for name in PROVIDERS:
            if options.wants("memory", cell.mode, f"width_{width}", name):
                peaks[name] = measured(name, batch, width, options)
        for name, (peak, above) in peaks.items():
            config: dict[str, Any] = {"model": model, "steps": STEPS}
            if name.endswith("stacked"):
                config["evaluations_per_forward"] = STACK
            found.append(cell.row(name, "peak", "MiB", [peak], config))
            found.append(cell.row(name, "peak_above_loading", "MiB", [above], config))
            if "inference" in peaks and name != "inference":
                ratio = peak / peaks["inference"][0]
                found.append(cell.row(name, "peak_over_inference", "times", [ratio], config))
    return found


def measured(provider: str, batch: int, width: int, options: Options) -> tuple[float, float]:
    """Run one provider in a fresh process.

    Returns:
        Peak, and peak above loading, in MiB.

    Raises:
        Refused: the process failed; the message is its last line.
    """
    arguments: list[object] = [
        provider, "--batch", batch, "--width", width, "--device", options.device,
        *["--small"] * options.small,
    ]  # fmt: skip
    try:
        values = figures("benchmarks.suites.memory", arguments)
    except ProcessFailed as error:
        raise Refused(f"the memory of {provider} could not be measured: {error}") from None
    return values["peak"], values["above"]


def main() -> None:
    """Measure one provider in this process and write its figures as one line of JSON."""
    parser = argparse.ArgumentParser(description="memory of one provider; `memory` starts these")
    parser.add_argument("provider", choices=PROVIDERS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    work = workload(Options(device=arguments.device, small=arguments.small))
    batch = work.batch(arguments.batch, width=arguments.width or None)
    run = PROVIDERS[arguments.provider](work, batch)
    return_freed_memory()
    with PeakMemory() as loaded:
        pass
    with PeakMemory() as peak:
        for _ in range(STEPS):
            run()
    print(json.dumps({"peak": peak.mebibytes, "above": peak.mebibytes - loaded.mebibytes}))
