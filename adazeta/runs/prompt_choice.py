"""Which of several prompts suits a classification best, by what the untrained model knows with it.

A column that is called "label" says nothing of what is asked, and a prompt that does say it is
worth some points after training, too (docs/learning.md). A few forward passes tell: the loss of
training rows under the frozen model, each label's best bias added.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from adazeta.forward.logits import candidate_logits
from adazeta.models.arguments import ModelArguments
from adazeta.runs.base import load_untrained, set_up_base
from adazeta.support.settings import build
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.calibration import least_cross_entropy_bias
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.records import Records

ROWS = 256
"""Training rows that prompts are compared on: their loss is known to about 0.03."""


def choose_prompt(
    settings: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]], records: Records, size: int
) -> tuple[int, list[float]]:
    """Choose the prompt with which the untrained model predicts training rows best.

    Args:
        settings: of the model and the task, by name.
        prompts: each one's ``template`` and ``label_words``.
        records: training rows.
        size: rows of a forward.

    Returns:
        The index of the prompt, and the loss of each in nats; of equal ones the first is chosen.
        Where label words are not of one token each, the first prompt and no losses.

    Raises:
        ValueError: a prompt does not fit the model or the rows.
    """
    tasks: list[PromptTask] = []
    plain = {name: value for name, value in settings.items() if name not in ("labels", "adapt")}
    for prompt in prompts:
        arguments = build(TaskArguments, {**plain, **prompt})
        found = set_up_base(build(ModelArguments, plain), arguments, settings.get("revision"))
        if not isinstance(found.task, PromptTask):
            return 0, []
        tasks.append(found.task)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(records), generator=generator)[:ROWS].tolist()
    model = load_untrained(build(ModelArguments, plain), found, settings.get("revision"))
    losses = prompt_losses(model, tasks, records.chosen(sorted(chosen)), size)
    return min(range(len(losses)), key=losses.__getitem__), losses


@torch.no_grad()
def prompt_losses(
    model: PreTrainedModel, tasks: Sequence[PromptTask], records: Records, size: int
) -> list[float]:
    """Compute the mean cross entropy of each task, with its biases of least cross entropy.

    Tasks that share a template share its forward passes.

    Args:
        model: without adapters.
        tasks: have the same labels; their adapters act on all tokens.
        records: the rows.
        size: rows of a forward.
    """
    losses = [0.0] * len(tasks)
    for template in dict.fromkeys(task.template.text for task in tasks):
        places = [i for i, task in enumerate(tasks) if task.template.text == template]
        first = tasks[places[0]]
        examples = first.encode_all(records)
        words = torch.cat([tasks[i].candidates for i in places]).to(model.device)
        parts = []
        for begin in range(0, len(examples), size):
            rows = [examples[i] for i in range(begin, min(begin + size, len(examples)))]
            batch = {name: value.to(model.device) for name, value in first.collate(rows).items()}
            tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
            parts.append(candidate_logits(model, tokens, batch["positions"], words))
        logits = torch.cat(parts).double().cpu()
        width = len(first.candidates)
        for place, own in zip(places, logits.split(width, 1), strict=True):
            bias = least_cross_entropy_bias(own, examples.labels)
            losses[place] = float(functional.cross_entropy(own + bias, examples.labels))
    return losses
