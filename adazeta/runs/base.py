"""From the settings of model and data to a task that fits the model, before weights are read."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adazeta.models.arguments import ModelArguments
from adazeta.models.loading import (
    load_configuration,
    load_model,
    load_tokenizer,
    on_accelerator,
    sees_ahead,
)
from adazeta.models.whole_checkpoint import check_kind
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.base import Task
from adazeta.tasks.demonstrations import set_up_task
from adazeta.tasks.records import Records
from adazeta.tasks.registry import model_kind
from adazeta.tasks.vocabulary import rows_in, settle_padding


@dataclass
class BaseTask:
    """A task and the model that it is for.

    Attributes:
        base: folder or hub id of the model; a folder as an absolute path.
        kind: of model, as PEFT names it.
        tokenizer: of the model, with padding that the model has.
        task: the task.
        records: training records, without those that demonstrate the task; None without any.
        rows: of the model's embedding of tokens, if that can be told.
    """

    base: str
    kind: str
    tokenizer: PreTrainedTokenizerBase
    task: Task
    records: Records | None
    rows: int | None


def set_up_base(
    model_arguments: ModelArguments, task_arguments: TaskArguments, revision: str | None = None
) -> BaseTask:
    """Find the kind of a base model, and make the task that the settings describe.

    Args:
        model_arguments: the base model.
        task_arguments: data and prompt; ``train_data`` may be missing.
        revision: of the model on the hub.

    Raises:
        ValueError: the settings do not fit the model, or each other.
    """
    base = _absolute(str(model_arguments.model))
    quantise = model_arguments.quantise
    config = load_configuration(base, task=None, revision=revision, quantise=quantise)
    both = bool(config.is_encoder_decoder)
    kind = model_kind(task_arguments, encoder_decoder=both)
    if kind == "SEQ_CLS" and both:
        raise ValueError(
            f"{base} is an encoder-decoder, whose decoder writes label words; set label_words "
            "instead of classes"
        )
    check_kind(config, kind, base)
    tokenizer = load_tokenizer(base, task=kind, revision=revision, quantise=quantise)
    rows = rows_in(config)
    if rows is not None:
        settle_padding(tokenizer, rows)
    context = getattr(config, "max_position_embeddings", None)
    if context is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    task, records = set_up_task(task_arguments, tokenizer, kind)
    return BaseTask(base, kind, tokenizer, task, records, rows)


def checked_share(arguments: TaskArguments) -> float:
    """Return the share of the training rows that is kept for evaluation.

    Raises:
        ValueError: it is no share, or there are other data for evaluation.
    """
    share = arguments.validation_share
    if not 0 <= share < 1:
        raise ValueError(f"validation_share must be at least 0 and below 1, got {share}")
    if share and arguments.validation_data is not None:
        raise ValueError(
            f"validation_share={share} and validation_data={arguments.validation_data!r} "
            "exclude each other; set one of them"
        )
    return share


def load_untrained(
    model_arguments: ModelArguments, found: BaseTask, revision: str | None = None
) -> PreTrainedModel:
    """Load the base model as it is, on the accelerator if any, to measure it zero-shot.

    Raises:
        ValueError: the task needs a head, which is not trained, or the model is of another kind.
    """
    if found.kind == "SEQ_CLS":
        raise ValueError(
            "the head of classes is not trained, so there is nothing to measure without training; "
            "set label_words"
        )
    model = load_model(
        found.base, dtype=model_arguments.dtype, task=found.kind, revision=revision,
        quantise=model_arguments.quantise,
    )  # fmt: skip
    check_causal(model, found)
    return on_accelerator(model)


def check_causal(model: PreTrainedModel, found: BaseTask) -> None:
    """Refuse a model that sees what it is to predict.

    Raises:
        ValueError: it does.
    """
    if found.kind == "CAUSAL_LM" and sees_ahead(model):
        raise ValueError(
            f"in {found.base} ({type(model).__name__}) every position sees the words after it, so "
            "it is no causal language model; put {mask} where the word belongs in the template"
        )


def _absolute(name: str) -> str:
    """Make the path of a local model independent of the working directory."""
    return str(Path(name).resolve()) if Path(name).exists() else name
