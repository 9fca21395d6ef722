"""The trunk's output per example: what tells an example, and how a batch is put together again.

An example is computed at a padded width that depends on its length alone, not in the batch in which
it happens to come first, so that what is kept does not depend on the order of the data, and a
resumed or repeated run reads the same numbers. Rounding is why this matters: with the usual CPU
kernels a row does not feel its neighbours, but sums over keys are split by the padded width, and
change in the last bit where that ends within eight columns of the row's end (measured on x86).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adazeta.forward.cache.base import Entry, StateCache, through_cache
from adazeta.forward.reach import relative_error, roundings
from adazeta.support.batches import IGNORED, has_rows, lengths_of, padded_width

_WIDTH = 32  # widths at which examples are computed are multiples of this
_PLAIN = (Tensor, bool, int, float, str, type(None))
# Inputs whose second dimension is the tokens, so that what lies in padding does not count.
_BY_TOKEN = {"input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"}


class Rows(NamedTuple):
    """What is needed to look the rows of a batch up.

    Attributes:
        keys: everything that the trunk's output of a row can depend on.
        lengths: tokens of each row; what follows is padding.
        width: columns of the batch, T.
    """

    keys: list[bytes]
    lengths: list[int]
    width: int


def rows_to_keep(inputs: Mapping[str, Any], *, labels: bool, context: str) -> Rows | None:
    """Tell the rows of a batch apart.

    Args:
        inputs: the batch; tensors with B rows, and whatever else the model takes.
        labels: whether the model sees the labels (encoder-decoder models make their decoder's
            inputs of them).
        context: what else decides the output; part of every key.

    Returns:
        None where rows cannot be kept: without 2-d ``input_ids``, with padding elsewhere than on
        the right, with inputs that are neither tensors nor plain values, or with one of T columns
        of which it is not known whether they are tokens.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        return None
    width = ids.shape[1]
    lengths = [width] * len(ids)
    if mask is not None:
        found = lengths_of(mask) if mask.shape == ids.shape else None
        if found is None:
            return None
        lengths = found
    shared, columns = [context], []
    for name, value in sorted(inputs.items()):
        if name == "attention_mask" or (name == "labels" and not labels):
            continue
        if has_rows(value):
            if name not in _BY_TOKEN and value.dim() > 1 and value.shape[1] == width:
                return None
            columns.append((name, value.cpu()))
        elif isinstance(value, _PLAIN):
            shared.append(f"{name}={value!r}")
        else:
            return None
    prefix = repr(shared).encode()
    keys = [
        b"".join([prefix, *(_cell(name, v[row], n) for name, v in columns)])
        for row, n in enumerate(lengths)
    ]
    return Rows(keys, lengths, width)


def _cell(name: str, value: Tensor, length: int) -> bytes:
    """Return one input of one row as bytes, without padding."""
    if name in _BY_TOKEN:
        value = value[:length]
    head = repr((name, value.dtype, tuple(value.shape))).encode()
    return head + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def states_of(
    cache: StateCache,
    rows: Rows,
    inputs: Mapping[str, Any],
    forward: Callable[[Mapping[str, Any]], Tensor | None],
    *,
    padding: int,
    longest: int | None,
) -> Tensor | None:
    """Return the trunk's output for a batch, from the cache as far as possible.

    Args:
        cache: where outputs are kept.
        rows: see :func:`rows_to_keep`.
        inputs: the batch, B rows of T columns.
        forward: computes the output of a batch, (B', T', d), or None where it cannot.
        padding: token id of padding.
        longest: most tokens that the model takes, if it is limited.

    Returns:
        Hidden states (B, T, d), zero at padding, or None if ``forward`` returned that.
    """
    padded = "attention_mask" in inputs

    def compute(chosen: list[int], width: int) -> list[Entry] | None:
        hidden = forward(_part(inputs, chosen, rows.width, width, padding))
        if hidden is None:
            return None
        return [
            {"hidden": states[: rows.lengths[row]]}
            for row, states in zip(chosen, hidden.cpu(), strict=True)
        ]

    widths = [padded_width(n, longest, _WIDTH) if padded else rows.width for n in rows.lengths]
    found = through_cache(cache, rows.keys, widths, compute)
    if found is None:
        return None
    first = found[rows.keys[0]]["hidden"]
    whole = first.new_zeros(len(rows.keys), rows.width, first.shape[-1])
    for target, key, length in zip(whole, rows.keys, rows.lengths, strict=True):
        target[:length] = found[key]["hidden"]
    return whole.to(inputs["input_ids"].device)


def width_matters(
    rows: Rows,
    inputs: Mapping[str, Any],
    forward: Callable[[Mapping[str, Any]], Tensor | None],
    *,
    padding: int,
    longest: int | None,
) -> str | None:
    """Find out whether the output of a row depends on its padding, or on the other rows.

    The shortest and the longest row of a batch are computed alone, at the width at which they
    would be kept, and further padded than they are.

    Args:
        rows: see :func:`rows_to_keep`.
        inputs: the batch.
        forward: see :func:`states_of`.
        padding: see :func:`states_of`.
        longest: see :func:`states_of`.

    Returns:
        What was found, or None if the output agrees up to rounding.
    """
    whole = forward(inputs)
    if whole is None or whole.shape[:2] != (len(rows.lengths), rows.width):
        return "the blocks do not take hidden states of each token"
    order = sorted(range(len(rows.lengths)), key=lambda row: rows.lengths[row])
    for row in dict.fromkeys([order[0], order[-1]]):
        length, widths = rows.lengths[row], {rows.width}
        if "attention_mask" in inputs:
            widths = {padded_width(length, longest, _WIDTH)}
            if longest is None or rows.width + _WIDTH <= longest:
                widths.add(rows.width + _WIDTH)
        for width in sorted(widths):
            alone = forward(_part(inputs, [row], rows.width, width, padding))
            if alone is None:
                return "the blocks do not take hidden states of each token"
            found, expected = alone[0, :length], whole[row, :length]
            error, accepted = relative_error(found, expected), roundings(found)
            if error > accepted:
                return (
                    f"a row of {length} tokens comes out otherwise with {width - length} places of "
                    f"padding than among others with {rows.width - length} (by {error:.2g} of its "
                    f"spread, where {accepted:.2g} is rounding)"
                )
    return None


def _part(
    inputs: Mapping[str, Any], chosen: list[int], before: int, width: int, padding: int
) -> dict[str, Any]:
    """Take some rows of a batch, at another padded width."""
    fillers = {"input_ids": padding, "labels": IGNORED}
    part: dict[str, Any] = {}
    for name, value in inputs.items():
        if has_rows(value):
            value = value[torch.tensor(chosen, device=value.device)]
            by_token = name in _BY_TOKEN or name == "labels"
            if by_token and value.dim() > 1 and value.shape[1] == before:
                value = value[:, :width]
                extra = [0, 0] * (value.dim() - 2) + [0, width - value.shape[1]]
                value = functional.pad(value, extra, value=fillers.get(name, 0))
        part[name] = value
    return part
