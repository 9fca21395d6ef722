"""What reaches launches on a GPU that is not there, printed as JSON; run by test_prepared.py."""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from adazeta.kernels import Factors, adam_update_, add_noise_, momentum_update_, tt_adapter
from benchmarks.measure import stubbed

launches: list[tuple[Any, ...]] = []


def shown(launch: tuple[Any, ...]) -> list[str]:
    """A launch as text; the hooks' description is made anew each time, and has no contents."""
    return [
        type(value).__name__ if type(value).__name__ in ("LazyDict", "HookChain") else
        str(value.data_ptr()) if isinstance(value, Tensor) else repr(value)
        for value in launch
    ]  # fmt: skip


def twice(call: Callable[[], Any]) -> list[list[list[str]]]:
    """The launches of a first call, which goes the usual way, and those of a second."""
    found = []
    for _ in range(2):
        launches.clear()
        call()
        found.append(list(map(shown, launches)))
    return found


def python_calls(call: Callable[[], Any]) -> int:
    """Functions that a call calls, of Python and of C."""
    count = 0

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def main() -> None:
    """Call each op twice."""
    stubbed.stub(lambda *launch: launches.append(launch))
    stubbed.serve_cpu_tensors()
    down = Factors(torch.zeros(8, 64).mT, torch.zeros(8, 16), torch.zeros(16))
    up = Factors(torch.zeros(8, 16).mT, torch.zeros(8, 64))
    x, y = torch.zeros(256, 64, dtype=torch.bfloat16), torch.zeros(256, 64, dtype=torch.bfloat16)
    # The result has the same address at each call.
    torch.empty_like = lambda like: y  # type: ignore[assignment]
    with torch.no_grad():
        found = {"tt_adapter": twice(lambda: tt_adapter(x, down, up, scale=0.5))}
        theta, m, v = torch.zeros(3, 4096)
        probes = {"seeds": torch.tensor([5]), "coefficients": torch.ones(1)}
        found["add_noise_"] = twice(lambda: add_noise_(theta, **probes))
        found["momentum_update_"] = twice(
            lambda: momentum_update_(theta, m, **probes, momentum=0.9, lr=0.1)
        )
        for second, root in ((v, None), (None, torch.ones(1))):
            found[f"adam_update_ {second is None}"] = twice(
                lambda second=second, root=root: adam_update_(
                    theta, m, second, **probes, beta1=0.9, beta2=0.9, lr=0.1, epsilon=1e-8,
                    correction1=1.0, correction2=1.0, inverse_root=root,
                )
            )  # fmt: skip
        calls = python_calls(lambda: tt_adapter(x, down, up, scale=0.5))
    print(json.dumps({"triton": triton.__version__, "launches": found, "python_calls": calls}))


if __name__ == "__main__":
    main()
