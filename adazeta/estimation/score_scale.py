"""How large a perturbation must be where a score is trained: as large as to change what is written.

A score of greedy text moves in jumps. Below some scale no completion changes and all differences
are 0; far above it the text has nothing to do with the model any more. So the scale is that at
which a stated share of the completions (one half) differs from the unperturbed ones. The share
grows with the scale, so a bisection of a coarse grid finds it, and the logarithm of the scale is
interpolated between the two neighbours. This is our own rule.
"""

import logging
import math
from collections.abc import Callable

logger = logging.getLogger(__name__)

SCORE_GRID = tuple(1e-4 * 10 ** (k / 2) for k in range(13))
"""Scales that are tried: 1e-4 to 1e2 in half decades."""


def find_scale(share: Callable[[float], float], wanted: float) -> tuple[float, int]:
    """Find the scale at which a share of the completions changes.

    Args:
        share: measures the share of completions that a scale changes.
        wanted: the share to reach.

    Returns:
        The scale, within the grid, and the number of scales that were tried.

    Raises:
        ValueError: no completion changes at any scale.
    """
    found: dict[int, float] = {}
    low, high = -1, len(SCORE_GRID)
    while high - low > 1:
        middle = (low + high) // 2
        found[middle] = share(SCORE_GRID[middle])
        low, high = (middle, high) if found[middle] < wanted else (low, middle)
    if high == len(SCORE_GRID):
        if not found[low] > 0:
            raise ValueError(
                f"no completion changes at perturbations up to eps={SCORE_GRID[-1]:g}: the trained "
                "parameters do not reach what is written; are there adapters in the model, and do "
                "they act on the tokens that are generated?"
            )
        eps = SCORE_GRID[low]
    elif low < 0:
        eps = SCORE_GRID[0]
    else:
        part = (wanted - found[low]) / max(found[high] - found[low], 1e-12)
        eps = math.exp((1 - part) * math.log(SCORE_GRID[low]) + part * math.log(SCORE_GRID[high]))
    shares = ", ".join(f"{SCORE_GRID[k]:.1e}: {found[k]:.0%}" for k in sorted(found))
    logger.info("eps %.2g, for %.0f%% of the completions to change (%s)", eps, 100 * wanted, shares)
    return eps, len(found)
