"""Rows of a batch: pad them, count them, repeat them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # transformers' label of positions that do not count
TEACHER = "teacher"
"""Key of a teacher's probabilities of the classes, float32 (B, C), which take the labels' place."""


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Stack rows of different lengths, padded on the right, as int64 (B, T)."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def padded_width(length: int, longest: int | None, multiple: int) -> int:
    """Return the padded width at which a row is computed whose result is kept.

    A function of the row's length alone, so that what is kept does not depend on which batch it
    came in: sums over keys are split by the width, and round differently.

    Args:
        length: tokens of the row.
        longest: most tokens that the model takes, if it is limited.
        multiple: widths are multiples of it, as far as the limit allows.
    """
    width = -(-max(length, 1) // multiple) * multiple
    return width if longest is None or width <= longest else max(length, 1)


def lengths_of(mask: Tensor) -> list[int] | None:
    """Return the tokens of each row of a mask (B, T), None if padding lies elsewhere than right."""
    columns, counts = torch.arange(mask.shape[1], device=mask.device), mask.sum(-1)
    if not bool((mask.bool() == (columns < counts[:, None])).all()):
        return None
    lengths: list[int] = counts.tolist()
    return lengths


def targets_of(batch: Mapping[str, Any]) -> Tensor:
    """Return what the cross entropy of a batch's classes is taken with.

    Returns:
        A teacher's probabilities, float32 (B, C), if the batch has them; else its labels, int64
        (B,). ``torch.nn.functional.cross_entropy`` takes either.
    """
    targets: Tensor = batch[TEACHER] if TEACHER in batch else batch["labels"]
    return targets


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a batch with its tensors on a device; other values stay as they are."""
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def same_values(one: Tensor, other: Tensor) -> bool:
    """Tell whether tensors have one shape, one dtype and the same numbers, NaN where NaN is.

    The sign of a zero does not count.
    """
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    holes = one.isnan()
    filled = (x.masked_fill(holes, 0) for x in (one, other))
    return torch.equal(holes, other.isnan()) and torch.equal(*filled)


def rows_of(batch: Mapping[str, Any]) -> int:
    """Return the number of examples in a batch.

    Raises:
        ValueError: there is no tensor, or the tensors disagree on the leading dimension.
    """
    sizes = {name: value.shape[0] for name, value in batch.items() if has_rows(value)}
    if not sizes:
        raise ValueError(f"the batch holds no tensor with a leading dimension: {list(batch)}")
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the tensors of the batch disagree on the number of examples: {sizes}; wrap what is "
            "not per example in a list or tuple"
        )
    return next(iter(sizes.values()))


def has_rows(value: Any) -> bool:
    """Tell whether a value of a batch has one part an example."""
    return isinstance(value, Tensor) and value.dim() > 0


def texts_of(batch: Mapping[str, Any]) -> int:
    """Return the number of texts in a batch, which is larger where an example has several."""
    ids = batch.get("input_ids")
    rows = rows_of(batch)
    return rows * ids.shape[1] if isinstance(ids, Tensor) and ids.dim() == 3 else rows


def repeat_rows(batch: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Repeat the whole batch along its leading dimension: copies one after another."""
    return {
        name: value.repeat(times, *[1] * (value.dim() - 1)) if has_rows(value) else value
        for name, value in batch.items()
    }
