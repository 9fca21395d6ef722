"""Peak memory of a stretch of code: of the accelerator if there is one, else of the process."""

import resource
import sys
from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_GROUPS = (
    (_GROUP / "memory.max", _GROUP / "memory.current"),
    (_GROUP / "memory/memory.limit_in_bytes", _GROUP / "memory/memory.usage_in_bytes"),
)


class PeakMemory:
    """Peak memory inside a ``with`` block, in MiB.

    On an accelerator it is the memory that torch allocated there. Elsewhere it is the resident
    memory of the whole process (Linux; where the peak cannot be reset, as on macOS, it is the peak
    since the process began).

    Attributes:
        mebibytes: the peak, once the block has ended.
        before: what was in use when the block began.
        exact: whether the peak could be reset, so that it is of the block alone.
    """

    mebibytes: float = 0.0
    before: float = 0.0
    exact: bool = True

    def __enter__(self) -> "PeakMemory":
        """Reset the peak."""
        if torch.accelerator.is_available():
            torch.accelerator.reset_peak_memory_stats()
            self.before = torch.accelerator.memory_allocated() / 2**20
        else:
            try:
                _CLEAR.write_text("5")  # resets the high-water mark
            except OSError:
                self.exact = False
            self.before = _resident_peak()
        return self

    def __exit__(self, *error: object) -> None:
        """Read the peak."""
        if torch.accelerator.is_available():
            self.mebibytes = torch.accelerator.max_memory_allocated() / 2**20
        else:
            self.mebibytes = _resident_peak()


def _resident_peak() -> float:
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def available_memory() -> float | None:
    """Return the memory that can still be taken, in MiB, where :class:`PeakMemory` looks.

    On an accelerator: what is free there, with what torch has reserved and does not use. Elsewhere
    what Linux calls available, within the limit of the process's control group.

    Returns:
        None where it cannot be told.
    """
    if torch.accelerator.is_available():
        find = getattr(torch.accelerator, "get_memory_info", None)
        if find is None:
            return None
        cached = torch.accelerator.memory_reserved() - torch.accelerator.memory_allocated()
        return (find()[0] + cached) / 2**20
    found = [value for value in (_system_available(), _group_available()) if value is not None]
    return min(found, default=None)


def _system_available() -> float | None:
    if _MEMORY.exists():
        for line in _MEMORY.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    return None


def _group_available() -> float | None:
    """Read the limit of a container (control groups, version 2 or 1)."""
    for limit, used in _GROUPS:
        try:
            room = int(limit.read_text()) - int(used.read_text())
            lines = (limit.parent / "memory.stat").read_text().splitlines()
            rows = dict(line.split() for line in lines)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        # Files that were read count as used until somebody needs the memory.
        files = rows.get("total_inactive_file", rows.get("inactive_file", 0))
        return max(room + int(files), 0) / 2**20
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception of torch says that memory ran out, on the CPU or elsewhere."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )
