"""The public optimizer epilogues: check the arguments, then hand over to the backend.

Registered with ``torch.library`` like the noise ops of ``noise.py``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dispatch import backend_module, run_op
from ..reference.updates import AdamScalars
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

__all__ = ["adam_update_", "momentum_update_"]


def _momentum_update(
    tensors: Sequence[Tensor],
    momenta: Sequence[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    offsets: Sequence[int],
    momentum: float,
    lr: float,
    decay: float,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Apply the momentum rule; see ``reference.updates``."""
    check_apart({"tensor": tensors, "momentum": momenta})
    backend_module(seeds, "gpu.updates").momentum_update_(
        tensors,
        momenta,
        offsets,
        seeds,
        coefficients,
        float32(momentum),
        float32(lr),
        float32(decay),
        distribution,
        rounding_seed,
    )


def _adam_update(
    tensors: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    offsets: Sequence[int],
    beta1: float,
    beta2: float,
    lr: float,
    epsilon: float,
    correction1: float,
    correction2: float,
    decay: float,
    inverse_root: Tensor | None,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Apply the Adam rule; see ``reference.updates``."""
    check_apart({"tensor": tensors, "first moment": first, "second moment": second})
    scalars = AdamScalars(
        *map(
            float32,
            (
                beta1,
                1 - beta1,
                beta2,
                1 - beta2,
                lr,
                epsilon,
                1 / correction1,
                1 / correction2,
                decay,
            ),
        )
    )
    backend_module(seeds, "gpu.updates").adam_update_(
        tensors,
        first,
        second,
        offsets,
        seeds,
        coefficients,
        scalars,
        inverse_root,
        distribution,
        rounding_seed,
    )


momentum_update = torch.library.custom_op(
    "adazeta::momentum_update_", _momentum_update, mutates_args={"tensors", "momenta"}
)
adam_update = torch.library.custom_op(
    "adazeta::adam_update_", _adam_update, mutates_args={"tensors", "first", "second"}
)

for _op in (momentum_update, adam_update):
    _op.register_fake(lambda *arguments: None)


@torch.no_grad()
def momentum_update_(
    tensors: Tensor | Sequence[Tensor],
    momenta: Tensor | Sequence[Tensor],
    seeds: Tensor | Sequence[int],
    coefficients: Tensor | Sequence[float],
    *,
    momentum: float,
    lr: float,
    decay: float = 1.0,
    offsets: int | Sequence[int] | None = None,
    distribution: str = "gaussian",
    rounding: str = "nearest",
    rounding_seed: int | Tensor | None = None,
) -> None:
    """Update parameters with momentum in one pass, from probes instead of a gradient.

    With ``g = sum_k c_k z(s_k)``, drawn on the fly::

        m     <- momentum m + g
        theta <- decay theta - lr m

    Polyak's heavy ball (USSR Comput. Math. Math. Phys. 4(5), 1964) as in ``torch.optim.SGD``, on
    zeroth-order estimates. All arithmetic is float32, each operation rounded separately: the same
    bits on every backend. Reads and writes m and theta once each; nothing of their size is
    allocated by the kernels.

    Args:
        tensors: parameters theta, as in :func:`add_noise_`; a list is one kernel launch.
        momenta: float32 tensors m of the same shapes.
        seeds: int64 tensor (Q,) or ints in [0, 2**63).
        coefficients: float32 tensor (Q,) or floats.
        momentum: factor on m. This and the other scalars may change in every step.
        lr: learning rate.
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
        >>> theta, m = torch.zeros(10), torch.zeros(10)
        >>> momentum_update_(theta, m, seeds=[7], coefficients=[2.0], momentum=0.9, lr=0.1)
    """
    check_distribution(distribution)
    thetas = check_tensors(tensors)
    states = check_partners(thetas, momenta, "momentum", torch.float32)
    starts = check_offsets(offsets, thetas, distribution)
    if thetas:
        seeds, values = probe_tensors(seeds, coefficients, thetas[0].device)
        key = rounding_key(rounding, rounding_seed, seeds, thetas)
        run_op(
            momentum_update,
            _momentum_update,
            [*thetas, *states],
            thetas,
            states,
            seeds,
            values,
            starts,
            momentum,
            lr,
            decay,
            distribution,
            key,
        )


@torch.no_grad()
def adam_update_(
    tensors: Tensor | Sequence[Tensor],
    first: Tensor | Sequence[Tensor],
    second: Tensor | Sequence[Tensor] | None,
    seeds: Tensor | Sequence[int],
    coefficients: Tensor | Sequence[float],
    *,
    beta1: float,
    beta2: float,
    lr: float,
    epsilon: float,
    correction1: float,
    correction2: float,
    decay: float = 1.0,
    inverse_root: float | Tensor | None = None,
    offsets: int | Sequence[int] | None = None,
    distribution: str = "gaussian",
    rounding: str = "nearest",
    rounding_seed: int | Tensor | None = None,
) -> None:
    """Update parameters by the Adam rule in one pass, from probes instead of a gradient.

    With ``g = sum_k c_k z(s_k)``, drawn on the fly (Kingma, Ba, arXiv 1412.6980, on
    zeroth-order estimates)::

        m     <- beta1 m + (1 - beta1) g
        v     <- beta2 v + (1 - beta2) g^2
        u      = (m / correction1) / (sqrt(v / correction2) + epsilon)
        theta <- decay theta - lr u

    Without ``second`` there is no v, and ``u = (m / correction1) * inverse_root``. All arithmetic
    is float32, each operation rounded separately (1 - beta and 1 / correction are computed in
    float64 and rounded once): the same bits on every backend.

    Args:
        tensors: parameters theta, as in :func:`add_noise_`; a list is one kernel launch.
        first: float32 tensors m of the same shapes.
        second: float32 tensors v of the same shapes, or None.
        seeds: int64 tensor (Q,) or ints in [0, 2**63).
        coefficients: float32 tensor (Q,) or floats.
        beta1: decay of m, in [0, 1). This and the other scalars may change in every step.
        beta2: decay of v, in [0, 1).
        lr: learning rate.
        epsilon: added to the root of v.
        correction1: 1 - beta1^t after t updates, above 0.
        correction2: 1 - beta2^t.
        decay: factor on theta, such as 1 - lr * weight_decay.
        inverse_root: 1 / (sqrt(v / correction2) + epsilon) for one v that all elements share:
            a float, or a float32 tensor of one element. Given if and only if ``second`` is None.
        offsets: index of each tensor's first element, as in :func:`add_noise_`.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.
        rounding: of theta to its dtype, ``"nearest"`` or ``"stochastic"``, as in
            :func:`add_noise_`.
        rounding_seed: of stochastic rounding, by default the first of ``seeds``.

    Raises:
        TypeError: if a tensor, the seeds or an offset is of the wrong type or dtype.
        ValueError: if shapes, lengths, devices or ranges do not fit, a tensor is not
            contiguous, a scalar is out of its range, both or neither of ``second`` and
            ``inverse_root`` are given, or stochastic rounding has no seed.

    Example:
        >>> theta, m, v = torch.zeros(3, 10)
        >>> adam_update_(theta, m, v, seeds=[7], coefficients=[2.0], beta1=0.9, beta2=0.99,
        ...              lr=0.01, epsilon=1e-8, correction1=0.1, correction2=0.01)
    """
    check_distribution(distribution)
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{name} is {beta}; keep 0 <= {name} < 1")
    for name, correction in (("correction1", correction1), ("correction2", correction2)):
        if not correction > 0:
            raise ValueError(
                f"{name} is {correction}; pass 1 - beta**t for the update t = 1, 2, ..."
            )
    if (second is None) == (inverse_root is None):
        raise ValueError(
            "pass second (a second moment per element) or inverse_root (one for all "
            "elements), and not both"
        )
    thetas = check_tensors(tensors)
    means = check_partners(thetas, first, "first moment", torch.float32)
    squares = (
        [] if second is None else check_partners(thetas, second, "second moment", torch.float32)
    )
    starts = check_offsets(offsets, thetas, distribution)
    if thetas:
        seeds, values = probe_tensors(seeds, coefficients, thetas[0].device)
        key = rounding_key(rounding, rounding_seed, seeds, thetas)
        run_op(
            adam_update,
            _adam_update,
            [*thetas, *means, *squares],
            thetas,
            means,
            squares,
            seeds,
            values,
            starts,
            beta1,
            beta2,
            lr,
            epsilon,
            correction1,
            correction2,
            decay,
            _root(inverse_root, seeds.device),
            distribution,
            key,
        )


def _root(value: float | Tensor | None, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return torch.full((1,), value, dtype=torch.float32, device=device)
    if value.dtype != torch.float32 or value.numel() != 1:
        raise TypeError(
            f"inverse_root is a tensor of dtype {value.dtype} and shape "
            f"{tuple(value.shape)}; pass a float, or a float32 tensor of one element"
        )
    return value.detach().to(device, non_blocking=True).reshape(1)
