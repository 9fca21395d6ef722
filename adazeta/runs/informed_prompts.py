"""Bases of informed adapters where labels are predicted: from the run's own training prompts."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.informed import InformedAdapter, inform
from adazeta.models.packed import weight_rows
from adazeta.tasks.base import Task
from adazeta.tasks.examples import Examples, collated
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.reward import RewardTask

_PROMPTS = 1000  # that inform adapters
_MOST_ANSWERS = 7


def answer_directions(task: Task) -> int:
    """Return the number of directions in which informed adapters move hidden states.

    Raises:
        ValueError: the task's adapters cannot be informed.
    """
    if isinstance(task, RewardTask):
        return _MOST_ANSWERS
    if not isinstance(task, PromptTask) or task.adapt == "all":
        raise ValueError(
            "form='informed' is for rewards, and for classification with a causal model whose "
            "adapters act on the last token: set reward, or label_words and adapt: last; or form: "
            "bottleneck"
        )
    return min(len(task.labels) - 1, _MOST_ANSWERS)


def inform_by_prompts(
    model: PreTrainedModel, task: PromptTask, examples: Examples, training: TrainingArguments
) -> None:
    """Give a model's informed adapters their bases.

    Args:
        model: with informed adapters, which are zero.
        task: the classification.
        examples: training prompts.
        training: has the seed and the size of a batch.

    Raises:
        ValueError: the model shows no output embedding, or see
            :func:`adazeta.adapters.informed.inform`.
    """
    head = model.get_output_embeddings()
    if head is None or not isinstance(getattr(head, "weight", None), Tensor):
        raise ValueError(
            f"form='informed' needs the rows of an output embedding, and {type(model).__name__} "
            "shows none; use form='bottleneck'"
        )
    generator = torch.Generator().manual_seed(training.seed)
    chosen = torch.randperm(len(examples), generator=generator)[:_PROMPTS].tolist()
    device = next(model.parameters()).device
    size = training.per_device_train_batch_size
    adapters = [a for _, a in attached_adapters(model) if isinstance(a, InformedAdapter)]
    inform(
        adapters,
        lambda batch: task.logits(model, batch),
        collated(task.collate, examples, chosen, size, device),
        weight_rows(head, task.candidates),
    )
