"""Launch options under which triton rounds every multiplication and addition by itself."""

from functools import cache
from typing import Any

import torch
import triton


def exact_options(capability: int | None, version: str = triton.__version__) -> dict[str, Any]:
    """Return the options for a kernel whose results must be the same bits everywhere.

    Args:
        capability: major compute capability of an NVIDIA GPU; None for anything else.
        version: of triton.
    """
    options: dict[str, Any] = {"enable_fp_fusion": False}
    # The assembler of triton 3.6 for Blackwell (ptxas 12.9) fuses mul.rn.f32x2 and add.rn.f32x2 in
    # spite of the rounding they state and of --fmad=false; those before and after it do not. Only
    # its lowest level leaves them alone, at three times the instructions.
    if capability is not None and capability >= 10 and version.startswith("3.6."):
        options["ptx_options"] = "-O0"
    return options


@cache
def exact_options_of(device: torch.device) -> dict[str, Any]:
    """Return :func:`exact_options` of a tensor's device."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return exact_options(torch.cuda.get_device_capability(device)[0] if nvidia else None)
