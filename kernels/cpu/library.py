"""The C backend of the CPU: its library, and calls of it.

The library is plain C, called through ctypes on data pointers: it knows neither torch nor
Python, one build serves every version of both, and the calls release the interpreter's lock.
Every op has its twin in ``reference/`` and gives the same bits.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

# Raised with `ABI` of jobs.h, so that a library left over from older sources is refused.
ABI = 4
FILE = Path(__file__).resolve().parent / "libadazeta_cpu.so"
# Of the instruction set; the compiler's own vectors for the machine (SSE2, NEON) are "generic".
LEVELS = ("generic", "avx2", "avx512")


@cache
def load() -> ctypes.CDLL | str:
    """Return the library, or in words why there is none."""
    if not FILE.is_file():
        return (
            "the C library was not built (pip install adazeta from its sources with a C "
            "compiler builds it)"
        )
    try:
        library = ctypes.CDLL(str(FILE))
        found = library.adazeta_abi()
    except (OSError, AttributeError) as error:
        return f"the C library does not load: {error}"
    if found != ABI:
        return (
            f"the C library {FILE} has version {found} and version {ABI} is needed; "
            "install adazeta again to rebuild it"
        )
    for name in ("adazeta_update", "adazeta_copies", "adazeta_factors", "adazeta_unpack"):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        function.restype = ctypes.c_int64
    library.adazeta_best_level.restype = ctypes.c_int64
    library.adazeta_use_team.argtypes = [ctypes.c_void_p]
    library.adazeta_use_team.restype = None
    library.adazeta_use_team(torch_team())
    return library


def torch_team() -> int | None:
    """Return the address of ``GOMP_parallel`` of the OpenMP runtime that torch uses, if it has one.

    A look-up through torch's own library finds the runtime it is linked with, and no second one
    that the process may have loaded.
    """
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def problem() -> str | None:
    """Say why the C backend cannot serve, or None where it can."""
    library = load()
    return library if isinstance(library, str) else None


def _library() -> ctypes.CDLL:
    library = load()
    if isinstance(library, str):
        raise RuntimeError(library)
    return library


def best_level() -> str:
    """Name the widest instruction set that the processor and the build offer."""
    return LEVELS[_library().adazeta_best_level()]


def level() -> str:
    """Name the instruction set in use: the best one here, or what ADAZETA_ISA asks for.

    Raises:
        ValueError: if ADAZETA_ISA is unknown or beyond this processor.
        RuntimeError: if the library does not load.
    """
    return LEVELS[_level_number(os.environ.get("ADAZETA_ISA"))]


@cache
def _level_number(name: str | None) -> int:
    usable = LEVELS[: LEVELS.index(best_level()) + 1]
    if name is None:
        return len(usable) - 1
    if name not in usable:
        raise ValueError(
            f"ADAZETA_ISA is {name!r}; this processor and build offer {', '.join(usable)}"
        )
    return usable.index(name)


def run(function: str, job: ctypes.Structure) -> None:
    """Call a function of the library on a job.

    Raises:
        MemoryError: the library could not get memory for a table of its own.
        RuntimeError: the library does not load.
        ValueError: see :func:`level`.
    """
    status = getattr(_library(), function)(
        ctypes.addressof(job), _level_number(os.environ.get("ADAZETA_ISA")), torch.get_num_threads()
    )
    if status:
        raise MemoryError("no memory for the table of a job of the C backend")
