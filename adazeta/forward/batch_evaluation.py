"""The evaluations of one batch: a function of the batch, which can also be recorded as a graph."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from adazeta.estimation.recordable import Recordable, nothing_masked, parts_of
from adazeta.forward.losses import labelled_places
from adazeta.forward.packing import Packing, packed
from adazeta.forward.places import known_places
from adazeta.forward.trunk import SharedTrunk
from adazeta.support.batches import rows_of

_PACKED = ("line", "start", "source", "positions")


@dataclass(frozen=True, eq=False)
class BatchEvaluation:
    """Computes the losses of a batch, whose rows may be repeated, at the parameters as they are.

    Attributes:
        module: the model, in evaluation mode.
        compute: computes the losses of the examples, float32 ``(rows,)``, the loss of the batch, or
            logits, from the model and a batch.
        rows: of the batch.
        trunk: the frozen blocks that are shared.
        hidden: their output for the batch, or None.
        packing: layout of the batch without padding, or None.
        owner: who prepares the batches of a run.
        objection: why it cannot be recorded; None if it can.
        places: whether the losses are of labelled tokens, whose places are to be known before.
    """

    module: nn.Module
    compute: Callable[[nn.Module, Mapping[str, Any]], Tensor]
    rows: int
    trunk: SharedTrunk
    hidden: Tensor | None
    packing: Packing | None
    owner: object
    objection: str | None
    places: bool

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        """Compute what is wanted of the batch."""
        times = rows_of(batch) // self.rows
        with self.trunk.replay(self.hidden, times), packed(self.packing, times):
            return self.compute(self.module, batch)

    def recordable(self, batch: Mapping[str, Any], copies: int) -> Recordable | str:
        """Return what an evaluation reads, and how it computes from that; or a reason against.

        Called after a plain evaluation of the batch, or of one like it.

        Args:
            batch: the batch.
            copies: how often its rows are to be repeated.
        """
        if self.objection is not None:
            return self.objection
        found = parts_of(batch, copies)
        if isinstance(found, str):
            return found
        read, others = found
        tensors = {f"batch {name}": value for name, value in read.items()}
        if self.hidden is not None:
            tensors["hidden"] = self.hidden
        if self.packing is not None:
            tensors |= {f"packing {name}": getattr(self.packing, name) for name in _PACKED}
        places = labelled_places(self.module, read) if self.places else None
        if places is not None:
            tensors |= {"place row": places[0], "place column": places[1]}
        layout = None if self.packing is None else self.packing.shape
        key = (self.owner, self.module, layout, copies, *others.items())
        # Not of this object, which holds what was computed for this batch.
        compute = partial(
            _compute, self.module, self.compute, self.trunk, layout, copies, tuple(read), others
        )
        whole = self.packing is None and nothing_masked(batch)
        return Recordable(key, tensors, compute, whole)


def _compute(
    module: nn.Module,
    compute: Callable[[nn.Module, Mapping[str, Any]], Tensor],
    trunk: SharedTrunk,
    layout: tuple[int, int] | None,
    copies: int,
    names: Sequence[str],
    others: Mapping[str, Any],
    given: Mapping[str, Tensor],
) -> Tensor:
    """Compute what :class:`BatchEvaluation` does from the tensors of a batch like it."""
    packing, known = None, None
    if layout is not None:
        packing = Packing(layout, *(given[f"packing {name}"] for name in _PACKED))
    if "place row" in given:
        known = given["place row"], given["place column"]
    batch = {name: given[f"batch {name}"] for name in names}
    with (
        trunk.replay(given.get("hidden"), copies),
        packed(packing, copies),
        known_places(known),
    ):
        return compute(module, {**batch, **others})
