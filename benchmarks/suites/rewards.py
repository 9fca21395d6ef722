"""``rewards``: what a score of texts can teach, and how quickly texts of a population are written.

- ``decode``: tokens a second of a population (both sides of a direction for each prompt), beside
  transformers' ``generate`` of the same rows with the base model, the floor.
- ``answer``: the same with long prompts and adapters on the answer only, beside adapters on all.
- a task and seed: the reward on unseen prompts before and after training, with the 95% interval of
  the start, the generations and the seconds it took.

Rows of a task and seed are written after each, and a call with the same file goes on from there.
``--quick`` measures one seed of the task ``reviews`` with a few steps, and shorter texts.
"""

import math
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adazeta.adapters.attach import add_tt_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.demo import rewards as demo
from adazeta.demo.data import model_file, sentiment_scorer
from adazeta.forward.decode import Decoding, decode
from adazeta.forward.head import contiguous_head
from adazeta.forward.prompt_states import PromptStates
from adazeta.models.loading import load_model
from adazeta.parameters.space import ParameterSpace
from adazeta.runs.run import prepare_from
from benchmarks.measure.harness import Cell, Options, Refused, Row, compare, require
from benchmarks.measure.log import Log
from benchmarks.subjects.reward_tasks import TASKS, RewardTaskOfBenchmark

ROWS, TOKENS, LONG = 64, 32, 200
Z95 = 1.96


def rows(options: Options) -> list[Row]:
    """Measure decoding, then the tasks that are asked for."""
    chosen = [name for name in options.tasks.split(",") if name] or list(TASKS)
    unknown = sorted(set(chosen) - set(TASKS))
    if unknown:
        raise Refused(f"there is no task {unknown[0]!r} in rewards; there are {', '.join(TASKS)}")
    found = [] if options.tasks else [*decoding(options), *answering(options)]
    if options.quick:
        chosen = chosen[:1]
    log = Log(options, "rewards", "train", partial(is_current, options=options))
    for name in chosen:
        for seed in options.seeds[:1] if options.quick else options.seeds:
            if options.wants("rewards", name) and not log.known(name, seed):
                log.add(trained(name, seed, options))
    return [*found, *log.finished()]


def steps_of(task: RewardTaskOfBenchmark, options: Options) -> int:
    """Return the steps of a task."""
    return 3 if options.quick or options.small else task.steps


def own_settings(task: RewardTaskOfBenchmark) -> dict[str, Any]:
    """Return the settings of a task's runs, but for model, data, reward and seed."""
    return {**demo.SETTINGS, **task.settings}


def is_current(row: Row, options: Options) -> bool:
    """Tell whether a row is of the present settings of its task."""
    task, config = TASKS.get(row["mode"]), row["config"]
    return task is not None and (config.get("steps"), config.get("settings")) == (
        steps_of(task, options), own_settings(task),
    )  # fmt: skip


def _population(options: Options, prompt: int) -> tuple[Any, ParameterSpace, Tensor, Tensor]:
    model = load_model(model_file(), dtype="float32").eval().to(options.device)
    layers = [model.config.num_hidden_layers // 2]
    add_tt_adapters(
        model,
        TTAdapterConfig(form="informed", layers=layers, components=16, answers=7, read_layers=[]),
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (ROWS // 2, prompt), generator=generator).repeat(2, 1)
    return model, ParameterSpace(model), ids.to(options.device), torch.ones_like(ids)


def decoding(options: Options) -> list[Row]:
    """Compare population decoding with ``generate`` of the same rows."""
    tokens = 8 if options.quick or options.small else TOKENS
    cell = Cell("rewards", "decode", "inference", "rows", ROWS, options.device)
    if not options.wants(cell.benchmark, cell.op, cell.mode):
        return []
    model, space, ids, mask = _population(options, 8)
    mask = mask.to(ids.device)
    seeds = torch.arange(ROWS // 2).repeat(2).to(ids.device)
    sides = torch.tensor([1e-3, -1e-3]).repeat_interleave(ROWS // 2).to(ids.device)
    made: dict[str, Any] = {}

    def plain() -> None:
        # Its weights are frozen, which slows generate down: see contiguous_head.
        with torch.no_grad(), contiguous_head(model):
            made["plain"] = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False,
                min_new_tokens=tokens, pad_token_id=0,
            )[:, ids.shape[1] :]  # fmt: skip

    def population() -> None:
        with space.stacked(seeds, sides):
            made["population"] = decode(model, ids, mask, Decoding(tokens), groups=ROWS)

    plain()
    made["alone"] = torch.tensor(decode(model, ids, mask, Decoding(tokens)))
    same = (made["alone"] == made["plain"].cpu()).double().mean().item()
    require(same > 0.9, "decode: greedy texts differ from those of generate")
    work = {"tokens_per_second": ("1/s", float(ROWS * tokens))}
    return compare(
        cell, {"reference": plain, "adazeta": population}, options, bases=("reference",),
        config={"model": model_file().name, "new_tokens": tokens}, rates=work,
    )  # fmt: skip


def answering(options: Options) -> list[Row]:
    """Compare adapters on the answer with adapters on all tokens, with long prompts."""
    tokens = 8 if options.quick or options.small else TOKENS
    cell = Cell("rewards", "answer", "inference", "prompt_tokens", LONG, options.device)
    if not options.wants(cell.benchmark, cell.op, cell.mode):
        return []
    model, space, ids, mask = _population(options, LONG)
    mask = mask.to(ids.device)
    states = PromptStates(model, cache="memory")
    seeds = torch.arange(ROWS // 2).repeat(2).to(ids.device)
    sides = torch.tensor([1e-3, -1e-3]).repeat_interleave(ROWS // 2).to(ids.device)

    def everywhere() -> None:
        with space.stacked(seeds, sides):
            decode(model, ids, mask, Decoding(tokens), groups=ROWS)

    def answers() -> None:
        with space.stacked(seeds, sides):
            decode(model, ids, mask, Decoding(tokens), groups=ROWS, start=states)

    work = {"tokens_per_second": ("1/s", float(ROWS * tokens))}
    return compare(
        cell, {"reference": everywhere, "adazeta": answers}, options, bases=("reference",),
        config={"model": model_file().name, "new_tokens": tokens}, rates=work,
    )  # fmt: skip


def trained(name: str, seed: int, options: Options) -> list[Row]:
    """Train on one task with one seed."""
    task = TASKS[name]
    steps = steps_of(task, options)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        settings = demo.configure(model_file(), sentiment_scorer(), task.load(seed), output, seed)
        settings |= {**task.settings, "max_steps": steps, "use_cpu": options.device == "cpu"}
        score, spread = demo.SCORE, demo.SCORE.replace("mean", "std")
        if task.reward is not None:
            settings |= {"reward": task.reward, "reward_weights": None}
            score, spread = "reward", "reward_std"
        began = time.monotonic()
        run = prepare_from(settings)
        count = len(run.examples["test"])
        before = run.trainer.evaluate(run.examples["test"], metric_key_prefix="before")
        metrics = run.train()
        seconds = time.monotonic() - began
    start = before[f"before_{score}"]
    half = Z95 * before[f"before_{spread}"] / math.sqrt(count)
    config: dict[str, Any] = {
        "model": model_file().name, "test": count, "steps": steps, "settings": own_settings(task),
        "ci95_low": start - half, "ci95_high": start + half,
    }  # fmt: skip
    generations = run.trainer.evaluations * run.trainer.args.train_batch_size
    cell = Cell("rewards", "train", name, "seed", seed, options.device).of(run.model)
    made = {
        ("zero_shot", "reward", "1"): start,
        ("adazeta", "reward", "1"): metrics[f"test_{score}"],
        ("adazeta", "generations", "1"): generations,
        ("adazeta", "seconds", "s"): seconds,
        ("adazeta", "distinct_bigrams", "1"): metrics["test_distinct_bigrams"],
        ("zero_shot", "distinct_bigrams", "1"): before["before_distinct_bigrams"],
        ("adazeta", "base_perplexity", "1"): metrics["test_base_perplexity"],
        ("zero_shot", "base_perplexity", "1"): before["before_base_perplexity"],
    }
    return [
        cell.row(provider, metric, unit, [float(value)], config)
        for (provider, metric, unit), value in made.items()
    ]
