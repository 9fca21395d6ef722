"""``low_memory``: all weights of a model by gradients, with AdamW, fused SGD and AdaLomo.

Each run is a process of its own, so that its peak memory is its own: some steps on film reviews,
then loss and accuracy on sentences kept apart. Of each rule's rates the table shows the one with
the least dev loss in the mean of the seeds, which have sentences of their own. The rate falls
linearly. Fused SGD is LOMO (arXiv 2306.09782) without its clipping. Rows of what is reached are
written after each run, and a call with the same file goes on from there.

Written before the first run, AdaLomo works if its state is at most a hundredth of the parameters'
bytes, if no more gradient lives at a time than that of the largest tensor, and if its accuracy is
not below that of AdamW by more than a standard error, and above that of fused SGD.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from adazeta.demo.data import film_reviews
from adazeta.optim.adalomo import AdaLomo
from adazeta.optim.fused_backward import fuse_into_backward
from adazeta.support.memory import PeakMemory
from benchmarks.measure.harness import Cell, Options, Refused, Row
from benchmarks.measure.log import Log, provider_too
from benchmarks.measure.process import ProcessFailed, figures, return_freed_memory
from benchmarks.subjects.workload import Workload, workload

STEPS, BATCH = 20, 8
FEW = 2  # steps to measure memory: state exists from the second on
DEV, TEST = 100, 200
REACHED = "reached"
UNITS = {
    "test_accuracy": "fraction", "test_loss": "nats", "dev_loss": "nats", "peak": "MiB",
    "peak_above_loading": "MiB", "state": "MiB", "live_gradient": "MiB", "parameters": "MiB",
    "largest": "MiB",
}  # fmt: skip


class FusableSGD(torch.optim.SGD):
    """Plain SGD, one tensor at a time."""

    def update_parameter(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """Update one parameter from its gradient."""
        assert parameter.grad is not None
        parameter.data.add_(parameter.grad, alpha=-group["lr"])


# Name: optimizer, whether it is fused, and rates.
RULES: dict[str, tuple[Any, bool, tuple[float, ...]]] = {
    "adamw": (torch.optim.AdamW, False, (3e-6, 1e-5, 3e-5)),
    "fused_sgd": (FusableSGD, True, (1e-3, 3e-3, 1e-2)),
    "adalomo": (AdaLomo, True, (3e-4, 1e-3, 3e-3)),
}
FROZEN = "adalomo_without_embeddings"


def rows(options: Options) -> list[Row]:
    """Measure memory (``--only memory``) and what is reached (``--only accuracy``)."""
    found: list[Row] = []
    if options.wants("low_memory", "memory"):
        for rule, (_, _, rates) in RULES.items():
            values = measured(rule, rates[1], FEW, options)
            found += _rows(rule, values, options)
        values = measured("adalomo", RULES["adalomo"][2][1], FEW, options, "--frozen")
        found += _rows(FROZEN, values, options)
    return [*found, *_reached(options)]


def _reached(options: Options) -> list[Row]:
    """Train with every rule, rate and seed that is asked for and not in the file yet."""
    few = options.quick or options.small
    steps = FEW if options.small else STEPS
    log = Log(options, "low_memory", REACHED, partial(is_current, steps=steps), run=provider_too)
    for seed in options.seeds[:1] if few else options.seeds:
        for rule, (_, _, rates) in RULES.items():
            if not options.wants("low_memory", "accuracy", rule):
                continue
            for rate in rates[1:2] if few else rates:
                provider = f"rate_{rate:g}"
                if log.known(rule, seed, provider):
                    continue
                values = measured(rule, rate, steps, options, "--evaluate", "--seed", str(seed))
                cell = Cell("low_memory", REACHED, rule, "seed", seed, options.device)
                config = {"batch": BATCH, "steps": steps, "rate": rate, "dev": DEV, "test": TEST}
                log.add(
                    [
                        cell.row(provider, name, UNITS[name], [values[name]], config)
                        for name in ("dev_loss", "test_loss", "test_accuracy")
                    ]
                )
    return log.finished()


def is_current(row: Row, steps: int) -> bool:
    """Tell whether a row of what is reached is of the present sizes."""
    wanted = {"batch": BATCH, "steps": steps, "dev": DEV, "test": TEST}
    return all(row["config"].get(name) == value for name, value in wanted.items())


def _rows(name: str, values: dict[str, float], options: Options) -> list[Row]:
    cell = Cell("low_memory", "train", "memory", "steps", FEW, options.device)
    config = {"batch": BATCH}
    return [
        cell.row(name, metric, UNITS[metric], [value], config) for metric, value in values.items()
    ]


def measured(rule: str, rate: float, steps: int, options: Options, *flags: str) -> dict[str, float]:
    """Run one rule in a fresh process, and return what it measured.

    Args:
        rule: of :data:`RULES`.
        rate: initial learning rate.
        steps: of the run.
        options: device and size of the model.
        *flags: ``--evaluate``, ``--frozen``, ``--seed`` and the seed.

    Raises:
        Refused: the process failed; the message is its last line.
    """
    arguments = [rule, rate, steps, "--device", options.device]
    arguments += [*["--small"] * options.small, *flags]
    try:
        values: dict[str, float] = figures("benchmarks.suites.low_memory", arguments)
    except ProcessFailed as error:
        raise Refused(f"{rule} at {rate}: {error}") from None
    return values


def main() -> None:
    """Train in this process, and write what was measured as one line of JSON."""
    parser = argparse.ArgumentParser(description="one run; `low_memory` starts these")
    parser.add_argument("rule", choices=RULES)
    parser.add_argument("rate", type=float)
    parser.add_argument("steps", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--evaluate", action="store_true", help="on sentences kept apart")
    parser.add_argument("--seed", type=int, default=0, help="decides which sentences come first")
    parser.add_argument("--frozen", action="store_true", help="leave the embeddings as they are")
    given = parser.parse_args()
    work = workload(Options(device=given.device, small=given.small))
    found = trained(work, given.rule, given.rate, given.steps, given.seed, frozen=given.frozen)
    if given.evaluate:
        found |= evaluated(work)
    print(json.dumps(found))


def trained(
    work: Workload, rule: str, rate: float, steps: int, seed: int = 0, *, frozen: bool = False
) -> dict[str, float]:
    """Train all weights of a workload's model, and return what that took, in MiB.

    Args:
        work: the workload; its base is trained.
        rule: of :data:`RULES`.
        rate: initial learning rate; it falls to zero.
        steps: of :data:`BATCH` sentences each.
        seed: each has sentences of its own, as long as there are any.
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
    make, fused, _ = RULES[rule]
    optimizer = make(parameters, lr=rate, **({"weight_decay": 0.0} if rule == "adamw" else {}))
    if fused:
        fuse_into_backward(optimizer)
    return_freed_memory()
    with PeakMemory() as loaded:
        pass
    with PeakMemory() as peak:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            batch = work.batch(BATCH, first=(seed * steps + step) * BATCH)
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


def evaluated(work: Workload) -> dict[str, float]:
    """Return loss and accuracy on sentences kept apart."""
    dev = test = work.examples
    if work.task is not None:
        data = film_reviews()
        dev, test = (
            [encoded[index] for index in range(min(count, len(encoded)))]
            for encoded, count in (
                (work.task.encode_all(data["dev"]), DEV), (work.task.encode_all(data["test"]), TEST)
            )
        )  # fmt: skip
    dev_loss, _ = _evaluate(work, dev)
    test_loss, accuracy = _evaluate(work, test)
    return {"dev_loss": dev_loss, "test_loss": test_loss, "test_accuracy": accuracy}


@torch.no_grad()
def _evaluate(work: Workload, examples: Sequence[dict[str, Any]]) -> tuple[float, float]:
    loss = right = 0.0
    ordered = sorted(examples, key=lambda row: len(row["input_ids"]))
    for start in range(0, len(ordered), 16):
        batch = work.collate(ordered[start : start + 16])
        losses, logits = work.losses(work.base, batch)
        loss += losses.double().sum().item()
        right += (logits.argmax(-1) == batch["labels"]).sum().item()
    return loss / len(ordered), right / len(ordered)
