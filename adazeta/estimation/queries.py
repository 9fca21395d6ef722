"""How many queries a step spends, as a function of the epoch (AdaZeta, arXiv 2406.18060)."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class QuerySchedule:
    """Queries per step that grow with the epochs: ``Q(e) = min(max(floor(a e^b), 1), Q_max)``.

    ``e`` is the epoch counted from 0, so that the schedule is constant inside an epoch. The
    defaults are the paper's for Llama-2-7B. The paper's convergence bound needs the sum of
    ``1 / Q`` over the steps to grow slower than the steps; a cap gives that guarantee up for a
    bounded cost per step.

    Attributes:
        alpha: multiplier, above 0.
        beta: exponent, 0 or more.
        maximum: largest number of queries, 1 or more.

    Raises:
        ValueError: a value is out of its range.
    """

    alpha: float = 0.85
    beta: float = 0.45
    maximum: int = 20

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.alpha > 0:
            raise ValueError(f"QuerySchedule alpha must be above 0, got {self.alpha}")
        if not self.beta >= 0:
            raise ValueError(f"QuerySchedule beta must be 0 or more, got {self.beta}")
        if self.maximum < 1:
            raise ValueError(f"QuerySchedule maximum must be 1 or more, got {self.maximum}")

    def __call__(self, epoch: float) -> int:
        """Return the number of queries in an epoch.

        Args:
            epoch: epochs done so far; a fraction counts as the epoch it lies in.

        Returns:
            The number of queries per step, between 1 and ``maximum``.
        """
        if epoch < 0:
            raise ValueError(f"the epoch counts from 0, got {epoch}")
        return min(max(math.floor(self.alpha * math.floor(epoch) ** self.beta), 1), self.maximum)


def queries_at(queries: "int | QuerySchedule", epoch: float) -> int:
    """Return the number of queries in an epoch for a fixed number or a schedule."""
    return queries(epoch) if isinstance(queries, QuerySchedule) else queries
