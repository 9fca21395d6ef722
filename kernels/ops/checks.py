"""Checks and conversions of the arguments that the noise ops share."""

from collections.abc import Mapping, Sequence
from ctypes import c_float

import torch
from torch import Tensor

from ..reference.philox import DISTRIBUTIONS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDINGS = ("nearest", "stochastic")
LIMIT = 1 << 63


def float32(value: float) -> float:
    """Round a float to the nearest that is exact in float32."""
    return c_float(value).value


def check_distribution(distribution: str) -> None:
    """Raise ValueError for an unknown distribution."""
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"distribution is {distribution!r}; choose one of {', '.join(DISTRIBUTIONS)}"
        )


def check_range(offset: int, count: int, what: str) -> None:
    """Raise if the elements ``offset .. offset + count - 1`` leave the index space."""
    if not isinstance(offset, int):
        raise TypeError(f"{what} is {offset!r}; element indices are Python ints")
    if offset < 0 or count < 0 or offset + count > LIMIT:
        raise ValueError(
            f"{what} {offset} with {count} elements leaves the index space; keep "
            "0 <= first and first + count <= 2**63"
        )


def check_tensor(tensor: Tensor, what: str) -> None:
    """Raise unless ``tensor`` is contiguous and of a dtype that noise is added to."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what} is a {type(tensor).__name__}; pass a torch.Tensor")
    if tensor.dtype not in DTYPES:
        raise TypeError(
            f"{what} has dtype {tensor.dtype}; noise is added to float32, bfloat16 "
            "and float16 tensors"
        )
    if not tensor.is_contiguous():
        raise ValueError(
            f"{what} of shape {tuple(tensor.shape)} and strides {tensor.stride()} "
            "is not contiguous; pass tensor.contiguous()"
        )


def check_tensors(tensors: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """List the tensors of a call; raise unless each passes and all share a device."""
    found = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    for index, tensor in enumerate(found):
        check_tensor(tensor, f"tensor {index}")
        if tensor.device != found[0].device:
            raise ValueError(
                f"tensor {index} is on {tensor.device} and tensor 0 on "
                f"{found[0].device}; call once per device"
            )
    return found


def check_partners(
    tensors: Sequence[Tensor],
    partners: Tensor | Sequence[Tensor],
    what: str,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """List the tensors that go with others; raise unless shapes, dtypes and device fit.

    Args:
        tensors: the tensors that ``partners`` must match one by one.
        partners: one tensor or several.
        what: name of the argument, for the messages.
        dtype: of all partners; by default that of the tensor each goes with.
    """
    found = [partners] if isinstance(partners, Tensor) else list(partners)
    if len(found) != len(tensors):
        raise ValueError(f"{len(found)} {what} tensors for {len(tensors)} tensors; pass one each")
    for index, (theta, partner) in enumerate(zip(tensors, found, strict=True)):
        check_tensor(partner, f"{what} {index}")
        wanted = dtype or theta.dtype
        if (partner.shape, partner.dtype, partner.device) != (theta.shape, wanted, theta.device):
            raise ValueError(
                f"{what} {index} is {tuple(partner.shape)} {partner.dtype} on {partner.device} "
                f"but tensor {index} asks for {tuple(theta.shape)} {wanted} on {theta.device}; "
                f"allocate it with torch.empty_like(tensor, dtype={wanted})"
            )
    return found


def check_apart(
    written: Mapping[str, Sequence[Tensor]], read: Mapping[str, Sequence[Tensor]] | None = None
) -> None:
    """Raise if a tensor that a call writes shares memory with another one of the call.

    Programs and threads take the tensors in no order, so the result would depend on chance. What
    is only read may overlap, and a tensor that is written may be exactly the one that is read in
    the same place.

    Args:
        written: lists of tensors by the name of their argument.
        read: lists of tensors that are only read.

    Raises:
        ValueError: naming two that overlap.
    """
    places: list[tuple[int, int, bool, str, int]] = []
    kept = set()
    for name, tensors in written.items():
        for index, tensor in enumerate(tensors):
            start = tensor.data_ptr()
            kept.add((start, index))
            places.append(
                (start, start + tensor.numel() * tensor.element_size(), True, name, index)
            )
    for name, tensors in (read or {}).items():
        for index, tensor in enumerate(tensors):
            start = tensor.data_ptr()
            end = start + tensor.numel() * tensor.element_size()
            if (start, index) not in kept:
                places.append((start, end, False, name, index))
    if len(places) < 2:
        return
    ends: dict[bool, tuple[int, str]] = {False: (0, ""), True: (0, "")}
    for start, end, writes, name, index in sorted(places):
        if start == end:
            continue
        for other in (False, True):
            if (writes or other) and start < ends[other][0]:
                raise ValueError(
                    f"{name} {index} and {ends[other][1]} share memory, and a call that writes "
                    "there has no order; give each element once, and an out that is the tensor "
                    "itself or lies apart"
                )
        if end > ends[writes][0]:
            ends[writes] = (end, f"{name} {index}")


def aligned_offsets(
    sizes: Sequence[int], start: int = 0, *, distribution: str = "gaussian"
) -> list[int]:
    """Lay ranges of the given sizes one after another, each begun on a multiple of 4.

    Args:
        sizes: number of elements of each range.
        start: index at or after which the first range begins.
        distribution: of the noise; with ``"pairs"``, whose counters serve 8 elements, the ranges
            begin on multiples of 8.

    Returns:
        The index of the first element of each range.
    """
    offsets = []
    for size in sizes:
        start += -start % (8 if distribution == "pairs" else 4)
        offsets.append(start)
        start += size
    return offsets


def check_offsets(
    offsets: int | Sequence[int] | None, tensors: Sequence[Tensor], distribution: str
) -> list[int]:
    """List the offset of each tensor, by default laid out; raise if a range does not fit."""
    if offsets is None:
        sizes = [tensor.numel() for tensor in tensors]
        starts = aligned_offsets(sizes, distribution=distribution)
    else:
        starts = [offsets] if isinstance(offsets, int) else list(offsets)
    if len(starts) != len(tensors):
        raise ValueError(f"{len(starts)} offsets for {len(tensors)} tensors; pass one each")
    for start, tensor in zip(starts, tensors, strict=True):
        check_range(start, tensor.numel(), "offset")
    return starts


def check_seed(seed: int, what: str) -> None:
    """Raise ValueError unless ``seed`` is an int in [0, 2**63)."""
    if not isinstance(seed, int) or not 0 <= seed < LIMIT:
        raise ValueError(
            f"{what} {seed!r} is not an int in [0, 2**63); hash it into that range, "
            "or pass an int64 tensor"
        )


def seed_tensor(seeds: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """Bring seeds to the device as int64 (Q,); raise if they are of another kind."""
    if isinstance(seeds, Tensor):
        if seeds.dtype != torch.int64 or seeds.dim() != 1:
            raise TypeError(
                f"seeds is a tensor of dtype {seeds.dtype} and shape "
                f"{tuple(seeds.shape)}; pass an int64 tensor of shape (Q,)"
            )
        return seeds.detach().to(device, non_blocking=True).contiguous()
    for seed in seeds:
        check_seed(seed, "seed")
    if len(seeds) == 1:
        # A fill carries its value along: unlike a copy of a host tensor it does not wait.
        return torch.full((1,), seeds[0], dtype=torch.int64, device=device)
    return torch.tensor(list(seeds), dtype=torch.int64, device=device)


def probe_tensors(
    seeds: Tensor | Sequence[int], coefficients: Tensor | Sequence[float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Bring seeds and coefficients to the device as int64 (Q,) and float32 (Q,)."""
    seeds = seed_tensor(seeds, device)
    if isinstance(coefficients, Tensor):
        values = coefficients.detach().to(device, torch.float32, non_blocking=True).contiguous()
    elif len(coefficients) == 1 and abs(coefficients[0]) < 1e38:
        values = torch.full((1,), float(coefficients[0]), dtype=torch.float32, device=device)
    else:
        values = torch.tensor(list(coefficients), dtype=torch.float32, device=device)
    if values.shape != seeds.shape:
        raise ValueError(
            f"{tuple(values.shape)} coefficients do not match "
            f"{tuple(seeds.shape)} seeds; pass one coefficient per seed"
        )
    return seeds, values


def rounding_key(
    rounding: str, rounding_seed: int | Tensor | None, seeds: Tensor, tensors: Sequence[Tensor]
) -> Tensor | None:
    """Return the key of stochastic rounding as int64 (1,), or None to round to nearest.

    Args:
        rounding: ``"nearest"`` or ``"stochastic"``.
        rounding_seed: the seed, an int in [0, 2**63) or an int64 tensor of one element; by
            default the first of ``seeds``.
        seeds: int64 (Q,) on the device of the tensors.
        tensors: what is written; float32 needs no key.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding is {rounding!r}; choose one of {', '.join(ROUNDINGS)}")
    if isinstance(rounding_seed, Tensor):
        if rounding_seed.dtype != torch.int64 or rounding_seed.numel() != 1:
            raise TypeError(
                f"rounding_seed is a tensor of dtype {rounding_seed.dtype} and shape "
                f"{tuple(rounding_seed.shape)}; pass an int64 tensor of one element"
            )
    elif rounding_seed is not None:
        check_seed(rounding_seed, "rounding_seed")
    if rounding == "nearest" or all(tensor.dtype == torch.float32 for tensor in tensors):
        return None
    if isinstance(rounding_seed, Tensor):
        return rounding_seed.detach().to(seeds.device, non_blocking=True).reshape(1)
    if rounding_seed is not None:
        # A fill carries its value along: unlike a copy of a host tensor it does not wait.
        return torch.full((1,), rounding_seed, dtype=torch.int64, device=seeds.device)
    if not len(seeds):
        raise ValueError("rounding='stochastic' without seeds has no key; pass rounding_seed")
    return seeds[:1]
