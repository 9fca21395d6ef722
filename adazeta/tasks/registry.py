"""Make a task: from settings, or from what a run saved of it."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from transformers import PreTrainedTokenizerBase

from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.base import Task
from adazeta.tasks.causal_lm import CausalLMTask
from adazeta.tasks.prompt import PromptTask


def make_task(arguments: TaskArguments, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Make the task that the settings describe.

    Raises:
        ValueError: neither or both of ``label_words`` and ``completion`` are set, or they do not
            fit the tokenizer.
    """
    if (arguments.label_words is None) == (arguments.completion is None):
        raise ValueError(
            "set label_words for classification, or completion for language modelling (one of "
            "the two)"
        )
    if arguments.label_words is not None:
        return PromptTask(
            tokenizer,
            arguments.template,
            arguments.label_words,
            label_column=arguments.label_column,
            max_length=arguments.max_length,
            adapt=arguments.adapt,
        )
    assert arguments.completion is not None
    return CausalLMTask(
        tokenizer,
        arguments.completion,
        prompt=arguments.template,
        max_length=arguments.max_length,
    )


def takes_one_text(task: Task) -> TypeGuard[PromptTask]:
    """Tell whether a task is classification whose prompt has exactly one column."""
    return isinstance(task, PromptTask) and len(task.template.columns) == 1


def task_from_dict(description: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Task:
    """Make the task that ``task.to_dict()`` described.

    Raises:
        ValueError: the description has an unknown type.
    """
    kinds = {"prompt": PromptTask, "causal_lm": CausalLMTask}
    # Descriptions without the key come from versions that dropped white space around all texts.
    options = {"strip": True, **description}
    kind = options.pop("type", None)
    if kind not in kinds:
        raise ValueError(f"unknown task type {kind!r}; known: {', '.join(kinds)}")
    return kinds[kind](tokenizer, **options)
