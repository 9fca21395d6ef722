"""Logits at the positions, and of the tokens, that a loss needs, without the rest.

A classification prompt needs a handful of logits per example, a completion those of its own
tokens; the output embedding of a language model computes one per token and word of the vocabulary.
For a small model that is a large part of the forward pass, and of its memory.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adazeta.packing import lay_out


def candidate_logits(
    model: nn.Module, inputs: Mapping[str, Any], positions: Tensor, candidates: Tensor
) -> Tensor:
    """Compute ``model(**inputs).logits[b, positions[b], candidates]`` for every row b.

    Args:
        model: see :func:`logits_at`.
        inputs: the model's inputs, without labels; B rows.
        positions: int64 (B,), on the device of the inputs.
        candidates: int64 (C,), token ids, on the device of the inputs.

    Returns:
        (B, C) in the dtype of the model's logits.
    """
    rows = torch.arange(len(positions), device=positions.device)
    return logits_at(model, inputs, rows, positions, candidates)


def logits_at(
    model: nn.Module,
    inputs: Mapping[str, Any],
    rows: Tensor,
    positions: Tensor,
    candidates: Tensor | None = None,
) -> Tensor:
    """Compute ``model(**inputs).logits[rows[n], positions[n]]`` for every n.

    Equal to the full computation up to rounding; inside :func:`adazeta.packing.packed` the batch
    is computed without most of its padding. What the model does with its logits afterwards
    (scaling, soft-capping) is done to these too. Where the output embedding is not a plain
    ``nn.Linear`` (quantised, adapted, offloaded, or hidden in a wrapper) all logits are computed
    and then selected.

    Args:
        model: a language model of transformers.
        inputs: the model's inputs, without labels.
        rows: int64 (N,), on the device of the inputs.
        positions: int64 (N,), on the device of the inputs.
        candidates: int64 (C,), the token ids whose logits are needed; by default all V.

    Returns:
        (N, C) or (N, V) in the dtype of the model's logits.
    """
    arguments, accepted = dict(inputs), inspect.signature(model.forward).parameters
    if "position_ids" in accepted:
        arguments, rows, positions = lay_out(arguments, rows, positions)
    if "use_cache" in accepted:
        # Nothing is generated: no keys and values to keep, unless the inputs bring some.
        arguments.setdefault("use_cache", False)
    head = plain_head(model)
    if head is None:
        logits = _logits_of(model(**arguments))[rows, positions]
        return logits if candidates is None else logits[:, candidates]
    with _narrowed(head, rows, positions, candidates):
        return _logits_of(model(**arguments))[:, 0]


def plain_head(model: nn.Module) -> nn.Linear | None:
    """Return the output embedding if it does nothing but multiply with its weight."""
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if type(head) is not nn.Linear or "forward" in vars(head):
        return None
    hooked = head._forward_hooks or head._forward_pre_hooks
    return None if hooked else head


@contextmanager
def _narrowed(
    head: nn.Linear, rows: Tensor, positions: Tensor, candidates: Tensor | None
) -> Iterator[None]:
    """Let the output embedding compute (N, 1, C) instead of (B, T, V) inside the context."""

    def forward(hidden: Tensor) -> Tensor:
        weight: Tensor = head.weight
        bias: Tensor | None = head.bias
        if candidates is not None:
            weight, bias = weight[candidates], None if bias is None else bias[candidates]
        return functional.linear(hidden[rows, positions].unsqueeze(1), weight, bias)

    # Lets a perturbation of the head stop at the rows that count (adazeta.streaming).
    forward.rows_read = candidates  # type: ignore[attr-defined]
    head.forward = forward  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del head.forward


def _logits_of(outputs: Any) -> Tensor:
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
