"""Losses of the single examples of a batch, from what a transformers model returns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from adazeta.forward.class_losses import SPANS, class_losses, pretrained, span_losses
from adazeta.forward.logits import aligned, logits_at, virtual_tokens
from adazeta.forward.places import Places, places_of
from adazeta.forward.shortcuts import attempt, findings, may_compare
from adazeta.models.structure import plain_head
from adazeta.support.batches import IGNORED, has_rows

_SHIFT = "prepare_decoder_input_ids_from_labels"  # of encoder-decoder models of transformers
_CAUSAL = ("ForCausalLM", "ForConditionalGeneration")  # the latter: images and text to text
_NEXT = "labels are those of the next token"  # among the findings of a model


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
    :class:`~adazeta.training.trainer.ZOTrainer` trains such models on their own loss of the whole
    batch (:mod:`adazeta.forward.trained_loss`).

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
    return _example_losses(model, inputs, None, label_smoothing)


def _example_losses(
    model: nn.Module, inputs: Mapping[str, Any], shift: bool | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
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
        spread = _with_virtual(model, logits, labels)
        shift = _shifts(model, inputs) if shift is None else shift
        losses = token_losses(logits, spread, shift=shift, label_smoothing=label_smoothing)
        return losses, aligned(model, logits, labels.shape)
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
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    label_smoothing: float = 0.0,
    shift: bool | None = None,
) -> Tensor:
    """Compute the losses of :func:`example_losses`, up to rounding, without logits nobody needs.

    A language model's logits are computed at the labelled positions only.

    Args:
        model: see :func:`example_losses`.
        inputs: see :func:`example_losses`.
        label_smoothing: see :func:`example_losses`.
        shift: predict each labelled token from the position before it; by default as the model's
            own loss does.

    Returns:
        float32 ``(B,)``.

    Raises:
        ValueError: see :func:`example_losses`.
    """
    return smoothed_losses(model, inputs, label_smoothing=label_smoothing, shift=shift)[0]


def smoothed_losses(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    label_smoothing: float,
    shift: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute what :func:`losses_only` does, and the same losses of tokens without smoothing.

    Args:
        model: see :func:`example_losses`.
        inputs: see :func:`example_losses`.
        label_smoothing: see :func:`example_losses`.
        shift: see :func:`losses_only`.

    Returns:
        float32 ``(B,)`` and ``(B,)``; the same but for labels of tokens.

    Raises:
        ValueError: see :func:`example_losses`.
    """
    if not _of_tokens(inputs.get("labels")):
        losses = example_losses(model, inputs, label_smoothing=label_smoothing)[0]
        return losses, losses
    if plain_head(model) is None or virtual_tokens(model):
        losses, logits = _example_losses(model, inputs, shift, label_smoothing)
        if not label_smoothing or logits.dim() != 3:
            return losses, losses
        if shift is None:
            shift = _shifts(model, inputs)
        return losses, token_losses(logits, inputs["labels"], shift=shift)
    labels, arguments = _split(model, inputs)
    if shift is None:
        shift = _shifts(model, inputs)
    targets = labels[:, 1:] if shift else labels
    rows, positions = places_of(targets != IGNORED)
    logits = logits_at(model, arguments, rows, positions).float()
    means = [
        _mean_by_row(
            functional.cross_entropy(
                logits, targets[rows, positions], reduction="none", label_smoothing=share
            ),
            targets != IGNORED,
            (rows, positions),
        )
        for share in sorted({0.0, label_smoothing}, reverse=True)
    ]
    return means[0], means[-1]


def labelled_places(model: nn.Module, inputs: Mapping[str, Any]) -> Places | None:
    """Return the places at which :func:`losses_only` needs logits; None where it does not ask.

    Args:
        model: see :func:`example_losses`; its losses were computed before.
        inputs: see :func:`example_losses`.
    """
    if not _of_tokens(inputs.get("labels")) or plain_head(model) is None or virtual_tokens(model):
        return None
    targets: Tensor = inputs["labels"][:, 1:] if _shifts(model, inputs) else inputs["labels"]
    return (targets != IGNORED).nonzero(as_tuple=True)


def _of_tokens(labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point()


def _split(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Return the labels, and the inputs without them.

    An encoder-decoder gets its decoder's inputs made of the labels; one that offers no method for
    that is given the labels, and makes them itself.
    """
    if "labels" not in inputs:
        raise ValueError(
            f"the inputs have no 'labels' (they have {list(inputs)}); pass loss_fn=... to the "
            "trainer to compute the losses of the examples yourself"
        )
    arguments = dict(inputs)
    labels = arguments.pop("labels")
    if "decoder_input_ids" not in inputs and labels.dim() == 2:
        if hasattr(model, _SHIFT):
            arguments["decoder_input_ids"] = getattr(model, _SHIFT)(labels=labels)
        elif getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            arguments["labels"] = labels
    return labels, arguments


def _shifts(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Tell whether a model predicts each token from the position before it.

    Its own loss of one example decides, once; where it has none, its class does.

    Raises:
        ValueError: the model's own loss is another than the mean cross entropy of the labels.
    """
    known = findings(model)
    if _NEXT in known or not may_compare():
        return known.get(_NEXT, _shifts_by_class(model))
    expected = _shifts_by_class(model)
    chosen = (inputs["labels"][:, 1:] != IGNORED).any(-1).nonzero()[:1, 0]
    if not len(chosen):
        return expected
    example = {name: x[chosen] if has_rows(x) else x for name, x in inputs.items()}
    with torch.no_grad():
        outputs, _ = attempt(lambda: model(**example))
    if not isinstance(outputs, Mapping) or outputs.get("loss") is None:
        known[_NEXT] = expected
        return expected
    logits, labels = outputs["logits"], _with_virtual(model, outputs["logits"], example["labels"])
    own = outputs["loss"].item()
    means = [token_losses(logits, labels, shift=shift).item() for shift in (False, True)]
    gaps = [abs(mean - own) for mean in means]
    # The same logits; transformers computes the loss in float32, or in the dtype of the logits.
    close = max(1e-5, 8 * torch.finfo(logits.dtype).eps) * (1 + abs(own))
    shift = expected ^ (gaps[expected] > close >= gaps[not expected])
    if gaps[shift] > 100 * close and outputs.get("aux_loss") is None:
        raise ValueError(
            f"the loss of {type(model).__name__} is not the mean cross entropy of the labels: "
            f"{own:.4g} for the first example instead of {means[shift]:.4g}; pass loss_fn=... to "
            "the trainer to compute the losses of the examples yourself"
        )
    known[_NEXT] = shift
    return shift


def _shifts_by_class(model: nn.Module) -> bool:
    found = pretrained(model)
    if found is None or found.config.is_encoder_decoder:
        return False
    # Older classes (GPT2LMHeadModel) do not say it: their name has no "ForCausalLM" to derive it.
    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(found.config.model_type)
    kind = found.loss_type
    return kind in _CAUSAL or (kind is None and type(found).__name__ == named)


def _with_virtual(model: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """Give labels to PEFT's virtual tokens, whose last predicts the first token of the text."""
    before = logits.shape[1] - aligned(model, logits, labels.shape).shape[1]
    return functional.pad(labels, (before, 0), value=IGNORED)


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
    counted = labels != IGNORED
    places = counted.nonzero(as_tuple=True)
    losses = functional.cross_entropy(
        logits[places].float(), labels[places], reduction="none", label_smoothing=label_smoothing
    )
    return _mean_by_row(losses, counted, places)


def _mean_by_row(values: Tensor, where: Tensor, places: tuple[Tensor, ...]) -> Tensor:
    """Average values that belong to the marked places of a (B, T) mask, row by row.

    The places as numbers, since a mask as an index makes the host wait until it has counted them.
    """
    spread = torch.zeros(where.shape, dtype=torch.float32, device=values.device)
    spread[places] = values
    return spread.sum(-1) / where.sum(-1).clamp_min(1)
