"""What is known of the ways round a model's own computation: whether they give what it gives.

A shortcut is used where one comparison with the plain way has shown that it equals it, else the
plain way is. The finding is kept per model, and may be taken over by a run that is resumed.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from adazeta.support.memory import is_out_of_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")

_findings: "WeakKeyDictionary[nn.Module, dict[str, bool]]" = WeakKeyDictionary()
_single: ContextVar[bool] = ContextVar("adazeta_single_forward", default=False)

# What a model raises that meets something it was not written for.
MISFITS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)


def findings(model: nn.Module) -> dict[str, bool]:
    """Return what is known of a model: whether each shortcut tried so far equals the plain way.

    What is written into the dictionary is remembered as long as the model lives.
    """
    return _findings.setdefault(model, {})


def remember(model: nn.Module, shortcut: str, objection: str | None) -> None:
    """Keep a finding, and say once why a shortcut is left out.

    Args:
        model: the model that was tried.
        shortcut: its name, for the message too.
        objection: why it does not equal the plain way; None if it does.
    """
    known = findings(model)
    if objection is not None and known.get(shortcut) is not False:
        logger.info("%s: computed in full, %s", shortcut, objection)
    known[shortcut] = objection is None


def attempt(function: Callable[[], T]) -> tuple[T | None, str | None]:
    """Call a function that takes a shortcut.

    Returns:
        What it returned, and None; or None, and what it raised, in one line.

    Raises:
        Exception: memory ran out, or something that a misfit of model and shortcut does not raise.
    """
    try:
        return function(), None
    except MISFITS as error:
        if is_out_of_memory(error):
            raise
        return None, " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def single_forward() -> Iterator[None]:
    """Say that the model can be run only once inside the context, so nothing can be compared."""
    token = _single.set(True)
    try:
        yield
    finally:
        _single.reset(token)


def may_compare() -> bool:
    """Tell whether the model may be run a second time on the same inputs."""
    return not _single.get()
