"""Which of several prompts suits a classification best, by what the untrained model knows with it.

A column that is called "label" says nothing of what is asked, and a prompt that does say it is
worth some points after training, too (docs/learning.md). A few forward passes tell: how well the
labels of training rows can be read from the hidden state that predicts the label word, and from the
words' logits. Rows are held out in turn, so that a wide fit gains nothing by itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adazeta.forward.logits import logits_at
from adazeta.models.arguments import ModelArguments
from adazeta.optim.linearised import Responses, fit_core
from adazeta.runs.base import load_untrained, set_up_base
from adazeta.support.settings import build
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.demonstrations import set_up_task
from adazeta.tasks.examples import collated
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.records import Records

ROWS = 256
"""Training rows that prompts are compared on."""

_COMPONENTS = 64
_ROUNDING = 1e-4  # of the largest logit


def choose_prompt(
    settings: Mapping[str, Any],
    prompts: Sequence[Mapping[str, Any]],
    records: Records,
    rows: Records,
    size: int,
) -> tuple[int, list[float]]:
    """Choose the prompt with which the untrained model tells most of the labels.

    Args:
        settings: of the model and the task, by name.
        prompts: each one's ``template`` and ``label_words``.
        records: ``train_data``, read; demonstrations are drawn from them.
        rows: those that are trained on.
        size: rows of a forward.

    Returns:
        The index of the prompt, and the loss of each in nats; of equal ones the first is chosen.
        Where label words are not of one token each, the first prompt and no losses.

    Raises:
        ValueError: a prompt does not fit the model or the rows.
    """
    plain = {name: value for name, value in settings.items() if name not in ("labels", "adapt")}
    of_model, revision = build(ModelArguments, plain), settings.get("revision")
    arguments = [build(TaskArguments, {**plain, **prompt}) for prompt in prompts]
    found = set_up_base(of_model, arguments[0], revision)
    others = (set_up_task(each, found.tokenizer, found.kind, records) for each in arguments[1:])
    tasks: list[PromptTask] = []
    for task in (found.task, *(task for task, _ in others)):
        if not isinstance(task, PromptTask):
            return 0, []
        tasks.append(task)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(rows), generator=generator)[:ROWS].tolist()
    model = load_untrained(of_model, found, revision)
    losses = prompt_losses(model, tasks, rows.chosen(sorted(chosen)), size)
    return min(range(len(losses)), key=losses.__getitem__), losses


@torch.no_grad()
def prompt_losses(
    model: PreTrainedModel, tasks: Sequence[PromptTask], records: Records, size: int
) -> list[float]:
    """Compute what each prompt lets the model know of the labels: a loss of rows held out.

    The label words' logits are moved by a linear function of the hidden state, of which the
    principal components of the logits of all words are as good; :func:`fit_core` fits it. Tasks
    that share a template share its forward passes.

    Args:
        model: without adapters.
        tasks: have the same labels; their adapters act on all tokens.
        records: the rows, two or more.
        size: rows of a forward.
    """
    losses = [0.0] * len(tasks)
    for template in dict.fromkeys(task.template.text for task in tasks):
        places = [i for i, task in enumerate(tasks) if task.template.text == template]
        first = tasks[places[0]]
        examples = first.encode_all(records)
        parts = []
        order = range(len(examples))
        for batch in collated(first.collate, examples, order, size, model.device):
            tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
            at = torch.arange(len(batch["positions"]), device=model.device), batch["positions"]
            parts.append(logits_at(model, tokens, *at).float().cpu())
        logits = torch.cat(parts)
        features = _features(logits)
        for place in places:
            own = logits[:, tasks[place].candidates]
            slopes = torch.eye(own.shape[1]).expand(len(own), -1, -1)
            known = Responses(own, examples.labels, features, slopes)
            start = torch.zeros(features.shape[1], own.shape[1])
            losses[place] = fit_core(known, start).expected
    return losses


def _features(logits: Tensor) -> Tensor:
    """Return the first principal components of logits (N, V), and a one: float32 (N, k + 1).

    Together the components have a variance of one; rows that differ by rounding alone have none.
    """
    centred = logits - logits.mean(0)
    if float(centred.abs().max()) <= _ROUNDING * float(logits.abs().max()):
        centred = torch.zeros_like(centred)
    # Of the rows' products: the vocabulary is far larger than the number of rows.
    values, vectors = torch.linalg.eigh((centred @ centred.T).double())
    values, vectors = values.flip(0)[:_COMPONENTS].clamp_min(0), vectors.flip(1)[:, :_COMPONENTS]
    scale = centred.double().square().sum().div(len(logits)).sqrt().clamp_min(1e-12)
    return torch.cat(
        [vectors * (values.sqrt() / scale), vectors.new_ones(len(logits), 1)], 1
    ).float()
