"""The models and batches that ``step`` and ``memory`` run on.

The real one is SmolLM2-135M-Instruct on film-review sentences (as in ``adazeta demo``), the small
one a random Llama of four layers on random tokens, for continuous integration.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from adazeta.adapters.attach import add_tt_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.demo.data import film_reviews, model_file
from adazeta.forward.logits import candidate_logits
from adazeta.models.loading import load_model, load_tokenizer
from adazeta.support.batches import padded
from adazeta.tasks.examples import Examples
from adazeta.tasks.prompt import PromptTask
from benchmarks.measure.harness import Options

Batch = dict[str, Tensor]

# Placements of the trainable parameters that are measured.
ADAPTERS = {
    "adapters_all": TTAdapterConfig(rank=5),
    "adapters_last10": TTAdapterConfig(rank=5, layers="last:10"),
}


@dataclass
class Workload:
    """A frozen base model, and batches of a two-word classification task.

    Attributes:
        name: of the model.
        base: the model, float32, evaluation mode, nothing trainable.
        examples: encoded sentences.
        candidates: int64 (2,), token ids of the label words.
        task: the task, None for the small workload.
    """

    name: str
    base: PreTrainedModel
    examples: list[dict[str, Any]]
    candidates: Tensor
    task: PromptTask | None = None

    def model(self, placement: str = "bare") -> nn.Module:
        """Return a model that shares the frozen weights of the base.

        Args:
            placement: ``"bare"``: nothing trainable; ``"full"``: an own copy, all trainable; or a
                key of ``ADAPTERS``.
        """
        if placement == "full":
            return copy.deepcopy(self.base).requires_grad_(True)
        twin = self.twin()
        if placement != "bare":
            config = copy.deepcopy(ADAPTERS[placement])
            if config.layers and self.task is None:
                config.layers = "last:2"
            add_tt_adapters(twin, config)
        return twin

    def twin(self, own: Iterable[nn.Parameter] = ()) -> nn.Module:
        """Return a model that shares the weights of the base, but for some.

        Args:
            own: parameters of the base of which the twin gets its own, trainable.
        """
        apart = {id(parameter) for parameter in own}
        shared = {id(p): p for p in self.base.parameters() if id(p) not in apart}
        twin = copy.deepcopy(self.base, dict(shared))
        for parameter in twin.parameters():
            if id(parameter) not in shared:
                parameter.requires_grad_(True)
        return twin

    def batch(self, size: int, *, first: int = 0, width: int | None = None) -> Batch:
        """Return a batch of ``size`` sentences, padded on the right.

        Args:
            size: number of rows.
            first: index of the first sentence.
            width: repeat each sentence's tokens up to this length (for memory at longer texts).
        """
        rows = [self.examples[(first + k) % len(self.examples)] for k in range(size)]
        if width is not None:
            rows = [{**row, "input_ids": (row["input_ids"] * width)[:width]} for row in rows]
        return self.collate(rows)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Pad examples on the right and stack them."""
        ids = [row["input_ids"] for row in rows]
        columns = {
            "input_ids": padded(ids, 0),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "positions": torch.tensor([len(row) - 1 for row in ids]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }
        return {name: column.to(self.base.device) for name, column in columns.items()}

    def losses(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Losses of the examples from the label words' logits alone, and those logits."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = candidate_logits(model, inputs, batch["positions"], self.candidates)
        return functional.cross_entropy(logits.float(), batch["labels"], reduction="none"), logits


def workload(options: Options) -> Workload:
    """Load the workload that the options ask for."""
    return small_workload(options.device) if options.small else film_workload(options.device)


def small_workload(device: str = "cpu") -> Workload:
    """Return the random Llama on random tokens; a pure function of the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128,
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                tie_word_embeddings=True,
            )
        )
        examples = [
            {"input_ids": torch.randint(5, 128, (5 + k % 7,)).tolist(), "labels": k % 2}
            for k in range(16)
        ]
    model.requires_grad_(False).eval().to(device)  # type: ignore[arg-type]
    return Workload("random-llama", model, examples, torch.tensor([7, 9], device=device))


def film_workload(device: str = "cpu") -> Workload:
    """Return SmolLM2 in float32 on the training sentences of the demo."""
    source = model_file()
    tokenizer = load_tokenizer(source)
    task = PromptTask(tokenizer, "{text} It was", {0: "terrible", 1: "great"})
    encoded = task.encode_all(film_reviews()["train"])
    model = load_model(source, dtype="float32").requires_grad_(False).to(device)  # type: ignore[arg-type]
    return Workload("SmolLM2-135M", model, shuffled(encoded), task.candidates.to(device), task=task)


def shuffled(examples: Examples, seed: int = 0) -> list[dict[str, Any]]:
    """Return the examples in an order that is a function of the seed."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return [examples[index] for index in order.tolist()]
