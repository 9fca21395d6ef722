"""One cell of a benchmark's table: a task, a method and a seed; what was done is not done again."""

import gc
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adazeta.adapters.config import TTAdapterConfig
from adazeta.methods import METHODS
from adazeta.models.arguments import ModelArguments
from adazeta.models.loading import load_tokenizer
from adazeta.protocols.data import write_split
from adazeta.protocols.suites import Benchmark, Suite
from adazeta.recording.folder import LOG_NAME
from adazeta.runs.base import load_untrained, set_up_base
from adazeta.runs.inference import evaluate
from adazeta.runs.run import prepare
from adazeta.support.files import read_object, write_whole
from adazeta.support.settings import build, nearest
from adazeta.tasks.records import load_records
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.version import __version__

logger = logging.getLogger(__name__)

UNTRAINED = "zero-shot"
"""The method that trains nothing."""

_SETTINGS = "settings.json"

Cell = dict[str, Any]


@dataclass
class Bench:
    """A benchmark of one model by one suite.

    Attributes:
        suite: the protocol.
        tasks: those that are run.
        methods: names of :data:`adazeta.methods.METHODS`, and :data:`UNTRAINED`.
        seeds: of splits and training.
        values: settings of model, adapters and training, by name; the same for all cells.
        folder: where files, runs and results go.
        source: folder of the data; None for the hub.
    """

    suite: Suite
    tasks: list[Benchmark]
    methods: list[str]
    seeds: list[int]
    values: dict[str, Any]
    folder: Path
    source: str | None = None

    def __post_init__(self) -> None:
        """Check the names, and that the folder is of a benchmark with the same settings."""
        for name in self.methods:
            if name not in METHODS and name != UNTRAINED:
                known = [UNTRAINED, *METHODS]
                raise ValueError(
                    f"no method {name!r}; {nearest(name, known) or 'adazeta methods lists them'}"
                )
        if self.values.get("model") is None:
            raise ValueError("model is missing: set it with --model")

    def run(self, show: Callable[[str], None]) -> list[Cell]:
        """Run the cells that the folder has no result of.

        Args:
            show: is given a line for each cell.

        Returns:
            The results of all cells, in the order of tasks, methods and seeds.

        Raises:
            ValueError: the folder holds results of other settings, or a setting is unusable.
        """
        self._claim()
        cells = []
        for task in self.tasks:
            for method in self.methods:
                for seed in self.seeds:
                    path = self.folder / task.name / f"{method}-{seed}.json"
                    if not path.is_file():
                        cell = self._run(task, method, seed)
                        write_whole(path, f"{json.dumps(cell, indent=2)}\n".encode())
                        gc.collect()  # the model of this cell, before the next one is loaded
                    cell = read_object(path)
                    name, value = task.metrics[0], cell["metrics"][task.metrics[0]]
                    show(f"{task.name}  {method}  seed {seed}  {name} {100 * value:.1f}")
                    cells.append(cell)
        return cells

    def _claim(self) -> None:
        """Note the settings in the folder, or refuse other ones."""
        path = self.folder / _SETTINGS
        mine = json.loads(
            json.dumps(
                {
                    "suite": self.suite.name,
                    "k": self.suite.k,
                    "data_dir": self.source,
                    **self.values,
                },
                default=str,
            )
        )
        begun = any((self.folder / task).is_dir() for task in self.suite.tasks)
        if path.is_file() and begun:
            there = read_object(path)
            other = [k for k in {**there, **mine} if there.get(k) != mine.get(k)]
            if other:
                name = other[0]
                raise ValueError(
                    f"{self.folder} holds results with {name}={there.get(name)!r}, and now it is "
                    f"{mine.get(name)!r}; one table has one setting: give another --output_dir"
                )
            return
        write_whole(path, f"{json.dumps(mine, indent=2)}\n".encode())

    def _run(self, task: Benchmark, method: str, seed: int) -> Cell:
        started = time.monotonic()
        model = build(ModelArguments, self.values)
        tokenizer = load_tokenizer(str(model.model), revision=self.values.get("revision"))
        files = write_split(
            self.suite,
            task,
            seed,
            self.folder / "data" / f"{task.name}-{seed}",
            tokenizer=tokenizer,
            source=self.source,
        )
        cell = {"task": task.name, "method": method, "seed": seed, "metric": task.metrics[0]}
        if method == UNTRAINED:
            found = self._untrained(task, model, files)
        else:
            found = self._trained(task, model, method, seed, files)
        return {
            **cell,
            **found,
            "examples": {name: _lines(path) for name, path in files.items()},
            "seconds": round(time.monotonic() - started, 1),
            "adazeta": __version__,
        }

    def _untrained(self, task: Benchmark, model: ModelArguments, files: Mapping[str, Path]) -> Cell:
        revision = self.values.get("revision")
        found = set_up_base(model, task.arguments(), revision)
        examples = found.task.encode_all(load_records(files["test"]))
        batch = build(ZOTrainingArguments, {"output_dir": str(self.folder), **self.values})
        size = batch.per_device_eval_batch_size
        loaded = load_untrained(model, found, revision)
        measured, _ = evaluate(loaded, found.task, examples, batch_size=size)
        return {"metrics": {name: measured[name] for name in task.metrics}, "steps": 0}

    def _trained(
        self,
        task: Benchmark,
        model: ModelArguments,
        method: str,
        seed: int,
        files: Mapping[str, Path],
    ) -> Cell:
        folder = self.folder / task.name / f"{method}-{seed}"
        chosen = {"method": method, "seed": seed, "output_dir": str(folder)}
        values = {**best_by_dev(self.values, task), **self.values, **chosen}
        if (folder / LOG_NAME).is_file():
            values["resume_from_checkpoint"] = "true"
        arguments = task.arguments(
            train_data=str(files["train"]),
            validation_data=str(files["dev"]),
            test_data=str(files["test"]),
        )
        run = prepare(
            model,
            arguments,
            build(TTAdapterConfig, values),
            build(ZOTrainingArguments, values),
        )
        metrics = run.train()
        run.trainer.accelerator.free_memory()
        return {
            "metrics": {name: metrics[f"test_{name}"] for name in task.metrics},
            "dev": {name: metrics[f"validation_{name}"] for name in task.metrics},
            "steps": run.trainer.zo_optimizer.steps,
            "evaluations": run.trainer.evaluations,
        }


def best_by_dev(values: Mapping[str, Any], task: Benchmark) -> dict[str, Any]:
    """Return settings by which the best checkpoint on the development examples is reported.

    Ten evaluations a run, where the settings say nothing of it.

    Raises:
        ValueError: the number of steps is none.
    """
    steps = int(values["max_steps"])
    if steps < 1:
        raise ValueError(f"max_steps must be 1 or more in a benchmark, got {steps}")
    every = int(values.get("eval_steps") or max(steps // 10, 1))
    return {
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": task.metrics[0],
        "greater_is_better": True,
    }


def numbers_of(texts: Sequence[str], name: str) -> list[int]:
    """Read a list of whole numbers, e.g. of seeds.

    Raises:
        ValueError: one is none.
    """
    try:
        return [int(text) for text in texts]
    except ValueError:
        raise ValueError(f"{name} must be whole numbers, got {' '.join(texts)!r}") from None


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")
