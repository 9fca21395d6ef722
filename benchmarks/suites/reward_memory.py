"""``reward_memory``: peak resident memory of training by a score, beside plain generation and GRPO.

Each provider writes the same number of rows of the same length, in a process of its own:

- ``generate``: transformers' greedy generation with the base model, twice.
- ``adazeta``: two steps of :class:`~adazeta.ZOTrainer` with tensor-train adapters in all blocks;
  both sides of a direction for each prompt.
- ``grpo``: two steps of TRL's ``GRPOTrainer`` with LoRA by AdamW, in groups of eight, by its
  defaults otherwise; without TRL a row says so.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adazeta import ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.demo.data import film_reviews, model_file
from adazeta.demo.rewards import openings
from adazeta.models.loading import load_model, load_tokenizer
from adazeta.support.memory import PeakMemory
from adazeta.tasks.reward import RewardTask
from benchmarks.measure.harness import Cell, Options, Row, require
from benchmarks.measure.process import ProcessFailed, figures, return_freed_memory

ROWS, TOKENS, STEPS, GROUP, RANK = 64, 32, 2, 8, 8


def early(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    """Score a text by its share of letters of the first half of the alphabet."""
    return [sum("a" <= c < "n" for c in text) / max(len(text), 1) for text in completions]


def rows(options: Options) -> list[Row]:
    """Measure every provider."""
    cell = Cell("reward_memory", "train_step", f"tokens_{TOKENS}", "rows", ROWS, options.device)
    config = {"model": model_file().name, "steps": STEPS, "group": GROUP, "rank": RANK}
    found: list[Row] = []
    peaks: dict[str, float] = {}
    for name in PROVIDERS:
        if not options.wants("reward_memory", name):
            continue
        peak, reason = measured(name)
        if peak is None:
            require(name == "grpo", f"{name}: {reason}")
            found.append(cell.row(name, "fails", "runs", [1], {**config, "reason": reason}))
            continue
        peaks[name] = peak
        found.append(cell.row(name, "peak", "MiB", [peak], config))
        if name != "generate" and "generate" in peaks:
            ratio = peak / peaks["generate"]
            found.append(cell.row(name, "peak_over_generate", "times", [ratio], config))
    return found


def measured(provider: str) -> tuple[float | None, str]:
    """Run one provider in a fresh process; return its peak in MiB, or None and the reason."""
    try:
        return float(figures("benchmarks.suites.reward_memory", [provider])), ""
    except ProcessFailed as error:
        return None, str(error)


def _prompts(count: int) -> list[dict[str, Any]]:
    return [dict(row) for row in openings(film_reviews({"train": 1000})["train"])[:count]]


def _generate(folder: str) -> Callable[[], Any]:
    model, tokenizer = load_model(model_file()).eval(), load_tokenizer(model_file())
    tokenizer.padding_side = "left"
    texts = [row["prompt"] for row in _prompts(ROWS)]
    batch = tokenizer(texts, return_tensors="pt", padding=True)

    @torch.no_grad()
    def run() -> None:
        for _ in range(STEPS):
            model.generate(**batch, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)

    return run


def _adazeta(folder: str) -> Callable[[], Any]:
    model, tokenizer = load_model(model_file()).eval(), load_tokenizer(model_file())
    add_tt_adapters(model)
    prompts = ROWS // 2  # both sides of a direction are written at once
    arguments = ZOTrainingArguments(
        folder, max_steps=STEPS, per_device_train_batch_size=prompts, probes="example",
        probes_per_forward=2, eps=0.01, learning_rate=0.01, save_strategy="no", report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    return ZOTrainer(
        model, arguments, train_dataset=_prompts(prompts * STEPS), reward_funcs=[early],
        reward_task=RewardTask(tokenizer, max_new_tokens=TOKENS),
    ).train  # fmt: skip


def _grpo(folder: str) -> Callable[[], Any]:
    import datasets  # type: ignore[import-untyped]
    import peft
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

    file = Path(folder) / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in _prompts(ROWS)) + "\n")
    model, tokenizer = load_model(model_file()), load_tokenizer(model_file())
    arguments = GRPOConfig(
        folder, max_steps=STEPS, per_device_train_batch_size=ROWS, num_generations=GROUP,
        max_completion_length=TOKENS, learning_rate=1e-4, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    return GRPOTrainer(
        model, early, arguments, processing_class=tokenizer,
        train_dataset=datasets.load_dataset("json", data_files=str(file), split="train"),
        peft_config=peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    ).train  # fmt: skip


PROVIDERS: dict[str, Callable[[str], Callable[[], Any]]] = {
    "generate": _generate,
    "adazeta": _adazeta,
    "grpo": _grpo,
}


def main() -> None:
    """Measure one provider in this process; the last line is its peak in MiB."""
    parser = argparse.ArgumentParser(description="one provider; `reward_memory` starts these")
    parser.add_argument("provider", choices=PROVIDERS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = PROVIDERS[given.provider](folder)
        return_freed_memory()
        with PeakMemory() as peak:
            run()
    print(json.dumps(peak.mebibytes))
