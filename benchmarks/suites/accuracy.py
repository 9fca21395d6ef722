"""``accuracy``: fine-tuning on film reviews at an equal number of forward evaluations.

Every method sees the same batches in the same order, and stops after the same number of evaluations
of a batch (a first-order step counts as three). Its learning rate is chosen by the dev loss after
pilot runs as long as that (shorter ones prefer rates at which the whole run diverges), with a seed
of their own; test sentences are seen once, at the end.

A run takes minutes and the whole grid hours, so the rows are written after each run, and a call
with the same file goes on where the last one stopped.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adazeta.adapters.config import TTAdapterConfig
from adazeta.demo.data import film_reviews
from adazeta.forward.contexts import keep_contexts
from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.tasks.examples import alternating
from adazeta.tasks.prompt import PromptTask
from benchmarks.measure.harness import Cell, Options, Row
from benchmarks.subjects.accuracy_methods import FIRST_ORDER_COST, Method, chosen_methods
from benchmarks.subjects.accuracy_models import BLOCKS, Trainee, Trainees
from benchmarks.subjects.steps import LORA_RANK, check
from benchmarks.subjects.workload import Batch, Workload, film_workload, small_workload

PILOT_SEED = 1_000
MOST_EXTENSIONS = 2  # of a grid of learning rates
EVALUATION_BATCH = 32
# Two-sided 95% quantile of Student's t, by degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

Examples = Sequence[Mapping[str, Any]]


@dataclass
class Problem:
    """Data, loss and models."""

    name: str
    data: Mapping[str, Examples]
    batch: int
    collate: Callable[[Examples], Batch]
    trainees: Trainees
    adapters: TTAdapterConfig
    work: Workload

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield training batches, epoch after epoch; a function of the seed, not of the method."""
        generator = torch.Generator().manual_seed(seed)
        train = self.data["train"]
        while True:
            order = torch.randperm(len(train), generator=generator).tolist()
            for start in range(0, len(order) - self.batch + 1, self.batch):
                rows = [dict(train[index]) for index in order[start : start + self.batch]]
                yield self.collate(alternating(rows))

    @torch.no_grad()
    def evaluate(self, trainee: Trainee, split: str) -> tuple[float, float]:
        """Return mean loss and accuracy on a split."""
        rows = sorted(self.data[split], key=lambda row: len(row["input_ids"]))
        loss = correct = 0.0
        for start in range(0, len(rows), EVALUATION_BATCH):
            batch = self.collate(rows[start : start + EVALUATION_BATCH])
            losses, logits = trainee.losses(batch)
            loss += losses.double().sum().item()
            correct += (logits.argmax(-1) == batch["labels"]).sum().item()
        return loss / len(rows), correct / len(rows)


def film_problem(options: Options) -> Problem:
    """Return the task of the demo: adapters on the last ten blocks and the prompt's last tokens."""
    work = film_workload(options.device)
    assert work.task is not None
    task = PromptTask(
        work.task.tokenizer, "{text}\nSentiment:", {0: "negative", 1: "positive"}, adapt="suffix"
    )
    data = {name: task.encode_all(records) for name, records in film_reviews().items()}
    adapters = TTAdapterConfig(rank=2, layers="last:10", init="zero", bias=False)
    device = work.base.device

    def collate(rows: Examples) -> Batch:
        return {k: v.to(device) for k, v in task.collate([dict(row) for row in rows]).items()}

    splits = {name: [d[i] for i in range(len(d))] for name, d in data.items()}

    # One model serves all runs with tensor-train adapters, so its contexts are computed once;
    # on disk, because a grid of runs is rarely done in one process.
    trainees = Trainees(
        work, adapters, task.losses, lambda model: keep_contexts(model, "disk"), cache="disk"
    )
    return Problem("film_reviews", splits, 16, collate, trainees, adapters, work)


def small_problem(options: Options) -> Problem:
    """Return random tokens and a random model, to see that every method runs."""
    work = small_workload(options.device)
    adapters = TTAdapterConfig(rank=2, layers="last:2")
    data = {name: work.examples for name in ("train", "dev", "test")}
    trainees = Trainees(work, adapters, work.losses)
    return Problem("random", data, 4, work.collate, trainees, adapters, work)


def rows(options: Options) -> list[Row]:
    """Run what is not in the file yet; return all its rows."""
    problem = small_problem(options) if options.small else film_problem(options)
    check(problem.work, "adapters_last10")
    log = Log(options, problem.name)
    named = chosen_methods(options.methods, problem.batch)
    chosen = {n: m for n, m in named.items() if options.wants("accuracy", n)}
    if options.wants("accuracy", "zero_shot") and not log.known("zero_shot", "run", 0, budget=0):
        _, accuracy = problem.evaluate(problem.trainees.fresh("nothing", 0), "test")
        log.add("zero_shot", "run", "seed", 0, {"test_accuracy": accuracy}, {}, budget=0)
    # Method after method, seed after seed within: what is there after an interruption is complete.
    for name, method in chosen.items():
        rate = pilot(problem, log, name, method, options)
        log.drop_runs_unlike(name, rate)
        for seed in options.seeds:
            if log.known(name, "run", seed):
                continue
            _, found, config = train(problem, method, seed, options.budget, rate)
            log.add(name, "run", "seed", seed, found, config)
    return log.finished()


def pilot(problem: Problem, log: "Log", name: str, method: Method, options: Options) -> float:
    """Choose the learning rate by the dev loss; a best one at the end of the grid extends it."""
    if len(method.rates) == 1:
        return method.rates[0]
    rates = sorted(method.rates)
    losses: dict[float, float] = {}
    while True:
        for rate in rates:
            if not log.known(name, "pilot", rate):
                trainee, found, config = train(
                    problem, method, PILOT_SEED, options.budget, rate, test=False
                )
                loss, accuracy = problem.evaluate(trainee, "dev")
                values = {"dev_loss": loss, "dev_accuracy": accuracy, "seconds": found["seconds"]}
                log.add(name, "pilot", "learning_rate", rate, values, config)
            loss = log.value(name, "pilot", rate, "dev_loss")
            losses[rate] = loss if math.isfinite(loss) else math.inf
        best = min(rates, key=lambda rate: losses[rate])
        beyond = next_rate(rates, best)
        if beyond is None or len(rates) == len(method.rates) + MOST_EXTENSIONS:
            return best
        rates = sorted([*rates, beyond])


def next_rate(rates: Sequence[float], best: float) -> float | None:
    """Return the rate that lies as far beyond the best one as the last does; None inside."""
    if best == rates[0]:
        return float(f"{rates[0] ** 2 / rates[1]:.2g}")
    if best == rates[-1]:
        return float(f"{rates[-1] ** 2 / rates[-2]:.2g}")
    return None


def train(
    problem: Problem, method: Method, seed: int, budget: int, rate: float, *, test: bool = True
) -> tuple[Trainee, dict[str, float], dict[str, Any]]:
    """Train one model.

    Args:
        problem: data and models.
        method: the method.
        seed: of adapters, directions and order of data.
        budget: evaluations of a batch.
        rate: initial learning rate; it falls to zero as the budget is used up.
        test: whether to measure on the test sentences.

    Returns:
        The trained model, what was measured, and what a reader needs to repeat it.
    """
    began = time.monotonic()
    trainee = problem.trainees.fresh(method.trains, seed)
    optimizer = method.build(trainee.model, rate, seed)
    used = steps = 0
    for batch in problem.batches(seed):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - used / budget)
        if isinstance(optimizer, ZerothOrderOptimizer):
            epoch = steps * problem.batch / len(problem.data["train"])
            optimizer.step(lambda rows: trainee.losses(rows)[0], batch, epoch=epoch)
            used = optimizer.evaluations
        else:
            first_order_step(trainee, optimizer, batch)
            used += FIRST_ORDER_COST
        steps += 1
        if used >= budget:
            break
    found = {"seconds": time.monotonic() - began, "steps": steps, "evaluations": used}
    if test:
        found["test_loss"], found["test_accuracy"] = problem.evaluate(trainee, "test")
    config = {
        "learning_rate": rate, "schedule": "linear", "budget": budget, "batch": problem.batch,
        "trains": method.trains, "model": problem.work.name, **method.settings,
    }  # fmt: skip
    if method.trains == "blocks":
        config["blocks"] = BLOCKS
    elif method.trains in ("tt", "lora"):
        rank = problem.adapters.rank if method.trains == "tt" else LORA_RANK
        config |= {"rank": rank, "layers": problem.adapters.layers}
    return trainee, found, config


def first_order_step(trainee: Trainee, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """Loss, backward, update."""
    with torch.enable_grad():
        trainee.losses(batch)[0].mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class Log:
    """The rows so far; written to the file after each addition.

    Args:
        options: names the file, if there is one.
        mode: of the rows: the problem.
    """

    def __init__(self, options: Options, mode: str) -> None:
        self._options = options
        self._mode = mode
        self._rows: list[Row] = []
        if options.json is not None and options.json.is_file():
            self._rows = json.loads(options.json.read_text())
        self._foreign = [r for r in self._rows if r["benchmark"] != "accuracy"]
        self._rows = [r for r in self._rows if r["op"] in ("pilot", "run")]

    def known(self, provider: str, op: str, x: float, budget: int | None = None) -> bool:
        """Tell whether a run is in the file, by default with the budget of these options."""
        return any(self._is(row, provider, op, x, budget) for row in self._rows)

    def value(self, provider: str, op: str, x: float, metric: str) -> float:
        """Return what a run measured."""
        for row in self._rows:
            if self._is(row, provider, op, x) and row["metric"] == metric:
                return float(row["median"])
        raise KeyError((provider, op, x, metric))

    def _is(self, row: Row, provider: str, op: str, x: float, budget: int | None = None) -> bool:
        found = (row["provider"], row["op"], row["x_value"], row["mode"])
        wanted = self._options.budget if budget is None else budget
        same = found == (provider, op, x, self._mode)
        return same and row["config"].get("total_budget") == wanted

    def drop_runs_unlike(self, provider: str, rate: float) -> None:
        """Forget runs with another learning rate: a changed grid may have changed the choice."""
        self._rows = [
            row
            for row in self._rows
            if not self._is(row, provider, "run", row["x_value"])
            or row["config"]["learning_rate"] == rate
        ]

    def add(
        self, provider: str, op: str, x_name: str, x: float, values: Mapping[str, float],
        config: dict[str, Any], budget: int | None = None,
    ) -> None:  # fmt: skip
        """Add the rows of one run and write the file."""
        cell = Cell("accuracy", op, self._mode, x_name, x, self._options.device)
        units = {"seconds": "s", "steps": "1", "evaluations": "1"}
        config = {**config, "total_budget": self._options.budget if budget is None else budget}
        for metric, value in values.items():
            unit = units.get(metric, "nats" if metric.endswith("loss") else "fraction")
            self._rows.append(cell.row(provider, metric, unit, [value], config))
        if self._options.json is not None:
            self._options.json.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps([*self._foreign, *self.finished()], indent=1)
            self._options.json.write_text(text + "\n")

    def finished(self) -> list[Row]:
        """Return all rows and, per method, the mean over its seeds with a confidence interval."""
        return [*self._rows, *self._summaries()]

    def _summaries(self) -> list[Row]:
        runs: dict[tuple[str, str, int], list[Row]] = {}
        for row in self._rows:
            if row["op"] == "run" and row["metric"] == "test_accuracy":
                key = (row["mode"], row["provider"], row["config"]["total_budget"])
                runs.setdefault(key, []).append(row)
        summaries = []
        for (mode, provider, budget), of_method in runs.items():
            values = [row["median"] for row in of_method]
            device = self._options.device
            cell = Cell("accuracy", "fine_tune", mode, "evaluations", budget, device)
            config = {**of_method[0]["config"], "values": values, **interval(values)}
            summaries.append(cell.row(provider, "test_accuracy", "fraction", values, config))
        return summaries


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95% confidence interval (Student's t) of the mean; no interval of one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean}
    t = T95[len(values) - 2] if len(values) - 2 < len(T95) else 1.96
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "ci95_low": mean - half, "ci95_high": mean + half}
