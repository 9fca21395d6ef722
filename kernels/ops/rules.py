"""The sign and HELENE epilogues: check the arguments, then hand over to the backend.

Registered with ``torch.library`` like the noise ops of ``noise.py``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..dispatch import backend_module, run_op
from ..reference import rules
from ..reference.rules import HeleneScalars, Noise
from .checks import (
    check_apart,
    check_distribution,
    check_offsets,
    check_partners,
    check_tensors,
    float32,
    probe_tensors,
    rounding_key,
)

__all__ = ["helene_update_", "sign_update_", "square_update_"]

STATES = (torch.float32, torch.bfloat16)


def _noise(seeds: Tensor, coefficients: Tensor, distribution: str) -> Noise:
    return Noise(backend_module(seeds, "gpu.noise"), seeds, coefficients, distribution)


def _sign_update(
    tensors: Sequence[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    offsets: Sequence[int],
    lr: float,
    decay: float,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Apply the sign rule; see ``reference.rules``."""
    check_apart({"tensor": tensors})
    rules.sign_update_(
        tensors,
        offsets,
        _noise(seeds, coefficients, distribution),
        float32(lr),
        float32(decay),
        rounding_seed,
    )


def _square_update(
    states: Sequence[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    offsets: Sequence[int],
    beta: float,
    gain: float,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Update a moving average of the squared estimate; see ``reference.rules``."""
    check_apart({"state": states})
    rules.square_update_(
        states,
        offsets,
        _noise(seeds, coefficients, distribution),
        float32(beta),
        float32(gain),
        rounding_seed,
    )


def _helene_update(
    tensors: Sequence[Tensor],
    momenta: Sequence[Tensor],
    curvatures: Sequence[Tensor],
    floors: Tensor,
    seeds: Tensor,
    coefficients: Tensor,
    offsets: Sequence[int],
    beta1: float,
    lr: float,
    gamma: float,
    scale: float,
    epsilon: float,
    decay: float,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Apply the HELENE rule; see ``reference.rules``."""
    check_apart({"tensor": tensors, "momentum": momenta}, {"curvature": curvatures})
    scalars = HeleneScalars(*map(float32, (beta1, lr, gamma, scale, epsilon, decay)))
    rules.helene_update_(
        tensors,
        momenta,
        curvatures,
        floors,
        offsets,
        _noise(seeds, coefficients, distribution),
        scalars,
        rounding_seed,
    )


sign_update = torch.library.custom_op(
    "adazeta::sign_update_", _sign_update, mutates_args={"tensors"}
)
square_update = torch.library.custom_op(
    "adazeta::square_update_", _square_update, mutates_args={"states"}
)
helene_update = torch.library.custom_op(
    "adazeta::helene_update_", _helene_update, mutates_args={"tensors", "momenta"}
)

for _op in (sign_update, square_update, helene_update):
    _op.register_fake(lambda *arguments: None)


def _run(
    op: Callable[..., None],
    plain: Callable[..., None],
    tensors: Tensor | Sequence[Tensor],
    seeds: Tensor | Sequence[int],
    coefficients: Tensor | Sequence[float],
    scalars: tuple[float, float],
    offsets: int | Sequence[int] | None,
    distribution: str,
    rounding: str,
    rounding_seed: int | Tensor | None,
) -> None:
    """Check the arguments of an op on one list of tensors, and run it."""
    check_distribution(distribution)
    found = check_tensors(tensors)
    starts = check_offsets(offsets, found, distribution)
    if found:
        seeds, values = probe_tensors(seeds, coefficients, found[0].device)
        key = rounding_key(rounding, rounding_seed, seeds, found)
        run_op(op, plain, found, found, seeds, values, starts, *scalars, distribution, key)


@torch.no_grad()
def sign_update_(
    tensors: Tensor | Sequence[Tensor],
    seeds: Tensor | Sequence[int],
    coefficients: Tensor | Sequence[float],
    *,
    lr: float,
    decay: float = 1.0,
    offsets: int | Sequence[int] | None = None,
    distribution: str = "gaussian",
    rounding: str = "nearest",
    rounding_seed: int | Tensor | None = None,
) -> None:
    """Move every parameter by the same amount, against the sign of its part of the estimate.

    With ``g = sum_k c_k z(s_k)``, drawn on the fly (ZO-signSGD, Liu et al. (2019), ICLR)::

        theta <- decay theta - lr sign(g)        element by element; sign(0) = 0

    All arithmetic is float32, each operation rounded separately. Reads and writes theta once.

    Args:
        tensors: parameters theta, as in :func:`add_noise_`.
        seeds: int64 tensor (Q,) or ints in [0, 2**63).
        coefficients: float32 tensor (Q,) or floats.
        lr: size of the step of an element.
        decay: factor on theta, such as 1 - lr * weight_decay.
        offsets: index of each tensor's first element, as in :func:`add_noise_`.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
        rounding: of theta to its dtype, ``"nearest"`` or ``"stochastic"``, as in
            :func:`add_noise_`.
        rounding_seed: of stochastic rounding, by default the first of ``seeds``.

    Raises:
        TypeError: if a tensor, the seeds or an offset is of the wrong type or dtype.
        ValueError: if shapes, lengths, devices or ranges do not fit, a tensor is not
            contiguous, or stochastic rounding has no seed.

    Example:
        >>> theta = torch.zeros(4)
        >>> sign_update_(theta, [7], [1.0], lr=0.5)
        >>> theta.abs()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    _run(
        sign_update,
        _sign_update,
        tensors,
        seeds,
        coefficients,
        (lr, decay),
        offsets,
        distribution,
        rounding,
        rounding_seed,
    )


@torch.no_grad()
def square_update_(
    states: Tensor | Sequence[Tensor],
    seeds: Tensor | Sequence[int],
    coefficients: Tensor | Sequence[float],
    *,
    beta: float,
    gain: float,
    offsets: int | Sequence[int] | None = None,
    distribution: str = "gaussian",
    rounding: str = "nearest",
    rounding_seed: int | Tensor | None = None,
) -> None:
    """Update a moving average of the squared estimate, the curvature of HELENE (arXiv 2411.10696).

    With ``g = sum_k c_k z(s_k)``, drawn on the fly: ``h <- beta h + gain g^2``.

    Args:
        states: float32 or bfloat16 tensors h; a bfloat16 one is rounded at the end.
        seeds: int64 tensor (Q,) or ints in [0, 2**63).
        coefficients: float32 tensor (Q,) or floats.
        beta: factor on h.
        gain: factor on the square, such as (1 - beta) * scale.
        offsets: index of each tensor's first element, as in :func:`add_noise_`.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
        rounding: of bfloat16 states, ``"nearest"`` or ``"stochastic"``.
        rounding_seed: of stochastic rounding, by default the first of ``seeds``.

    Raises:
        TypeError, ValueError: as :func:`sign_update_`.

    Example:
        >>> h = torch.ones(3)
        >>> square_update_(h, [7], [2.0], beta=0.5, gain=0.25, distribution="rademacher")
        >>> h
        tensor([1.5000, 1.5000, 1.5000])
    """
    _run(
        square_update,
        _square_update,
        states,
        seeds,
        coefficients,
        (beta, gain),
        offsets,
        distribution,
        rounding,
        rounding_seed,
    )


@torch.no_grad()
def helene_update_(
    tensors: Tensor | Sequence[Tensor],
    momenta: Tensor | Sequence[Tensor],
    curvatures: Tensor | Sequence[Tensor] | None,
    floors: Tensor | Sequence[float],
    seeds: Tensor | Sequence[int],
    coefficients: Tensor | Sequence[float],
    *,
    beta1: float,
    lr: float,
    gamma: float = 1.0,
    scale: float = 1.0,
    epsilon: float = 0.0,
    decay: float = 1.0,
    offsets: int | Sequence[int] | None = None,
    distribution: str = "gaussian",
    rounding: str = "nearest",
    rounding_seed: int | Tensor | None = None,
) -> None:
    """Update parameters by the HELENE rule, from probes instead of a gradient.

    With ``g = sum_k c_k z(s_k)``, drawn on the fly, and lambda_t the floor of tensor t (HELENE,
    arXiv 2411.10696; the annealing factor of g is part of the coefficients)::

        m     <- beta1 m + g
        theta <- decay theta - lr m / (gamma max(scale h, lambda_t) + epsilon)

    All arithmetic is float32, each operation rounded separately.

    Args:
        tensors: parameters theta, as in :func:`add_noise_`.
        momenta: tensors m of the same shapes, all float32 or all bfloat16.
        curvatures: tensors h of the same shapes and of the dtype of ``momenta``, read only; or
            None: lambda_t alone is in the place of the maximum.
        floors: lambda, one of each tensor: float32 tensor (T,) or floats.
        seeds: int64 tensor (Q,) or ints in [0, 2**63).
        coefficients: float32 tensor (Q,) or floats.
        beta1: factor on m. This and the other scalars may change in every step.
        lr: learning rate.
        gamma: factor on the clipped curvature.
        scale: factor on h, such as the reciprocal of its bias correction.
        epsilon: added to the divisor.
        decay: factor on theta, such as 1 - lr * weight_decay.
        offsets: index of each tensor's first element, as in :func:`add_noise_`.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
        rounding: of theta and of bfloat16 states, ``"nearest"`` or ``"stochastic"``; each is
            rounded by a stream of noise of its own.
        rounding_seed: of stochastic rounding, by default the first of ``seeds``.

    Raises:
        TypeError, ValueError: as :func:`sign_update_`.

    Example:
        >>> theta, m, h = torch.zeros(3), torch.ones(3), torch.full((3,), 0.1)
        >>> helene_update_(theta, m, h, [0.5], [7], [0.0], beta1=0.5, lr=1.0)
        >>> theta  # lr beta1 m / max(h, 0.5)
        tensor([-1., -1., -1.])
    """
    check_distribution(distribution)
    thetas = check_tensors(tensors)
    first = [momenta] if isinstance(momenta, Tensor) else list(momenta)
    dtype = first[0].dtype if first and first[0].dtype in STATES else torch.float32
    states = check_partners(thetas, first, "momentum", dtype)
    squares = [] if curvatures is None else check_partners(thetas, curvatures, "curvature", dtype)
    starts = check_offsets(offsets, thetas, distribution)
    if thetas:
        device = thetas[0].device
        seeds, values = probe_tensors(seeds, coefficients, device)
        key = rounding_key(rounding, rounding_seed, seeds, [*thetas, *states])
        least = torch.as_tensor(floors, dtype=torch.float32).detach().to(device)
        if least.shape != (len(thetas),):
            raise ValueError(
                f"floors has shape {tuple(least.shape)} for {len(thetas)} tensors; pass one each"
            )
        run_op(
            helene_update,
            _helene_update,
            [*thetas, *states],
            thetas,
            states,
            squares,
            least,
            seeds,
            values,
            starts,
            beta1,
            lr,
            gamma,
            scale,
            epsilon,
            decay,
            distribution,
            key,
        )
