"""Losses of the single examples of a batch, from what a transformers model returns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_IGNORED = -100  # transformers' label of positions that do not count


def example_losses(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Run a transformers model and compute the loss of each example.

    Covers what ``model(**inputs).loss`` covers for language modelling (causal and masked),
    classification and regression; the difference is the mean: here over the tokens of each
    example, so that every example counts the same.

    Args:
        model: returns ``logits``, ``(B, C)`` or ``(B, T, V)``.
        inputs: the model's inputs with ``labels``, ``(B,)`` or ``(B, T)``; -100 is ignored.

    Returns:
        The losses, float32 ``(B,)``, and the logits.

    Raises:
        ValueError: there are no labels, or they do not fit the logits.
    """
    if "labels" not in inputs:
        raise ValueError(
            f"the inputs have no 'labels' (they have {list(inputs)}); pass loss_fn=... to the "
            "trainer to compute the losses of the examples yourself"
        )
    labels = inputs["labels"]
    outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    if labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels {tuple(labels.shape)} and logits {tuple(logits.shape)} disagree on the "
            "number of examples"
        )
    if logits.dim() == 3 and labels.dim() == 2:
        shift = getattr(model, "loss_type", None) == "ForCausalLM"
        return token_losses(logits, labels, shift=shift), logits
    if logits.dim() == 2 and labels.dim() == 1 and not labels.is_floating_point():
        return functional.cross_entropy(logits.float(), labels, reduction="none"), logits
    if labels.is_floating_point() and labels.numel() == logits.numel():
        errors = (logits.float() - labels.view_as(logits).float()).square()
        return errors.flatten(1).mean(-1), logits
    raise ValueError(
        f"no loss is known for labels {tuple(labels.shape)} of {labels.dtype} and logits "
        f"{tuple(logits.shape)}; pass loss_fn=... to the trainer"
    )


def token_losses(logits: Tensor, labels: Tensor, *, shift: bool) -> Tensor:
    """Mean cross entropy over the labelled tokens of each example.

    Args:
        logits: (B, T, V).
        labels: int64 (B, T); -100 does not count. An example without labels has loss 0.
        shift: predict each token from the position before it (causal language models).

    Returns:
        float32 (B,).
    """
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels != _IGNORED
    losses = torch.zeros(labels.shape, dtype=torch.float32, device=logits.device)
    losses[counted] = functional.cross_entropy(
        logits[counted].float(), labels[counted], reduction="none"
    )
    return losses.sum(-1) / counted.sum(-1).clamp_min(1)
