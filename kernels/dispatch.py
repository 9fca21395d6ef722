"""Which backend serves a tensor, and whether torch's dispatcher is asked: decided in one place."""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import reference
from .cpu import library, tensor_lists
from .plan import MAX_RANK

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
            return "reference" if library.problem() else "native"
        return "triton" if device != "meta" and _has_triton() else "reference"
    if requested == "native":
        if device == "meta":
            return "reference"
        if device != "cpu":
            raise RuntimeError(
                f"the native backend is forced for a tensor on {tensor.device}, "
                "and it is for CPUs; choose ADAZETA_BACKEND=auto"
            )
        problem = library.problem()
        if problem:
            raise RuntimeError(
                f"the native backend is forced but {problem}; or choose ADAZETA_BACKEND=auto"
            )
        return "native"
    if not _has_triton():
        raise RuntimeError(
            "the triton backend is forced but triton is not installed; install it "
            "or choose ADAZETA_BACKEND=reference"
        )
    if device in ("cpu", "meta") and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"the triton backend is forced for a tensor on {tensor.device}; set "
            "TRITON_INTERPRET=1 before triton is first imported, or choose "
            "ADAZETA_BACKEND=auto"
        )
    return "triton"


def use_triton(tensor: Tensor) -> bool:
    """Say whether the Triton kernels serve ``tensor``; errors as in :func:`backend_name`."""
    return backend_name(tensor) == "triton"


def backend_module(tensor: Tensor, triton_module: str) -> ModuleType:
    """Return the module whose functions serve ``tensor``; errors as in :func:`backend_name`.

    Args:
        tensor: the tensor an op works on; only its device matters.
        triton_module: the module with the op's Triton kernels, such as ``"gpu.noise"``, which is
            imported when it is wanted.
    """
    name = backend_name(tensor)
    if name == "triton":
        return importlib.import_module(f".{triton_module}", __package__)
    return tensor_lists if name == "native" else reference


def triton_serves(x: Tensor, *ranks: int) -> bool:
    """Say whether the Triton kernels serve these rows: not float64, not empty, ranks up to 64."""
    return x.numel() > 0 and x.dtype != torch.float64 and max(ranks) <= MAX_RANK and use_triton(x)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Say whether autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def needs_op(*tensors: Tensor | None) -> bool:
    """Say whether a call with these tensors must go through the op that is registered with torch.

    The dispatcher's way through a registered op costs some 15 us a call, longer than a kernel over
    a small adapter, and dozens of adapters per forward would feel it. It is needed by compilers,
    by gradients, and by subclasses of tensors (fake ones, for instance), which have no memory that
    a kernel could read.
    """
    if torch.compiler.is_compiling():
        return True
    recorded = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in (Tensor, torch.nn.Parameter) or (recorded and tensor.requires_grad)
        ):
            return True
    return False


def run_op(
    op: Callable[..., None], body: Callable[..., None], written: Sequence[Tensor], *arguments: Any
) -> None:
    """Run a registered op that writes to tensors; without torch's dispatcher where nobody looks.

    Call it where no gradients are recorded.

    Args:
        op: the registered op.
        body: what it runs for plain tensors.
        written: the tensors that it writes.
        *arguments: of the op.
    """
    if needs_op(*written):
        op(*arguments)
        return
    body(*arguments)
    for tensor in written:
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)
