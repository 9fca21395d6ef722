"""``rates``: does ``learning_rate: auto`` reach what the best rate of a grid does, and diverge?

Tensor-train adapters are trained by ``zo-adam`` with one setting for all tasks, ``eps`` measured.
``--only grid`` trains with each rate of five, ``--only auto`` with the measured one, so that it can
have more seeds. A run *diverges* where its test loss ends above that of the untrained model, or is
not finite.

The rates are judged by the test texts, so that the best of five has had the luck of five draws:
the comparison favours the grid. Rows are written after each run, and a call with the same file goes
on from there.
"""

import math
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from adazeta.adapters.attach import trainable_parameters
from adazeta.demo.data import model_file
from adazeta.demo.folder import write_folder
from adazeta.forward.contexts import context_of
from adazeta.optim.rate import AUTO
from adazeta.runs.run import Run, prepare_from
from adazeta.tasks.intervals import wilson
from adazeta.tasks.prompt import PromptTask
from benchmarks.measure.harness import Cell, Options, Refused, Row, require
from benchmarks.measure.log import Log, named, provider_too
from benchmarks.subjects.learning_tasks import Splits, chosen_tasks

GRID = (0.005, 0.01, 0.02, 0.04, 0.08)
STEPS = 100
TESTED = 1000
SETTINGS: dict[str, Any] = {
    "adapt": "suffix",
    "rank": 2,
    "layers": "last:10",
    "bias": False,
    "probes": "example",
    "probes_per_forward": 2,
    "adam_beta2": 0.99,
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 64,
    "cache_trunk": "disk",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
}


def rows(options: Options) -> list[Row]:
    """Train with every rate, task and seed that is asked for and not in the file yet."""
    if options.small:
        raise Refused("rates has no small size; leave --small out, or choose tasks with --tasks")
    steps = 3 if options.quick else STEPS
    log = Log(options, "rates", "train", partial(is_current, steps=steps), run=provider_too)
    for name, task in chosen_tasks(options.tasks).items():
        wanted = [
            (seed, rate)
            for op, rates in {"grid": GRID, "auto": (AUTO,)}.items()
            if options.wants("rates", op, name)
            for seed in options.seeds
            for rate in rates
            if not log.known(name, seed, named(rate))
        ]
        data = shortened(task.load()) if wanted else {}
        for seed, rate in wanted:
            cell = Cell("rates", "train", name, "seed", seed, options.device)
            log.add(trained(cell, named(rate), task.settings, data, rate, steps))
    return log.finished()


def is_current(row: Row, steps: int, changed: Mapping[str, Any] | None = None) -> bool:
    """Tell whether a row is of the present settings."""
    return row["config"]["settings"] == own_settings(changed) and row["config"]["steps"] == steps


def own_settings(changed: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the common settings with what differs; None leaves one out."""
    merged = {**SETTINGS, **(changed or {})}
    return {name: value for name, value in merged.items() if value is not None}


def shortened(data: Splits) -> Splits:
    """Return the texts without those of dev, and so many of the test."""
    return {"train": data["train"], "test": data["test"][:TESTED]}


def trained(
    cell: Cell,
    provider: str,
    task: Mapping[str, Any],
    data: Splits,
    rate: float | str,
    steps: int,
    changed: Mapping[str, Any] | None = None,
    costs: bool = False,
) -> list[Row]:
    """Train with one rate.

    Args:
        cell: of the rows; its number is the seed of the run.
        provider: of the rows.
        task: its template and label words.
        data: its texts.
        rate: the learning rate, or ``"auto"``.
        steps: of the run.
        changed: settings that differ from the common ones; None leaves one out.
        costs: have all that is kept of the texts before the clock starts, and tell what an
            evaluation costs.

    Returns:
        Test accuracy and loss, whether it diverged, the rate and the seconds; with ``costs`` also
        the seconds of training alone, on the wall and of the processors, the evaluations, the
        trained numbers, and the bytes that are kept of a text.
    """
    own = own_settings(changed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        chosen = {
            "model": str(model_file()), "seed": int(cell.x_value), "learning_rate": rate,
            "max_steps": steps, "use_cpu": cell.device == "cpu", **task, **own,
        }  # fmt: skip
        run = prepare_from(write_folder(Path(folder), data, chosen))
        before = run.trainer.evaluate(run.examples["test"])
        clock = _Clock()
        if costs:
            run.trainer.evaluate(run.examples["train"])
            run.trainer.add_callback(clock)
        metrics = run.train()
        log = run.trainer.state.log_history
        cell = cell.of(run.model)
    used = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    require(len(used) > 0 or rate != AUTO, "the log does not say which rate was measured")
    accuracy, loss = metrics["test_accuracy"], metrics["test_loss"]
    count = len(data["test"])
    low, high = wilson(accuracy, count)
    config = {"model": model_file().name, "settings": own, "steps": steps, "test": count}
    made = {
        "test_accuracy": ("fraction", accuracy),
        "test_loss": ("nats", loss),
        "diverged": ("runs", float(not math.isfinite(loss) or loss > before["eval_loss"])),
        "rate": ("1", float(used[0] if rate == AUTO else rate)),
        "seconds": ("s", time.monotonic() - began),
    }
    if costs:
        made |= {
            "train_seconds": ("s", metrics["train_runtime"]),
            "processor_seconds": ("s", clock.seconds),
            "evaluations": ("1", float(run.trainer.evaluations)),
            "trained_numbers": ("1", float(trainable_parameters(run.model)[0])),
            "kept_bytes": ("B", _kept_bytes(run)),
        }
    interval = {**config, "ci95_low": low, "ci95_high": high}
    return [
        cell.row(provider, metric, unit, [value], interval if metric == "test_accuracy" else config)
        for metric, (unit, value) in made.items()
    ]


class _Clock(TrainerCallback):
    """Takes the seconds of the processors that training costs, whatever else the machine does."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.seconds = -time.process_time()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock."""
        self.seconds += time.process_time()


def _kept_bytes(run: Run) -> float:
    """Return the mean bytes that are kept of a text; 0 where nothing is."""
    if not (isinstance(run.task, PromptTask) and run.task.suffix):
        return 0.0
    return context_of(run.model, run.task.suffix).bytes_of_a_row
