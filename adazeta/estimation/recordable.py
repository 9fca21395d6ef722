"""What an evaluation reads of a batch, apart from how it computes from that.

A recorded graph (:mod:`adazeta.estimation.graphs`) reads tensors that stay where they are, and is
recorded with everything else.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adazeta.models.unmasked import MASK
from adazeta.support.batches import repeat_rows

_CONSTANTS = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Recordable:
    """A loss function taken apart: what it reads, and how it computes from that.

    Attributes:
        key: what the computation depends on beside shapes and dtypes of the tensors.
        tensors: everything that it reads of a batch.
        compute: returns the losses, given tensors like these, without waiting for the device.
        whole: whether nothing is masked in the batch, see :mod:`adazeta.models.unmasked`.
    """

    key: Hashable
    tensors: Mapping[str, Tensor]
    compute: Callable[[Mapping[str, Tensor]], Tensor]
    whole: bool = False


def whole_batch(
    loss_fn: Callable[..., Tensor], batch: Mapping[str, Any], copies: int
) -> Recordable | str:
    """Take a function of a batch for one that reads nothing but its tensors.

    Args:
        loss_fn: computes losses from the batch.
        batch: the batch.
        copies: how often its rows are repeated.

    Returns:
        The parts; or a reason why it cannot be recorded.
    """
    found = parts_of(batch, copies)
    if isinstance(found, str):
        return found
    tensors, others = found
    return Recordable(
        (loss_fn, *others.items()),
        tensors,
        lambda given: loss_fn({**others, **given}),
        nothing_masked(batch),
    )


def parts_of(
    batch: Mapping[str, Any], copies: int
) -> tuple[dict[str, Tensor], dict[str, Any]] | str:
    """Part a batch into what a graph reads and what it is recorded with.

    Args:
        batch: the batch.
        copies: how often its rows are repeated.

    Returns:
        Its tensors, and its constants; or a reason why it cannot be recorded.
    """
    tensors, others = {}, {}
    for name, value in (repeat_rows(batch, copies) if copies > 1 else batch).items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, _CONSTANTS):
            others[name] = value
        else:
            return f"the batch holds {name!r}, a {type(value).__name__}, which is no tensor"
    return tensors, others


def nothing_masked(batch: Mapping[str, Any]) -> bool:
    """Tell whether every place of a batch is a token that is seen; waits for the device once."""
    mask = batch.get(MASK)
    if "position_ids" in batch:
        return False
    return mask is None or (isinstance(mask, Tensor) and bool(mask.all()))
