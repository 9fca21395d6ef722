"""Tables of launches in a device's memory: kept for graphs, and not made while one is recorded.

Launchers keep tables of addresses in caches that let the oldest go. A recorded graph of launches
goes on reading the tables that it was recorded with, so whoever records one holds them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_held: ContextVar[list[Any] | None] = ContextVar("adazeta_held_tables", default=None)


@contextmanager
def holding_tables() -> Iterator[list[Any]]:
    """Collect the tables of every launch inside the context.

    Yields:
        What to keep as long as the launches may be replayed.
    """
    held: list[Any] = []
    token = _held.set(held)
    try:
        yield held
    finally:
        _held.reset(token)


def hold(table: Any) -> None:
    """Say that a launch reads a table; the innermost :func:`holding_tables` keeps it."""
    held = _held.get()
    if held is not None:
        held.append(table)


def refuse_while_recording() -> None:
    """Call before a table is made, which copies from the host.

    Raises:
        RuntimeError: a graph is being recorded: it would copy again at every replay, from memory
            that is no longer there.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a launch needs a table that was not made before this CUDA graph is recorded; run the "
            "same calls once on the same stream first"
        )
