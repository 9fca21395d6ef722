"""How far parameters can move along random directions before the loss rises.

The even part of a pair of losses, ``(l(theta + s z) + l(theta - s z)) / 2 - l(theta)``, is what a
move of s costs whatever the slope is: half the curvature along z times s squared, and more where
the loss leaves the quadratic. Steps along random directions add up to such a move, so its cost
bounds the learning rate (:mod:`adazeta.optim.rate`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

RISE = 0.05
"""Rise of the loss, as a share of it, that random moves of a whole run may cost."""

REACH = 3.0
"""How far random moves of a whole run may go where scores are learnt from, in units of eps.

A score is flat where no text changes, so its rise says nothing; but eps is then the scale at which
a stated share of the texts changes (:mod:`adazeta.estimation.score_scale`).
"""

_FACTOR = 10**0.5
_LEAST, _MOST = 1e-6, 10.0
_FIRST = 1e-2
_HALVINGS = 3  # of half a decade, the distance between scales: to within 8% of the true one


@dataclass(frozen=True)
class Displacement:
    """What was measured of random moves.

    Attributes:
        scale: factor on a random direction at which the loss rises by the share :data:`RISE`; NaN
            where the loss itself is not finite.
        square: mean square of the slopes along the directions; None: that of the first step's.
        evaluations: losses of the whole batch that this took.
    """

    scale: float
    square: float | None
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
        The scale to within 8%, between 1e-6 and 10; one of these ends where the rise is never, or
        always, as large.
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
    for _ in range(_HALVINGS):
        low, high = _bracket(rises, wanted)
        if low == high:
            return low
        middle = math.sqrt(low * high)
        rises[middle] = _finite(rise_at(middle))
    low, high = _bracket(rises, wanted)
    return math.sqrt(low * high)


def _bracket(rises: Mapping[float, float], wanted: float) -> tuple[float, float]:
    """Return neighbouring scales with the wanted rise between them; twice an end if there are none.

    The loss may fall again far away: the first scale that costs too much counts.
    """
    above = [scale for scale, rise in rises.items() if rise >= wanted]
    if not above:
        return max(rises), max(rises)
    high = min(above)
    return max((scale for scale in rises if scale < high), default=high), high


def _finite(rise: float) -> float:
    return rise if math.isfinite(rise) else math.inf
