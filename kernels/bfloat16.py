"""Triton: bfloat16 by integers, as 16 bits that stand for a float32 of 24.

Triton's interpreter truncates where a GPU rounds to nearest even, so the kernels do it alike on
both. bfloat16 tensors reach the kernels as int16 views.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def from_bits(bits):
    """Widen int16 bfloat16 bits to float32 (exact)."""
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def to_bits(value):
    """Round float32 to the nearest bfloat16, ties to even, as int16 bits; NaN stays NaN."""
    bits = value.to(tl.int32, bitcast=True)
    # Of a NaN, or the round-up could carry its mantissa into the exponent.
    rounded = tl.where(value != value, 0x7FC00000, bits + 0x7FFF + ((bits >> 16) & 1))
    return (rounded >> 16).to(tl.int16)


def kernel_view(tensor: Tensor) -> Tensor:
    """Return a bfloat16 tensor as int16 for the kernels, and any other as it is."""
    tensor = tensor.detach()
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
