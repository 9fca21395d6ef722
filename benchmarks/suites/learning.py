"""``learning``: how much of what can be learnt on a task we learn, with one setting for all tasks.

A high accuracy alone may say little: on some tasks most of the gain is the best bias for each
label, which needs no training. So a task's row has the untrained model, the best biases (fitted on
the training texts), ours (as ``adazeta train`` runs it), and AdamW on the very same numbers with
the same training texts, its rate chosen on the dev texts. What counts is the share of AdamW's gain
over the biases that ours reaches.

Rows are written after each task and seed, and a call with the same file goes on from there.
"""

import itertools
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adazeta.adapters.attach import trainable_parameters
from adazeta.demo import run as run_of_demo
from adazeta.demo.data import model_file
from adazeta.runs.run import Run, prepare_from
from adazeta.tasks.calibration import fit_bias
from adazeta.tasks.intervals import wilson
from benchmarks.measure.harness import Cell, Options, Refused, Row, require
from benchmarks.measure.log import Log
from benchmarks.subjects.accuracy_methods import FIRST_ORDER_COST
from benchmarks.subjects.learning_tasks import Splits, chosen_tasks

RATES = (0.01, 0.03, 0.1)
STEPS = 100
CHECK = 20  # steps between two looks at the dev texts
RESAMPLES = 2_000
Z95 = 1.96


def rows(options: Options) -> list[Row]:
    """Run what is not in the file yet; return its rows of this suite."""
    if options.small:
        raise Refused("learning has no small size; leave --small out, or choose tasks with --tasks")
    tasks = {n: t for n, t in chosen_tasks(options.tasks).items() if options.wants("learning", n)}
    data = {name: task.load() for name, task in tasks.items()}  # what is missing is said first
    log = Log(options, "learning", "train", _is_current, partial(_summaries, device=options.device))
    for name, task in tasks.items():
        for seed in options.seeds:
            if not log.known(name, seed):
                log.add(measured(name, task.settings, data[name], seed, options))
    return log.finished()


def measured(
    name: str, task: Mapping[str, Any], data: Splits, seed: int, options: Options
) -> list[Row]:
    """Measure one task with one seed."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        settings = run_of_demo.configure(model_file(), data, Path(folder), seed, None, task)
        settings |= {"save_strategy": "no", "use_cpu": options.device == "cpu"}
        run = prepare_from(settings)
        prepared = time.monotonic() - began
        start = [parameter.detach().clone() for parameter in trained(run)]
        labels = run.examples["test"].labels
        _, logits = run.score("test", base=True)
        _, before = run.score("test")
        require(
            torch.allclose(before, logits, atol=1e-4, rtol=1e-4),
            f"{name}: adapters change the model before they are trained",
        )
        _, fitted_on = run.score("train", base=True)
        bias = fit_bias(fitted_on, run.examples["train"].labels)
        metrics = run.train()
        # Prompts that informed the adapters are evaluations too: one batch after the other.
        informing = math.ceil(min(len(data["train"]), 1000) / run.trainer.args.train_batch_size)
        found = {
            "zero_shot": {"right": right(logits, labels)},
            "bias_only": {
                "right": right(logits.double() + bias, labels),
                "trained_parameters": len(bias) - 1,
            },
            "adazeta": {
                "right": right(run.score("test")[1], labels),
                "evaluations": run.trainer.evaluations + informing,
                "seconds": prepared + metrics["train_runtime"],
                "trained_parameters": trainable_parameters(run.model)[0],
            },
            "adamw": first_order(run, start, seed),
        }
        require(
            abs(float(found["adazeta"]["right"].double().mean()) - metrics["test_accuracy"]) < 5e-3,
            f"{name}: the trained model scores otherwise than its run said",
        )
    cell = Cell("learning", "train", name, "seed", seed, options.device).of(run.model)
    result = []
    for provider, values in found.items():
        correct = values.pop("right")
        config: dict[str, Any] = {"model": model_file().name, "test": len(correct)}
        config |= {"classes": len(run.task.labels)}  # type: ignore[attr-defined]
        config |= values.pop("config", {})
        if provider == "adazeta":
            config["settings"] = dict(run_of_demo.SETTINGS)
        accuracy = float(correct.double().mean())
        # What was right, as digits of base 16: pairs of methods are compared text by text.
        low, high = wilson(accuracy, len(correct))
        with_bits = {**config, "ci95_low": low, "ci95_high": high, "right": packed_bits(correct)}
        result.append(cell.row(provider, "test_accuracy", "fraction", [accuracy], with_bits))
        for metric, value in values.items():
            unit = {"seconds": "s"}.get(metric, "1")
            result.append(cell.row(provider, metric, unit, [value], config))
    return result


def trained(run: Run) -> list[torch.nn.Parameter]:
    """Return the parameters that are trained."""
    return [parameter for parameter in run.model.parameters() if parameter.requires_grad]


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Tell which examples are predicted right, bool (N,)."""
    return logits.argmax(-1) == labels


def first_order(run: Run, start: Sequence[Tensor], seed: int) -> dict[str, Any]:
    """Train the same parameters with AdamW, from the same start on the same texts.

    The best dev accuracy of all rates and checkpoints decides, of equal ones the lower dev loss. A
    best rate at an end of the grid extends it, twice at most, so that AdamW is given its due.

    Returns:
        What was right on the test, and what it took: of the rate that was chosen, and of all.
    """
    parameters = trained(run)
    labels = {name: run.examples[name].labels for name in ("validation", "test")}
    after = [parameter.detach().clone() for parameter in parameters]
    rates, done = list(RATES), {}
    try:
        while True:
            for rate in rates:
                if rate not in done:
                    done[rate] = _adamw(run, parameters, start, rate, seed, labels["validation"])
            best = max(rates, key=lambda rate: done[rate]["score"])
            beyond = {rates[0]: rates[0] ** 2 / rates[1], rates[-1]: rates[-1] ** 2 / rates[-2]}
            if best not in beyond or len(rates) >= len(RATES) + 2:
                break
            rates = sorted([*rates, float(f"{beyond[best]:.2g}")])
        _put(parameters, done[best]["values"])
        _, logits = run.score("test")
    finally:
        _put(parameters, after)
    return {
        "right": right(logits, labels["test"]),
        "evaluations": done[best]["steps"] * FIRST_ORDER_COST,
        "seconds": done[best]["seconds"],
        "trained_parameters": sum(parameter.numel() for parameter in parameters),
        "config": {
            "rule": "AdamW", "learning_rate": best, "rates": rates, "steps": STEPS,
            "best_step": done[best]["step"], "dev_accuracy": done[best]["score"][0],
            "batch": run.trainer.args.train_batch_size, "schedule": "linear",
            "seconds_of_all_rates": sum(each["seconds"] for each in done.values()),
        },
    }  # fmt: skip


def _adamw(
    run: Run, parameters: Sequence[Tensor], start: Sequence[Tensor], rate: float, seed: int,
    labels: Tensor,
) -> dict[str, Any]:  # fmt: skip
    """Train with one rate, which falls linearly; return the best checkpoint by the dev texts."""
    _put(parameters, start)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    train, size = run.examples["train"], run.trainer.args.train_batch_size
    generator = torch.Generator().manual_seed(seed)
    shuffled: Any = itertools.chain.from_iterable(
        torch.randperm(len(train), generator=generator).tolist() for _ in itertools.count()
    )
    began, best = time.monotonic(), {"score": (-1.0, 0.0)}
    for step in range(STEPS):
        batch = run.task.collate([train[index] for index in itertools.islice(shuffled, size)])
        inputs = {name: value.to(run.model.device) for name, value in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / STEPS)
        with torch.enable_grad():
            run.task.losses(run.model, inputs)[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % CHECK == 0 or step + 1 == STEPS:
            losses, logits = run.score("validation")
            loss = float(losses.double().mean())
            accuracy = float(right(logits, labels).double().mean())
            score = (accuracy, -loss if math.isfinite(loss) else -math.inf)
            if score > best["score"]:
                values = [parameter.detach().clone() for parameter in parameters]
                best = {"score": score, "step": step + 1, "values": values}
    return {**best, "steps": STEPS, "seconds": time.monotonic() - began}


@torch.no_grad()
def _put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _is_current(row: Row) -> bool:
    return bool(row["config"].get("settings") == run_of_demo.SETTINGS)


def _summaries(rows: Sequence[Row], device: str) -> list[Row]:
    """Return for each task the rows of the means over its seeds."""
    tasks = dict.fromkeys(row["mode"] for row in rows)
    return [row for task in tasks for row in _summary(rows, task, device)]


def _summary(rows: Sequence[Row], task: str, device: str) -> list[Row]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["mode"] == task:
            found.setdefault((row["provider"], row["metric"]), []).append(row)
    accuracies = {p: of for (p, metric), of in found.items() if metric == "test_accuracy"}
    seeds = len(accuracies["adazeta"])
    cell = Cell("learning", "summary", task, "seeds", seeds, device)
    # The share of the seeds in which each text was right, (N,).
    shares = {
        provider: torch.stack([unpacked_bits(row) for row in of]).double().mean(0)
        for provider, of in accuracies.items()
    }
    result = []
    for (provider, metric), of in found.items():
        values = [row["median"] for row in of]
        mean = sum(values) / len(values)
        config = {"mean": mean, "values": values, "classes": of[0]["config"]["classes"]}
        if metric == "test_accuracy":
            config["ci95_low"], config["ci95_high"] = wilson(mean, len(shares[provider]))
            config |= {"test": len(shares[provider])}
        result.append(cell.row(provider, metric, of[0]["unit"], values, config))
    over = gain(shares["adazeta"], shares["bias_only"])
    mean = over["mean"]
    result.append(cell.row("adazeta", "gain_over_bias_only", "fraction", [mean], over))
    reached = share(shares["adazeta"], shares["bias_only"], shares["adamw"])
    if reached is not None:
        mean = reached["mean"]
        result.append(cell.row("adazeta", "share_of_first_order", "times", [mean], reached))
    return result


def gain(ours: Tensor, bias: Tensor) -> dict[str, float]:
    """Return the gain of accuracy and its 95% interval, from differences on the same texts."""
    differences = ours - bias
    half = Z95 * float(differences.std()) / math.sqrt(len(differences))
    mean = float(differences.mean())
    return {"mean": mean, "ci95_low": mean - half, "ci95_high": mean + half}


def share(ours: Tensor, bias: Tensor, first: Tensor) -> dict[str, float] | None:
    """Return the share of first-order's gain over the biases that is reached.

    Returns:
        The share, with a 95% interval by resampling the texts where first-order gains in (almost)
        every sample; None where it gains nothing, as there is nothing to have a share of.
    """
    whole = float((first - bias).mean())
    if whole <= 0:
        return None
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(ours), (RESAMPLES, len(ours)), generator=generator)
    parts, wholes = ((each - bias)[drawn].mean(1) for each in (ours, first))
    found = {"mean": float((ours - bias).mean()) / whole}
    if float((wholes > 0).double().mean()) > 0.99:
        shares = (parts / wholes)[wholes > 0]
        ends = shares.quantile(torch.tensor([0.025, 0.975], dtype=shares.dtype))
        found["ci95_low"], found["ci95_high"] = ends.tolist()
    return found


def packed_bits(values: Tensor) -> str:
    """Write booleans as digits of base 16, the first the highest bit."""
    digits = "".join("1" if value else "0" for value in values.tolist())
    return f"{int('1' + digits, 2):x}"  # the leading one keeps the zeros


def unpacked_bits(row: Row) -> Tensor:
    """Read what :func:`packed_bits` wrote, bool (N,)."""
    digits = f"{int(row['config']['right'], 16):b}"[1:]
    return torch.tensor([digit == "1" for digit in digits])
