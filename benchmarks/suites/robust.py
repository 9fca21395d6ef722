"""``robust``: does a share of the adapters keep more of other domains, after R-Adapter?

A model is trained on film reviews, and its sentiment tested on those and on tweets, Amazon reviews
and editorials, with none, a quarter, a half, three quarters and all of what the adapters add. The
arms train the same tensor trains, without an activation, from the same start on the same texts for
the same steps: with a rate that falls (``linear``), with adapters left out at random (``drop``),
with an average and a constant rate in the place of that (``average``), with both (``all``),
with the activation of ``examples/demo_tensor_train.yaml`` (``relu``), whose settings the others
are, and with the perturbation scale and the rate that this file once had in the place of measured
ones (``fixed`` and ``average_fixed``).

Rows are written after each arm and seed, and a call with the same file goes on from there.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from adazeta.adapters.scaling import SCALES, adapter_scale
from adazeta.demo.data import Record, film_reviews, model_file, opinions
from adazeta.demo.folder import write_folder
from adazeta.runs.run import Run, prepare_from
from benchmarks.measure.harness import Cell, Options, Refused, Row, require
from benchmarks.measure.log import Log, as_written

BASE = Path(__file__).resolve().parents[2] / "examples" / "demo_tensor_train.yaml"
STEPS = 200
OTHERS = {"tweet": 800, "amazon": 900, "editorial": 500}
"""Sentences of each other domain, half of them good."""

_CONSTANT = {"average": 0.98, "lr_scheduler_type": "constant"}
_FIXED = {"eps": 0.01, "learning_rate": 0.02}
ARMS: dict[str, dict[str, Any]] = {
    "linear": {},
    "drop": {"drop": 0.2},
    "average": _CONSTANT,
    "all": {"drop": 0.2, **_CONSTANT},
    "relu": {"activation": "relu"},
    "fixed": _FIXED,
    "average_fixed": {**_CONSTANT, **_FIXED},
}
# Of the example, what says where it reads and writes, and what looks at a run while it trains.
_LEFT_OUT = (
    "model", "train_data", "validation_data", "test_data", "output_dir", "seed", "eval_strategy",
    "eval_steps", "save_steps", "save_total_limit", "load_best_model_at_end",
    "metric_for_best_model",
)  # fmt: skip


def settings_of(arm: str, steps: int) -> dict[str, Any]:
    """Return the settings of an arm, without model, data and seed."""
    base = yaml.safe_load(BASE.read_text(encoding="utf-8"))
    kept = {name: value for name, value in base.items() if name not in _LEFT_OUT}
    kept |= {"max_steps": steps, "save_strategy": "no", "logging_steps": 50}
    return {**kept, "activation": "linear", **ARMS[arm]}


def rows(options: Options) -> list[Row]:
    """Train and test the arms that are asked for and not in the file yet."""
    if options.small:
        raise Refused("robust has no small size; leave --small out, or use --quick")
    steps = 4 if options.quick else STEPS
    data = film_reviews({"train": 128, "dev": 64, "test": 64} if options.quick else None)
    sets = {"film": data["test"], "dev": data["dev"]}
    sets |= {name: opinions(name, 64 if options.quick else n) for name, n in OTHERS.items()}
    log = Log(options, "robust", "train", partial(is_current, steps=steps))
    for seed in options.seeds[:1] if options.quick else options.seeds:
        for arm in ARMS:
            if options.wants("robust", "train", arm) and not log.known(arm, seed):
                cell = Cell("robust", "train", arm, "seed", seed, options.device)
                log.add(measured(cell, settings_of(arm, steps), data["train"], sets))
    return log.finished()


def is_current(row: Row, steps: int) -> bool:
    """Tell whether a row is of the present settings of its arm."""
    # Of label words that are numbers JSON makes texts.
    arm = row["mode"]
    settings = as_written(settings_of(arm, steps)) if arm in ARMS else None
    return settings is not None and bool(row["config"].get("settings") == settings)


def measured(
    cell: Cell,
    settings: dict[str, Any],
    train: Sequence[Record],
    sets: Mapping[str, Sequence[Record]],
) -> list[Row]:
    """Train an arm and test it; a row for each set of texts, at the scales."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        chosen = {"model": str(model_file()), "seed": int(cell.x_value), **settings}
        chosen["use_cpu"] = cell.device == "cpu"
        run = prepare_from(write_folder(Path(folder), {"train": train}, chosen))
        run.trainer.train()
        seconds = time.monotonic() - began
        found = {name: accuracies(run, records) for name, records in sets.items()}
        cell = cell.of(run.model)
    config = {"model": model_file().name, "settings": settings, "scales": list(SCALES)}
    result = []
    for name, values in found.items():
        count = len(sets[name])
        with_values = {**config, "accuracies": values, "texts": count}
        result.append(cell.row(name, "accuracy", "fraction", values[-1:], with_values))
    return [*result, cell.row("training", "seconds", "s", [seconds], config)]


def accuracies(run: Run, records: Sequence[Record]) -> list[float]:
    """Return the accuracy on texts at each of the scales."""
    examples = run.task.encode_all(records)
    found = []
    for scale in SCALES:
        with adapter_scale(run.model, scale):
            metrics = run.trainer.predict(examples).metrics  # type: ignore[arg-type]
        require(metrics is not None and "test_accuracy" in metrics, "an accuracy is missing")
        found.append(float((metrics or {})["test_accuracy"]))
    return found
