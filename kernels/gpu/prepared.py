"""Triton: launches whose settings are worked out once, for calls that differ only in their memory.

``kernel[grid](...)`` looks at every argument of every call to find the compiled kernel, which takes
longer than all else that a small launch does on the host. A compiled kernel can be launched itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from .arithmetic import kernel_view

# ``kernel[grid](...)`` returns the compiled kernel, and ``compiled[grid](...)`` launches that, with
# the arguments in the order of its signature, constants included (Triton's tutorial "Fused
# Softmax"). With these versions it hands over the same as ``kernel[grid]``, which
# tests/kernels/test_prepared.py compares; with others every call takes the usual way.
COMPARED = ("3.4.", "3.5.", "3.6.", "3.7.", "3.8.", "3.9.")


def launches_compiled() -> bool:
    """Say whether compiled kernels can be launched themselves.

    On AMD the usual way finds another kernel for tensors of 2 GB and more, which is nothing that
    callers here look at.
    """
    return triton.__version__.startswith(COMPARED) and not torch.version.hip


class Prepared:
    """One kernel with its grid, constants and options.

    Call it with the other arguments, in their order, on the current device. The calls of one object
    must be alike in all that Triton compiles for: device, and of each tensor the dtype and whether
    its address is a multiple of 16; numbers that the kernel specialises on must be equal, others of
    one size in bits. The first call is the usual launch; it finds the compiled kernel.

    Args:
        kernel: its constants are the last of its arguments.
        grid: programs along the three axes.
        settings: constants by name, and options of the launch.
    """

    __slots__ = ("_constants", "_grid", "_kernel", "_launch", "_settings")

    def __init__(
            self, kernel: Any, grid: tuple[int, int, int], settings: Mapping[str, Any]) -> None:
        self._kernel, self._grid, self._settings = kernel, grid, settings
        self._constants: tuple[Any, ...] = ()
        self._launch: Callable[..., None] | None = None

    def __call__(self, *arguments: Any) -> None:
        """Launch; of tensors only the addresses are read, but for the first call."""
        if self._launch is not None:
            self._launch(*arguments, *self._constants)
            return
        compiled = self._kernel[self._grid](
            *(kernel_view(value) if isinstance(value, Tensor) else value for value in arguments),
            **self._settings)
        # The interpreter returns none.
        if compiled is not None and launches_compiled():
            names = self._kernel.arg_names
            self._constants = tuple(self._settings[name] for name in names
                                    if name in self._settings)
            self._launch = compiled[self._grid]
