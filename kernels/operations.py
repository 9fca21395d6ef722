"""The public noise ops: check the arguments, then hand over to the backend of the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .dispatch import use_triton
from .philox import DISTRIBUTIONS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LIMIT = 1 << 63


def _check_distribution(distribution: str) -> None:
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution is {distribution!r}; choose one of "
                         f"{', '.join(DISTRIBUTIONS)}")


def _check_range(offset: int, count: int, what: str) -> None:
    if not isinstance(offset, int):
        raise TypeError(f"{what} is {offset!r}; element indices are Python ints")
    if offset < 0 or count < 0 or offset + count > LIMIT:
        raise ValueError(f"{what} {offset} with {count} elements leaves the index space; keep "
                         "0 <= first and first + count <= 2**63")


def _check_tensor(tensor: Tensor, what: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what} is a {type(tensor).__name__}; pass a torch.Tensor")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{what} has dtype {tensor.dtype}; noise is added to float32, bfloat16 "
                        "and float16 tensors")
    if not tensor.is_contiguous():
        raise ValueError(f"{what} of shape {tuple(tensor.shape)} and strides {tensor.stride()} "
                         "is not contiguous; pass tensor.contiguous()")


def _seed_tensor(seeds: Tensor | Sequence[int], device: torch.device) -> Tensor:
    if isinstance(seeds, Tensor):
        if seeds.dtype != torch.int64 or seeds.dim() != 1:
            raise TypeError(f"seeds is a tensor of dtype {seeds.dtype} and shape "
                            f"{tuple(seeds.shape)}; pass an int64 tensor of shape (Q,)")
        return seeds.detach().to(device, non_blocking=True)
    for seed in seeds:
        if not isinstance(seed, int) or not 0 <= seed < LIMIT:
            raise ValueError(f"seed {seed!r} is not an int in [0, 2**63); hash it into that "
                             "range, or pass an int64 tensor")
    return torch.tensor(list(seeds), dtype=torch.int64, device=device)


def _probe_tensors(seeds: Tensor | Sequence[int], coefficients: Tensor | Sequence[float],
                   device: torch.device) -> tuple[Tensor, Tensor]:
    seeds = _seed_tensor(seeds, device)
    if isinstance(coefficients, Tensor):
        values = coefficients.detach().to(device, torch.float32, non_blocking=True)
    else:
        values = torch.tensor(list(coefficients), dtype=torch.float32, device=device)
    if values.shape != seeds.shape:
        raise ValueError(f"{tuple(values.shape)} coefficients do not match "
                         f"{tuple(seeds.shape)} seeds; pass one coefficient per seed")
    return seeds, values


def aligned_offsets(sizes: Sequence[int], start: int = 0) -> list[int]:
    """Lay ranges of the given sizes one after another, each begun on a multiple of 4.

    Args:
        sizes: number of elements of each range.
        start: index at or after which the first range begins.

    Returns:
        The index of the first element of each range.
    """
    offsets = []
    for size in sizes:
        start += -start % 4
        offsets.append(start)
        start += size
    return offsets


def _draw(seed: int | Tensor, start: int, count: int, stream: int,
          device: torch.device | str | None, distribution: str) -> Tensor:
    _check_range(start, count, "start")
    if not 0 <= stream < 1 << 32:
        raise ValueError(f"stream {stream} is not a 32-bit word; keep 0 <= stream < 2**32")
    single = not isinstance(seed, Tensor) or seed.dim() == 0
    if isinstance(seed, Tensor):
        where = seed.device if device is None else torch.device(device)
        seeds = _seed_tensor(seed.reshape(-1) if single else seed, where)
    else:
        where = torch.device("cpu" if device is None else device)
        seeds = _seed_tensor([seed], where)
    zeros = torch.zeros(count, device=where)
    if use_triton(zeros):
        from . import noise
        ones = torch.ones(len(seeds), device=where)
        values = noise.perturbed_copies(zeros, seeds, ones, start, stream, distribution)
    elif count and len(seeds):
        values = reference.draw(seeds, start, count, stream, distribution)
    else:
        values = torch.zeros((len(seeds), count), device=where)
    return values[0] if single else values


def gaussian(seed: int | Tensor, start: int, count: int, *, stream: int = 0,
             device: torch.device | str | None = None) -> Tensor:
    """Draw the standard normals z(seed, start) .. z(seed, start + count - 1).

    Noise version 1: Philox-4x32-10 counters and Box-Muller, element i from lane i mod 4 of the
    counter i div 4. The same bits on every backend and device, and for every way to cut the
    index space in ranges. Each normal is within 4e-7 of its exact value.

    Args:
        seed: an int in [0, 2**63), or an int64 tensor of shape () or (P,) of 64-bit seeds.
        start: element index of the first normal, in [0, 2**63).
        count: how many.
        stream: 0 perturbation, 1 stochastic rounding, 2 subspace bases, others free.
        device: where to draw; by default the device of ``seed``, or the CPU.

    Returns:
        float32 tensor of shape (count,), or (P, count) for P seeds.

    Raises:
        ValueError: if the seed, the range or the stream is out of bounds.
        TypeError: if ``start`` is no int or ``seed`` is a tensor of another dtype or rank.
    """
    return _draw(seed, start, count, stream, device, "gaussian")


def rademacher(seed: int | Tensor, start: int, count: int, *, stream: int = 0,
               device: torch.device | str | None = None) -> Tensor:
    """Draw random signs, one bit an element; arguments and errors as in :func:`gaussian`.

    Element i is +1 if bit i mod 32 of word (i div 32) mod 4 of the counter i div 128 is set,
    else -1.

    Args:
        seed: an int in [0, 2**63), or an int64 tensor of shape () or (P,).
        start: element index of the first sign.
        count: how many.
        stream: third counter word.
        device: where to draw.

    Returns:
        float32 tensor of shape (count,), or (P, count) for P seeds.
    """
    return _draw(seed, start, count, stream, device, "rademacher")


@torch.no_grad()
def add_noise_(tensors: Tensor | Sequence[Tensor], seeds: Tensor | Sequence[int],
               coefficients: Tensor | Sequence[float], *,
               offsets: int | Sequence[int] | None = None, decay: float = 1.0,
               out: Tensor | Sequence[Tensor] | None = None,
               distribution: str = "gaussian") -> Tensor | Sequence[Tensor]:
    """Set ``theta <- decay * theta + sum_k c_k z(s_k)`` in one pass over the parameters.

    This one primitive perturbs (one seed, coefficient eps), flips (-2 eps), restores and
    updates (design section 4; the seed trick is that of MeZO, arXiv 2305.17333). All arithmetic
    is float32, each multiply and add rounded separately, terms in the order k = 0, 1, ..., one
    rounding to the tensor's dtype at the end: the same bits on every backend.

    Args:
        tensors: contiguous float32, bfloat16 or float16 tensors on one device. One tensor or a
            list; a list is one kernel launch. Empty tensors are allowed.
        seeds: int64 tensor (Q,) or ints in [0, 2**63); Q = 0 only scales.
        coefficients: float32 tensor (Q,) or floats (rounded to float32).
        offsets: index of each tensor's first element in the parameter space; by default the
            tensors lie one after another, each begun on a multiple of 4.
        decay: factor on the parameters, rounded to float32.
        out: tensors of the same shapes, dtypes and device to write instead; ``tensors`` then
            stay as they are.
        distribution: ``"gaussian"`` or ``"rademacher"``.

    Returns:
        ``out`` if given, else ``tensors``.

    Raises:
        TypeError: if a tensor, the seeds or an offset is of the wrong type or dtype.
        ValueError: if shapes, lengths, devices or ranges do not fit, or a tensor is not
            contiguous.
    """
    _check_distribution(distribution)
    inputs = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    outputs = inputs if out is None else [out] if isinstance(out, Tensor) else list(out)
    for index, tensor in enumerate(inputs):
        _check_tensor(tensor, f"tensor {index}")
        if tensor.device != inputs[0].device:
            raise ValueError(f"tensor {index} is on {tensor.device} and tensor 0 on "
                             f"{inputs[0].device}; call once per device")
    if len(outputs) != len(inputs):
        raise ValueError(f"{len(outputs)} out tensors for {len(inputs)} tensors; pass one each")
    if out is not None:
        for index, (theta, target) in enumerate(zip(inputs, outputs, strict=True)):
            _check_tensor(target, f"out {index}")
            if (target.shape, target.dtype, target.device) != (theta.shape, theta.dtype,
                                                               theta.device):
                raise ValueError(
                    f"out {index} is {tuple(target.shape)} {target.dtype} on {target.device} "
                    f"but tensor {index} is {tuple(theta.shape)} {theta.dtype} on "
                    f"{theta.device}; allocate it with torch.empty_like")
    if offsets is None:
        starts = aligned_offsets([tensor.numel() for tensor in inputs])
    else:
        starts = [offsets] if isinstance(offsets, int) else list(offsets)
    if len(starts) != len(inputs):
        raise ValueError(f"{len(starts)} offsets for {len(inputs)} tensors; pass one each")
    for start, tensor in zip(starts, inputs, strict=True):
        _check_range(start, tensor.numel(), "offset")
    if not inputs:
        return tensors if out is None else out
    seeds, values = _probe_tensors(seeds, coefficients, inputs[0].device)
    factor = torch.tensor(decay, dtype=torch.float32).item()
    if use_triton(inputs[0]):
        from . import noise
        noise.add_noise_(inputs, outputs, starts, seeds, values, factor, distribution)
    else:
        reference.add_noise_(inputs, outputs, starts, seeds, values, factor, distribution)
    return tensors if out is None else out


@torch.no_grad()
def perturbed_copies(tensor: Tensor, seeds: Tensor | Sequence[int],
                     coefficients: Tensor | Sequence[float], *, offset: int = 0,
                     distribution: str = "gaussian") -> Tensor:
    """Return P perturbed copies of a tensor in one launch: row p is ``theta + c_p z(s_p)``.

    The same bits as P calls of :func:`add_noise_` with one seed each and ``out=``.

    Args:
        tensor: contiguous float32, bfloat16 or float16 tensor; it is not changed.
        seeds: int64 tensor (P,) or ints in [0, 2**63).
        coefficients: float32 tensor (P,) or floats (rounded to float32).
        offset: index of the tensor's first element in the parameter space.
        distribution: ``"gaussian"`` or ``"rademacher"``.

    Returns:
        Tensor of shape (P, *tensor.shape) and the tensor's dtype.

    Raises:
        TypeError: if an argument is of the wrong type or dtype.
        ValueError: if lengths or ranges do not fit, or the tensor is not contiguous.
    """
    _check_distribution(distribution)
    _check_tensor(tensor, "tensor")
    _check_range(offset, tensor.numel(), "offset")
    seeds, values = _probe_tensors(seeds, coefficients, tensor.device)
    if use_triton(tensor):
        from . import noise
        return noise.perturbed_copies(tensor, seeds, values, offset, 0, distribution)
    return reference.perturbed_copies(tensor, seeds, values, offset, 0, distribution)
