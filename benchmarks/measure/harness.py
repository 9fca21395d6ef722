"""Interleaved timing of several providers of one piece of work, and the rows that report it.

A suite is a function ``Options -> rows``. A row is a flat record with the keys ``KEYS``; a list of
rows is what ``--json`` writes, what ``compare`` and ``targets`` read and what ``plot`` draws.
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

import adazeta
from adazeta.support.settings import dtype_name

Row = dict[str, Any]
Provider = Callable[[], Any]

KEYS = (
    "benchmark", "op", "provider", "mode", "dtype", "x_name", "x_value", "metric", "unit",
    "median", "p20", "p80", "device", "versions", "config",
)  # fmt: skip


class Refused(RuntimeError):
    """A correctness check failed, so there is nothing worth timing."""


@dataclass(frozen=True)
class Options:
    """What the command line asks of a suite.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        small: tiny sizes and a tiny random model, to see that everything runs.
        quick: a subset of the full suite's cells, for ``make bench``.
        only: run the cells whose name (``"benchmark op mode ..."``) has all of these words.
        seconds: time limit for the repetitions of one cell; two rounds are run in any case.
        rounds: largest number of rounds of a cell.
        json: file of the rows, for suites that resume; None if there is none.
        budget: of ``accuracy``, evaluations of a batch per run.
        seeds: of ``accuracy`` and ``learning``.
        methods: of ``accuracy``, names separated by commas, see
            :func:`benchmarks.subjects.accuracy_methods.chosen_methods`.
        tasks: of ``learning``, names separated by commas; all for nothing.
    """

    device: str = "cpu"
    small: bool = False
    quick: bool = False
    only: str = ""
    seconds: float = 20.0
    rounds: int = 15
    json: Path | None = None
    budget: int = 600
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: str = ""
    tasks: str = ""

    def wants(self, *names: str) -> bool:
        """Tell whether a cell is to be run."""
        return set(self.only.split()) <= set(" ".join(names).split())


@dataclass(frozen=True)
class Cell:
    """What all rows of one comparison share: the identity of the work."""

    benchmark: str
    op: str
    mode: str
    x_name: str
    x_value: float
    device: str
    dtype: str = "float32"

    def of(self, model: PreTrainedModel) -> "Cell":
        """Return the cell of the work that a model does, in the dtype that it was loaded in.

        ``dtype: auto`` takes bfloat16 on CPUs that have instructions for it.
        """
        return replace(self, dtype=dtype_name(model.dtype))

    def row(
        self, provider: str, metric: str, unit: str, values: Sequence[float], config: dict[str, Any]
    ) -> Row:
        """Make the row of one measured quantity."""
        return {
            "benchmark": self.benchmark,
            "op": self.op,
            "provider": provider,
            "mode": self.mode,
            "dtype": self.dtype,
            "x_name": self.x_name,
            "x_value": self.x_value,
            "metric": metric,
            "unit": unit,
            **spread(values),
            "device": machine_class(self.device),
            "versions": versions(),
            "config": {**config, "repeats": len(values)},
        }


def compare(
    cell: Cell,
    providers: dict[str, Provider],
    options: Options,
    *,
    bases: Iterable[str] = ("reference", "floor"),
    config: dict[str, Any] | None = None,
    rates: dict[str, tuple[str, float]] | None = None,
) -> list[Row]:
    """Time providers in turn, A B A B ..., so that a drift of the machine hits all of them.

    Args:
        cell: the work.
        providers: functions that do it, by name. Each is run once before the clock starts.
        options: limits of the repetitions.
        bases: providers to which the others are compared, round by round.
        config: what a reader needs to repeat the work.
        rates: further metrics from the seconds of a run: ``name -> (unit, work)``; a unit that
            ends in ``/s`` is ``work / seconds``, any other ``seconds / work``.

    Returns:
        Per provider a row of milliseconds, one per rate, and one per base: how many times the
        base's time is this provider's (``speedup_over_...``).
    """
    for run in providers.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in providers}
    began = time.perf_counter()
    least = min(2, options.rounds)
    for number in range(options.rounds):
        spent = time.perf_counter() - began
        # Another round of average length must fit in what is left.
        if number >= least and spent * (number + 1) / number > options.seconds:
            break
        for name, run in providers.items():
            times[name].append(timed(run, cell.device))
    rows = []
    details = config or {}
    for name, seconds in times.items():
        rows.append(cell.row(name, "time", "ms", [1e3 * s for s in seconds], details))
        for metric, (unit, work) in (rates or {}).items():
            values = [work / s if unit.endswith("/s") else s / work for s in seconds]
            rows.append(cell.row(name, metric, unit, values, details))
        for base in bases:
            if base in times and base != name:
                ratios = [b / s for b, s in zip(times[base], seconds, strict=True)]
                rows.append(cell.row(name, f"speedup_over_{base}", "times", ratios, details))
    return rows


def timed(run: Provider, device: str) -> float:
    """Return the seconds that one call takes, work on the device included."""
    synchronise(device)
    began = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: str) -> None:
    """Wait until the device has done everything it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    if len(values) < 2:
        return {"median": values[0], "p20": values[0], "p80": values[0]}
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": statistics.median(values), "p20": fifths[0], "p80": fifths[3]}


def machine_class(device: str) -> str:
    """Name the hardware as far as times depend on it: results of one class are comparable."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return f"{_cpu_model()}, {capability}, {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what the times depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "adazeta": adazeta.__version__,
    }


def require(condition: bool, message: str) -> None:
    """Refuse to go on unless a correctness check holds.

    Raises:
        Refused: it does not.
    """
    if not condition:
        raise Refused(message)
