"""Triton: one launch for many tensors of mixed dtypes and sizes, by a table of their addresses.

The grid is the programs of all tensors one after another. A program finds its tensor in the table
by bisection, and what it works on is a block of elements of the index space of the noise.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bfloat16 import from_bits, to_bits
from .rounding import stochastic_bfloat16, stochastic_float16

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Columns of the table. Addresses count elements of the tensor's own dtype (states: float32).
INPUT, OUTPUT, FIRST, SECOND, OFFSET, SIZE, DTYPE, END = (tl.constexpr(k) for k in range(8))
COLUMNS = tl.constexpr(8)
# Blocks begin on a multiple of the elements that one counter serves.
GRAINS = {"gaussian": 4, "rademacher": 128}


@triton.jit
def find(table_ptr, tensors, BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
         RADEMACHER: tl.constexpr):
    """Find the tensor and the block of this program.

    Args:
        table_ptr: pointer to int64 (tensors, 8); END is the number of programs up to and with
            this tensor.
        tensors: rows of the table.
        BLOCK: elements per program of a float32 tensor.
        HALF_BLOCK: elements per program of a 16-bit tensor.
        RADEMACHER: the noise is signs.

    Returns:
        Pointer to the tensor's row, its dtype code, the index of the block's first element in
        the space of the noise, that of the tensor's first element relative to the block (below
        zero if the tensor begins before), and the end of the tensor relative to the block.
    """
    program = tl.program_id(0).to(tl.int64)
    # The first tensor whose programs end beyond this one.
    low = tl.program_id(0) * 0
    high = low + tensors - 1
    while low < high:
        middle = (low + high) // 2
        if tl.load(table_ptr + middle * COLUMNS + END) > program:
            high = middle
        else:
            low = middle + 1
    row = table_ptr + low * COLUMNS
    previous = tl.load(row - COLUMNS + END, mask=low > 0, other=0)
    offset = tl.load(row + OFFSET)
    dtype = tl.load(row + DTYPE)
    GRAIN: tl.constexpr = 128 if RADEMACHER else 4
    block = tl.where(dtype == 0, BLOCK, HALF_BLOCK)
    base = offset // GRAIN * GRAIN + (program - previous) * block
    begin = offset - base
    return row, dtype, base, begin, begin + tl.load(row + SIZE)


@triton.jit
def load(pointer, start, begin, end, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
         ALIGNED: tl.constexpr):
    """Load the elements [begin, end) of a block, zero elsewhere.

    Args:
        pointer: pointer that ``start`` counts from, aligned to 16 bytes.
        start: address of the tensor's first element.
        begin: index of that element in the block, perhaps below zero (int64).
        end: index of the tensor's end in the block, perhaps beyond it (int64).
        BLOCK: elements of the block.
        VECTOR: elements that are loaded at once if ALIGNED.
        ALIGNED: ``start`` and a positive ``begin`` are multiples of VECTOR. The end need not be:
            the elements behind the last whole vector are loaded one by one.
    """
    lane = tl.arange(0, BLOCK)
    first = tl.maximum(begin, 0).to(tl.int32)
    stop = tl.minimum(end, BLOCK).to(tl.int32)
    address = start - begin
    if ALIGNED:
        # Dividing and multiplying tells the compiler what it cannot see in the table.
        address = address // VECTOR * VECTOR
        first = first // VECTOR * VECTOR
        whole = stop // VECTOR * VECTOR
        value = tl.load(pointer + address + lane, mask=(lane >= first) & (lane < whole), other=0)
        if whole < stop:
            rest = tl.load(pointer + address + lane, mask=(lane >= whole) & (lane < stop), other=0)
            value = tl.where(lane < whole, value, rest)
        return value
    else:
        return tl.load(pointer + address + lane, mask=(lane >= first) & (lane < stop), other=0)


@triton.jit
def store(pointer, start, begin, end, value, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
          ALIGNED: tl.constexpr):
    """Store the elements [begin, end) of a block; arguments as in :func:`load`."""
    lane = tl.arange(0, BLOCK)
    first = tl.maximum(begin, 0).to(tl.int32)
    stop = tl.minimum(end, BLOCK).to(tl.int32)
    address = start - begin
    if ALIGNED:
        address = address // VECTOR * VECTOR
        first = first // VECTOR * VECTOR
        whole = stop // VECTOR * VECTOR
        tl.store(pointer + address + lane, value, mask=(lane >= first) & (lane < whole))
        if whole < stop:
            tl.store(pointer + address + lane, value, mask=(lane >= whole) & (lane < stop))
    else:
        tl.store(pointer + address + lane, value, mask=(lane >= first) & (lane < stop))


@triton.jit
def widen(bits, dtype):
    """Widen int16 bits of bfloat16 (dtype code 1) or float16 to float32, exactly."""
    if dtype == 1:
        value = from_bits(bits)
    else:
        value = bits.to(tl.float16, bitcast=True).to(tl.float32)
    return value


@triton.jit
def narrow(value, dtype, random, STOCHASTIC: tl.constexpr):
    """Round float32 to int16 bits of bfloat16 (dtype code 1) or float16.

    Args:
        value: float32.
        dtype: dtype code, 1 or 2.
        random: uint32 words of stochastic rounding, if STOCHASTIC.
        STOCHASTIC: else to nearest even.
    """
    if dtype == 1:
        if STOCHASTIC:
            bits = stochastic_bfloat16(value, random)
        else:
            bits = to_bits(value)
    else:
        if STOCHASTIC:
            half = stochastic_float16(value, random)
        else:
            half = value.to(tl.float16)
        bits = half.to(tl.int16, bitcast=True)
    return bits


class Launch(NamedTuple):
    """What a launch over many tensors needs beside the scalars of its rule."""

    origin: Tensor
    table: Tensor
    tensors: int
    programs: int
    aligned: bool


@cache
def _origin(device: torch.device) -> Tensor:
    """Return a float32 tensor per device that addresses count from, aligned to 16 bytes.

    A plain integer address would hide its alignment from the compiler, and with it the wide
    loads. It lives as long as the process, so that tables stay valid.
    """
    origin = torch.zeros(8, device=device)
    # On AMD, triton takes offsets from a tensor of less than 2 GB to fit in 32 bits unless the
    # tensor says otherwise; the tensors of the table may lie anywhere.
    origin.ptr_range = lambda: 1 << 63  # type: ignore[attr-defined]
    return origin


def _stream_of(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


@lru_cache(maxsize=64)
def _table(rows: tuple[tuple[int, ...], ...], device: torch.device, stream: int) -> Tensor:
    """Copy the table to the device once; its content is its key.

    ``stream`` keeps a table to the stream that its copy was queued on.
    """
    table = torch.tensor(rows, dtype=torch.int64)
    if device.type == "cuda":
        return table.pin_memory().to(device, non_blocking=True)
    return table.to(device)


def prepare(inputs: Sequence[Tensor], outputs: Sequence[Tensor], states: Sequence[Sequence[Tensor]],
            offsets: Sequence[int], distribution: str, blocks: tuple[int, int],
            vectors: tuple[int, int]) -> Launch | None:
    """Build the table of a launch; None if no tensor has an element.

    Args:
        inputs: tensors that are read, float32, bfloat16 or float16, contiguous.
        outputs: tensors of the same shapes and dtypes that are written.
        states: up to two lists of float32 tensors of the same shapes.
        offsets: index of each tensor's first element in the space of the noise.
        distribution: of the noise.
        blocks: elements per program of a float32 and of a 16-bit tensor.
        vectors: elements that are moved at once, likewise.
    """
    device = inputs[0].device if inputs else torch.device("cpu")
    origin = _origin(device)
    zero = origin.data_ptr()
    grain = GRAINS[distribution]
    rows = []
    end, aligned = 0, True
    for index, (theta, out, offset) in enumerate(zip(inputs, outputs, offsets, strict=True)):
        size = theta.numel()
        if not size:
            continue
        half = theta.dtype != torch.float32
        end += triton.cdiv(offset % grain + size, blocks[half])
        width = theta.element_size()
        places = [(theta.data_ptr() - zero) // width, (out.data_ptr() - zero) // width,
                  *((state[index].data_ptr() - zero) // 4 for state in states)]
        aligned = aligned and all(place % vectors[half] == 0
                                  for place in (*places, offset % grain))
        places += [0] * (4 - len(places))
        rows.append((*places, offset, size, DTYPE_CODES[theta.dtype], end))
    if not rows:
        return None
    table = _table(tuple(rows), device, _stream_of(device))
    return Launch(origin, table, len(rows), end, aligned)
