"""Peak memory of a stretch of code: of the accelerator if there is one, else of the process."""

import resource
import sys
from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak memory inside a ``with`` block, in MiB.

    On an accelerator it is the memory that torch allocated there. Elsewhere it is the resident
    memory of the whole process (Linux; where the peak cannot be reset, as on macOS, it is the peak
    since the process began).

    Attributes:
        mebibytes: the peak, once the block has ended.
    """

    mebibytes: float = 0.0

    def __enter__(self) -> "PeakMemory":
        """Reset the peak."""
        if torch.accelerator.is_available():
            torch.accelerator.reset_peak_memory_stats()
        else:
            try:
                _CLEAR.write_text("5")  # resets the high-water mark
            except OSError:
                pass
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
