"""``quantised``: a base in 32, 16, 8 and 4 bits: its memory, a step's time, and what is learnt.

Every provider trains the same adapters for the same steps on film reviews, in a process of its own.
``base`` is the resident memory that the model adds once every weight was used, ``peak`` the most
that loading and training add, both above a process that has imported everything. ``time`` is the
median of the steps. ``qlora`` is first-order: LoRA by AdamW through a base in 4 bits.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adazeta import ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.demo.data import film_reviews, model_file
from adazeta.demo.run import TASKS
from adazeta.models.loading import load_model, load_tokenizer
from adazeta.runs.inference import score, summarise
from adazeta.support.memory import PeakMemory
from adazeta.tasks.prompt import PromptTask
from benchmarks.measure.harness import Cell, Options, Row
from benchmarks.measure.process import ProcessFailed, figures, return_freed_memory

BATCH, STEPS, TESTED = 16, 20, 200
RATE, RANK = 1e-2, 8


class Provider(NamedTuple):
    """How the base is held (``quantise``), in which dtype it computes, and whether by AdamW."""

    quantise: str
    dtype: str = "float32"
    first_order: bool = False


PROVIDERS = {
    "float32": Provider("none"),
    "bfloat16": Provider("none", "bfloat16"),
    "gguf_kept": Provider("keep"),
    "gguf_kept_bfloat16": Provider("keep", "bfloat16"),
    "bnb_int8": Provider("bnb-int8"),
    "bnb_nf4": Provider("bnb-nf4"),
    "torchao_int8": Provider("torchao-int8"),
    "torchao_int8_dynamic": Provider("torchao-int8-dynamic"),
    "torchao_int4": Provider("torchao-int4", "bfloat16"),
    "qlora": Provider("bnb-nf4", first_order=True),
}
UNITS = {
    "base": "MiB", "peak": "MiB", "time": "s", "test_accuracy": "fraction", "test_loss": "nats",
    "train_loss": "nats",
}  # fmt: skip


def rows(options: Options) -> list[Row]:
    """Measure every provider with every seed."""
    steps, tested = (2, 8) if options.small else (STEPS, TESTED)
    found: list[Row] = []
    for name, provider in PROVIDERS.items():
        if not options.wants("quantised", name):
            continue
        cell = Cell("quantised", name, "film", "steps", steps, options.device, provider.dtype)
        config = {"model": "SmolLM2-135M-Instruct, Q4_1", "batch": BATCH, "learning_rate": RATE,
                  "tested": tested, "seeds": list(options.seeds)}  # fmt: skip
        runs = []
        for seed in options.seeds:
            values, reason = measured(name, seed, steps, tested)
            if values is None:
                found.append(cell.row(name, "fails", "runs", [1], {**config, "reason": reason}))
                break
            runs.append(values)
        else:
            for metric, unit in UNITS.items():
                each = [run[metric] for run in runs]
                found.append(cell.row(name, metric, unit, each, {**config, "values": each}))
    return found


def measured(
    provider: str, seed: int, steps: int, tested: int
) -> tuple[dict[str, float] | None, str]:
    """Run one provider in a fresh process; return its figures, or None and why there are none."""
    arguments = [provider, "--seed", seed, "--steps", steps, "--tested", tested]
    try:
        return figures("benchmarks.suites.quantised", arguments), ""
    except ProcessFailed as error:
        return None, str(error)


def main() -> None:
    """Measure one provider in this process and write its figures as one line of JSON."""
    parser = argparse.ArgumentParser(description="one provider; the suite `quantised` starts these")
    parser.add_argument("provider", choices=PROVIDERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--tested", type=int, default=TESTED)
    given = parser.parse_args()
    print(json.dumps(run(PROVIDERS[given.provider], given.seed, given.steps, given.tested)))


def run(provider: Provider, seed: int, steps: int, tested: int) -> dict[str, float]:
    """Load, train and test."""
    source = model_file()
    tokenizer = load_tokenizer(source, quantise=provider.quantise)
    settings = TASKS["film"]
    task = PromptTask(tokenizer, settings["template"], settings["label_words"])
    reviews = film_reviews()
    data = {
        "train": task.encode_all(reviews["train"]),
        "test": task.encode_all(reviews["test"][:: max(1, 1000 // tested)][:tested]),
    }
    before = _settled()
    with PeakMemory() as peak:
        model = load_model(source, dtype=provider.dtype, quantise=provider.quantise)
        first = task.collate([data["train"][0]])
        with torch.no_grad():
            task.losses(model, first)
            base = _settled() - before
        train = _by_adamw if provider.first_order else _forward_only
        times, losses = train(model, task, data["train"], seed, steps)
    found = summarise(task, data["test"], *score(model, task, data["test"], batch_size=BATCH))
    return {
        "base": base,
        "peak": peak.mebibytes - before,
        "time": statistics.median(times),
        "test_accuracy": found["accuracy"],
        "test_loss": found["loss"],
        "train_loss": statistics.mean(losses),
    }


def _forward_only(
    model: nn.Module, task: PromptTask, data: Any, seed: int, steps: int
) -> tuple[list[float], list[float]]:
    add_tt_adapters(model, TTAdapterConfig(rank=RANK), seed=seed)
    times: list[float] = []

    class Timed(ZOTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            began = time.perf_counter()
            loss = super().training_step(*args, **kwargs)
            times.append(time.perf_counter() - began)
            return loss

    with tempfile.TemporaryDirectory() as folder:
        arguments = ZOTrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=BATCH,
            learning_rate=RATE, probes="example", eps="0.01", seed=seed, logging_steps=1,
            save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = Timed(
            model, arguments, loss_fn=task.losses, train_dataset=data, data_collator=task.collate
        )
        output = sys.stdout
        sys.stdout = sys.stderr  # the last line of the output is the figures
        try:
            trainer.train()
        finally:
            sys.stdout = output
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return times, logged


def _by_adamw(
    model: nn.Module, task: PromptTask, data: Any, seed: int, steps: int
) -> tuple[list[float], list[float]]:
    import peft

    torch.manual_seed(seed)
    config = peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(peft.prepare_model_for_kbit_training(model), config)
    adapted.train()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.0)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    times, losses = [], []
    for step in range(steps):
        chosen = [data[order[(step * BATCH + k) % len(order)]] for k in range(BATCH)]
        began = time.perf_counter()
        loss = task.losses(adapted, task.collate(chosen))[0].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
        losses.append(loss.item())
    adapted.eval()
    return times, losses


def _settled() -> float:
    """Return the resident memory in MiB, once what is free has gone back to the system."""
    return_freed_memory()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * resource.getpagesize() / 2**20
