"""Places of labelled tokens: counted on the device, or known before.

To count them the host waits for the device, and what follows has as many rows as there are. Where
an evaluation is recorded as a graph, which cannot wait, they are counted once a batch before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

Places = tuple[Tensor, ...]

_known: ContextVar[Places | None] = ContextVar("adazeta_places", default=None)


@contextmanager
def known_places(places: Places | None) -> Iterator[None]:
    """Say where the labelled tokens of a batch are, for the evaluation inside the context.

    Args:
        places: int64 rows (N,) and columns (N,) of the labels, those of the tokens that predict
            them if labels are of the next token; with None they are counted.
    """
    token = _known.set(places)
    try:
        yield
    finally:
        _known.reset(token)


def places_of(counted: Tensor) -> Places:
    """Return rows and columns of the places that count in a mask (B, T), each int64 (N,)."""
    known = _known.get()
    return counted.nonzero(as_tuple=True) if known is None else known
