"""Logits of a few candidate tokens at one position per row, without the rest of the vocabulary.

A classification prompt needs a handful of logits per example; the output embedding of a language
model computes one per token and word of the vocabulary. For a small model that is a large part of
the forward pass.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def candidate_logits(
    model: nn.Module, inputs: Mapping[str, Any], positions: Tensor, candidates: Tensor
) -> Tensor:
    """Compute ``model(**inputs).logits[b, positions[b], candidates]`` for every row b.

    Equal to the full computation up to rounding. What the model does with its logits afterwards
    (scaling, soft-capping) is done to these too. Where the output embedding is not a plain
    ``nn.Linear`` (quantised, adapted, offloaded, or hidden in a wrapper) all logits are computed
    and then selected.

    Args:
        model: a causal or masked language model of transformers.
        inputs: the model's inputs, without labels; B rows.
        positions: int64 (B,), on the device of the inputs.
        candidates: int64 (C,), token ids, on the device of the inputs.

    Returns:
        (B, C) in the dtype of the model's logits.
    """
    arguments = dict(inputs)
    if "use_cache" in inspect.signature(model.forward).parameters:
        # Nothing is generated: no keys and values to keep, unless the inputs bring some.
        arguments.setdefault("use_cache", False)
    head = _plain_head(model)
    if head is None:
        logits = _logits_of(model(**arguments))
        rows = torch.arange(len(positions), device=logits.device)
        return logits[rows, positions][:, candidates]
    with _narrowed(head, positions, candidates):
        return _logits_of(model(**arguments))[:, 0]


def _plain_head(model: nn.Module) -> nn.Linear | None:
    """Return the output embedding if it does nothing but multiply with its weight."""
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if type(head) is not nn.Linear or "forward" in vars(head):
        return None
    hooked = head._forward_hooks or head._forward_pre_hooks
    return None if hooked else head


@contextmanager
def _narrowed(head: nn.Linear, positions: Tensor, candidates: Tensor) -> Iterator[None]:
    """Let the output embedding compute (B, 1, C) instead of (B, T, V) inside the context."""

    def forward(hidden: Tensor) -> Tensor:
        rows = torch.arange(len(positions), device=hidden.device)
        bias = None if head.bias is None else head.bias[candidates]
        return functional.linear(
            hidden[rows, positions].unsqueeze(1), head.weight[candidates], bias
        )

    head.forward = forward  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del head.forward


def _logits_of(outputs: Any) -> Tensor:
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
