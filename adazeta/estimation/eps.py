"""How large a perturbation must be: rounding noise against curvature.

Rounding of the forward pass is noise in the loss, so a projected gradient measured at eps is

    c(eps) = g + b eps^2 + n / eps

with g the directional derivative, b eps^2 the bias by curvature and n the rounding noise of the
loss difference. For directions k and two perturbation scales the noises are independent, so

    D(e, e') = mean_k (c_k(e) - c_k(e'))^2 = nu (1/e^2 + 1/e'^2) + beta (e'^2 - e^2)^2

with nu = E n^2 and beta = E b^2. Both are fitted to the differences of neighbouring scales, and
the eps that minimises the squared error nu / eps^2 + beta eps^4 is the sixth root of
nu / (2 beta). At scales so small that rounding swallows most of the change, the losses of a pair
round alike and the noises are no longer independent: D falls again towards smaller scales. Such
scales are left out. This is our own method; the idea of measuring noise by differences is that of
More and Wild, "Estimating computational noise" (2011).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPS_GRID = tuple(1e-4 * 10 ** (k / 2) for k in range(7))
"""Scales that ``eps="auto"`` tries: 1e-4 to 1e-1 in half decades."""

# Mean square difference of neighbours over the sum of their mean squares: 0 on a plateau, 1 where
# they are uncorrelated. Above this no scale is trusted.
_NO_SIGNAL = 0.4


@dataclass(frozen=True)
class EpsReport:
    """What :func:`profile_eps` measured.

    Attributes:
        eps: the scale with the smallest predicted error.
        noise: nu, variance of the rounding noise in c at eps = 1.
        curvature: beta, squared curvature bias in c at eps = 1.
        signal: mean square of the noise-free projected gradients.
    """

    eps: float
    noise: float
    curvature: float
    signal: float

    def reliability_at(self, eps: float) -> float:
        """Predicted correlation of projected gradients at eps with their noise-free values."""
        error = self.noise / eps**2 + self.curvature * eps**4
        total = self.signal + error
        return (self.signal / total) ** 0.5 if total > 0 else 0.0


def profile_eps(projected: Tensor, grid: Sequence[float]) -> EpsReport:
    """Find the best perturbation scale from projected gradients at several scales.

    Args:
        projected: float64 (scales, probes): the same directions measured at each scale.
        grid: the scales, ascending, two or more.

    Returns:
        The report. Without measurable noise eps is the smallest scale of the grid, without
        measurable curvature the largest. Where no two scales agree, the signal is 0.

    Raises:
        ValueError: losses are finite at fewer than two neighbouring scales.
    """
    finite = projected.isfinite().all(dim=1)
    squares = projected.square().mean(dim=1)
    found = {
        k: (projected[k + 1] - projected[k]).square().mean()
        for k in range(len(grid) - 1)
        if finite[k] and finite[k + 1]
    }
    if not found:
        raise ValueError(
            f"the losses are not finite at perturbation scales between {grid[0]:g} and "
            f"{grid[-1]:g}; check the model and the data"
        )
    disagreement = {
        k: (difference / (squares[k] + squares[k + 1])).nan_to_num(1.0).item()
        for k, difference in found.items()
    }
    plateau = min(disagreement, key=lambda k: disagreement[k])
    if disagreement[plateau] > _NO_SIGNAL:
        noise = found[plateau].item() * grid[plateau] ** 2
        return EpsReport(eps=grid[plateau + 1], noise=noise, curvature=0.0, signal=0.0)
    pairs = _trusted(found, plateau)
    small = torch.tensor([grid[k] for k in pairs], dtype=torch.float64)
    large = torch.tensor([grid[k + 1] for k in pairs], dtype=torch.float64)
    differences = torch.stack([found[k] for k in pairs])
    design = torch.stack([1 / small**2 + 1 / large**2, (large**2 - small**2) ** 2], dim=1)
    noise, curvature = _fit(design, differences)
    low, high = small.min().item(), large.max().item()
    eps = _minimiser(noise, curvature, low, high)
    nearest = min((k for k in range(len(grid)) if finite[k]), key=lambda k: abs(grid[k] / eps - 1))
    error = noise / grid[nearest] ** 2 + curvature * grid[nearest] ** 4
    signal = max(squares[nearest].item() - error, 0.0)
    return EpsReport(eps=eps, noise=noise, curvature=curvature, signal=signal)


def _trusted(found: dict[int, Tensor], plateau: int) -> list[int]:
    """Leave out the scales below which the differences fall again, where rounding swallows."""
    first = plateau
    while first - 1 in found and found[first - 1] >= found[first]:
        first -= 1
    return [k for k in found if k >= first]


def _fit(design: Tensor, differences: Tensor) -> tuple[float, float]:
    """Fit non-negative (nu, beta) by least squares of relative errors.

    Relative, since the differences span many orders of magnitude. Each pair of scales says
    something about both terms; with one of them at zero the other has a closed form. The sums are
    exact but for one rounding, so that eps has the same bits in every process: LAPACK's last bits
    depend on where in memory its operands lie.
    """
    most = differences.max().item()
    if most == 0:
        return 0.0, 0.0
    parts = differences / most
    scale = parts.clamp_min(1e-16)
    target = (parts / scale).tolist()
    noise, curvature = (column.tolist() for column in (design / scale[:, None]).T)

    def dot(one: list[float], other: list[float]) -> float:
        return math.fsum(x * y for x, y in zip(one, other, strict=True))

    nn, cc, nc = dot(noise, noise), dot(curvature, curvature), dot(noise, curvature)
    nt, ct = dot(noise, target), dot(curvature, target)
    candidates = [(nt / nn, 0.0), (0.0, ct / cc)]
    determinant = nn * cc - nc * nc
    if len(target) > 1 and determinant > 0:
        both = ((nt * cc - ct * nc) / determinant, (ct * nn - nt * nc) / determinant)
        candidates.insert(0, both)

    def error(candidate: tuple[float, float]) -> float:
        nu, beta = candidate
        misfit = [n * nu + c * beta - t for n, c, t in zip(noise, curvature, target, strict=True)]
        return dot(misfit, misfit)

    nu, beta = min((pair for pair in candidates if min(pair) >= 0), key=error)
    return nu * most, beta * most


def _minimiser(noise: float, curvature: float, low: float, high: float) -> float:
    """Minimise noise / eps^2 + curvature eps^4 within the grid."""
    if curvature == 0:
        return high if noise > 0 else low
    return min(max((noise / (2 * curvature)) ** (1 / 6), low), high)
