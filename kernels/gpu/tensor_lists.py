"""Triton: one launch for many tensors of one dtype and any sizes, by records of where they lie.

The grid is the programs of all tensors one after another. A program reads one record, which says
where its block of elements lies in memory and in the index space of the noise; a record serves
GROUP programs of one tensor, so that the list of records stays small beside the tensors.
"""

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tables import hold, refuse_while_recording
from .arithmetic import (
    EXACT,
    from_bits,
    nearest_bfloat16,
    stochastic_bfloat16,
    stochastic_float16,
)
from .normals import uniform_words
from .prepared import Prepared

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# Columns of a record. Addresses count elements of the tensor's own dtype (states: float32), or 16
# bytes where all are aligned to that, from the origin to the first element of the record's first
# block. BASE is the index of that element in the space of the noise, and LIMITS are the first
# element of the tensor from there on and, in the upper half, the first behind it.
INPUT, OUTPUT, FIRST, SECOND, BASE, LIMITS = (tl.constexpr(k) for k in range(6))
COLUMNS = tl.constexpr(6)
# Programs of a record, a power of two; the last ones of a tensor may have nothing to do.
GROUP = 8
SHIFT, REST = tl.constexpr(GROUP.bit_length() - 1), tl.constexpr(GROUP - 1)
# Blocks begin on a multiple of the elements that one counter serves.
GRAINS = {"gaussian": 4, "rademacher": 128, "pairs": 8}
# Elements in 16 bytes, by the bytes of one.
VECTORS = {4: 4, 2: 8}
# Elements of a program, by the bytes of one: 64 bytes a thread. More would share more of what a
# program does once, and take more registers, so that fewer programs share an SM.
BLOCKS = {4: 2048, 2: 4096}
# The same where accesses are narrow, at most: they take more registers, and an assembler of NVIDIA
# spilled with the longer block. For AMD, triton 3.4 compiles Adam's rule in an hour with 2048 and
# in a second with 1024.
NARROW_BLOCK_OF_AMD = 1024
NARROW_BLOCK = NARROW_BLOCK_OF_AMD if torch.version.hip else BLOCKS[4]
THREADS = 128
NUM_WARPS = THREADS // (64 if torch.version.hip else 32)


def block_for(block: int, aligned: bool) -> int:
    """Return the elements of a program: a wish, and no more than narrow accesses allow."""
    return block if aligned else min(block, NARROW_BLOCK)


@triton.jit
def find(records_ptr, BLOCK: tl.constexpr):
    """Find the block of this program.

    Returns:
        Pointer to its record, its first element relative to the record's first block, its index
        in the space of the noise, and the range of the block that the tensor has elements in.
    """
    program = tl.program_id(0)
    record = records_ptr + (program >> SHIFT).to(tl.int64) * COLUMNS
    start = (program & REST) * BLOCK
    limits = tl.load(record + LIMITS)
    first = tl.maximum((limits & 0xFFFFFFFF).to(tl.int32) - start, 0)
    stop = tl.minimum((limits >> 32).to(tl.int32) - start, BLOCK)
    return record, start, tl.load(record + BASE) + start, first, stop


@triton.jit
def load(pointer, first, stop, BLOCK: tl.constexpr):
    """Load the elements [first, stop) of the block at a pointer, zero elsewhere."""
    # A block inside a tensor needs no masks, and so can be loaded 16 bytes at a time. The lanes are
    # written down in each branch, or all blocks would compute those of the masks.
    if stop - first == BLOCK:
        value = tl.load(pointer + tl.arange(0, BLOCK))
    else:
        lane = tl.arange(0, BLOCK)
        value = tl.load(pointer + lane, mask=(lane >= first) & (lane < stop), other=0)
    return value


@triton.jit
def store(pointer, value, first, stop, BLOCK: tl.constexpr):
    """Store the elements [first, stop) of the block at a pointer."""
    if stop - first == BLOCK:
        tl.store(pointer + tl.arange(0, BLOCK), value)
    else:
        lane = tl.arange(0, BLOCK)
        tl.store(pointer + lane, value, mask=(lane >= first) & (lane < stop))


@triton.jit
def place(origin_ptr, record, column: tl.constexpr, start, DTYPE: tl.constexpr,
          ALIGNED: tl.constexpr):
    """Return the pointer to a block of a column of a record.

    Args:
        origin_ptr: pointer to float32 that the addresses count from.
        record: pointer to the record.
        column: INPUT, OUTPUT, FIRST or SECOND.
        start: first element of the block, relative to the record's first.
        DTYPE: name of the column's dtype.
        ALIGNED: whether the addresses count 16 bytes.
    """
    address = tl.load(record + column)
    if DTYPE == "float32":
        return origin_ptr + (address * (4 if ALIGNED else 1) + start)
    elif DTYPE == "bfloat16":
        return (origin_ptr.to(tl.pointer_type(tl.int16), bitcast=True)
                + (address * (8 if ALIGNED else 1) + start))
    else:
        return (origin_ptr.to(tl.pointer_type(tl.float16), bitcast=True)
                + (address * (8 if ALIGNED else 1) + start))


@triton.jit
def widen(value, DTYPE: tl.constexpr):
    """Widen what was loaded to float32, exactly; bfloat16 is int16 bits."""
    if DTYPE == "bfloat16":
        return from_bits(value)
    else:
        return value.to(tl.float32)


@triton.jit
def narrow(value, key_ptr, base, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr,
           BLOCK: tl.constexpr, DRAWN: tl.constexpr, PLAIN: tl.constexpr):
    """Round float32 to what is stored; others as in :func:`write`."""
    if STOCHASTIC:
        random = uniform_words(tl.load(key_ptr), base, tl.program_id(0) * 0 + 1, BLOCK, DRAWN)
        if DTYPE == "bfloat16":
            return stochastic_bfloat16(value, random)
        else:
            return stochastic_float16(value, random)
    elif DTYPE == "bfloat16":
        return nearest_bfloat16(value, PLAIN)
    elif DTYPE == "float16":
        return value.to(tl.float16)
    else:
        return value


@triton.jit
def write(pointer, value, key_ptr, base, first, stop, DTYPE: tl.constexpr,
          STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr, DRAWN: tl.constexpr,
          PLAIN: tl.constexpr = False):
    """Round float32 values to the dtype of a tensor and store them.

    Args:
        pointer: to the block.
        value: float32 (BLOCK,).
        key_ptr: pointer to int64 (1,), the key of stochastic rounding; any if not STOCHASTIC.
        base: index of the block's first element in the space of the noise.
        first: as in :func:`load`.
        stop: as in :func:`load`.
        DTYPE: name of the dtype.
        STOCHASTIC: stochastic rounding of 16-bit tensors instead of nearest.
        BLOCK: elements.
        DRAWN: consecutive elements whose random words a thread draws, see ``uniform_words``.
        PLAIN: as in ``arithmetic.nearest_bfloat16``.
    """
    store(pointer, narrow(value, key_ptr, base, DTYPE, STOCHASTIC, BLOCK, DRAWN, PLAIN), first,
          stop, BLOCK)


class Launch:
    """What a launch over many tensors needs beside the scalars of its rule.

    Args:
        origin: float32 tensor that the records' addresses count from.
        records: int64 (records, 6).
        programs: of the grid.
        options: of the launch and constants of the kernel.
    """

    def __init__(self, origin: Tensor, records: Tensor, programs: int,
                 options: dict[str, Any]) -> None:
        self.origin, self.records = origin, records
        self.programs, self.options = programs, options
        self._prepared: dict[Any, Prepared] = {}

    def start(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        """Launch a kernel of this file's tables.

        Args:
            kernel: it specialises on nothing but the origin, the records and constants.
            *arguments: those between the records and the constants, always of the same types.
            **constants: that the options lack.
        """
        key = (id(kernel), *constants.items())
        prepared = self._prepared.get(key)
        if prepared is None:
            # It holds the kernel, so that no other one takes its id.
            prepared = Prepared(kernel, (self.programs, 1, 1), {**self.options, **constants})
            self._prepared[key] = prepared
        prepared(self.origin, self.records, *arguments)


@cache
def _origin(device: torch.device) -> Tensor:
    """Return a float32 tensor per device that addresses count from, aligned to 16 bytes.

    A plain integer address would hide its alignment from the compiler, and with it the wide
    loads. It lives as long as the process, so that records stay valid.
    """
    origin = torch.zeros(8, device=device)
    # On AMD, triton takes offsets from a tensor of less than 2 GB to fit in 32 bits unless the
    # tensor says otherwise; the tensors of the records may lie anywhere.
    origin.ptr_range = lambda: 1 << 63  # type: ignore[attr-defined]
    return origin


def stream_of(device: torch.device) -> int:
    """Return the handle of the current stream of a device; 0 where there is none."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _copied(table: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return table.pin_memory().to(device, non_blocking=True)
    return table.to(device)


def prepare(inputs: Sequence[Tensor], outputs: Sequence[Tensor], states: Sequence[Sequence[Tensor]],
            offsets: Sequence[int], distribution: str, stochastic: bool,
            block: int | None = None) -> Iterator[Launch]:
    """Yield a launch for each dtype of tensors that have elements.

    Args:
        inputs: tensors that are read, float32, bfloat16 or float16, contiguous.
        outputs: tensors of the same shapes and dtypes that are written.
        states: up to two lists of float32 tensors of the same shapes.
        offsets: index of each tensor's first element in the space of the noise.
        distribution: of the noise.
        stochastic: round stochastically.
        block: elements of a program, if not those of BLOCKS.
    """
    groups: dict[torch.dtype, list[tuple[int, ...]]] = {}
    for theta, out, offset, *state in zip(inputs, outputs, offsets, *states, strict=True):
        if size := theta.numel():
            groups.setdefault(theta.dtype, []).append(
                (*(given.data_ptr() for given in (theta, out, *state)), offset, size))
    for dtype, tensors in groups.items():
        device = inputs[0].device
        launch = _launch(tuple(tensors), dtype, distribution, stochastic,
                         block or BLOCKS[dtype.itemsize], device, stream_of(device))
        hold(launch)
        yield launch


# A pass over a model makes a launch for each module: 483 of a Llama-2 of 70B. A cache that holds
# fewer than a pass makes would, in the same order again, find none of them.
@lru_cache(maxsize=4096)
def _launch(tensors: tuple[tuple[int, ...], ...], dtype: torch.dtype, distribution: str,
            stochastic: bool, block: int, device: torch.device, stream: int) -> Launch:
    """Build a launch once for what sets it apart, and copy its records to the device.

    Args:
        tensors: of each its address, that of its output, those of up to two states, its offset
            and its size.
        dtype: of the tensors.
        distribution: of the noise.
        stochastic: round stochastically.
        block: elements of a program.
        device: of the tensors.
        stream: keeps records to the stream that their copy was queued on.
    """
    refuse_while_recording()
    origin = _origin(device)
    size = dtype.itemsize
    vector, grain = VECTORS[size], GRAINS[distribution]
    zero = origin.data_ptr()
    rows = torch.tensor([[*places, *[zero] * (4 - len(places)), offset, count]
                         for *places, offset, count in tensors])
    offset, count = rows[:, 4], rows[:, 5]
    lead = offset % grain
    # Of the first block of each tensor, which begins up to a grain before it.
    places = (rows[:, :4] - zero) // torch.tensor([size, size, 4, 4]) - lead[:, None]
    unit = torch.tensor([vector, vector, 4, 4])
    aligned = not ((places % unit).any() or (lead % vector).any())
    unit = unit if aligned else torch.ones_like(unit)
    block = block_for(block, aligned)
    span = GROUP * block
    numbers = (lead + count + span - 1) // span
    owner = torch.repeat_interleave(numbers)
    begin = (torch.arange(len(owner)) - (numbers.cumsum(0) - numbers)[owner]) * span
    first = (lead[owner] - begin).clamp(min=0)
    stop = ((lead + count)[owner] - begin).clamp(max=span)
    places = (places[owner] + begin[:, None]) // unit
    bases = (offset - lead)[owner] + begin
    records = torch.cat([places, bases[:, None], (first | stop << 32)[:, None]], 1)
    # The last record needs no programs behind its tensor's end.
    programs = len(owner) * GROUP - (span - int(stop[-1])) // block
    return Launch(origin, _copied(records, device), programs,
                  {"DTYPE": DTYPES[dtype], "ALIGNED": aligned, "DISTRIBUTION": distribution,
                   "STOCHASTIC": stochastic and dtype != torch.float32, "BLOCK": block,
                   "num_warps": NUM_WARPS, **EXACT})
