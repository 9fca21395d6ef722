"""Which backend serves a tensor: one decision, in one place."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from torch import Tensor

BACKENDS = ("auto", "reference", "triton")

_forced: ContextVar[str | None] = ContextVar("adazeta_backend", default=None)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} is {name!r}; choose one of {', '.join(BACKENDS)}")
    return name


def _requested() -> str:
    forced = _forced.get()
    if forced is not None:
        return forced
    return _checked(os.environ.get("ADAZETA_BACKEND", "auto"), "ADAZETA_BACKEND")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every op inside the context by one backend, whatever ADAZETA_BACKEND says.

    Args:
        name: ``"auto"`` (Triton on accelerators, the reference elsewhere), ``"reference"`` or
            ``"triton"``.

    Raises:
        ValueError: if ``name`` is none of these.
    """
    token = _forced.set(_checked(name, "backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def use_triton(tensor: Tensor) -> bool:
    """Say whether the Triton kernels serve ``tensor`` (else the plain PyTorch reference does).

    Args:
        tensor: the tensor an op works on; only its device matters.

    Raises:
        RuntimeError: if Triton is forced but is not installed, or is forced for a CPU tensor
            without the interpreter.
        ValueError: if ADAZETA_BACKEND holds an unknown name.
    """
    requested = _requested()
    if requested == "reference":
        return False
    on_cpu = tensor.device.type in ("cpu", "meta")
    if requested == "auto":
        return not on_cpu and _has_triton()
    if not _has_triton():
        raise RuntimeError("the triton backend is forced but triton is not installed; install it "
                           "or choose ADAZETA_BACKEND=reference")
    if on_cpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"the triton backend is forced for a tensor on {tensor.device}; set "
                           "TRITON_INTERPRET=1 before triton is first imported, or choose "
                           "ADAZETA_BACKEND=auto")
    return True


def backend_name(tensor: Tensor) -> str:
    """Name the backend that serves ``tensor``: ``"triton"`` or ``"reference"``."""
    return "triton" if use_triton(tensor) else "reference"
