"""``low_memory``: all weights of a model by gradients, with AdamW, fused SGD and AdaLomo.

- ``memory``: two steps of SmolLM2 on film reviews, each rule in a process of its own, so that its
  peak memory is its own.
- ``accuracy``: three epochs of a BERT of 4.4 million parameters and a new head on the same texts,
  by ``FOTrainer``, with three rates of each rule that fall linearly. The table shows the rate whose
  dev accuracy ends highest, in the mean of the seeds. Rows are written after each run, and a call
  with the same file goes on from there.

Fused SGD is LOMO (arXiv 2306.09782) without its clipping.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from adazeta.demo.data import Record, film_reviews
from adazeta.optim.adalomo import AdaLomo
from adazeta.optim.fused_backward import fuse_into_backward
from adazeta.support.memory import PeakMemory
from benchmarks.measure.harness import Cell, Options, Refused, Row
from benchmarks.measure.log import Log, named, provider_too
from benchmarks.measure.process import ProcessFailed, figures, return_freed_memory
from benchmarks.subjects.encoder import encoded, encoder_folder
from benchmarks.subjects.review_classifier import COMMON, SIZES, review_trainer
from benchmarks.subjects.workload import Workload, workload

BATCH = 8
FEW = 2  # steps to measure memory: state exists from the second on
EPOCHS = 3
REACHED = "reached"
UNITS = {
    "peak": "MiB", "peak_above_loading": "MiB", "state": "MiB", "live_gradient": "MiB",
    "parameters": "MiB", "largest": "MiB",
}  # fmt: skip


class FusableSGD(torch.optim.SGD):
    """Plain SGD, one tensor at a time."""

    def update_parameter(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """Update one parameter from its gradient."""
        assert parameter.grad is not None
        parameter.data.add_(parameter.grad, alpha=-group["lr"])


class Compared(NamedTuple):
    """A rule of the comparison.

    Attributes:
        optimizer: its class, to measure memory.
        rate: there.
        fused: whether it updates within the backward pass.
        rule: its name for ``FOTrainer``.
        rates: there, ascending.
    """

    optimizer: Any
    rate: float
    fused: bool
    rule: str
    rates: tuple[float, ...]


RULES = {
    "adamw": Compared(torch.optim.AdamW, 1e-5, False, "adamw", (3e-4, 1e-3, 3e-3)),
    "fused_sgd": Compared(FusableSGD, 3e-3, True, "sgd", (0.03, 0.1, 0.3)),
    "adalomo": Compared(AdaLomo, 1e-3, True, "adalomo", (1e-3, 3e-3, 1e-2)),
}
FROZEN = "adalomo_without_embeddings"


def rows(options: Options) -> list[Row]:
    """Measure memory (``--only memory``) and what is reached (``--only accuracy``)."""
    found: list[Row] = []
    if options.wants("low_memory", "memory"):
        for rule in RULES:
            found += _rows(rule, measured(rule, options), options)
        found += _rows(FROZEN, measured("adalomo", options, "--frozen"), options)
    return [*found, *_reached(options)]


def _reached(options: Options) -> list[Row]:
    """Train with every rule, rate and seed that is asked for and not in the file yet."""
    few = options.quick or options.small
    sizes = {"train": 64, "dev": 64, "test": 64} if few else SIZES
    current = partial(is_current, texts=sizes["train"])
    log = Log(options, "low_memory", REACHED, current, run=provider_too)
    data: dict[str, list[Record]] = {}
    for seed in options.seeds[:1] if few else options.seeds:
        for name, compared in RULES.items():
            if not options.wants("low_memory", "accuracy", name):
                continue
            for rate in compared.rates[1:2] if few else compared.rates:
                provider = named(rate)
                if not log.known(name, seed, provider):
                    data = data or film_reviews(sizes)
                    cell = Cell("low_memory", REACHED, name, "seed", seed, options.device)
                    log.add(reached(cell, provider, rate, data))
    return log.finished()


def own_settings(name: str) -> dict[str, Any]:
    """Return the settings of what is reached with a rule, but for what differs by run."""
    return {**COMMON, "num_train_epochs": EPOCHS, "rule": RULES[name].rule}


def is_current(row: Row, texts: int) -> bool:
    """Tell whether a row of what is reached is of the present settings of its rule."""
    name, config = row["mode"], row["config"]
    return name in RULES and config.get("settings") == own_settings(name) and (
        config["texts"] == texts
    )  # fmt: skip


def reached(
    cell: Cell, provider: str, rate: float, data: Mapping[str, Sequence[Record]]
) -> list[Row]:
    """Train the small BERT by a rule with one rate, and test it; the cell's mode is the rule."""
    settings, folder = own_settings(cell.mode), encoder_folder()
    sets = {name: encoded(folder, records) for name, records in data.items()}
    with tempfile.TemporaryDirectory() as output:
        trainer = review_trainer(
            sets["train"], {}, output, seed=int(cell.x_value), device=cell.device,
            learning_rate=rate, **settings,
        )  # fmt: skip
        trainer.train()
        found = {
            name: trainer.predict(sets[name], metric_key_prefix=name).metrics or {}  # type: ignore[arg-type]
            for name in ("dev", "test")
        }
    config = {
        "model": folder.name, "settings": settings, "rate": rate, "texts": len(sets["train"]),
        "steps": trainer.state.max_steps, "dev": len(sets["dev"]), "test": len(sets["test"]),
    }  # fmt: skip
    return [
        cell.row(
            provider, f"{name}_{metric}", unit, [float(found[name][f"{name}_{metric}"])], config
        )
        for name in ("dev", "test")
        for metric, unit in (("loss", "nats"), ("accuracy", "fraction"))
    ]


def _rows(name: str, values: dict[str, float], options: Options) -> list[Row]:
    cell = Cell("low_memory", "train", "memory", "steps", FEW, options.device)
    config = {"batch": BATCH}
    return [
        cell.row(name, metric, UNITS[metric], [value], config) for metric, value in values.items()
    ]


def measured(rule: str, options: Options, *flags: str) -> dict[str, float]:
    """Run some steps of a rule in a fresh process, and return what it held, in MiB.

    Args:
        rule: of :data:`RULES`.
        options: device and size of the model.
        *flags: ``--frozen``.

    Raises:
        Refused: the process failed; the message is its last line.
    """
    arguments = [rule, "--device", options.device, *["--small"] * options.small, *flags]
    try:
        values: dict[str, float] = figures("benchmarks.suites.low_memory", arguments)
    except ProcessFailed as error:
        raise Refused(f"{rule}: {error}") from None
    return values


def main() -> None:
    """Train in this process, and write what was measured as one line of JSON."""
    parser = argparse.ArgumentParser(description="one run; `low_memory` starts these")
    parser.add_argument("rule", choices=RULES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--frozen", action="store_true", help="leave the embeddings as they are")
    given = parser.parse_args()
    work = workload(Options(device=given.device, small=given.small))
    print(json.dumps(trained(work, given.rule, RULES[given.rule].rate, FEW, frozen=given.frozen)))


def trained(
    work: Workload, rule: str, rate: float, steps: int, *, frozen: bool = False
) -> dict[str, float]:
    """Train all weights of a workload's model, and return what that took, in MiB.

    Args:
        work: the workload; its base is trained.
        rule: of :data:`RULES`.
        rate: learning rate.
        steps: of :data:`BATCH` sentences each.
        frozen: leave the embeddings as they are.
    """
    model = work.base.requires_grad_(True)
    if frozen:
        model.get_input_embeddings().requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    live = 0

    def watch(parameter: nn.Parameter) -> None:
        nonlocal live
        live = max(live, sum(p.grad.nbytes for p in parameters if p.grad is not None))

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(watch)
    compared = RULES[rule]
    optimizer = compared.optimizer(
        parameters, lr=rate, **({"weight_decay": 0.0} if rule == "adamw" else {})
    )
    if compared.fused:
        fuse_into_backward(optimizer)
    return_freed_memory()
    with PeakMemory() as loaded:
        pass
    with PeakMemory() as peak:
        for step in range(steps):
            batch = work.batch(BATCH, first=step * BATCH)
            work.losses(model, batch)[0].mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    sizes = {
        "state": sum(t.nbytes for t in states), "live_gradient": live,
        "parameters": sum(p.nbytes for p in parameters),
        "largest": max(p.nbytes for p in parameters),
    }  # fmt: skip
    return {
        "peak": peak.mebibytes,
        "peak_above_loading": peak.mebibytes - loaded.mebibytes,
        **{name: size / 2**20 for name, size in sizes.items()},
    }
