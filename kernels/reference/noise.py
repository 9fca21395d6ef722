"""The noise ops in plain PyTorch: the ground truth of the tests, and the path of any device.

The functions here trust their arguments; ``ops/noise.py`` checks them. Every float32 operation is
rounded on its own, in the order written.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .philox import CHUNK, PERTURBATION_STREAM, ROUNDING_STREAM, draw, words

# Elements worked on at a time, a multiple of 128 so that pieces start on whole counters.
PIECE = 4 * CHUNK
# Ranges closer than this are drawn in one go, and the noise of the gap is thrown away.
GAP = 128

Member = tuple[int, tuple[Tensor, ...]]


def _runs(members: list[Member]) -> Iterator[list[Member]]:
    """Group (offset, tensors) pairs whose ranges nearly tile a range, in order."""
    run: list[Member] = []
    end = 0
    for member in sorted(members, key=lambda item: item[0]):
        offset = member[0]
        if run and not end <= offset <= end + GAP:
            yield run
            run = []
        run.append(member)
        end = offset + member[1][0].numel()
    if run:
        yield run


class Stretch(NamedTuple):
    """A range of the index space, and the parts of tensors that lie in it."""

    begin: int
    stop: int
    places: list[tuple[slice, tuple[Tensor, ...]]]

    def gather(self, column: int, device: torch.device) -> Tensor:
        """Collect one column of the tensors in float32; gaps hold anything."""
        value = torch.empty(self.stop - self.begin, device=device)
        for where, tensors in self.places:
            value[where].copy_(tensors[column])
        return value

    def scatter(self, column: int, value: Tensor) -> None:
        """Write float32 values to one column of the tensors, to the nearest of their dtype."""
        for where, tensors in self.places:
            tensors[column].copy_(value[where])

    def scatter_rounded(
        self,
        column: int,
        value: Tensor,
        rounding_seed: Tensor | None,
        stream: int = ROUNDING_STREAM,
    ) -> None:
        """Write as :meth:`scatter`, with stochastic rounding if there is a seed for it."""
        dtypes = {tensors[column].dtype for _, tensors in self.places}
        if rounding_seed is None or dtypes == {torch.float32}:
            self.scatter(column, value)
            return
        random = words(rounding_seed, self.begin, self.stop - self.begin, stream)[0]
        for where, tensors in self.places:
            target = tensors[column]
            target.copy_(round_stochastically(value[where], random[where], target.dtype))


def stretches(offsets: Sequence[int], *columns: Sequence[Tensor]) -> Iterator[Stretch]:
    """Cut the ranges of parallel lists of tensors in pieces of up to PIECE elements."""
    members = [
        (offset, tuple(tensor.view(-1) for tensor in row))
        for offset, row in zip(offsets, zip(*columns, strict=True), strict=True)
        if row[0].numel()
    ]
    for run in _runs(members):
        begin, end = run[0][0], run[-1][0] + run[-1][1][0].numel()
        while begin < end:
            stop = min(end, (begin // PIECE + 1) * PIECE)
            places = []
            for offset, tensors in run:
                low, high = max(begin, offset), min(stop, offset + tensors[0].numel())
                if low < high:
                    part = slice(low - offset, high - offset)
                    places.append(
                        (
                            slice(low - begin, high - begin),
                            tuple(tensor[part] for tensor in tensors),
                        )
                    )
            yield Stretch(begin, stop, places)
            begin = stop


def add_terms(
    value: Tensor, stretch: Stretch, seeds: Tensor, coefficients: Tensor, distribution: str
) -> Tensor:
    """Add ``c_k z(s_k)`` to value for k = 0, 1, ..., each product and sum rounded."""
    count = stretch.stop - stretch.begin
    step = max(1, PIECE // count)
    for probe in range(0, len(seeds), step):
        part = slice(probe, probe + step)
        noise = draw(seeds[part], stretch.begin, count, PERTURBATION_STREAM, distribution)
        for term in noise.mul_(coefficients[part, None]):
            value.add_(term)
    return value


def round_stochastically(value: Tensor, random: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to one of the two neighbours in dtype, the nearer the likelier: right in the mean.

    The magnitude's distance to the lower neighbour, as a binary fraction of the spacing, plus
    the random word as another one carries into the upper neighbour or does not. bfloat16 takes
    16 bits of both, which is all that float32 has below it; float16 takes 24 bits. Infinity is
    returned only where rounding to nearest returns it too; NaN stays NaN.

    Args:
        value: float32, any shape.
        random: int64 tensor of that shape that holds uniform uint32 words.
        dtype: bfloat16 or float16; float32 comes back as it is.

    Returns:
        Tensor of the dtype.
    """
    if dtype == torch.float32:
        return value
    bits = value.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    if dtype == torch.bfloat16:
        total = magnitude + (random >> 16).to(torch.int32)
        finite = total.clamp(max=0x7F7FFFFF)
        # From 0x7F7F8000 on, half a spacing beyond the largest bfloat16, nearest is infinity.
        total = torch.where(magnitude < 0x7F7F8000, finite, total)
        rounded = (total & -(1 << 16)).view(torch.float32)
    else:
        size = magnitude.view(torch.float32).clamp(max=65536.0)
        # Below 2^-14 (exponent field 113) the spacing of float16 is constant.
        exponent = (size.view(torch.int32) >> 23).clamp(min=113)
        scaled = size * ((264 - exponent) << 23).view(torch.float32)
        whole = scaled.to(torch.int32)
        rest = ((scaled - whole) * 2.0**24).to(torch.int32)
        whole = whole + (rest + (random >> 8).to(torch.int32) >> 24)
        rounded = whole * ((exponent - 10) << 23).view(torch.float32)
        rounded = torch.where(size < 65520.0, rounded.clamp(max=65504.0), rounded)
    return torch.where(value.isnan(), value, rounded.copysign(value)).to(dtype)


@torch.no_grad()
def add_noise_(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    offsets: Sequence[int],
    seeds: Tensor,
    coefficients: Tensor,
    decay: float,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Write ``decay * theta + sum_k c_k z(s_k)`` for each input to its output, without a graph.

    Float32 throughout, one rounding per multiply and per add, terms in the order of k, and one
    rounding to the output's dtype at the end.

    Args:
        inputs: contiguous tensors theta_t.
        outputs: tensors of the same shapes and dtypes; an output may be its input.
        offsets: index of the first element of each tensor in the space of the noise.
        seeds: int64 (Q,).
        coefficients: float32 (Q,), on the device of the seeds.
        decay: a float that is exact in float32.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
        rounding_seed: int64 (1,) for stochastic rounding, None for rounding to nearest.
    """
    for stretch in stretches(offsets, inputs, outputs):
        value = stretch.gather(0, seeds.device).mul_(decay)
        add_terms(value, stretch, seeds, coefficients, distribution)
        stretch.scatter_rounded(1, value, rounding_seed)


def perturbed_copies(
    theta: Tensor, seeds: Tensor, coefficients: Tensor, offset: int, stream: int, distribution: str
) -> Tensor:
    """Return (P, *theta.shape): row p is ``theta + c_p z(s_p)`` in theta's dtype.

    Args:
        theta: contiguous tensor.
        seeds: int64 (P,); a seed that occurs more than once is drawn once.
        coefficients: float32 (P,).
        offset: index of the first element of theta in the space of the noise.
        stream: third counter word of the noise.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
    """
    flat = theta.detach().reshape(-1)
    distinct, rows = torch.unique(seeds, return_inverse=True)
    out = torch.empty((len(seeds), flat.numel()), dtype=theta.dtype, device=theta.device)
    step = max(128, PIECE // max(1, len(seeds)) // 128 * 128)
    for begin in range(0, flat.numel() if len(seeds) else 0, step):
        stop = min(begin + step, flat.numel())
        noise = draw(distinct, offset + begin, stop - begin, stream, distribution)[rows]
        out[:, begin:stop] = noise.mul_(coefficients[:, None]).add_(flat[begin:stop])
    return out.view(len(seeds), *theta.shape)
