"""Bases of informed adapters where texts are scored: from texts that the model itself writes.

Some prompts are completed by sampling from the frozen model, the texts are scored by the run's own
rewards, and one forward over them shows the hidden states of their tokens. For a thousand
prompts that takes as many tokens as ten steps with both sides of fifty, and no labels.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adazeta.adapters.attach import disable_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.informed import InformedAdapter, inform_by_scores
from adazeta.support.batches import on_device, padded
from adazeta.support.seeds import SAMPLING_SEEDS, derive_seed
from adazeta.tasks.examples import Examples
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.rollouts import Rollouts

_TEXTS = 1000  # of 256 the direction that goes with the score is mostly noise
_BEFORE = -2  # stands for the step, in the seeds of these texts


@torch.no_grad()
def inform_by_rewards(
    model: PreTrainedModel,
    rollouts: Rollouts,
    examples: Examples,
    training: ZOTrainingArguments,
    *,
    texts: int = _TEXTS,
) -> None:
    """Give a model's informed adapters their bases.

    Args:
        model: with informed adapters, which are zero.
        rollouts: completes and scores.
        examples: training prompts.
        training: has the seed, and how many rows a forward has.
        texts: texts to write.

    Raises:
        ValueError: no text was written, or none has a score.
    """
    model.eval()
    generator = torch.Generator().manual_seed(training.seed)
    chosen = torch.randperm(len(examples), generator=generator)[:texts].tolist()
    task, stacked = rollouts.task, training.stack_size()
    size = training.per_device_train_batch_size * (stacked if isinstance(stacked, int) else 1)
    device = next(model.parameters()).device
    start = rollouts.prompt_states(model) if task.adapt == "answer" else None
    decoding = task.decoding
    # Greedy texts of one prompt are one text; sampled ones spread as the scores do.
    task.decoding = replace(decoding, temperature=decoding.temperature or 1.0)
    rows: list[tuple[list[int], list[int]]] = []
    scores: list[float] = []
    try:
        for begin in range(0, len(chosen), size):
            part = [examples[index] for index in chosen[begin : begin + size]]
            batch = on_device(task.collate(part), device)
            words = [
                derive_seed(training.seed, SAMPLING_SEEDS, _BEFORE, begin + k)
                for k in range(len(part))
            ]
            seeds = torch.tensor(words, dtype=torch.int64, device=device)
            with disable_adapters(model):
                written, tokens = task.complete(model, batch, seeds=seeds, start=start)
            found = rollouts.score(batch, written, tokens).total.tolist()
            for example, row, value in zip(part, tokens, found, strict=True):
                if row and value == value:
                    rows.append((example["input_ids"], row))
                    scores.append(value)
    finally:
        task.decoding = decoding
    if not rows:
        raise ValueError(
            "form='informed' learns its space from scored texts, and of the "
            f"{len(chosen)} that the model wrote none has a score; look at the reward, or use "
            "form='bottleneck'"
        )
    parts = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
    place: dict[str, list[tuple[int, int, int]]] = {}

    def run(part: list[tuple[list[int], list[int]]]) -> None:
        # The token before each one of the answer decides it; of the last nothing follows.
        place["now"] = [(k, len(p) - 1, len(p) + len(a) - 1) for k, (p, a) in enumerate(part)]
        both = [prompt + answer for prompt, answer in part]
        body: Any = getattr(model, "base_model", model)  # no logits needed
        body(
            input_ids=padded(both, 0).to(device),
            attention_mask=padded([[1] * len(row) for row in both], 0).to(device),
        )

    def of_answers(hidden: Tensor) -> Tensor:
        return torch.cat([hidden[row, begin:end] for row, begin, end in place["now"]])

    owners = [index for index, (_, answer) in enumerate(rows) for _ in answer]
    adapters = [a for _, a in attached_adapters(model) if isinstance(a, InformedAdapter)]
    inform_by_scores(adapters, run, parts, of_answers, torch.tensor(owners), torch.tensor(scores))
