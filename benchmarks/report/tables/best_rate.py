"""The best of the learning rates that something was trained with."""

import math
from collections.abc import Iterable, Mapping
from statistics import fmean

from benchmarks.measure.harness import Row


class Best:
    """The runs with the rate whose dev accuracy ends highest, in the mean of the seeds.

    Of equal ones it is the rate with the least dev loss.

    Args:
        rows: ``x_value`` is the seed, and ``config`` has ``rate``, ``steps``, and in one row of a
            run, if at all, ``looks``. Their metrics are ``dev_accuracy``, ``dev_loss`` and others.

    Attributes:
        rate: that rate.
        at_end: whether it is the least or the largest of several.
        steps: of a run.
        values: metric -> seed -> value.
        looks: seed -> what was seen on the way.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        values: dict[float, dict[str, dict[float, float]]] = {}
        looks: dict[float, dict[float, Mapping[str, list[float]]]] = {}
        self.steps = 0
        for row in rows:
            config = row["config"]
            metrics = values.setdefault(config["rate"], {})
            metrics.setdefault(row["metric"], {})[row["x_value"]] = row["median"]
            if "looks" in config:
                looks.setdefault(config["rate"], {})[row["x_value"]] = config["looks"]
            self.steps = config["steps"]

        def badness(rate: float) -> tuple[float, float]:
            of = values[rate]
            accuracy, loss = (fmean(of[name].values()) for name in ("dev_accuracy", "dev_loss"))
            return -accuracy, _finite(loss)

        self.rate = min(values, key=badness)
        self.at_end = len(values) > 1 and self.rate in (min(values), max(values))
        self.values, self.looks = values[self.rate], looks.get(self.rate, {})

    @property
    def seeds(self) -> list[float]:
        """The seeds, ascending."""
        return sorted(self.values["dev_loss"])

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over the seeds."""
        return fmean(self.values[metric].values())

    def shown_rate(self) -> str:
        """Return the rate, marked where it is an end of what was tried."""
        return f"{self.rate:g}{' (an end)' if self.at_end else ''}"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
