"""The sign and HELENE epilogues in plain PyTorch, in pieces that fit a cache.

The ground truth of the tests, and what serves every device but those of Triton. The functions
trust their arguments; ``ops/rules.py`` checks them. Every float32 operation is rounded on its own,
in the order written.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .noise import stretches
from .philox import CURVATURE_ROUNDING_STREAM, MOMENTUM_ROUNDING_STREAM


class HeleneScalars(NamedTuple):
    """The scalars of the HELENE rule, each a float that is exact in float32."""

    beta1: float
    lr: float
    gamma: float
    scale: float
    epsilon: float
    decay: float


class Noise(NamedTuple):
    """The estimate g, and the backend module that makes its noise."""

    module: ModuleType
    seeds: Tensor
    coefficients: Tensor
    distribution: str

    def over(self, begin: int, stop: int) -> Tensor:
        """Return ``sum_k c_k z(s_k)`` for the indices from begin to stop, float32."""
        g = torch.zeros(stop - begin, device=self.seeds.device)
        self.module.add_noise_(
            [g], [g], [begin], self.seeds, self.coefficients, 1.0, self.distribution, None
        )
        return g


@torch.no_grad()
def sign_update_(
    tensors: Sequence[Tensor],
    offsets: Sequence[int],
    noise: Noise,
    lr: float,
    decay: float,
    rounding_seed: Tensor | None,
) -> None:
    """Set ``theta <- decay theta - lr sign(g)``, element by element; sign(0) = 0.

    Args:
        tensors: contiguous tensors theta_t.
        offsets: index of the first element of each in the space of the noise.
        noise: the estimate.
        lr: a float that is exact in float32, as is ``decay``.
        decay: factor on the parameters.
        rounding_seed: int64 (1,) for stochastic rounding, None for rounding to nearest.
    """
    for stretch in stretches(offsets, tensors):
        step = noise.over(stretch.begin, stretch.stop).sign_().mul_(lr)
        theta = stretch.gather(0, noise.seeds.device).mul_(decay).sub_(step)
        stretch.scatter_rounded(0, theta, rounding_seed)


@torch.no_grad()
def square_update_(
    states: Sequence[Tensor],
    offsets: Sequence[int],
    noise: Noise,
    beta: float,
    gain: float,
    rounding_seed: Tensor | None,
) -> None:
    """Set ``h <- beta h + gain g^2``, element by element.

    Args:
        states: contiguous tensors h, float32 or bfloat16.
        offsets: as in :func:`sign_update_`, like the arguments not named here.
        noise: the estimate.
        beta: a float that is exact in float32, as is ``gain``.
        gain: factor on the square.
        rounding_seed: of bfloat16 states.
    """
    for stretch in stretches(offsets, states):
        g = noise.over(stretch.begin, stretch.stop)
        h = stretch.gather(0, noise.seeds.device).mul_(beta).add_(g.mul_(g).mul_(gain))
        stretch.scatter_rounded(0, h, rounding_seed, CURVATURE_ROUNDING_STREAM)


@torch.no_grad()
def helene_update_(
    tensors: Sequence[Tensor],
    momenta: Sequence[Tensor],
    curvatures: Sequence[Tensor],
    floors: Tensor,
    offsets: Sequence[int],
    noise: Noise,
    scalars: HeleneScalars,
    rounding_seed: Tensor | None,
) -> None:
    """Set ``m <- beta1 m + g`` and ``theta <- decay theta - lr m / (gamma max(h, lambda) + eps)``.

    h is the curvature times ``scale``, and lambda the floor of the tensor.

    Args:
        tensors: contiguous tensors theta_t.
        momenta: tensors m of the same shapes, float32 or bfloat16.
        curvatures: likewise h, read only; empty where the floor alone is the divisor.
        floors: float32 (T,), on the device of the seeds.
        offsets: as in :func:`sign_update_`, like the arguments not named here.
        noise: the estimate.
        scalars: of the rule.
        rounding_seed: of parameters and of bfloat16 states.
    """
    device, s = noise.seeds.device, scalars
    for index, offset in enumerate(offsets):
        row = [column[index : index + 1] for column in (tensors, momenta, curvatures) if column]
        for stretch in stretches([offset], *row):
            g = noise.over(stretch.begin, stretch.stop)
            m = stretch.gather(1, device).mul_(s.beta1).add_(g)
            stretch.scatter_rounded(1, m, rounding_seed, MOMENTUM_ROUNDING_STREAM)
            h = floors[index].clone()
            if curvatures:
                h = torch.maximum(stretch.gather(2, device).mul_(s.scale), h)
            u = m.div_(h.mul_(s.gamma).add_(s.epsilon))
            theta = stretch.gather(0, device).mul_(s.decay).sub_(u.mul_(s.lr))
            stretch.scatter_rounded(0, theta, rounding_seed)
