"""Triton: options and limits of launches; small, as every launcher and variant needs it."""

import torch

# Programs along the second and third axis of a grid on NVIDIA GPUs (CUDA C++ Programming Guide,
# technical specifications per compute capability).
LIMIT = 65_535


def maxnreg(warps: int) -> int:
    """Return how many registers each thread of a program can have on NVIDIA GPUs.

    Where no limit is stated, the assembler spills a few registers to let one more program run
    beside; a stated one keeps it from that.
    """
    return min(255, (1 << 16) // (32 * warps))


def launch_options(warps: int) -> dict[str, int]:
    """Return the options of a launch with so many warps; only NVIDIA's backend knows maxnreg."""
    if torch.version.hip or getattr(torch.version, "xpu", None):
        return {"num_warps": warps}
    return {"num_warps": warps, "maxnreg": maxnreg(warps)}


def grid(programs: int, probes: int, parts: int = 1) -> tuple[int, int, int]:
    """Return the grid of a launch that has an axis for the probes.

    Raises:
        ValueError: there are more probes or parts than a GPU's grid can have.
    """
    if max(probes, parts) > LIMIT:
        raise ValueError(
            f"{probes} probes in {parts} parts, and a launch takes at most {LIMIT:,} of each; "
            "split the call, or stack fewer probes (probes_per_forward)"
        )
    return programs, probes, parts
