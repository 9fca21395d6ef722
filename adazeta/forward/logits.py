"""Logits at the positions, and of the tokens, that a loss needs, without the rest.

A classification prompt needs a handful of logits per example, a completion those of its own
tokens; the output embedding of a language model computes one per token and word of the vocabulary.
For a small model that is a large part of the forward pass, and of its memory.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.forward.packing import lay_out
from adazeta.forward.shortcuts import attempt, findings, may_compare, remember
from adazeta.models.packed import PackedLinear, outputs_of
from adazeta.models.structure import plain_head

_ALL = "logits at some positions"
_SOME = "logits of some words at some positions"  # what follows the head may know the vocabulary


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

    Equal to the full computation up to rounding; inside :func:`adazeta.forward.packing.packed` the
    batch is computed without most of its padding. What the model does with its logits afterwards
    (scaling, soft-capping) is done to these too. Where the output embedding is not a plain
    ``nn.Linear`` (quantised, adapted, offloaded, or hidden in a wrapper) all logits are computed
    and then selected; so they are where the model does more around it than can be done to a part
    of the logits, as the first call for a model finds out (:mod:`adazeta.forward.shortcuts`): it
    runs the model a second time, unless what the output embedding computes is what the model
    returns.

    Args:
        model: a language model of transformers.
        inputs: the model's inputs, without labels.
        rows: int64 (N,), on the device of the inputs.
        positions: int64 (N,), on the device of the inputs: those of tokens, whatever PEFT puts
            before them.
        candidates: int64 (C,), the token ids whose logits are needed; by default all V.

    Returns:
        (N, C) or (N, V) in the dtype of the model's logits.

    Raises:
        ValueError: the model returns logits at other places than its tokens.
    """
    arguments, accepted = dict(inputs), inspect.signature(model.forward).parameters
    if "position_ids" in accepted:
        arguments, rows, positions = lay_out(arguments, rows, positions)
    if "use_cache" in accepted:
        # Nothing is generated: no keys and values to keep, unless the inputs bring some.
        arguments.setdefault("use_cache", False)

    def select(logits: Tensor) -> Tensor:
        chosen = aligned(model, logits, _places(arguments))[rows, positions]
        return chosen if candidates is None else chosen[:, candidates]

    head = plain_head(model)
    name = _ALL if candidates is None else _SOME
    known = None if head is None else findings(model).get(name)
    if head is None or known is False or "labels" in arguments:
        # Given labels, a model computes its own loss of all its logits.
        return select(_logits_of(model(**arguments)))
    if known is None and not may_compare():
        with _narrowed(head, None) as call:
            logits = _logits_of(model(**arguments))
        if logits is call.output:
            remember(model, name, None)
        return select(logits)

    selection = _Selection(rows, positions, candidates, _places(arguments))
    found, objection = None, None
    with _narrowed(head, selection) as call:
        if known:
            found = _logits_of(model(**arguments))
        else:
            found, objection = attempt(lambda: _logits_of(model(**arguments)))
    if found is not None:
        objection = call.objection or selection.misfit(found)
        if not call.narrow:
            remember(model, name, objection)
            return select(found)
        if objection is None and (known or found is call.output):
            remember(model, name, None)
            return found[:, 0]
    with torch.set_grad_enabled(torch.is_grad_enabled() and objection is not None):
        full = select(_logits_of(model(**arguments)))
    if found is None or objection is not None:
        remember(model, name, objection)
        return full
    objection = _difference(found[:, 0].detach(), full)
    if len(rows):  # otherwise nothing was compared
        remember(model, name, objection)
    return found[:, 0] if objection is None else select(_logits_of(model(**arguments)))


def virtual_tokens(model: nn.Module) -> int:
    """Return how many learnt vectors PEFT puts before the text (or before its keys); 0 if none."""
    settings = getattr(model, "active_peft_config", None)
    return getattr(settings, "num_virtual_tokens", None) or 0


def aligned(model: nn.Module, logits: Tensor, places: torch.Size | None) -> Tensor:
    """Leave out the logits at places that are no tokens: PEFT's virtual tokens before the text.

    Args:
        model: the model that returned the logits.
        logits: (B, T + P, V).
        places: rows and columns of the tokens or labels, (B, T); with None nothing is done.

    Returns:
        (B, T, V).

    Raises:
        ValueError: the model returned logits at other places.
    """
    if places is None or logits.shape[:-1] == places:
        return logits
    virtual = virtual_tokens(model)
    if logits.dim() == 3 and logits.shape[:-1] == (places[0], places[1] + virtual):
        return logits[:, virtual:]
    raise ValueError(
        f"the model returns logits of shape {tuple(logits.shape)} for tokens of shape "
        f"{tuple(places)}, and it is not known which belong to which; pass loss_fn=... to the "
        "trainer to compute the losses of the examples yourself"
    )


def _places(arguments: Mapping[str, Any]) -> torch.Size | None:
    """Return the shape of the tokens that a model returns logits for, (B, T)."""
    for name in ("decoder_input_ids", "labels", "input_ids"):
        if isinstance(arguments.get(name), Tensor):
            shape: torch.Size = arguments[name].shape
            return shape
    return None


@dataclass
class _Selection:
    """Which logits are needed: at N places, of C candidates or of all."""

    rows: Tensor
    positions: Tensor
    candidates: Tensor | None
    places: torch.Size | None

    def fits(self, hidden: Tensor) -> bool:
        """Tell whether the output embedding is given one vector a token."""
        return hidden.dim() == 3 and self.places in (None, hidden.shape[:2])

    def misfit(self, logits: Tensor) -> str | None:
        """Say what is wrong with the shape that came of N places, if anything is."""
        width = logits.shape[-1] if self.candidates is None else len(self.candidates)
        if logits.shape == (len(self.rows), 1, width):
            return None
        return f"logits of {len(self.rows)} places came out as {tuple(logits.shape)}"


@dataclass
class _Call:
    """What became of the output embedding in a forward."""

    count: int = 0
    narrow: bool = False
    output: Tensor | None = None
    objection: str | None = "the model does not call its output embedding"


@contextmanager
def _narrowed(head: nn.Linear | PackedLinear, selection: _Selection | None) -> Iterator[_Call]:
    """Let the output embedding compute (N, 1, C) instead of (B, T, V) inside the context.

    With None it computes all, and is only watched.
    """
    call = _Call()

    def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
        call.count += 1
        call.objection = None
        hidden = args[0] if args else kwargs["input"]
        if call.count > 1:
            call.objection = "the model calls its output embedding more than once"
        elif selection is not None and not selection.fits(hidden):
            call.objection = f"the output embedding is given shape {tuple(hidden.shape)}"
        if selection is None or call.objection is not None:
            call.output = outputs_of(head, hidden)
        else:
            chosen = hidden[selection.rows, selection.positions].unsqueeze(1)
            call.output = outputs_of(head, chosen, selection.candidates)
            call.narrow = True
        return call.output

    if selection is not None:
        # Lets a perturbation of the head stop at the rows that count (adazeta.parameters.streamed).
        forward.rows_read = selection.candidates  # type: ignore[attr-defined]
    head.forward = forward  # type: ignore[method-assign]
    try:
        yield call
    finally:
        del head.forward


def _difference(narrow: Tensor, full: Tensor) -> str | None:
    """Say by how much logits differ, if that is more than rounding.

    Both are products of the same vectors, summed in another order: they agree to some units of the
    dtype's precision, and float32 products on a GPU to 1e-3 (TF32), of the largest logit. Those of
    a wrong place or word differ by as much as a logit.
    """
    if narrow.shape != full.shape or narrow.dtype != full.dtype:
        return f"the logits are {full.dtype} {tuple(full.shape)}"
    other = (narrow != full) & ~(narrow.isnan() & full.isnan())
    if not bool(other.any()):
        return None
    gap = (narrow[other].double() - full[other].double()).abs().max().item()
    size = full[other].double().abs().max().item()
    if gap <= max(1e-3, 8 * torch.finfo(full.dtype).eps) * size:
        return None
    return f"a part of the logits computed alone differs by {gap:.2g}"


def _logits_of(outputs: Any) -> Tensor:
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
