"""``embedding``: R-Adapter's pieces on a model that answers by similarity, by gradients.

MiniLM embeds sentences. A text is good where it is nearer to the sentence that says so than to the
one that says it is bad (``PROMPTS``), which is an answer before any training. Tensor trains without
an activation in all its blocks are trained on film reviews by AdamW, and the answers tested on film
reviews and on tweets, Amazon reviews and editorials, at each scale of what the adapters add. The
arms are the pieces together (``all``: MPM-NCE, adapters left out at random, an average), and those
without one of them (``cross_entropy``, ``no_drop``, ``no_average``).

Rows are written after each arm and seed, and a call with the same file goes on from there.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding

from adazeta.adapters.attach import add_tt_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.scaling import SCALES, adapter_scale
from adazeta.demo.data import Record, film_reviews, opinions
from adazeta.forward.contrastive import multi_positive_margin_nce
from adazeta.training.first_order import FOTrainer
from adazeta.training.first_order_arguments import FOTrainingArguments
from benchmarks.measure.harness import Cell, Options, Refused, Row
from benchmarks.measure.log import Log
from benchmarks.subjects.encoder import embedder_folder, encoded

SIZES = {"train": 1000, "test": 500}
OTHERS = {"tweet": 300, "amazon": 300, "editorial": 300}
"""Sentences of each other domain, half of them good."""

PROMPTS = ("This is bad.", "This is good.")
TEMPERATURE = 0.05  # of the loss, and of the cross entropy in its place
DROP, AVERAGE = 0.2, 0.98
ADAPTERS: dict[str, Any] = {"activation": "linear", "bias": False}
SETTINGS: dict[str, Any] = {
    "rule": "adamw",
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "max_grad_norm": 0.0,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
ARMS: dict[str, dict[str, Any]] = {
    "all": {"loss": "mpm_nce", "drop": DROP, "average": AVERAGE},
    "no_drop": {"loss": "mpm_nce", "drop": 0.0, "average": AVERAGE},
    "no_average": {"loss": "mpm_nce", "drop": DROP, "average": 0.0},
    "cross_entropy": {"loss": "cross_entropy", "drop": DROP, "average": AVERAGE},
}
_BATCH = 64  # texts of an evaluation


def rows(options: Options) -> list[Row]:
    """Train and test the arms that are asked for and not in the file yet."""
    if options.small:
        raise Refused("embedding has no small size; leave --small out, or use --quick")
    sizes = {"train": 64, "test": 32} if options.quick else SIZES
    log = Log(options, "embedding", "train", partial(is_current, texts=sizes["train"]))
    data: dict[str, list[Record]] = {}
    for seed in options.seeds[:1] if options.quick else options.seeds:
        for arm in ARMS:
            if options.wants("embedding", "train", arm) and not log.known(arm, seed):
                data = data or loaded(sizes, 32 if options.quick else None)
                cell = Cell("embedding", "train", arm, "seed", seed, options.device)
                log.add(measured(cell, data))
    return log.finished()


def loaded(sizes: Mapping[str, int], others: int | None = None) -> dict[str, list[Record]]:
    """Return the texts: ``train``, ``film``, and those of each other domain."""
    film = film_reviews(sizes)
    found = {"train": film["train"], "film": film["test"]}
    return found | {name: opinions(name, others or count) for name, count in OTHERS.items()}


def own_settings(arm: str) -> dict[str, Any]:
    """Return what a row's arm was made with, but for model, data and seed."""
    return {
        **SETTINGS, **ADAPTERS, **ARMS[arm], "prompts": list(PROMPTS), "temperature": TEMPERATURE
    }  # fmt: skip


def is_current(row: Row, texts: int) -> bool:
    """Tell whether a row is of the present settings of its arm."""
    arm, config = row["mode"], row["config"]
    return arm in ARMS and bool(config["settings"] == own_settings(arm)) and (
        config["trained_on"] == texts
    )  # fmt: skip


def measured(cell: Cell, data: Mapping[str, Sequence[Record]]) -> list[Row]:
    """Train an arm and test it; a row for each set of texts, at the scales."""
    arm, seed, folder = ARMS[cell.mode], int(cell.x_value), embedder_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).to(cell.device)
    torch.manual_seed(seed)
    add_tt_adapters(model, TTAdapterConfig(**ADAPTERS, drop=arm["drop"]))
    prompts = {
        name: torch.as_tensor(values, device=cell.device)
        for name, values in tokenizer(list(PROMPTS), padding=True).items()
    }
    sets = {name: encoded(folder, records) for name, records in data.items()}
    collate = DataCollatorWithPadding(tokenizer)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as output:
        trainer = FOTrainer(
            model,
            FOTrainingArguments(
                output_dir=output, seed=seed, use_cpu=cell.device == "cpu",
                average=arm["average"], **SETTINGS,
            ),
            loss_fn=LOSSES[arm["loss"]](prompts),
            train_dataset=sets.pop("train"),  # type: ignore[arg-type]
            data_collator=collate,
        )  # fmt: skip
        trainer.train()
    seconds = time.monotonic() - began
    with trainer.final_weights():
        found = {name: accuracies(model.eval(), prompts, of, collate) for name, of in sets.items()}
    config = {
        "model": folder.name, "settings": own_settings(cell.mode), "scales": list(SCALES),
        "trained_on": len(data["train"]), "steps": trainer.state.max_steps,
    }  # fmt: skip
    result = []
    for name, values in found.items():
        with_values = {**config, "accuracies": values, "texts": len(sets[name])}
        result.append(cell.row(name, "accuracy", "fraction", values[-1:], with_values))
    return [*result, cell.row("training", "seconds", "s", [seconds], config)]


def embeddings(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the means of the tokens' last states, each of length 1: (B, d)."""
    mask = inputs["attention_mask"]
    states = model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
    summed = (states * mask[..., None]).sum(1)
    return functional.normalize(summed / mask.sum(1, keepdim=True), dim=-1)


def contrastive(prompts: Mapping[str, Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the loss MPM-NCE of a batch against the prompts of its labels."""

    def loss_fn(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels, texts, said = (
            inputs["labels"], embeddings(model, inputs), embeddings(model, prompts)
        )  # fmt: skip
        losses = multi_positive_margin_nce(texts, said[labels], labels, temperature=TEMPERATURE)
        return losses, texts @ said.T

    loss_fn.couples_examples = True  # type: ignore[attr-defined]
    return loss_fn


def cross_entropy(prompts: Mapping[str, Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the cross entropy of a text's similarities to all prompts."""

    def loss_fn(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        similar = embeddings(model, inputs) @ embeddings(model, prompts).T
        return functional.cross_entropy(
            similar / TEMPERATURE, inputs["labels"], reduction="none"
        ), similar

    return loss_fn


LOSSES = {"mpm_nce": contrastive, "cross_entropy": cross_entropy}


@torch.no_grad()
def accuracies(
    model: nn.Module,
    prompts: Mapping[str, Tensor],
    examples: Sequence[dict[str, Any]],
    collate: DataCollatorWithPadding,
) -> list[float]:
    """Return the share of texts nearest to the prompt of their label, at each of the scales."""
    ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
    device = prompts["input_ids"].device
    found = []
    for scale in SCALES:
        right = 0
        with adapter_scale(model, scale):
            said = embeddings(model, prompts)
            for start in range(0, len(ordered), _BATCH):
                batch = collate(ordered[start : start + _BATCH]).to(device)
                chosen = (embeddings(model, batch) @ said.T).argmax(-1)
                right += int((chosen == batch["labels"]).sum())
        found.append(right / len(ordered))
    return found
