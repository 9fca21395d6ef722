"""From the folder of a run back to a model in use: load, score, predict."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel

from adazeta.adapters.files import brought_modules, load_config
from adazeta.adapters.loading import from_pretrained
from adazeta.adapters.scaling import SCALES, adapter_scale
from adazeta.forward.prompt_states import PromptStates
from adazeta.models.loading import load_model, load_tokenizer, on_accelerator, settle_head
from adazeta.models.quantise import NONE
from adazeta.recording.folder import TASK_NAME
from adazeta.runs.generation import answer_metrics
from adazeta.support.batches import on_device
from adazeta.support.files import read_object
from adazeta.tasks.base import Task
from adazeta.tasks.classification import ClassificationTask
from adazeta.tasks.examples import Examples, collated
from adazeta.tasks.generation import GenerationTask
from adazeta.tasks.intervals import bootstrap, wilson
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.registry import task_from_dict
from adazeta.tasks.reward import RewardTask
from adazeta.tasks.vocabulary import check_tokens, rows_in

BASE_QUANTISE = "base_quantise"
"""Key in a run's description of its task: how the base was held, if not in its dtype."""


def check_examples(task: Task, examples: Examples, rows: int) -> None:
    """Refuse tokens that the model does not have, before they are looked up in it."""
    words = task.candidates if isinstance(task, PromptTask) else None
    check_tokens(task.tokenizer, examples, rows, candidates=words)


def load_task(folder: str | Path) -> Task:
    """Load the task, with the tokenizer, that :func:`train` saved.

    Args:
        folder: ``output_dir`` of the run.

    Raises:
        FileNotFoundError: the folder lacks a file.
    """
    path = Path(folder) / TASK_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no {TASK_NAME} in {folder}; give the output_dir of a run")
    values = read_object(path)
    values.pop(BASE_QUANTISE, None)
    return task_from_dict(values, load_tokenizer(folder))


def load_trained(
    folder: str | Path,
    *,
    model: str | None = None,
    dtype: str = "auto",
    quantise: str | None = None,
) -> PreTrainedModel:
    """Load the base model with the adapters that :func:`train` saved, on the accelerator if any.

    Args:
        folder: ``output_dir`` of the run.
        model: base model, if it is no longer where it was.
        dtype: see :func:`adazeta.models.loading.load_model`.
        quantise: see :func:`adazeta.models.loading.load_model`; by default as in training.

    Raises:
        FileNotFoundError: the folder lacks a file.
        ValueError: the adapters do not fit the base model, or name none.
    """
    config = load_config(folder)
    base = model or config.base_model_name_or_path
    if base is None:
        raise ValueError(f"the adapters in {folder} do not name their base model; pass --model")
    revision = None if model else config.revision
    task = config.task_type or "CAUSAL_LM"
    new = brought_modules(config)
    if quantise is None:
        path = Path(folder) / TASK_NAME
        quantise = read_object(path).get(BASE_QUANTISE, NONE) if path.is_file() else NONE
    loaded = load_model(
        base, dtype=dtype, task=task, revision=revision, new=new, classes=config.num_labels,
        quantise=quantise,
    )  # fmt: skip
    if config.num_labels is not None:
        settle_head(loaded, load_tokenizer(folder))
    from_pretrained(loaded, folder)
    return on_accelerator(loaded)


def fit_scale(
    model: PreTrainedModel, task: Task, examples: Examples, *, batch_size: int = 32
) -> tuple[float, dict[float, float]]:
    """Choose the share of a model's adapters with the least mean loss.

    Returns:
        The best of :data:`~adazeta.adapters.scaling.SCALES`, of equal ones the least, and the loss
        of each.

    Raises:
        ValueError: no loss is finite, or see :func:`~adazeta.adapters.scaling.adapter_scale`.
    """
    found = {}
    for alpha in SCALES:
        with adapter_scale(model, alpha):
            found[alpha] = float(
                score(model, task, examples, batch_size=batch_size)[0].double().mean()
            )
    finite = {alpha: loss for alpha, loss in found.items() if math.isfinite(loss)}
    if not finite:
        raise ValueError(f"the loss is finite at none of the scales {SCALES}; check the data")
    return min(finite, key=finite.__getitem__), found


@torch.no_grad()
def complete(
    model: PreTrainedModel, task: RewardTask, records: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Write the completions of records' prompts, as a run with rewards has learnt to.

    Args:
        model: the model.
        task: how prompts are completed.
        records: with the columns of the prompt.

    Raises:
        ValueError: a prompt is unusable.
    """
    model.eval()
    texts = []
    for index, record in enumerate(records):
        batch = on_device(task.collate([task.encode(record)]), model.device)
        options: dict[str, Any] = {}
        if task.adapt == "answer":
            options["start"] = PromptStates(model)
        if task.decoding.temperature:
            options["seeds"] = torch.tensor([index], device=model.device)
        texts += task.complete(model, batch, **options)[0]
    return texts


@torch.no_grad()
def score(
    model: PreTrainedModel, task: Task, examples: Examples, *, batch_size: int = 32
) -> tuple[Tensor, Tensor]:
    """Compute the losses of examples, and what the task's metrics need.

    Returns:
        float32 ``(N,)`` and ``(N, C)``, on the CPU, in the order of the examples.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    rows = rows_in(model)
    if rows is not None:
        check_examples(task, examples, rows)
    model.eval()
    # Examples of similar length share a batch, so that little is padding.
    order = sorted(range(len(examples)), key=lambda index: len(examples[index]["input_ids"]))
    losses, outputs = [], []
    for batch in collated(task.collate, examples, order, batch_size, model.device):
        found = task.losses(model, batch)
        losses.append(found[0].float().cpu())
        outputs.append(found[1].float().cpu())
    back = torch.tensor(order).argsort()
    return torch.cat(losses)[back], torch.cat(outputs)[back]


def summarise(task: Task, examples: Examples, losses: Tensor, outputs: Tensor) -> dict[str, Any]:
    """Reduce what :func:`score` returned to ``examples``, ``loss`` and the task's metrics.

    An accuracy has its 95% interval (Wilson) beside it.
    """
    labels: Any = [examples[index]["labels"] for index in range(len(examples))]
    prediction = EvalPrediction(predictions=outputs.numpy(), label_ids=labels)
    metrics = task.metrics(prediction)
    found: dict[str, Any] = {
        "examples": len(examples),
        "loss": float(losses.double().mean()),
        **metrics,
    }
    if "accuracy" in metrics:
        found["interval"] = wilson(metrics["accuracy"], len(examples))
    return found


def evaluate(
    model: PreTrainedModel, task: Task, examples: Examples, *, batch_size: int = 32
) -> tuple[dict[str, Any], Tensor]:
    """Measure a model on the examples of a task, by all that the task is judged by.

    Returns:
        What :func:`summarise` returns, and for answers the metrics of generated ones, each with its
        95% interval (bootstrap); and the outputs of :func:`score`.
    """
    losses, outputs = score(model, task, examples, batch_size=batch_size)
    found = summarise(task, examples, losses, outputs)
    if isinstance(task, GenerationTask):
        metrics = answer_metrics(model, task, examples, batch_size=batch_size)
        for name, values in metrics.items():
            found[name] = float(values.mean())
            found[f"{name}_interval"] = bootstrap(values)
    return found, outputs


def predict(
    model: PreTrainedModel, task: ClassificationTask, records: Sequence[Mapping[str, Any]]
) -> Tensor:
    """Compute the probabilities of the labels, float32 ``(N, C)`` in the order of ``task.labels``.

    Args:
        model: the model.
        task: the task.
        records: records with the template's columns; no label is needed.

    Raises:
        ValueError: a column is missing.
    """
    encoded = [{**task.encode_prompt(record), "labels": 0} for record in records]
    return score(model, task, Examples(encoded))[1].softmax(-1)
