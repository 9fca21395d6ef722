"""The momentum and Adam epilogues in plain PyTorch: the ground truth, and the path of any device.

The functions here trust their arguments; ``ops/updates.py`` checks them. Every float32 operation is
rounded on its own, in the order written.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .noise import add_terms, stretches
from .philox import square_root


class AdamScalars(NamedTuple):
    """The scalars of the Adam rule, each a float that is exact in float32.

    ``rest1`` and ``rest2`` are 1 - beta1 and 1 - beta2; ``scale1`` and ``scale2`` are the
    reciprocals of the bias corrections.
    """

    beta1: float
    rest1: float
    beta2: float
    rest2: float
    lr: float
    epsilon: float
    scale1: float
    scale2: float
    decay: float


@torch.no_grad()
def momentum_update_(
    tensors: Sequence[Tensor],
    momenta: Sequence[Tensor],
    offsets: Sequence[int],
    seeds: Tensor,
    coefficients: Tensor,
    momentum: float,
    lr: float,
    decay: float,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Set ``m <- momentum m + g`` and ``theta <- decay theta - lr m``, g = sum_k c_k z(s_k).

    Args:
        tensors: contiguous tensors theta_t.
        momenta: float32 tensors of the same shapes.
        offsets: as in ``noise.add_noise_``, like the arguments not named here.
        seeds: int64 (Q,).
        coefficients: float32 (Q,).
        momentum: a float that is exact in float32, as are the next two.
        lr: learning rate.
        decay: factor on the parameters.
        distribution: of the noise.
        rounding_seed: as in ``noise.add_noise_``.
    """
    device = seeds.device
    for stretch in stretches(offsets, tensors, momenta):
        g = torch.zeros(stretch.stop - stretch.begin, device=device)
        add_terms(g, stretch, seeds, coefficients, distribution)
        m = stretch.gather(1, device).mul_(momentum).add_(g)
        stretch.scatter(1, m)
        theta = stretch.gather(0, device).mul_(decay).sub_(m.mul_(lr))
        stretch.scatter_rounded(0, theta, rounding_seed)


@torch.no_grad()
def adam_update_(
    tensors: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    offsets: Sequence[int],
    seeds: Tensor,
    coefficients: Tensor,
    scalars: AdamScalars,
    inverse_root: Tensor | None,
    distribution: str,
    rounding_seed: Tensor | None,
) -> None:
    """Set ``m <- b1 m + (1-b1) g``, ``v <- b2 v + (1-b2) g^2`` and ``theta <- decay theta - lr u``.

    ``u = m / corr1 / (sqrt(v / corr2) + epsilon)``, or ``m / corr1 * inverse_root`` without v.

    Args:
        tensors: contiguous tensors theta_t.
        first: first moments m, float32 tensors of the same shapes.
        second: second moments v, likewise; empty if ``inverse_root`` is given.
        offsets: as in ``noise.add_noise_``, like the arguments not named here.
        seeds: int64 (Q,).
        coefficients: float32 (Q,).
        scalars: of the rule.
        inverse_root: float32 (1,), the same for all elements, or None.
        distribution: of the noise.
        rounding_seed: as in ``noise.add_noise_``.
    """
    device, s = seeds.device, scalars
    for stretch in stretches(offsets, tensors, first, *([second] if second else [])):
        g = torch.zeros(stretch.stop - stretch.begin, device=device)
        add_terms(g, stretch, seeds, coefficients, distribution)
        m = stretch.gather(1, device).mul_(s.beta1).add_(g * s.rest1)
        stretch.scatter(1, m)
        u = m.mul_(s.scale1)
        if inverse_root is None:
            v = stretch.gather(2, device).mul_(s.beta2).add_(g.mul_(g).mul_(s.rest2))
            stretch.scatter(2, v)
            u.div_(square_root(v.mul_(s.scale2)).add_(s.epsilon))
        else:
            u.mul_(inverse_root)
        theta = stretch.gather(0, device).mul_(s.decay).sub_(u.mul_(s.lr))
        stretch.scatter_rounded(0, theta, rounding_seed)
