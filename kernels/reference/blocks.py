"""Rows of quantised blocks, as GGUF files hold them, in plain PyTorch: the ground truth.

Layouts: the GGUF format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, whose own
reference is ``gguf.quants`` of the ``gguf`` package; the tests compare with that.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Format(NamedTuple):
    """A format of blocks: how many values one holds, in how many bytes, and what they are."""

    values: int
    bytes: int
    unpack: Callable[[Tensor], Tensor]


def unpack_blocks(packed: Tensor, kind: str, rows: Tensor | None, out: Tensor) -> Tensor:
    """Write the values of rows of blocks.

    Args:
        packed: uint8 (N, bytes), each row whole blocks.
        kind: name of the format, a key of :data:`FORMATS`.
        rows: int64 (M,), which rows; None for the first M.
        out: (M, values of a row), float32, bfloat16 or float16; the arithmetic is float32, rounded
            once.

    Returns:
        ``out``.
    """
    chosen = packed[: len(out)] if rows is None else packed[rows]
    blocks = chosen.reshape(-1, FORMATS[kind].bytes)
    return out.copy_(FORMATS[kind].unpack(blocks).reshape(out.shape))


def _half(blocks: Tensor, at: int) -> Tensor:
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _halves(q: Tensor) -> Tensor:
    """4-bit values of bytes, the lower halves of all first, along the last dimension."""
    return torch.cat([q & 15, q >> 4], -1)


def _q4_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_halves(b[:, 2:]).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _halves(b[:, 4:]).float() + _half(b, 2)


def _five_bits(high: Tensor, low: Tensor) -> Tensor:
    """Add fifth bits, bit j of 32 that of value j, to 4-bit values."""
    place = torch.arange(8, device=high.device, dtype=torch.uint8)
    bits = (high.unsqueeze(-1) >> place & 1).flatten(1)
    return (_halves(low) | bits << 4).float()


def _q5_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_five_bits(b[:, 2:6], b[:, 6:]) - 16)


def _q5_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _five_bits(b[:, 4:8], b[:, 8:]) + _half(b, 2)


def _q8_0(b: Tensor) -> Tensor:
    return _half(b, 0) * b[:, 2:].contiguous().view(torch.int8).float()


def _scales_and_minima(b: Tensor) -> tuple[Tensor, Tensor]:
    """6-bit scales and minima of 8 groups, times their own scales: two of (blocks, 8, 1)."""
    first, second, third = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = torch.cat([first & 63, third & 15 | first >> 6 << 4], 1).float()
    minima = torch.cat([second & 63, third >> 4 | second >> 6 << 4], 1).float()
    return (_half(b, 0) * scales).unsqueeze(-1), (_half(b, 2) * minima).unsqueeze(-1)


def _q4_k(b: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(b)
    q = _halves(b[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return scales * q.float() - minima


def _q5_k(b: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(b)
    low = _halves(b[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    place = torch.arange(8, device=b.device, dtype=torch.uint8).unsqueeze(-1)
    high = b[:, 16:48].unsqueeze(1) >> place & 1
    return scales * (low | high << 4).float() - minima


def _q6_k(b: Tensor) -> Tensor:
    low = _halves(b[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    place = torch.arange(0, 8, 2, device=b.device, dtype=torch.uint8).unsqueeze(-1)
    high = b[:, 128:192].reshape(-1, 2, 1, 32) >> place & 3
    q = (low | high << 4).float().reshape(-1, 16, 16) - 32
    scales = b[:, 192:208].contiguous().view(torch.int8).float()
    return (_half(b, 208) * scales).unsqueeze(-1) * q


FORMATS = {
    "Q4_0": Format(32, 18, _q4_0),
    "Q4_1": Format(32, 20, _q4_1),
    "Q5_0": Format(32, 22, _q5_0),
    "Q5_1": Format(32, 24, _q5_1),
    "Q8_0": Format(32, 34, _q8_0),
    "Q4_K": Format(256, 144, _q4_k),
    "Q5_K": Format(256, 176, _q5_k),
    "Q6_K": Format(256, 210, _q6_k),
}
"""By name, in the order of ``cpu/blocks.h``."""
