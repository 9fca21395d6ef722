"""Generate the answers of a task, and measure them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from adazeta.forward.head import contiguous_head
from adazeta.tasks.examples import Examples
from adazeta.tasks.generation import GenerationTask


class _Stops(StoppingCriteria):
    """Ends a row once what was generated in it holds one of the task's stop texts."""

    def __init__(self, task: GenerationTask, begin: int) -> None:
        self._task, self._begin = task, begin

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        texts = _decoded(self._task.tokenizer, input_ids[:, self._begin :])
        ended = [any(stop in text.lstrip() for stop in self._task.stop) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    task: GenerationTask,
    examples: Sequence[Mapping[str, Any]] | Examples,
    *,
    batch_size: int = 32,
) -> list[str]:
    """Generate an answer to each prompt, greedily.

    Args:
        model: the model.
        task: the task, with the longest answer and the texts that end one.
        examples: with ``prompt_ids``.
        batch_size: prompts in one batch.

    Returns:
        The answers in the order of the examples, up to the first stop text.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    model.eval()
    prompts = [examples[index]["prompt_ids"] for index in range(len(examples))]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    config = _greedy(model, task)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = _padded_left([prompts[index] for index in chosen], int(config.pad_token_id))
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        begin = 1 if task.decoder else inputs["input_ids"].shape[1]
        criteria = StoppingCriteriaList([_Stops(task, begin)] if task.stop else [])
        generate: Any = model.generate
        with _without_own_settings(model), contiguous_head(model):
            found = generate(**inputs, generation_config=config, stopping_criteria=criteria)
        for index, text in zip(chosen, _decoded(task.tokenizer, found[:, begin:]), strict=True):
            answers[index] = task.answer_of(text)
    return answers


def answer_metrics(
    model: PreTrainedModel, task: GenerationTask, examples: Examples, *, batch_size: int = 32
) -> dict[str, np.ndarray]:
    """Generate answers to the examples of a data set and compute the task's metrics.

    Returns:
        float64 (N,) for each metric, in the order of the examples.
    """
    answers = generate_answers(model, task, examples, batch_size=batch_size)
    references = [examples[index]["references"] for index in range(len(examples))]
    return task.scores(answers, references)


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Keep a checkpoint's settings out of a generation, such as a penalty on repetitions.

    ``generate`` takes from them whatever the settings that it is given leave open.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _greedy(model: PreTrainedModel, task: GenerationTask) -> GenerationConfig:
    """Return the settings of a greedy generation: a checkpoint's own serve for its tokens alone."""
    own = model.generation_config
    ends = [own.eos_token_id if own is not None else None, task.tokenizer.eos_token_id]
    listed = [token for end in ends for token in (end if isinstance(end, list) else [end])]
    config = GenerationConfig(
        max_new_tokens=task.max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=sorted({token for token in listed if token is not None}) or None,
        pad_token_id=task.padding,
        use_cache=True,
    )
    if task.decoder:
        config.decoder_start_token_id = model.config.decoder_start_token_id
        if own is not None:
            config.forced_bos_token_id = own.forced_bos_token_id
    return config


def _padded_left(rows: Sequence[Sequence[int]], padding: int) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = [[*[padding] * (width - len(row)), *row] for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> list[str]:
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts
