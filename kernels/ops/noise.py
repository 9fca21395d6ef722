"""The public noise ops: check the arguments, then hand over to the backend of the device.

Each is registered with ``torch.library`` (names ``adazeta::...``), so that ``torch.compile`` and
export see one opaque op with a schema. The registered ops trust their arguments.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dispatch import backend_module, run_op
from ..reference.philox import PERTURBATION_STREAM
from .checks import (
    aligned_offsets,
    check_apart,
    check_distribution,
    check_offsets,
    check_partners,
    check_range,
    check_tensor,
    check_tensors,
    float32,
    probe_tensors,
    rounding_key,
    seed_tensor,
)

__all__ = ["add_noise_", "aligned_offsets", "gaussian", "pairs", "perturbed_copies", "rademacher"]


@torch.library.custom_op("adazeta::draw", mutates_args=())
def draw(seeds: Tensor, start: int, count: int, stream: int, distribution: str) -> Tensor:
    """Draw float32 (P, count) for int64 seeds (P,)."""
    if not count or not len(seeds):
        return torch.zeros((len(seeds), count), device=seeds.device)
    values: Tensor = backend_module(seeds, "gpu.noise").draw(
        seeds, start, count, stream, distribution
    )
    # The reference draws whole counters and returns a part of them.
    whole = values.is_contiguous() and not values.storage_offset()
    return values if whole else values.clone(memory_format=torch.contiguous_format)


@draw.register_fake
def _(seeds: Tensor, start: int, count: int, stream: int, distribution: str) -> Tensor:
    return torch.empty((seeds.shape[0], count), dtype=torch.float32, device=seeds.device)


def _add_noise(
    tensors: Sequence[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    offsets: Sequence[int],
    decay: float,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Write ``decay * theta + sum_k c_k z(s_k)`` over each tensor; see ``reference.noise``."""
    check_apart({"tensor": tensors})
    backend_module(seeds, "gpu.noise").add_noise_(
        tensors, tensors, offsets, seeds, coefficients, float32(decay), distribution, rounding_seed
    )


def _add_noise_out(
    tensors: Sequence[Tensor],
    out: Sequence[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    offsets: Sequence[int],
    decay: float,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Write what :func:`_add_noise` writes to ``out``."""
    check_apart({"out": out}, {"tensor": tensors})
    backend_module(seeds, "gpu.noise").add_noise_(
        tensors, out, offsets, seeds, coefficients, float32(decay), distribution, rounding_seed
    )


add_noise = torch.library.custom_op("adazeta::add_noise_", _add_noise, mutates_args={"tensors"})
add_noise_out = torch.library.custom_op(
    "adazeta::add_noise_out", _add_noise_out, mutates_args={"out"}
)

for _op in (add_noise, add_noise_out):
    _op.register_fake(lambda *arguments: None)


@torch.library.custom_op("adazeta::perturbed_copies", mutates_args=())
def copies(
    tensor: Tensor, seeds: Tensor, coefficients: Tensor, offset: int, distribution: str
) -> Tensor:
    """Return ``theta + c_p z(s_p)`` for each probe, (P, *tensor.shape)."""
    found: Tensor = backend_module(seeds, "gpu.noise").perturbed_copies(
        tensor, seeds, coefficients, offset, PERTURBATION_STREAM, distribution
    )
    return found


@copies.register_fake
def _(
    tensor: Tensor, seeds: Tensor, coefficients: Tensor, offset: int, distribution: str
) -> Tensor:
    return tensor.new_empty((seeds.shape[0], *tensor.shape))


@torch.no_grad()
def _draw(
    seed: int | Tensor,
    start: int,
    count: int,
    stream: int,
    device: torch.device | str | None,
    distribution: str,
) -> Tensor:
    check_range(start, count, "start")
    if not 0 <= stream < 1 << 32:
        raise ValueError(f"stream {stream} is not a 32-bit word; keep 0 <= stream < 2**32")
    single = not isinstance(seed, Tensor) or seed.dim() == 0
    if isinstance(seed, Tensor):
        where = seed.device if device is None else torch.device(device)
        seeds = seed_tensor(seed.reshape(-1) if single else seed, where)
    else:
        seeds = seed_tensor([seed], torch.device("cpu" if device is None else device))
    values = draw(seeds, start, count, stream, distribution)
    return values[0] if single else values


def gaussian(
    seed: int | Tensor,
    start: int,
    count: int,
    *,
    stream: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the standard normals z(seed, start) .. z(seed, start + count - 1).

    Noise version 1: Philox-4x32-10 counters (Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3", SC 2011) and Box-Muller, element i from lane i mod 4 of the counter i div 4::

        z = sqrt(-2 log u0) cos(2 pi u1), sqrt(-2 log u0) sin(2 pi u1)    for words 0, 1 and 2, 3

    The same bits on every backend and device, and for every way to cut the index space in ranges.
    Each normal is within 4e-7 of its exact value.

    Args:
        seed: an int in [0, 2**63), or an int64 tensor of shape () or (P,) of 64-bit seeds.
        start: element index of the first normal, in [0, 2**63).
        count: how many.
        stream: 0 is that of perturbations, 1 to 4 serve other purposes of this package
            (``reference/philox.py`` lists them), the rest are free.
        device: where to draw; by default the device of ``seed``, or the CPU.

    Returns:
        float32 tensor of shape (count,), or (P, count) for P seeds.

    Raises:
        ValueError: if the seed, the range or the stream is out of bounds.
        TypeError: if ``start`` is no int or ``seed`` is a tensor of another dtype or rank.

    Example:
        >>> z = gaussian(7, 0, 1000)
        >>> torch.equal(gaussian(7, 300, 5), z[300:305])
        True
    """
    return _draw(seed, start, count, stream, device, "gaussian")


def rademacher(
    seed: int | Tensor,
    start: int,
    count: int,
    *,
    stream: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
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

    Example:
        >>> rademacher(7, 0, 1000).abs().sum().item()
        1000.0
    """
    return _draw(seed, start, count, stream, device, "rademacher")


def pairs(
    seed: int | Tensor,
    start: int,
    count: int,
    *,
    stream: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw standard normals of noise version 2; arguments and errors as in :func:`gaussian`.

    Two normals from each word, elements 2 j and 2 j + 1 of 8 from word j of the counter i div 8::

        z = +- r cos(a), +- r sin(a)    r = sqrt(-2 log u) of 20 bits, a in (0, pi/2) of 9 bits

    Less than half of the operations of :func:`gaussian`, from half of its random bits. Each normal
    is within 5e-5 of its exact value for these bits. The same bits on every backend and device
    (``reference/pairs.py`` is the specification).

    Args:
        seed: an int in [0, 2**63), or an int64 tensor of shape () or (P,).
        start: element index of the first normal.
        count: how many.
        stream: third counter word.
        device: where to draw.

    Returns:
        float32 tensor of shape (count,), or (P, count) for P seeds.

    Example:
        >>> z = pairs(7, 0, 1000)
        >>> torch.equal(pairs(7, 300, 5), z[300:305])
        True
    """
    return _draw(seed, start, count, stream, device, "pairs")


@torch.no_grad()
def add_noise_(
    tensors: Tensor | Sequence[Tensor],
    seeds: Tensor | Sequence[int],
    coefficients: Tensor | Sequence[float],
    *,
    offsets: int | Sequence[int] | None = None,
    decay: float = 1.0,
    out: Tensor | Sequence[Tensor] | None = None,
    distribution: str = "gaussian",
    rounding: str = "nearest",
    rounding_seed: int | Tensor | None = None,
) -> Tensor | Sequence[Tensor]:
    """Set ``theta <- decay * theta + sum_k c_k z(s_k)`` in one pass over the parameters.

    This one primitive perturbs (one seed, coefficient eps), flips (-2 eps), restores and
    updates (design section 4; the seed trick is that of MeZO, arXiv 2305.17333). All arithmetic
    is float32, each multiply and add rounded separately, terms in the order k = 0, 1, ..., one
    rounding to the tensor's dtype at the end: the same bits on every backend.

    Args:
        tensors: contiguous float32, bfloat16 or float16 tensors on one device, of mixed dtypes
            if need be. One tensor or a list; a list is one kernel launch. Empty tensors are
            allowed.
        seeds: int64 tensor (Q,) or ints in [0, 2**63); Q = 0 only scales.
        coefficients: float32 tensor (Q,) or floats (rounded to float32).
        offsets: index of each tensor's first element in the parameter space; by default the
            tensors lie one after another, each begun on a multiple of 4 (of 8 with ``"pairs"``).
        decay: factor on the parameters, rounded to float32.
        out: tensors of the same shapes, dtypes and device to write instead; ``tensors`` then
            stay as they are.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
        rounding: to the tensor's dtype: ``"nearest"``, or ``"stochastic"``: to one of the two
            neighbours with the probability that makes the mean exact, so that bfloat16 and
            float16 parameters take updates far below their resolution. float32 is the same
            either way.
        rounding_seed: of stochastic rounding, an int in [0, 2**63) or an int64 tensor of one
            element; by default the first of ``seeds``. Give it another value in every step.

    Returns:
        ``out`` if given, else ``tensors``.

    Raises:
        TypeError: if a tensor, the seeds or an offset is of the wrong type or dtype.
        ValueError: if shapes, lengths, devices or ranges do not fit, a tensor is not
            contiguous, one that is written shares memory with another (``out`` may be the
            tensors themselves), or stochastic rounding has no seed.

    Example:
        >>> theta, other = torch.zeros(4), torch.ones(3, dtype=torch.bfloat16)
        >>> scratch = [torch.empty_like(theta), torch.empty_like(other)]
        >>> noisy = add_noise_([theta, other], [7], [0.5], out=scratch)  # perturb: others stay
        >>> torch.equal(noisy[0], 0.5 * gaussian(7, 0, 4))
        True
        >>> _ = add_noise_([theta, other], [7, 8], [-1e-6, 2e-6], decay=0.999,
        ...                rounding="stochastic")  # update from two probes
    """
    check_distribution(distribution)
    inputs = check_tensors(tensors)
    outputs = inputs if out is None else check_partners(inputs, out, "out")
    starts = check_offsets(offsets, inputs, distribution)
    if inputs:
        seeds, values = probe_tensors(seeds, coefficients, inputs[0].device)
        key = rounding_key(rounding, rounding_seed, seeds, inputs)
        if out is None:
            run_op(
                add_noise,
                _add_noise,
                inputs,
                inputs,
                seeds,
                values,
                starts,
                decay,
                distribution,
                key,
            )
        else:
            run_op(
                add_noise_out,
                _add_noise_out,
                outputs,
                inputs,
                outputs,
                seeds,
                values,
                starts,
                decay,
                distribution,
                key,
            )
    return tensors if out is None else out


@torch.no_grad()
def perturbed_copies(
    tensor: Tensor,
    seeds: Tensor | Sequence[int],
    coefficients: Tensor | Sequence[float],
    *,
    offset: int = 0,
    distribution: str = "gaussian",
) -> Tensor:
    """Return P perturbed copies of a tensor in one launch: row p is ``theta + c_p z(s_p)``.

    The same bits as P calls of :func:`add_noise_` with one seed each and ``out=``: what a stacked
    evaluation of P perturbed models reads (design section 6; batched directions as in FZOO,
    arXiv 2506.09034).

    Args:
        tensor: contiguous float32, bfloat16 or float16 tensor; it is not changed.
        seeds: int64 tensor (P,) or ints in [0, 2**63).
        coefficients: float32 tensor (P,) or floats (rounded to float32).
        offset: index of the tensor's first element in the parameter space.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.

    Returns:
        Tensor of shape (P, *tensor.shape) and the tensor's dtype.

    Raises:
        TypeError: if an argument is of the wrong type or dtype.
        ValueError: if lengths or ranges do not fit, or the tensor is not contiguous.

    Example:
        >>> theta = torch.randn(3, 5)
        >>> both = perturbed_copies(theta, seeds=[7, 7], coefficients=[0.01, -0.01])
        >>> both.shape
        torch.Size([2, 3, 5])
    """
    check_distribution(distribution)
    check_tensor(tensor, "tensor")
    check_range(offset, tensor.numel(), "offset")
    seeds, values = probe_tensors(seeds, coefficients, tensor.device)
    return copies(tensor, seeds, values, offset, distribution)
