"""Batches without most of their padding: several short texts in one row.

A padded place costs a forward what a token costs. Models of transformers keep the texts of one row
apart when they are given positions that start anew with each text and no attention mask, so the
texts of a batch can be laid out in fewer rows. Losses agree with those of the padded batch up to
rounding, and are the same for every evaluation of a batch.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adazeta.support.batches import lengths_of

_logger = logging.getLogger(__name__)

_PLAIN = {"input_ids", "attention_mask", "use_cache"}  # inputs that can be laid out anew
_WIDEST = 4  # rows of up to so many times the longest text
_WORTH = 0.9  # pack where this share of the cost, or less, is left
# Width of a row at which attention costs as much as the rest of a block: six times the hidden size,
# for which a thousand stands here.
_ATTENTION_WIDTH = 6_000


@dataclass(frozen=True)
class Packing:
    """Where the texts of a batch lie in packed rows.

    Where an example has several texts, as candidates have, B counts the texts.

    Attributes:
        shape: rows and width of the padded batch, (B, T).
        line: int64 (B,), the packed row of each text.
        start: int64 (B,), the column there at which it begins.
        source: int64 (G, W), for each packed place its index in the flattened batch.
        positions: int64 (G, W), positions that start anew with each text.
    """

    shape: tuple[int, int]
    line: Tensor
    start: Tensor
    source: Tensor
    positions: Tensor

    def apply(
        self, inputs: Mapping[str, Any], rows: Tensor, positions: Tensor, copies: int
    ) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Lay out a batch, or ``copies`` of it one after another.

        Args:
            inputs: ``input_ids`` ``(copies * B, T)``, and an attention mask, which is dropped.
            rows: int64 (N,), rows of the batch.
            positions: int64 (N,), columns of the batch.
            copies: how often the batch is repeated along its rows.

        Returns:
            The inputs with ``copies * G`` rows, and where the places (rows, positions) went.
        """
        texts = self.shape[0]
        lines, width = self.source.shape
        flat = inputs["input_ids"].reshape(copies, -1)
        packed = {name: value for name, value in inputs.items() if name != "attention_mask"}
        packed["input_ids"] = flat[:, self.source.flatten()].view(copies * lines, width)
        packed["position_ids"] = self.positions.repeat(copies, 1)
        text = rows % texts
        return packed, rows // texts * lines + self.line[text], self.start[text] + positions


def packing_of(inputs: Mapping[str, Any]) -> Packing | None:
    """Find a layout for a batch.

    Args:
        inputs: the batch, with ``attention_mask`` ``(B, T)``, or ``(B, C, T)`` where an example has
            C texts; texts begin in column 0.

    Returns:
        None where nothing is to be won, or padding lies elsewhere than on the right.
    """
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 3):
        return None
    mask = mask.flatten(0, -2)
    lengths = lengths_of(mask)
    if lengths is None or min(lengths, default=0) < 1:
        return None
    plans = [_first_fit(lengths, max(lengths) * k) for k in range(1, _WIDEST + 1)]
    lines = min(plans, key=lambda plan: _cost(len(plan), _width(plan, lengths)))
    width = _width(lines, lengths)
    if _cost(len(lines), width) > _WORTH * _cost(*mask.shape):
        return None
    line, start = [0] * len(lengths), [0] * len(lengths)
    source = torch.zeros(len(lines), width, dtype=torch.int64)
    positions = torch.zeros_like(source)
    for number, texts in enumerate(lines):
        column = 0
        for text in texts:
            line[text], start[text] = number, column
            places = slice(column, column + lengths[text])
            positions[number, places] = torch.arange(lengths[text])
            source[number, places] = positions[number, places] + text * mask.shape[1]
            column += lengths[text]
        positions[number, column:] = torch.arange(width - column)
    moved = [torch.tensor(x) for x in (line, start)]
    parts = [x.to(mask.device) for x in (*moved, source, positions)]
    return Packing((len(lengths), mask.shape[1]), *parts)


def _first_fit(lengths: list[int], width: int) -> list[list[int]]:
    """Put texts into rows of a width, longest first, each into the first row that takes it."""
    lines: list[list[int]] = []
    room: list[int] = []
    for text in sorted(range(len(lengths)), key=lambda text: (-lengths[text], text)):
        fitting = [n for n, left in enumerate(room) if left >= lengths[text]]
        if not fitting:
            lines.append([])
            room.append(width)
            fitting = [len(room) - 1]
        lines[fitting[0]].append(text)
        room[fitting[0]] -= lengths[text]
    return lines


def _width(lines: list[list[int]], lengths: list[int]) -> int:
    return max(sum(lengths[text] for text in line) for line in lines)


def _cost(rows: int, width: int) -> float:
    """Cost of a forward, in places of a narrow batch: each is compared with all of its row."""
    return rows * width * (1 + width / _ATTENTION_WIDTH)


@dataclass
class _Layout:
    """What is in force: a packing, how often its batch is repeated, and whether it served."""

    packing: Packing
    copies: int
    served: bool = False


_layout: ContextVar[_Layout | None] = ContextVar("adazeta_packing", default=None)


@contextmanager
def packed(packing: Packing | None, copies: int = 1) -> Iterator[_Layout | None]:
    """Pack the batches whose logits :mod:`adazeta.forward.logits` computes inside the context.

    Args:
        packing: of the batch; with None nothing is packed.
        copies: how often the batch is repeated along its rows.
    """
    layout = None if packing is None else _Layout(packing, copies)
    token = _layout.set(layout)
    try:
        yield layout
    finally:
        _layout.reset(token)


def lay_out(
    inputs: dict[str, Any], rows: Tensor, positions: Tensor
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Pack inputs if the context says so and they are the batch it means; else return them."""
    layout = _layout.get()
    ids = inputs.get("input_ids")
    if layout is None or ids is None or not _PLAIN >= set(inputs):
        return inputs, rows, positions
    if ids.shape != (layout.copies * layout.packing.shape[0], layout.packing.shape[1]):
        return inputs, rows, positions
    layout.served = True
    return layout.packing.apply(inputs, rows, positions, layout.copies)


@torch.no_grad()
def choose_packing(
    mode: bool | str,
    losses: Callable[[Mapping[str, Any]], Tensor],
    inputs: Mapping[str, Any],
    dtype: Callable[[], torch.dtype],
    known: bool | None,
) -> tuple[Packing | None, bool | None]:
    """Find the layout of a batch, once it is seen that the model keeps texts in a row apart.

    Args:
        mode: True: pack; False: do not; ``"auto"``: pack where the model allows it.
        losses: computes the losses of a batch's examples; called up to three times for the first
            batch that has padding, with the layout, without, and with other texts beside.
        inputs: the batch.
        dtype: returns that of the model's weights, whose rounding the comparison allows for;
            called if that is made.
        known: whether the model allows it, as an earlier batch has shown; None before one has.

    Returns:
        The layout, see :func:`packing_of`, and what is known now.

    Raises:
        ValueError: ``mode`` is True and packed losses are others, or feel the texts beside them
            (as they may, by rounding, in mixtures of experts), or do not come from
            :mod:`adazeta.forward.logits`.
    """
    if mode is False or (mode == "auto" and known is False):
        return None, known
    packing = packing_of(inputs)
    if packing is None or known:
        return packing, known
    if _watched(packing, inputs) is None:
        return None, known  # this batch cannot tell
    objection = _objection(packing, losses, inputs, dtype())
    if objection is None:
        return packing, True
    if mode != "auto":
        raise ValueError(f"{objection}; set padding_free='auto' or 'false'")
    _logger.info("batches keep their padding: %s", objection)
    return None, False


def _objection(
    packing: Packing,
    losses: Callable[[Mapping[str, Any]], Tensor],
    inputs: Mapping[str, Any],
    dtype: torch.dtype,
) -> str | None:
    """Say why a batch cannot be packed; None if it can."""
    with packed(packing) as layout:
        together = losses(inputs)
    if layout is None or not layout.served:
        return (
            "a layout without padding serves losses that adazeta.forward.logits computes (those of "
            "a "
            "task, or the default loss of token labels) for a model that takes position_ids, and "
            "this loss computes its logits itself or the model takes none"
        )
    watched = _watched(packing, inputs)
    if watched is None or together.shape != watched.shape:
        return "it can only be tried on the losses of single examples, and this loss is of a batch"
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    turned = _reversed(ids.flatten(0, -2), mask.flatten(0, -2)).view_as(ids)
    other = torch.where(watched.view(-1, *[1] * (ids.dim() - 1)), ids, turned)
    with packed(packing):
        changed = losses({**inputs, "input_ids": other})
    gap = (losses(inputs) - together).abs().max().item()
    leak = (changed - together)[watched].abs().max().item()
    if leak == 0 and gap <= max(1e-3, 8 * torch.finfo(dtype).eps):
        return None
    return (
        "this model does not keep texts in one row apart: a layout without padding changes a loss "
        f"by {gap:.2g}, and other texts beside it by {leak:.2g}"
    )


def _watched(packing: Packing, inputs: Mapping[str, Any]) -> Tensor | None:
    """Choose examples whose loss must not change when the texts of all others do.

    Returns:
        bool (B,): with one text an example all that follow another text in a row; with several
        the first example of which a text follows one of another example. None if there is none.
    """
    examples = len(inputs["attention_mask"])
    several = len(packing.line) // examples
    if several == 1:
        return packing.start > 0
    chosen = torch.zeros(examples, dtype=torch.bool, device=packing.line.device)
    first: dict[int, int] = {}  # example of the text at the beginning of each row
    order = packing.start.argsort(stable=True).tolist()
    lines = packing.line.tolist()
    for text in order:
        example = text // several
        if first.setdefault(lines[text], example) != example:
            chosen[example] = True
            return chosen
    return None


def _reversed(ids: Tensor, mask: Tensor) -> Tensor:
    """Turn the tokens of each text round."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    end = mask.sum(-1, keepdim=True) - 1
    return ids.gather(1, torch.where(columns <= end, end - columns, columns))
