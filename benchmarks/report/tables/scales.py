"""Accuracies on film reviews and on other domains at each scale of adapters, of several suites."""

import math
from collections.abc import Iterable, Sequence

from benchmarks.measure.harness import Row
from benchmarks.report.tables.markdown import NO_GAIN, head, line

OTHERS = ("tweet", "amazon", "editorial")


class Arms:
    """The rows of a suite whose arms are tested at each scale.

    Args:
        rows: of any suites.
        benchmark: the suite.
        names: of its arms, in the order of the table; those without rows are left out.

    Attributes:
        names: of the arms that have rows.
        scales: at which they were tested, ascending; empty if there are no rows.
    """

    def __init__(self, rows: Iterable[Row], benchmark: str, names: Sequence[str]) -> None:
        self._rows: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            if (row["benchmark"], row["op"], row["metric"]) == (benchmark, "train", "accuracy"):
                self._rows.setdefault((row["mode"], row["provider"]), []).append(row)
        self.names = [name for name in names if (name, "film") in self._rows]
        self.scales: list[float] = []
        if self.names:
            self.scales = self._rows[self.names[0], "film"][0]["config"]["scales"]

    def table(self) -> list[str]:
        """Return the lines of the table: two an arm."""
        titles = ("arm", "texts", *(f"scale {scale:g}" for scale in self.scales), "seeds")
        lines = head(titles)
        for arm in self.names:
            seeds = len(self._rows[arm, "film"])
            for name, values in (("film reviews", self.film(arm)), ("others", self.others(arm))):
                lines.append(line((arm, name, *(f"{value:.1%}" for value in values), seeds)))
        return lines

    def film(self, arm: str) -> list[float]:
        """Return the mean accuracies of an arm on film reviews over the seeds, at each scale."""
        return self._mean(arm, "film")

    def others(self, arm: str) -> list[float]:
        """Return the means over the other domains, at each scale."""
        every = [self._mean(arm, name) for name in OTHERS]
        return [sum(each) / len(each) for each in zip(*every, strict=True)]

    def error(self, arm: str, place: int) -> float:
        """Return the standard error of the mean over the other domains at one scale.

        It is that of the numbers of texts, which are the same ones with each seed.
        """
        squares = 0.0
        for name in OTHERS:
            share = self._mean(arm, name)[place]
            squares += share * (1 - share) / self._rows[arm, name][0]["config"]["texts"]
        return math.sqrt(squares) / len(OTHERS)

    def by_seed(self, arm: str, texts: str) -> list[float]:
        """Return the accuracies at scale 1 on some texts, in the order of the seeds."""
        ordered = sorted(self._rows[arm, texts], key=lambda row: row["x_value"])
        return [row["config"]["accuracies"][-1] for row in ordered]

    def rescaling(self, arm: str) -> str:
        """Return what the criterion of re-scaling says of an arm."""
        film, others = self.film(arm), self.others(arm)
        ends, least = max(others[0], others[-1]), (film[0] + film[-1]) / 2
        inner = range(1, len(self.scales) - 1)
        fine = [
            place
            for place in inner
            if others[place] >= ends - self.error(arm, place) and film[place] >= least
        ]
        best = max(fine or inner, key=lambda place: others[place])
        word = "works" if fine else NO_GAIN
        gain, error = 100 * (others[best] - ends), 100 * self.error(arm, best)
        return (
            f"Re-scaling, {arm}: **{word}**, at {self.scales[best]:g} the others have {gain:+.1f} "
            f"points over the better end (a standard error is {error:.1f}), film reviews "
            f"{100 * (film[best] - film[-1]):+.1f} over scale 1."
        )

    def compared(self, arm: str, other: str) -> tuple[str, float, float]:
        """Compare the best scales of two arms on the other domains.

        Args:
            arm: that is judged.
            other: that it is judged by.

        Returns:
            The verdict by one standard error, and in points the gain of the arm and the error.
        """
        with_it, without = max(self.others(arm)), max(self.others(other))
        bound = self.error(other, self.others(other).index(without))
        word = NO_GAIN
        if abs(with_it - without) > bound:
            word = "works" if with_it > without else "worse"
        return word, 100 * (with_it - without), 100 * bound

    def _mean(self, arm: str, texts: str) -> list[float]:
        values = [row["config"]["accuracies"] for row in self._rows[arm, texts]]
        return [sum(each) / len(each) for each in zip(*values, strict=True)]
