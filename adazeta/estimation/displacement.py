"""How far parameters can move along random directions before the loss rises.

The even part of a pair of losses, ``(l(theta + s z) + l(theta - s z)) / 2 - l(theta)``, is what a
move of s costs whatever the slope is. Of language models it is a wall rather than a parabola: it
rises with about the fifth power of s, and what a few directions say of it is mostly noise as long
as it is small. So the wall is looked for where it is high, and moves keep at a distance from it.
Steps along random directions add up to such a move, so the wall bounds the learning rate
(:mod:`adazeta.optim.rate`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

RISE = 0.25
"""Rise of the loss, as a share of it, at which the wall is."""

NEARNESS = 0.75
"""How far random moves of a whole run may go, as a share of the way to the wall."""

REACH = 3.0
"""How far random moves of a whole run may go where scores are learnt from, in units of eps.

A score is flat where no text changes, so its rise says nothing; but eps is then the scale at which
a stated share of the texts changes (:mod:`adazeta.estimation.score_scale`).
"""

_FACTOR = 10**0.5
_LEAST, _MOST = 1e-6, 10.0
_FIRST = 1e-2
_HALVINGS = 2  # of half a decade, the distance between scales; then interpolation


@dataclass(frozen=True)
class Displacement:
    """What was measured of random moves.

    Attributes:
        scale: factor on a random direction that moves of a whole run may add up to; NaN where the
            loss itself is not finite.
        square: mean square of the slopes along the directions; None: that of the first step's.
        evaluations: losses of the whole batch that this took.
    """

    scale: float
    square: float | None
    evaluations: int


def run_scale(
    rise_at: Callable[[float], float], known: Mapping[float, float], loss: float
) -> float:
    """Return how far random moves of a whole run may go; NaN where the loss is not finite.

    Args:
        rise_at: measures the rise of the loss at a scale.
        known: see :func:`tolerable_scale`.
        loss: at the start.
    """
    if not math.isfinite(loss):
        return math.nan
    return NEARNESS * tolerable_scale(rise_at, known, RISE * abs(loss))


def tolerable_scale(
    rise_at: Callable[[float], float], known: Mapping[float, float], wanted: float
) -> float:
    """Find the scale at which the loss rises by as much as is wanted.

    Args:
        rise_at: measures the rise at a scale; what is not finite counts as infinite.
        known: rises that are known already, by scale.
        wanted: the rise, above 0.

    Returns:
        The scale, between 1e-6 and 10: where the rise is a power of it to within rounding, and
        otherwise to within a third; one of these ends where the rise is never, or always, as large.
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
    if rises[high] == math.inf:
        return low
    if not 0 < rises[low] < rises[high]:
        return math.sqrt(low * high)
    share = math.log(wanted / rises[low]) / math.log(rises[high] / rises[low])
    return low * (high / low) ** share


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
