"""A graph for the CPU: what a function asks of torch is recorded, and done again without it."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.helpers.waits import host_waits

aten = torch.ops.aten
# For these, too, a host waits, which no recording of a CUDA stream allows.
COUNTS = {aten.unique_dim.default, aten._unique2.default}


class Tape(TorchDispatchMode):
    """Records operations with the memory and the numbers that they were given.

    As in a CUDA graph, a tensor is a place in memory, a Python number is a constant, no Python runs
    at a replay, and a question to the device is an error. Kernels that torch does not know of are
    not recorded: use the reference backend.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in COUNTS or host_waits(operation, args):
            raise RuntimeError(f"operation not permitted when stream is capturing: {operation}")
        found = operation(*args, **(kwargs or {}))
        # Where they lie now: a parameter that is perturbed lies elsewhere before and after.
        places = tree_map(
            lambda x: x.detach() if isinstance(x, Tensor) else x, (args, kwargs or {})
        )
        results = [x.detach() for x in tree_leaves(found) if isinstance(x, Tensor)]
        self.operations.append((operation, *places, results))
        return found

    def replay(self) -> None:
        """Do all operations again, on the same memory."""
        for operation, args, kwargs, results in self.operations:
            found = operation(*args, **kwargs)
            again = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
            for old, new in zip(results, again, strict=True):
                if old.data_ptr() != new.data_ptr():  # no view, and not written in place
                    old.copy_(new)


def record(run: Callable[[], None]) -> Callable[[], None]:
    """Run a function, record it, and return what does it again."""
    run()
    capturing = mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True)
    with capturing, Tape() as tape:
        run()
    return tape.replay
