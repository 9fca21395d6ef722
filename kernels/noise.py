"""Triton: counter-based noise added to any number of tensors in one launch.

The maths repeats ``philox.py`` operation by operation in float32, and the launches forbid fused
multiply-add, so the results are the same bits. Twins: ``reference.add_noise_`` and
``reference.perturbed_copies``.
"""

from collections.abc import Sequence
from functools import cache, lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.random import philox_impl

from . import philox
from .bfloat16 import from_bits, kernel_view, to_bits

BLOCK = 1024
NUM_WARPS = 4
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Columns of the table of tensors.
INPUT, OUTPUT, OFFSET, SIZE, DTYPE, END = (tl.constexpr(column) for column in range(6))
COLUMNS = tl.constexpr(6)

LOG = tl.constexpr(philox.LOG)
SIN = tl.constexpr(philox.SIN)
COS = tl.constexpr(philox.COS)
SIN_HEAD, SIN_TAIL = tl.constexpr(philox.SIN_HEAD), tl.constexpr(philox.SIN_TAIL)
COS_HEAD, COS_TAIL = tl.constexpr(philox.COS_HEAD), tl.constexpr(philox.COS_TAIL)
LOG4_HEAD, LOG4_TAIL = tl.constexpr(philox.LOG4_HEAD), tl.constexpr(philox.LOG4_TAIL)
BITS_SHIFT = tl.constexpr(philox.ONE_BITS - philox.SQRT_HALF_BITS)
EXPONENT_BITS = tl.constexpr(philox.EXPONENT_BITS)
TWELVE_BITS = tl.constexpr(philox.TWELVE_BITS)
SIX_BITS = tl.constexpr(philox.SIX_BITS)


@triton.jit
def _short(value, mask: tl.constexpr):
    return (value.to(tl.int32, bitcast=True) & mask).to(tl.float32, bitcast=True)


@triton.jit
def _horner(x, coefficients: tl.constexpr, degree: tl.constexpr):
    total = x * coefficients[degree]
    for step in tl.static_range(1, degree):
        total = (total + coefficients[degree - step]) * x
    return total + coefficients[0]


@triton.jit
def _radius(word):
    """Return sqrt(-2 log u) of the word's uniform as a 12-bit head and a tail, float32."""
    whole = (word >> 8).to(tl.int32).to(tl.float32)
    bits = (whole + 0.5).to(tl.int32, bitcast=True) + BITS_SHIFT
    power = bits & EXPONENT_BITS
    inverse = (0x7F000000 - power).to(tl.float32, bitcast=True)
    f = ((whole - power.to(tl.float32, bitcast=True)) + 0.5) * inverse
    octaves = (151 - (bits >> 23)).to(tl.float32)
    square = f * f
    log = (square * 0.5 - _horner(f, LOG, 7) * (square * f)) - f
    high = octaves * LOG4_HEAD
    low = octaves * LOG4_TAIL + (log + log)
    radius = tl.sqrt_rn(high + low)
    head = _short(radius, TWELVE_BITS)
    return head, tl.div_rn((high - head * head) + low, radius + head)


@triton.jit
def _box_muller(first, second):
    """Turn two uint32 words into two normals; twin of ``philox.box_muller``."""
    rh, rl = _radius(first)
    k = (second >> 8).to(tl.int32)
    quarter = (k + (1 << 21)) >> 22
    t = ((k - (quarter << 22)).to(tl.float32) + 0.5) * 5.9604644775390625e-08
    head = _short(t, SIX_BITS)
    tail = t - head
    square = t * t
    exact = head * SIN_HEAD
    rest = (_horner(square, SIN, 2) * square + SIN_TAIL) * t + tail * SIN_HEAD
    value = exact + rest
    short = _short(value, TWELVE_BITS)
    sine = short * rh + (((exact - short) + rest) * rh + value * rl)
    exact = (head * head) * COS_HEAD
    rest = (_horner(square, COS, 2) * square + COS_TAIL) * square
    rest = rest + ((t + head) * tail) * COS_HEAD
    value = (exact + rest) + 1.0
    short = _short(value, TWELVE_BITS)
    cosine = short * rh + (((1.0 - short) + exact + rest) * rh + value * rl)
    odd = (quarter & 1) != 0
    cosine_sign = (1 - ((quarter + 1) & 2)).to(tl.float32)
    sine_sign = (1 - (quarter & 2)).to(tl.float32)
    return tl.where(odd, sine, cosine) * cosine_sign, tl.where(odd, cosine, sine) * sine_sign


@triton.jit
def _words(seed, counter, stream):
    zero = counter.to(tl.uint32) * 0
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c0 = (counter & 0xFFFFFFFF).to(tl.uint32)
    c1 = ((counter >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return philox_impl(c0, c1, zero + stream.to(tl.uint32), zero, zero + k0, zero + k1)


@triton.jit
def _noise(seed, base, stream, RADEMACHER: tl.constexpr, BLOCK: tl.constexpr):
    """Return z(seed, base .. base + BLOCK - 1), float32 (BLOCK,); base is a multiple of 128."""
    if RADEMACHER:
        counter = base // 128 + tl.arange(0, BLOCK // 128).to(tl.int64)
        w0, w1, w2, w3 = _words(seed, counter, stream)
        words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
        bits = (words[:, None] >> tl.arange(0, 32)[None, :].to(tl.uint32)) & 1
        return tl.reshape(bits, (BLOCK,)).to(tl.int32).to(tl.float32) * 2.0 - 1.0
    else:
        counter = base // 4 + tl.arange(0, BLOCK // 4).to(tl.int64)
        w0, w1, w2, w3 = _words(seed, counter, stream)
        z0, z1 = _box_muller(w0, w1)
        z2, z3 = _box_muller(w2, w3)
        return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))


@triton.jit(do_not_specialize=["tensors", "probes", "stream", "decay"])
def add_noise_kernel(origin_ptr, table_ptr, tensors, seeds_ptr, coefficients_ptr, probes, decay,
                     stream, ALIGNED: tl.constexpr, RADEMACHER: tl.constexpr, BLOCK: tl.constexpr):
    """Write decay * theta + sum_k c_k z(s_k) of design section 4.

    One program handles BLOCK consecutive elements of one tensor, begun on a multiple of 128.

    Args:
        origin_ptr: pointer to float32 that addresses are counted from; a plain integer address
            would hide its alignment from the compiler, and with it the wide loads.
        table_ptr: pointer to int64 (tensors, 6): input and output as elements from the origin,
            offset in the parameter space, size, dtype code, and the number of programs up to
            this tensor's end.
        tensors: rows of the table.
        seeds_ptr: pointer to int64 (probes,).
        coefficients_ptr: pointer to float32 (probes,).
        probes: number of terms.
        decay: float32 factor.
        stream: third counter word.
        ALIGNED: input, output, offset and size of every tensor are multiples of 4 elements.
        RADEMACHER: signs instead of normals.
        BLOCK: elements per program, a multiple of 128.
    """
    program = tl.program_id(0).to(tl.int64)
    # The first tensor whose programs end beyond this one, by bisection.
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
    size = tl.load(row + SIZE)
    dtype = tl.load(row + DTYPE)
    source = tl.load(row + INPUT)
    target = tl.load(row + OUTPUT)
    base = offset // 128 * 128 + (program - previous) * BLOCK
    first = base - offset
    if ALIGNED:
        source = tl.multiple_of(source, 4)
        target = tl.multiple_of(target, 4)
        first = tl.multiple_of(first, 4)
        size = tl.multiple_of(size, 4)
    position = first + tl.arange(0, BLOCK).to(tl.int64)
    inside = (position >= 0) & (position < size)
    short_ptr = origin_ptr.to(tl.pointer_type(tl.int16), bitcast=True)
    half_ptr = origin_ptr.to(tl.pointer_type(tl.float16), bitcast=True)
    if dtype == 0:
        theta = tl.load(origin_ptr + source + position, mask=inside, other=0.0)
    elif dtype == 1:
        theta = from_bits(tl.load(short_ptr + source + position, mask=inside, other=0))
    else:
        theta = tl.load(half_ptr + source + position, mask=inside, other=0.0).to(tl.float32)
    theta = theta * decay
    # Not a range over a tensor: interpreters before triton 3.9 fail there with NumPy 2.4.
    probe = 0
    while probe < probes:
        seed = tl.load(seeds_ptr + probe)
        coefficient = tl.load(coefficients_ptr + probe)
        theta = theta + coefficient * _noise(seed, base, stream, RADEMACHER, BLOCK)
        probe += 1
    if dtype == 0:
        tl.store(origin_ptr + target + position, theta, mask=inside)
    elif dtype == 1:
        tl.store(short_ptr + target + position, to_bits(theta), mask=inside)
    else:
        tl.store(half_ptr + target + position, theta.to(tl.float16), mask=inside)


@triton.jit(do_not_specialize=["offset", "size", "stream"])
def perturbed_copies_kernel(theta_ptr, out_ptr, seeds_ptr, coefficients_ptr, offset, size, stream,
                            ALIGNED: tl.constexpr, BFLOAT16: tl.constexpr,
                            RADEMACHER: tl.constexpr, BLOCK: tl.constexpr):
    """Write theta + c_p z(s_p) for each probe p.

    One program handles BLOCK consecutive elements of one probe's copy.

    Args:
        theta_ptr: pointer to theta, (size,), float32, float16 or the int16 bits of bfloat16.
        out_ptr: pointer to the copies, (P, size), same dtype.
        seeds_ptr: pointer to int64 (P,).
        coefficients_ptr: pointer to float32 (P,).
        offset: index of theta's first element in the parameter space.
        size: elements of theta.
        stream: third counter word.
        ALIGNED: offset and size are multiples of 4.
        BFLOAT16: theta and the copies are bfloat16.
        RADEMACHER: signs instead of normals.
        BLOCK: elements per program, a multiple of 128.
    """
    probe = tl.program_id(1).to(tl.int64)
    offset = offset.to(tl.int64)
    base = offset // 128 * 128 + tl.program_id(0).to(tl.int64) * BLOCK
    first = base - offset
    start = probe * size
    if ALIGNED:
        first = tl.multiple_of(first, 4)
        start = tl.multiple_of(start, 4)
        size = tl.multiple_of(size.to(tl.int64), 4)
    position = first + tl.arange(0, BLOCK).to(tl.int64)
    inside = (position >= 0) & (position < size)
    seed = tl.load(seeds_ptr + probe)
    coefficient = tl.load(coefficients_ptr + probe)
    value = tl.load(theta_ptr + position, mask=inside, other=0)
    theta = from_bits(value) if BFLOAT16 else value.to(tl.float32)
    theta = theta + coefficient * _noise(seed, base, stream, RADEMACHER, BLOCK)
    value = to_bits(theta) if BFLOAT16 else theta.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + start + position, value, mask=inside)


def _programs(offset: int, size: int) -> int:
    return triton.cdiv(offset % 128 + size, BLOCK) if size else 0


@lru_cache(maxsize=64)
def _table(rows: tuple[tuple[int, ...], ...], device: torch.device,
           stream: int) -> tuple[Tensor, int]:
    """Copy the table of tensors to the device once; its content is its key.

    ``stream`` keeps a table to the stream that its copy was queued on.
    """
    end = 0
    lines = []
    for row in rows:
        end += _programs(row[2], row[3])
        lines.append((*row, end))
    return torch.tensor(lines, dtype=torch.int64, device=device), end


@cache
def _origin(device: torch.device) -> Tensor:
    """Return one float32 element per device, kept so that tables stay valid, 16-byte aligned."""
    return torch.zeros(8, device=device)


def _stream_of(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def add_noise_(inputs: Sequence[Tensor], outputs: Sequence[Tensor], offsets: Sequence[int],
               seeds: Tensor, coefficients: Tensor, decay: float, distribution: str) -> None:
    """Launch :func:`add_noise_kernel` once; arguments as in ``reference.add_noise_``."""
    device = seeds.device
    origin = _origin(device)
    start = origin.data_ptr()
    rows = tuple(
        ((theta.data_ptr() - start) // theta.element_size(),
         (out.data_ptr() - start) // out.element_size(),
         offset, theta.numel(), DTYPE_CODES[theta.dtype])
        for theta, out, offset in zip(inputs, outputs, offsets, strict=True) if theta.numel())
    if not rows:
        return
    table, programs = _table(rows, device, _stream_of(device))
    aligned = all(number % 4 == 0 for row in rows for number in row[:4])
    with torch.cuda.device_of(seeds):
        add_noise_kernel[(programs,)](
            origin, table, len(rows), seeds.contiguous(), coefficients.contiguous(), len(seeds),
            decay, 0, ALIGNED=aligned, RADEMACHER=distribution == "rademacher", BLOCK=BLOCK,
            num_warps=NUM_WARPS, enable_fp_fusion=False)
    for out in outputs:
        if not out.is_inference():
            torch.autograd.graph.increment_version(out)


def perturbed_copies(theta: Tensor, seeds: Tensor, coefficients: Tensor, offset: int,
                     stream: int, distribution: str) -> Tensor:
    """Launch :func:`perturbed_copies_kernel`; arguments as in ``reference.perturbed_copies``."""
    out = torch.empty((len(seeds), *theta.shape), dtype=theta.dtype, device=theta.device)
    if out.numel():
        with torch.cuda.device_of(theta):
            perturbed_copies_kernel[(_programs(offset, theta.numel()), len(seeds))](
                kernel_view(theta), kernel_view(out), seeds.contiguous(),
                coefficients.contiguous(), offset, theta.numel(), stream,
                ALIGNED=offset % 4 == 0 and theta.numel() % 4 == 0,
                BFLOAT16=theta.dtype == torch.bfloat16, RADEMACHER=distribution == "rademacher",
                BLOCK=BLOCK, num_warps=NUM_WARPS, enable_fp_fusion=False)
    return out
