"""Make a task: from settings, or from what a run saved of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from adazeta.tasks.arguments import MAIN_SETTINGS, TaskArguments
from adazeta.tasks.base import Task
from adazeta.tasks.causal_lm import CausalLMTask
from adazeta.tasks.choices import ChoiceTask
from adazeta.tasks.classification import ClassificationTask
from adazeta.tasks.generation import GenerationTask
from adazeta.tasks.head import HeadTask
from adazeta.tasks.phrases import PhraseTask
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.reward import RewardTask
from adazeta.tasks.template import MASK

KINDS: Mapping[str, type[Task]] = {
    "prompt": PromptTask,
    "phrases": PhraseTask,
    "choices": ChoiceTask,
    "head": HeadTask,
    "causal_lm": CausalLMTask,
    "generation": GenerationTask,
    "reward": RewardTask,
}
"""Tasks by the ``type`` of their descriptions."""

_OBJECTIVES = ("choice", "likelihood", "accuracy")
_OF_ANSWERS = ("stop", "max_new_tokens", "metrics")


def model_kind(arguments: TaskArguments, *, encoder_decoder: bool = False) -> str:
    """Tell the kind of model that a task is for, as PEFT names it.

    Args:
        arguments: the task's settings.
        encoder_decoder: the model has an encoder and a decoder.
    """
    if arguments.classes is not None:
        return "SEQ_CLS"
    if f"{{{MASK}}}" in arguments.template:
        return "MASKED_LM"
    return "SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM"


def make_task(
    arguments: TaskArguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: str | None = None,
    shots: Sequence[Sequence[str]] = (),
) -> Task:
    """Make the task that the settings describe.

    Args:
        arguments: the settings.
        tokenizer: of the model.
        kind: of model, see :func:`model_kind`, which tells it by default.
        shots: demonstrations, see :class:`~adazeta.tasks.template.Template`.

    Raises:
        ValueError: not exactly one of ``label_words``, ``classes``, ``choices``, ``completion``
            and ``reward`` says what the task is, a setting would be ignored, or they do not fit
            the tokenizer.
    """
    _check(arguments)
    kind = kind or model_kind(arguments)
    decoder = kind == "SEQ_2_SEQ_LM"
    options: dict[str, Any] = {"max_length": arguments.max_length, "chat": arguments.chat}
    labelled: dict[str, Any] = {**options, "label_column": arguments.label_column}
    metrics: dict[str, Any] = {} if arguments.metrics is None else {"metrics": arguments.metrics}
    if arguments.classes is not None:
        return HeadTask(tokenizer, arguments.template, arguments.classes, **labelled, **metrics)
    if arguments.reward is not None:
        return RewardTask(
            tokenizer,
            prompt=arguments.template,
            temperature=arguments.temperature,
            adapt=arguments.adapt,
            **options,
            **_of_generation(arguments),
        )
    options["shots"] = labelled["shots"] = shots
    if arguments.choices is not None:
        if arguments.completion is not None:
            labelled["continuation"] = arguments.completion
        return ChoiceTask(
            tokenizer,
            arguments.template,
            arguments.choices,
            # How right answers are scored is the trainer's matter; they are chosen alike.
            objective="choice" if arguments.objective == "accuracy" else arguments.objective,
            decoder=decoder,
            **labelled,
        )
    if arguments.label_words is not None:
        return _with_words(arguments, tokenizer, kind, {**labelled, **metrics})
    assert arguments.completion is not None
    options |= {"prompt": arguments.template, "decoder": decoder}
    if arguments.references is None:
        return CausalLMTask(tokenizer, arguments.completion, **options)
    options |= metrics | _of_generation(arguments)
    return GenerationTask(tokenizer, arguments.completion, arguments.references, **options)


def _of_generation(arguments: TaskArguments) -> dict[str, Any]:
    """Return the settings of what is generated that are set; each task has defaults of its own."""
    given = {"max_new_tokens": arguments.max_new_tokens, "stop": arguments.stop}
    return {name: value for name, value in given.items() if value is not None}


def _with_words(
    arguments: TaskArguments,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    options: Mapping[str, Any],
) -> ClassificationTask:
    """Make a classification by words: of one token each where they are, else of several."""
    words = arguments.label_words
    assert words is not None
    if kind == "SEQ_2_SEQ_LM":
        if arguments.adapt != "all":
            raise ValueError(f"adapt={arguments.adapt!r} is for causal models; leave it at 'all'")
        return PhraseTask(tokenizer, arguments.template, words, decoder=True, **options)
    try:
        return PromptTask(tokenizer, arguments.template, words, adapt=arguments.adapt, **options)
    except ValueError as error:
        if kind != "CAUSAL_LM":
            raise
        try:
            task = PhraseTask(tokenizer, arguments.template, words, **options)
        except ValueError:
            raise error from None  # what is wrong is not the number of tokens
        if all(len(tokens) == 1 for tokens in task.candidates):
            raise
        if arguments.adapt != "all":
            raise ValueError(
                f"adapt={arguments.adapt!r} needs label words of one token, as the word is "
                f"predicted at the prompt's last one; {error}, or set adapt to 'all'"
            ) from None
        return task


def _check(arguments: TaskArguments) -> None:
    """Refuse settings that do not belong together.

    Raises:
        ValueError: see :func:`make_task`.
    """
    given = [name for name in MAIN_SETTINGS if getattr(arguments, name) is not None]
    if given == ["choices", "completion"]:
        given = ["choices"]
    if len(given) != 1:
        raise ValueError(
            "set label_words for classification, completion for language modelling, classes for a "
            "trained head, choices for multiple choice, or reward for scored texts (one of "
            "these)" + (f"; here {' and '.join(given)} are set" if given else "")
        )
    (main,) = given
    generates = arguments.references is not None or main == "reward"
    answers = main != "completion" or arguments.references is not None
    heeded = {
        "references": main == "completion",
        "stop": generates,
        "max_new_tokens": generates,
        "objective": main == "choices"
        or (main in ("label_words", "classes") and arguments.objective != "likelihood"),
        "shots": main not in ("classes", "reward"),
        "adapt": main in ("label_words", "reward"),
        "metrics": main not in ("choices", "reward") and answers,
        **dict.fromkeys(
            ("reward_weights", "reward_timeout", "reward_data", "guard_data", "temperature"),
            main == "reward",
        ),
    }
    defaults = {name: found.default for name, found in arguments.__dataclass_fields__.items()}
    for name, is_heeded in heeded.items():
        if not is_heeded and getattr(arguments, name) != defaults[name]:
            raise ValueError(
                f"{name}={getattr(arguments, name)!r} has no meaning for a task of {main}"
                + ("" if answers or name not in _OF_ANSWERS else " without references")
                + "; leave it out"
            )
    _check_teacher(arguments, main)
    if arguments.objective not in _OBJECTIVES:
        raise ValueError(
            f"objective must be one of {', '.join(map(repr, _OBJECTIVES))}, got "
            f"{arguments.objective!r}"
        )
    if arguments.shots < 0:
        raise ValueError(f"shots must be 0 or more, got {arguments.shots}")


def _check_teacher(arguments: TaskArguments, main: str) -> None:
    """Refuse a teacher where there is nothing that it could teach, and what needs one without it.

    Raises:
        ValueError: see :func:`make_task`.
    """
    if not 0 < arguments.hardest <= 1:
        raise ValueError(f"hardest must be above 0 and at most 1, got {arguments.hardest}")
    if arguments.teacher is None:
        if arguments.hardest != 1:
            raise ValueError(
                f"hardest={arguments.hardest} chooses the texts on which the model differs most "
                "from a teacher, and there is none; set teacher, or leave hardest out"
            )
        return
    if main not in ("label_words", "classes"):
        why = {
            "completion": "of texts it would be one over the whole vocabulary for each token, "
            "which is too much to keep",
            "choices": "here every example has candidates of its own",
            "reward": "a score needs none",
        }[main]
        raise ValueError(
            f"teacher={arguments.teacher!r} gives a distribution over the labels of a "
            f"classification, and {why}; leave teacher out, or set label_words"
        )
    if arguments.objective == "accuracy":
        raise ValueError(
            "objective='accuracy' counts right answers, and what a teacher gives is a "
            "distribution; leave objective or teacher out"
        )


def takes_one_text(task: Task) -> bool:
    """Tell whether a task labels, answers or completes a prompt of exactly one column."""
    if not isinstance(task, ClassificationTask | GenerationTask | RewardTask):
        return False
    return len(task.columns) == 1


def task_from_dict(description: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Task:
    """Make the task that ``task.to_dict()`` described.

    Raises:
        ValueError: the description has an unknown type.
    """
    # Descriptions without the key come from versions that dropped white space around all texts.
    options = {"strip": True, **description}
    kind = options.pop("type", None)
    if kind not in KINDS:
        raise ValueError(f"unknown task type {kind!r}; known: {', '.join(KINDS)}")
    make: Any = KINDS[kind]
    task: Task = make(tokenizer, **options)
    return task
