"""Processes of their own: for one provider's memory, or for Triton without its interpreter."""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


class ProcessFailed(RuntimeError):
    """A process ended with an error; the message is the last line that it wrote."""


def figures(module: str, arguments: Sequence[object]) -> Any:
    """Call ``main()`` of a module in a fresh process, with as many threads as this one.

    Args:
        module: it ends by printing a line of JSON.
        arguments: of its command line.

    Returns:
        What that line holds.

    Raises:
        ProcessFailed: it ended with an error.
    """
    # Not -m: what stands in __main__ cannot be told apart by the hashes of the library datasets.
    start = f"import sys; from {module} import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", start, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise ProcessFailed((run.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(run.stdout.splitlines()[-1])


def compiling(triton_path: str | Path | None = None) -> dict[str, str]:
    """Return an environment in which kernels are made for the compiler, not for the interpreter.

    Args:
        triton_path: folder with another triton (``pip install --target``), else the installed one.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("TRITON_INTERPRET", "ADAZETA_BACKEND")
    }
    paths = [str(triton_path)] if triton_path else []
    environment["PYTHONPATH"] = os.pathsep.join([*paths, str(ROOT)])
    return environment


def return_freed_memory() -> None:
    """Give what loading freed back to the system, or it would hide what the step allocates."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # not the C library of GNU
        pass
