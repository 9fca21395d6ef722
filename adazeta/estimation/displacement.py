"""How far parameters can move along random directions before the loss rises.

The even part of a pair of losses, ``(l(theta + s z) + l(theta - s z)) / 2 - l(theta)``, is what a
move of s costs whatever the slope is: half the curvature along z times s squared, and more where
the loss leaves the quadratic. Steps along random directions add up to such a move, so its cost
bounds the learning rate (:mod:`adazeta.optim.rate`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

RISE = 0.1
"""Rise of the loss, as a share of it, that random moves of a whole run may cost."""

_FACTOR = 10**0.5
_LEAST, _MOST = 1e-6, 10.0
_FIRST = 1e-2


@dataclass(frozen=True)
class Displacement:
    """What was measured of random moves.

    Attributes:
        scale: factor on a random direction at which the loss rises by the share :data:`RISE`; NaN
            where the loss itself is not finite.
        square: mean square of the slopes along the directions.
        evaluations: losses of the whole batch that this took.
    """

    scale: float
    square: float
    evaluations: int


def tolerable_scale(
    rise_at: Callable[[float], float], known: Mapping[float, float], wanted: float
) -> float:
    """Find the scale at which the loss rises by as much as is wanted.

    Args:
        rise_at: measures the rise at a scale; what is not finite counts as infinite.
        known: rises that are known already, by scale.
        wanted: the rise, above 0.

    Returns:
        The scale, between 1e-6 and 10; one of these ends where the rise is never, or always, as
        large.
    """
    rises = {scale: _finite(rise) for scale, rise in known.items()}
    if not rises:
        rises[_FIRST] = _finite(rise_at(_FIRST))
    while rises[max(rises)] < wanted and max(rises) < _MOST:
        scale = min(max(rises) * _FACTOR, _MOST)
        rises[scale] = _finite(rise_at(scale))
    while rises[min(rises)] > wanted and min(rises) > _LEAST:
        scale = max(min(rises) / _FACTOR, _LEAST)
        rises[scale] = _finite(rise_at(scale))
    above = [scale for scale, rise in rises.items() if rise >= wanted]
    if not above:
        return max(rises)
    high = min(above)
    low = max((scale for scale in rises if scale < high), default=high)
    return _between(low, rises[low], high, rises[high], wanted)


def _between(low: float, below: float, high: float, above: float, wanted: float) -> float:
    """Interpolate on logarithmic axes; as a parabola from above where below is only noise."""
    if low == high or math.isinf(above):
        return low
    if below > 0:
        share = math.log(wanted / below) / math.log(above / below) if above > below else 1.0
        return low * (high / low) ** share
    return max(low, high * math.sqrt(wanted / above))


def _finite(rise: float) -> float:
    return rise if math.isfinite(rise) else math.inf
