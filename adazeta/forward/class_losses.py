"""Losses of single examples with classes, numbers or spans, as transformers' models compute them.

Which loss a model's head has follows from ``config.problem_type`` and, where that is not set, from
the labels, by the rules of transformers' ``ForSequenceClassificationLoss``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

_REGRESSION = "regression"
_SINGLE = "single_label_classification"
_MULTI = "multi_label_classification"
SPANS = ("start_positions", "end_positions")


def class_losses(
    model: nn.Module, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the losses of examples with one row of logits each.

    Args:
        model: its configuration, if it has one, decides between the losses.
        logits: (B, C): of classes, of several labels that may hold at once, of the choices of a
            multiple-choice model, or predicted numbers.
        labels: classes, an integer (B,) or (B, 1), of which -100 does not count; numbers, of any
            dtype, (B,), (B, 1) or (B, C); or several labels, 0 to 1, of any dtype, (B, C).
        label_smoothing: share of the target that is spread over all classes.

    Returns:
        float32 (B,).

    Raises:
        ValueError: the labels fit no loss, or the loss has no classes to smooth.
    """
    rows, classes = logits.shape
    logits, kind = logits.float(), problem_type(model, classes, labels)
    if label_smoothing and kind != _SINGLE:
        raise ValueError(
            f"label_smoothing_factor={label_smoothing} is for classes that exclude each other, and "
            f"this is {kind.replace('_', ' ')}; set it to 0, or smooth the labels yourself"
        )
    if kind == _SINGLE and labels.numel() == rows and not labels.is_floating_point():
        return functional.cross_entropy(
            logits, labels.reshape(rows).long(), reduction="none", label_smoothing=label_smoothing
        )
    # One number an example may come without its own dimension.
    same = labels.shape == logits.shape or (classes == 1 and labels.numel() == rows)
    if kind == _REGRESSION and same:
        return (logits - labels.reshape(rows, classes).float()).square().mean(-1)
    if kind == _MULTI and labels.shape == logits.shape:
        return functional.binary_cross_entropy_with_logits(
            logits, labels.float(), reduction="none"
        ).mean(-1)
    raise ValueError(
        f"no loss is known for labels {tuple(labels.shape)} of {labels.dtype} and logits "
        f"{tuple(logits.shape)} of {kind.replace('_', ' ')}; set config.problem_type to "
        f"{_REGRESSION!r}, {_SINGLE!r} or {_MULTI!r}, or pass loss_fn=... to the trainer"
    )


def problem_type(model: nn.Module, classes: int, labels: Tensor) -> str:
    """Tell which loss a model computes for labels, by the rules of transformers."""
    found = pretrained(model)
    given = None if found is None else getattr(found.config, "problem_type", None)
    if given is not None:
        return str(given)
    if classes == 1:
        return _REGRESSION
    if not labels.is_floating_point() and labels.dtype != torch.bool:
        return _SINGLE
    # A model of no library has no rule by which numbers would be probabilities.
    return _REGRESSION if found is None else _MULTI


def span_losses(outputs: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Compute the losses of extractive question answering.

    Args:
        outputs: with ``start_logits`` and ``end_logits``, (B, T).
        inputs: with ``start_positions`` and ``end_positions``, integers (B,) or (B, 1); one beyond
            the T tokens does not count.

    Returns:
        The mean of the cross entropies of start and end, float32 (B,), and their logits.

    Raises:
        ValueError: the model has other outputs.
    """
    names = ("start_logits", "end_logits")
    if not (isinstance(outputs, Mapping) and all(name in outputs for name in names)):
        raise ValueError(
            "no loss is known for start_positions and end_positions with a model that does not "
            "return start_logits and end_logits; pass loss_fn=... to the trainer"
        )
    start, end = (outputs[name] for name in names)
    losses = [
        functional.cross_entropy(
            logits.float(),
            inputs[name].reshape(len(logits)).clamp(0, logits.shape[1]),
            ignore_index=logits.shape[1],
            reduction="none",
        )
        for name, logits in zip(SPANS, (start, end), strict=True)
    ]
    return (losses[0] + losses[1]) / 2, (start, end)


def pretrained(model: nn.Module) -> PreTrainedModel | None:
    """Return the model of transformers that a module is or holds, from under wrappers."""
    return next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
