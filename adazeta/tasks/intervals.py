"""Confidence intervals of metrics.

Apart from the metrics themselves, of which a task knows more than the number of examples.
"""

import math

import numpy as np

_Z = 1.959963984540054  # of 95%
_DRAWS = 2000


def wilson(share: float, count: int) -> tuple[float, float]:
    """Compute the 95% interval of a share by Wilson's score (1927).

    Args:
        share: of successes, 0 to 1.
        count: of trials.

    Returns:
        Lower and upper end, 0 to 1.

    Raises:
        ValueError: there is no trial, or the share is none.
    """
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f"a share of 0 to 1 of one trial or more, got {share} of {count}")
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    spread = math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    half = _Z * spread / (1 + _Z**2 / count)
    low = 0.0 if share == 0 else max(middle - half, 0.0)
    return low, 1.0 if share == 1 else min(middle + half, 1.0)


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """Compute the 95% interval of a mean by the percentiles of 2,000 resamples.

    Args:
        values: float (N,), one of each example.

    Returns:
        Lower and upper end; the same values give the same interval.

    Raises:
        ValueError: there is none.
    """
    if not len(values):
        raise ValueError("no value, so no interval")
    draws = np.random.default_rng(0)
    means = [values[draws.integers(0, len(values), len(values))].mean() for _ in range(_DRAWS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
