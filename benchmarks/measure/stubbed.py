"""A GPU that is not there: Triton compiles for it, and its launches go nowhere.

So that the host's part of a call can be measured, and what reaches a launch be looked at, without a
card. What is left out is the launcher in C and the driver behind it. For a process of its own, that
has no ``TRITON_INTERPRET``, since Triton is told once which driver there is.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch

from benchmarks.measure.process import ROOT, compiling

Launch = Callable[..., None]


def stub(launch: Launch, arch: int = 90) -> None:
    """Let Triton find an NVIDIA GPU that hands each launch to a function.

    Args:
        launch: called with the grid, the stream, the kernel's handle and description, the hooks and
            the arguments of the kernel, as Triton's own launcher is.
        arch: compute capability times 10.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", arch, 32)
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 232_448},
        load_binary=lambda *kernel: (object(), object(), 32, 0, 1024),
        unload_module=lambda module: None,
    )
    driver = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_active_torch_device=lambda: torch.device("cpu"),
        launcher_cls=lambda source, metadata: launch,
        utils=utils,
    )
    triton.runtime.driver.set_active(driver)


def serve_cpu_tensors() -> None:
    """Let the Triton kernels serve tensors on the CPU, whose memory no launch will read."""
    from adazeta.kernels import dispatch
    from adazeta.kernels.gpu import variants

    list(variants.all_variants())  # imports the kernels, which are made for the compiler
    dispatch._requested = lambda: "triton"
    os.environ["TRITON_INTERPRET"] = "1"  # from here on only dispatch asks


def run(module: str, arguments: Sequence[str] = (), triton_path: str | None = None) -> str:
    """Run a module with the interpreter off, in a process of its own, and return what it prints.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    found = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=compiling(triton_path),
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    if found.returncode:
        raise RuntimeError(f"{module} failed:\n{found.stderr[-3000:]}")
    return found.stdout
