"""Make a task: from settings, or from what a run saved of it."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from transformers import PreTrainedTokenizerBase

from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.base import Task
from adazeta.tasks.causal_lm import CausalLMTask
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.reward import PROMPT, RewardTask


def make_task(arguments: TaskArguments, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Make the task that the settings describe.

    Raises:
        ValueError: not exactly one of ``label_words``, ``completion`` and ``reward`` is set, or
            they do not fit the tokenizer, or a setting belongs to another kind of task.
    """
    kinds = (arguments.label_words, arguments.completion, arguments.reward)
    if sum(kind is not None for kind in kinds) != 1:
        raise ValueError(
            "set label_words for classification, completion for language modelling, or reward for "
            "texts that are scored (one of the three)"
        )
    if arguments.reward is not None:
        return RewardTask(
            tokenizer,
            prompt=arguments.template,
            chat=arguments.chat,
            max_new_tokens=arguments.max_new_tokens,
            stop=arguments.stop or (),
            temperature=arguments.temperature,
            adapt=arguments.adapt,
            max_length=arguments.max_length,
        )
    _refuse_settings_of_rewards(arguments)
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


def _refuse_settings_of_rewards(arguments: TaskArguments) -> None:
    """Refuse what only a task with rewards would heed."""
    fields = TaskArguments.__dataclass_fields__
    for name in (
        "reward_weights", "reward_timeout", "guard_data", "max_new_tokens", "stop", "temperature",
        "chat",
    ):  # fmt: skip
        value = getattr(arguments, name)
        if value != fields[name].default:
            raise ValueError(f"{name}={value!r} belongs to reward, which is not set; set that too")


def takes_one_text(task: Task) -> TypeGuard[PromptTask]:
    """Tell whether a task is classification whose prompt has exactly one column."""
    return isinstance(task, PromptTask) and len(task.template.columns) == 1


def prompt_column(task: RewardTask) -> str | None:
    """Return the one column that a prompt is made of; None if it takes several."""
    columns = task.prompt.columns or [PROMPT]
    return columns[0] if len(columns) == 1 else None


def task_from_dict(description: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Task:
    """Make the task that ``task.to_dict()`` described.

    Raises:
        ValueError: the description has an unknown type.
    """
    kinds = {"prompt": PromptTask, "causal_lm": CausalLMTask, "reward": RewardTask}
    # Descriptions without the key come from versions that dropped white space around all texts.
    options = {"strip": True, **description}
    kind = options.pop("type", None)
    if kind not in kinds:
        raise ValueError(f"unknown task type {kind!r}; known: {', '.join(kinds)}")
    return kinds[kind](tokenizer, **options)  # type: ignore[no-any-return, operator]
