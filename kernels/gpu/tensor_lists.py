"""Triton: one launch for many tensors of mixed dtypes and sizes, by a table of their addresses.

The grid is the programs of all tensors one after another. A program looks up its tensor in a list
of their owners, and what it works on is a block of elements of the index space of the noise.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import EXACT, from_bits, stochastic_bfloat16, stochastic_float16, to_bits
from .normals import uniform_words

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Columns of the table. Addresses count elements of the tensor's own dtype (states: float32); START
# is the number of the tensor's first program.
INPUT, OUTPUT, FIRST, SECOND, OFFSET, SIZE, DTYPE, START = (tl.constexpr(k) for k in range(8))
COLUMNS = tl.constexpr(8)
# Blocks begin on a multiple of the elements that one counter serves.
GRAINS = {"gaussian": 4, "rademacher": 128}
# Elements in 16 bytes of float32 and of 16-bit tensors, and per program: twice as many as its
# threads move at once, which is the fastest on an H100. Where accesses are not aligned, 16-bit
# tensors take the block of float32, which needs less registers.
VECTORS = (4, 8)
BLOCK, HALF_BLOCK = 2048, 4096
THREADS = 256
NUM_WARPS = THREADS // (64 if torch.version.hip else 32)


@triton.jit
def find(table_ptr, owners_ptr, BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
         RADEMACHER: tl.constexpr):
    """Find the tensor and the block of this program.

    Args:
        table_ptr: pointer to int64 (tensors, 8).
        owners_ptr: pointer to int32 (programs,), the row of each program's tensor.
        BLOCK: elements per program of a float32 tensor.
        HALF_BLOCK: elements per program of a 16-bit tensor.
        RADEMACHER: the noise is signs.

    Returns:
        Pointer to the tensor's row, its dtype code, the index of the block's first element in
        the space of the noise, that of the tensor's first element relative to the block (below
        zero if the tensor begins before), and the end of the tensor relative to the block.
    """
    program = tl.program_id(0)
    row = table_ptr + tl.load(owners_ptr + program) * COLUMNS
    offset = tl.load(row + OFFSET)
    dtype = tl.load(row + DTYPE)
    GRAIN: tl.constexpr = 128 if RADEMACHER else 4
    block = tl.where(dtype == 0, BLOCK, HALF_BLOCK)
    base = offset // GRAIN * GRAIN + (program - tl.load(row + START)) * block
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


@triton.jit
def read(origin_ptr, row, dtype, begin, end, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
         ALIGNED: tl.constexpr):
    """Load the elements of a block of the tensor of a row as float32; others as in :func:`load`.

    Args:
        origin_ptr: pointer to float32 that the table's addresses count from.
        row: pointer to the tensor's row.
        dtype: its dtype code.
        begin: as in :func:`load`.
        end: as in :func:`load`.
        BLOCK: as in :func:`load`.
        VECTOR: elements in 16 bytes, 4 of float32 or 8 of 16 bits.
        ALIGNED: as in :func:`load`.
    """
    source = tl.load(row + INPUT)
    if VECTOR == 8:
        short_ptr = origin_ptr.to(tl.pointer_type(tl.int16), bitcast=True)
        return widen(load(short_ptr, source, begin, end, BLOCK, VECTOR, ALIGNED), dtype)
    else:
        return load(origin_ptr, source, begin, end, BLOCK, VECTOR, ALIGNED)


@triton.jit
def write(origin_ptr, row, dtype, base, begin, end, value, key_ptr, BLOCK: tl.constexpr,
          VECTOR: tl.constexpr, DRAWN: tl.constexpr, ALIGNED: tl.constexpr,
          STOCHASTIC: tl.constexpr):
    """Round float32 values to the dtype of the tensor of a row and store them.

    Args:
        origin_ptr: as in :func:`read`; so the others but these.
        row: pointer to the tensor's row.
        dtype: its dtype code.
        base: index of the block's first element in the space of the noise.
        begin: as in :func:`load`.
        end: as in :func:`load`.
        value: float32 (BLOCK,).
        key_ptr: pointer to int64 (1,), the key of stochastic rounding; any if not STOCHASTIC.
        BLOCK: as in :func:`load`.
        VECTOR: elements in 16 bytes.
        DRAWN: consecutive elements whose random words a thread draws, see ``uniform_words``.
        ALIGNED: as in :func:`load`.
        STOCHASTIC: stochastic rounding of 16-bit tensors instead of nearest.
    """
    target = tl.load(row + OUTPUT)
    if VECTOR == 8:
        random = value
        if STOCHASTIC:
            random = uniform_words(tl.load(key_ptr), base, tl.program_id(0) * 0 + 1, BLOCK, DRAWN)
        bits = narrow(value, dtype, random, STOCHASTIC)
        short_ptr = origin_ptr.to(tl.pointer_type(tl.int16), bitcast=True)
        store(short_ptr, target, begin, end, bits, BLOCK, VECTOR, ALIGNED)
    else:
        store(origin_ptr, target, begin, end, value, BLOCK, VECTOR, ALIGNED)


class Launch(NamedTuple):
    """What a launch over many tensors needs beside the scalars of its rule.

    Attributes:
        origin: float32 tensor that the table's addresses count from.
        table: int64 (tensors, 8).
        owners: int32 (programs,), the row of each program.
        options: of the launch and constants of the kernel.
    """

    origin: Tensor
    table: Tensor
    owners: Tensor
    options: dict[str, Any]


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


def stream_of(device: torch.device) -> int:
    """Return the handle of the current stream of a device; 0 where there is none."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


@lru_cache(maxsize=4096)
def _owners(counts: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    """List the row of each program, int32, for the programs of each row; cached as tables are.

    These are 4 bytes for 8 KiB of parameters. They depend on no address, so that the same list of
    tensors elsewhere shares them.
    """
    rows = torch.arange(len(counts), dtype=torch.int32)
    return _copied(rows.repeat_interleave(torch.tensor(counts)), device)


def _copied(table: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return table.pin_memory().to(device, non_blocking=True)
    return table.to(device)


def prepare(inputs: Sequence[Tensor], outputs: Sequence[Tensor], states: Sequence[Sequence[Tensor]],
            offsets: Sequence[int], distribution: str) -> Launch | None:
    """Build the table of a launch; None if no tensor has an element.

    Args:
        inputs: tensors that are read, float32, bfloat16 or float16, contiguous.
        outputs: tensors of the same shapes and dtypes that are written.
        states: up to two lists of float32 tensors of the same shapes.
        offsets: index of each tensor's first element in the space of the noise.
        distribution: of the noise.
    """
    tensors = tuple(
        (*(given.data_ptr() for given in (theta, out, *state)), offset, size,
         DTYPE_CODES[theta.dtype])
        for theta, out, offset, *state in zip(inputs, outputs, offsets, *states, strict=True)
        if (size := theta.numel()))
    if not tensors:
        return None
    device = inputs[0].device
    return _launch(tensors, distribution, device, stream_of(device))


# A pass over a model makes a launch for each module: 483 of a Llama-2 of 70B. A cache that holds
# fewer than a pass makes would, in the same order again, find none of them.
@lru_cache(maxsize=4096)
def _launch(tensors: tuple[tuple[int, ...], ...], distribution: str, device: torch.device,
            stream: int) -> Launch:
    """Build a launch once for what sets it apart, and copy its table to the device.

    Args:
        tensors: of each its address, that of its output, those of up to two states, its offset,
            its size and the code of its dtype.
        distribution: of the noise.
        device: of the tensors.
        stream: keeps a table to the stream that its copy was queued on.
    """
    origin = _origin(device)
    zero = origin.data_ptr()
    grain = GRAINS[distribution]
    places: list[list[int]] = []
    aligned = True
    for *addresses, offset, _, dtype in tensors:
        half = dtype != 0
        theta = [(address - zero) // (2 if half else 4) for address in addresses[:2]]
        kept = [(address - zero) // 4 for address in addresses[2:]]
        aligned = (aligned and offset % grain % VECTORS[half] == 0
                   and all(place % VECTORS[half] == 0 for place in theta)
                   and all(place % VECTORS[0] == 0 for place in kept))
        places.append([*theta, *kept, *[0] * (2 - len(kept))])
    blocks = (BLOCK, HALF_BLOCK if aligned else BLOCK)
    rows: list[tuple[int, ...]] = []
    counts: list[int] = []
    programs = 0
    for found, (*_, offset, size, dtype) in zip(places, tensors, strict=True):
        rows.append((*found, offset, size, dtype, programs))
        counts.append(-(-(offset % grain + size) // blocks[dtype > 0]))
        programs += counts[-1]
    return Launch(origin, _copied(torch.tensor(rows, dtype=torch.int64), device),
                  _owners(tuple(counts), device, stream),
                  {"ALIGNED": aligned, "RADEMACHER": distribution == "rademacher",
                   "BLOCK": blocks[0], "HALF_BLOCK": blocks[1], "num_warps": NUM_WARPS, **EXACT})
