"""Which backend serves a tensor: one decision, in one place."""

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType

from torch import Tensor

from . import native, reference

BACKENDS = ("auto", "reference", "native", "triton")

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
        name: ``"auto"`` (Triton on accelerators, the C library on CPUs, the reference where
            these are missing), ``"reference"``, ``"native"`` (the C library) or ``"triton"``.

    Raises:
        ValueError: if ``name`` is none of these.
    """
    token = _forced.set(_checked(name, "backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def backend_name(tensor: Tensor) -> str:
    """Name the backend that serves ``tensor``: ``"triton"``, ``"native"`` or ``"reference"``.

    An op that the C library lacks is served by the reference where this says ``"native"``.

    Args:
        tensor: the tensor an op works on; only its device matters.

    Raises:
        RuntimeError: if a backend is forced that is not installed, or that cannot serve the
            device: Triton on a CPU without the interpreter, the C library elsewhere than on a
            CPU.
        ValueError: if ADAZETA_BACKEND holds an unknown name.
    """
    requested = _requested()
    device = tensor.device.type
    if requested == "reference":
        return "reference"
    if requested == "auto":
        if device == "cpu":
            return "reference" if native.problem() else "native"
        return "triton" if device != "meta" and _has_triton() else "reference"
    if requested == "native":
        if device == "meta":
            return "reference"
        if device != "cpu":
            raise RuntimeError(f"the native backend is forced for a tensor on {tensor.device}, "
                               "and it is for CPUs; choose ADAZETA_BACKEND=auto")
        problem = native.problem()
        if problem:
            raise RuntimeError(f"the native backend is forced but {problem}; or choose "
                               "ADAZETA_BACKEND=auto")
        return "native"
    if not _has_triton():
        raise RuntimeError("the triton backend is forced but triton is not installed; install it "
                           "or choose ADAZETA_BACKEND=reference")
    if device in ("cpu", "meta") and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"the triton backend is forced for a tensor on {tensor.device}; set "
                           "TRITON_INTERPRET=1 before triton is first imported, or choose "
                           "ADAZETA_BACKEND=auto")
    return "triton"


def use_triton(tensor: Tensor) -> bool:
    """Say whether the Triton kernels serve ``tensor``; errors as in :func:`backend_name`."""
    return backend_name(tensor) == "triton"


def backend_module(tensor: Tensor, triton_module: str) -> ModuleType:
    """Return the module whose functions serve ``tensor``; errors as in :func:`backend_name`.

    Args:
        tensor: the tensor an op works on; only its device matters.
        triton_module: the module of this package with the op's Triton kernels, which is imported
            when it is wanted.
    """
    name = backend_name(tensor)
    if name == "triton":
        return importlib.import_module(f".{triton_module}", __package__)
    return native if name == "native" else reference
