"""Losses of the single examples of a batch, from what a transformers model returns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from adazeta.class_losses import SPANS, class_losses, pretrained, span_losses
from adazeta.scoring import logits_at, plain_head

_SHIFT = "prepare_decoder_input_ids_from_labels"  # of encoder-decoder models of transformers
_CAUSAL = ("ForCausalLM", "ForConditionalGeneration")  # the latter: images and text to text
_IGNORED = -100  # transformers' label of positions that do not count


def example_losses(
    model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float = 0.0
) -> tuple[Tensor, Any]:
    """Run a transformers model and compute the loss of each example.

    Covers what ``model(**inputs).loss`` covers for language modelling (causal, masked and
    sequence to sequence), classification of every ``problem_type``, regression, multiple choice,
    classification of tokens and extractive question answering. For one example it is that loss;
    for several the difference is the mean: here over the tokens of each example, so that every
    example counts the same.

    What a model adds to its loss beside this is not in here: losses of routers, weights of
    classes, or a ``loss_function`` that was set on it. Those belong to a batch;
    :class:`~adazeta.trainer.ZOTrainer` trains such models on their own loss of the whole batch
    (:mod:`adazeta.training_loss`).

    Args:
        model: returns ``logits``, ``(B, C)`` or ``(B, T, V)``.
        inputs: the model's inputs with ``labels``, ``(B,)``, ``(B, 1)``, ``(B, C)`` or
            ``(B, T)``, where -100 is ignored, or with ``start_positions`` and ``end_positions``.
        label_smoothing: share of each target that is spread over all classes.

    Returns:
        The losses, float32 ``(B,)``, and the logits (of start and end, as a tuple).

    Raises:
        ValueError: there are no labels, they do not fit the logits, or there is nothing to smooth.
    """
    if "labels" not in inputs and all(name in inputs for name in SPANS):
        if label_smoothing:
            raise ValueError(
                f"label_smoothing_factor={label_smoothing} is not supported for start_positions "
                "and end_positions; set it to 0"
            )
        arguments = {name: value for name, value in inputs.items() if name not in SPANS}
        return span_losses(model(**arguments), inputs)
    labels, arguments = _split(model, inputs)
    outputs = model(**arguments)
    if isinstance(outputs, Mapping) and "logits" not in outputs:
        raise ValueError(
            f"the model returns no 'logits' (it returns {list(outputs)}); pass loss_fn=... to the "
            "trainer to compute the losses of the examples yourself"
        )
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    if labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels {tuple(labels.shape)} and logits {tuple(logits.shape)} disagree on the "
            "number of examples"
        )
    if logits.dim() == 3 and labels.dim() == 2:
        shift = _shifts(model)
        return token_losses(logits, labels, shift=shift, label_smoothing=label_smoothing), logits
    if logits.dim() == 2:
        return class_losses(model, logits, labels, label_smoothing), logits
    if labels.is_floating_point() and labels.numel() == logits.numel() and not label_smoothing:
        errors = (logits.float() - labels.view_as(logits).float()).square()
        return errors.flatten(1).mean(-1), logits
    raise ValueError(
        f"no loss is known for labels {tuple(labels.shape)} of {labels.dtype} and logits "
        f"{tuple(logits.shape)}; pass loss_fn=... to the trainer"
    )


def losses_only(
    model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the losses of :func:`example_losses`, up to rounding, without logits nobody needs.

    A language model's logits are computed at the labelled positions only.

    Args:
        model: see :func:`example_losses`.
        inputs: see :func:`example_losses`.
        label_smoothing: see :func:`example_losses`.

    Returns:
        float32 ``(B,)``.

    Raises:
        ValueError: see :func:`example_losses`.
    """
    return smoothed_losses(model, inputs, label_smoothing=label_smoothing)[0]


def smoothed_losses(
    model: nn.Module, inputs: Mapping[str, Any], *, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Compute what :func:`losses_only` does, and the same losses of tokens without smoothing.

    Args:
        model: see :func:`example_losses`.
        inputs: see :func:`example_losses`.
        label_smoothing: see :func:`example_losses`.

    Returns:
        float32 ``(B,)`` and ``(B,)``; the same but for labels of tokens.

    Raises:
        ValueError: see :func:`example_losses`.
    """
    labels = inputs.get("labels")
    of_tokens = isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point()
    if not of_tokens or plain_head(model) is None:
        losses, logits = example_losses(model, inputs, label_smoothing=label_smoothing)
        if not label_smoothing or not of_tokens or logits.dim() != 3:
            return losses, losses
        return losses, token_losses(logits, inputs["labels"], shift=_shifts(model))
    labels, arguments = _split(model, inputs)
    targets = labels[:, 1:] if _shifts(model) else labels
    rows, positions = (targets != _IGNORED).nonzero(as_tuple=True)
    logits = logits_at(model, arguments, rows, positions).float()
    means = [
        _mean_by_row(
            functional.cross_entropy(
                logits, targets[rows, positions], reduction="none", label_smoothing=share
            ),
            targets != _IGNORED,
        )
        for share in sorted({0.0, label_smoothing}, reverse=True)
    ]
    return means[0], means[-1]


def _split(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Return the labels, and the inputs without them."""
    if "labels" not in inputs:
        raise ValueError(
            f"the inputs have no 'labels' (they have {list(inputs)}); pass loss_fn=... to the "
            "trainer to compute the losses of the examples yourself"
        )
    arguments = dict(inputs)
    labels = arguments.pop("labels")
    if "decoder_input_ids" not in inputs and hasattr(model, _SHIFT):
        arguments["decoder_input_ids"] = getattr(model, _SHIFT)(labels=labels)
    return labels, arguments


def _shifts(model: nn.Module) -> bool:
    """Tell whether a model predicts each token from the position before it."""
    found = pretrained(model)
    if found is None or found.config.is_encoder_decoder:
        return False
    # Older classes (GPT2LMHeadModel) do not say it: their name has no "ForCausalLM" to derive it.
    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(found.config.model_type)
    kind = found.loss_type
    return kind in _CAUSAL or (kind is None and type(found).__name__ == named)


def token_losses(
    logits: Tensor, labels: Tensor, *, shift: bool, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross entropy over the labelled tokens of each example.

    Args:
        logits: (B, T, V).
        labels: int64 (B, T); -100 does not count. An example without labels has loss 0.
        shift: predict each token from the position before it (causal language models).
        label_smoothing: share of each target that is spread over all classes.

    Returns:
        float32 (B,).
    """
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels != _IGNORED
    losses = functional.cross_entropy(
        logits[counted].float(), labels[counted], reduction="none", label_smoothing=label_smoothing
    )
    return _mean_by_row(losses, counted)


def _mean_by_row(values: Tensor, where: Tensor) -> Tensor:
    """Average values that belong to the marked places of a (B, T) mask, row by row."""
    spread = torch.zeros(where.shape, dtype=torch.float32, device=values.device)
    spread[where] = values
    return spread.sum(-1) / where.sum(-1).clamp_min(1)
