"""Triton: options of launches."""

import torch


def maxnreg(warps: int) -> int:
    """Return how many registers each thread of a program can have on NVIDIA GPUs.

    Where no limit is stated, the assembler spills a few registers to let one more program run
    beside; a stated one keeps it from that.
    """
    return min(255, (1 << 16) // (32 * warps))


def launch_options(warps: int) -> dict[str, int]:
    """Return the options of a launch with so many warps."""
    if torch.version.hip:
        return {"num_warps": warps}
    return {"num_warps": warps, "maxnreg": maxnreg(warps)}
