"""Scores of candidate texts: the mean log-likelihood of each, given what comes before it.

All candidates of the examples of a batch are rows of one forward, which
:mod:`adazeta.forward.packing` lays out without padding where the model allows it. An
encoder-decoder reads the prompt once, and its decoder all the candidates.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adazeta.forward.logits import logits_at
from adazeta.support.batches import IGNORED


def continuation_scores(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Compute the mean log-likelihood of the last tokens of each row, given those before them.

    Args:
        model: a causal language model of transformers.
        inputs: int64 ``input_ids`` and ``attention_mask`` (B, C, T), padded on the right, and
            ``starts`` (B, C): the column of the first token that counts, 0 where an example has
            fewer than C candidates.

    Returns:
        float32 (B, C), minus infinity where there is no candidate.
    """
    ids, mask, starts = (inputs[name] for name in ("input_ids", "attention_mask", "starts"))
    examples, count, width = ids.shape
    ids, mask = ids.reshape(-1, width), mask.reshape(-1, width)
    columns = torch.arange(width, device=ids.device)
    first = starts.reshape(-1, 1)
    counted = (columns >= first) & mask.bool() & (first > 0)
    rows, places = counted.nonzero(as_tuple=True)
    tokens = {"input_ids": ids, "attention_mask": mask}
    logits = logits_at(model, tokens, rows, places - 1)
    likelihoods = -functional.cross_entropy(logits.float(), ids[rows, places], reduction="none")
    return _means(likelihoods, rows, len(ids)).view(examples, count)


def target_scores(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Compute the mean log-likelihood of the candidates as what a decoder writes.

    Args:
        model: an encoder-decoder of transformers.
        inputs: int64 ``input_ids`` and ``attention_mask`` (B, T), of the encoder, and ``targets``
            (B, C, L), the candidates' tokens, -100 behind their end.

    Returns:
        float32 (B, C), minus infinity where there is no candidate.
    """
    targets = inputs["targets"]
    examples, count, length = targets.shape
    encoder: Any = model.get_encoder()  # type: ignore[operator]
    mask = inputs["attention_mask"]
    states = encoder(input_ids=inputs["input_ids"], attention_mask=mask, return_dict=True)
    hidden = states.last_hidden_state.repeat_interleave(count, 0)
    flat = targets.reshape(-1, length)
    make: Any = model.prepare_decoder_input_ids_from_labels
    given = {
        "encoder_outputs": type(states)(last_hidden_state=hidden),
        "attention_mask": mask.repeat_interleave(count, 0),
        "decoder_input_ids": make(labels=flat),
    }
    rows, places = (flat != IGNORED).nonzero(as_tuple=True)
    logits = logits_at(model, given, rows, places)
    likelihoods = -functional.cross_entropy(logits.float(), flat[rows, places], reduction="none")
    return _means(likelihoods, rows, len(flat)).view(examples, count)


def score_losses(scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the cross entropy over the candidates' scores.

    Args:
        scores: float32 (B, C), minus infinity where an example has no such candidate.
        labels: int64 (B,), or of examples with C candidates their probabilities, float32 (B, C).
        label_smoothing: share of the target that is spread over the candidates of an example.

    Returns:
        float32 (B,).
    """
    likelihoods = scores.log_softmax(-1)
    if labels.is_floating_point():
        losses = -(likelihoods * labels).sum(-1)
    else:
        losses = -likelihoods.gather(-1, labels[:, None])[:, 0]
    if not label_smoothing:
        return losses
    present = scores > -torch.inf
    spread = -likelihoods.where(present, 0.0).sum(-1) / present.sum(-1)
    return (1 - label_smoothing) * losses + label_smoothing * spread


def _means(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Average the values of each row; minus infinity for rows without any."""
    # Not by index_add, whose order, and so whose last bits, are left open on a GPU.
    numbers = torch.bincount(rows, minlength=count)
    width = int(numbers.max()) if count else 0
    spread = torch.zeros(count, width, dtype=torch.float32, device=values.device)
    spread[torch.arange(width, device=values.device) < numbers[:, None]] = values
    means = spread.sum(-1) / numbers.clamp_min(1)
    return means.masked_fill(numbers == 0, -torch.inf)
