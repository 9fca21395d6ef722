"""The learning rate that ``lr="auto"`` chooses, and the guard that shrinks it.

Steps along random directions are mostly noise: of d numbers one direction is right and d - 1 are
not. Over a run they add up to a random move of the parameters, whose cost the loss shows
beforehand (:mod:`adazeta.estimation.displacement`). With ``u`` the root mean square of a step's
elements at a rate of 1 and ``f_t`` the schedule's factors, the move is ``rate u sqrt(sum f_t^2)``;
the rate is the one with which it costs a fixed share of the loss. That it falls as one over the
root of the number of steps is the classical rate of stochastic descent.

This is our own rule. docs/methods.md has what it was compared with.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from adazeta.estimation.displacement import Displacement
from adazeta.estimation.estimator import RandomizedGradientEstimator
from adazeta.estimation.probes import Probes

AUTO = "auto"
HORIZON = 100.0
"""Steps at full rate that the rate is chosen for where none are planned."""

_WINDOW = 10  # steps whose losses are compared with those of the best such window before
_SURE = 4.0  # standard errors by which a window is worse
_SHRINK = 0.5


class AutoRate:
    """A measured factor on the learning rates of the parameter groups, which are relative then.

    Attributes:
        horizon: sum of the squared factors of the schedule over the run.
        chosen: the rate that was measured before the first step, None before.
        shrunk: what the guard has multiplied it with.
        last: the rate of the last step, at a factor of 1.
    """

    def __init__(self) -> None:
        self.horizon = HORIZON
        self.chosen: float | None = None
        self.shrunk = 1.0
        self.last: float | None = None
        self._displacement: Displacement | None = None
        self._losses: list[float] = []
        self._best: list[float] | None = None

    @property
    def rate(self) -> float:
        """The present rate, at a factor of 1; 0 as long as no loss was finite."""
        return 0.0 if self.chosen is None else self.chosen * self.shrunk

    def measure(
        self,
        estimator: RandomizedGradientEstimator,
        closure: Callable[..., Tensor],
        batch: Mapping[str, Any] | None,
    ) -> int:
        """Measure what the choice needs, unless it was made; return the evaluations it took.

        Args:
            estimator: has estimated on this batch.
            closure: see :meth:`ZerothOrderOptimizer.step`.
            batch: of the first micro-batch of the step.
        """
        if self.chosen is not None:
            return 0
        self._displacement = estimator.measure_displacement(closure, batch)
        return self._displacement.evaluations

    def choose(
        self,
        probes: Probes,
        unit: Callable[[dict[str, Any], float, int], float],
        groups: Sequence[dict[str, Any]],
    ) -> None:
        """Choose the rate from what was measured, unless that was done before.

        Args:
            probes: of the first step.
            unit: of the rule, see :meth:`ZerothOrderOptimizer.unit`.
            groups: the parameter groups, which have one rate.
        """
        if self.chosen is not None:
            return
        found, self._displacement = self._displacement, None
        if found is None or not math.isfinite(found.scale):
            return
        count = max(len(probes), 1)
        square = found.square
        if square is None:
            square = count * probes.expected_square
        size = max(unit(group, square, count) for group in groups)
        steps = math.sqrt(max(self.horizon, 1.0))
        self.chosen = found.scale / (size * steps) if size > 0 else 0.0

    @contextmanager
    def on(self, groups: Sequence[dict[str, Any]]) -> Iterator[None]:
        """Give the groups the rates themselves in place of their factors, meanwhile."""
        factors = [group["lr"] for group in groups]
        try:
            for group, factor in zip(groups, factors, strict=True):
                group["lr"] = self.rate * float(factor)
            yield
        finally:
            for group, factor in zip(groups, factors, strict=True):
                group["lr"] = factor

    def note(self, loss: float) -> None:
        """Take the loss of a step that was made; shrink if the losses rose beyond their noise.

        The mean of the last ten losses is compared with the best mean of ten before. A loss that
        is not finite halves the rate at once.

        Args:
            loss: mean loss of the step's batch, before the step.
        """
        if self.chosen is None:  # no loss was finite, and nothing was changed
            return
        self.last = self.rate
        if not math.isfinite(loss):
            self.shrunk *= _SHRINK
            self._losses = []
            return
        self._losses.append(loss)
        if len(self._losses) < _WINDOW:
            return
        found = [statistics.fmean(self._losses), statistics.variance(self._losses) / _WINDOW]
        self._losses = []
        if self._best is None or found[0] < self._best[0]:
            self._best = found
        elif found[0] - self._best[0] > _SURE * math.sqrt(found[1] + self._best[1]):
            self.shrunk *= _SHRINK

    def state_dict(self) -> dict[str, Any]:
        """Return what decides the rates to come."""
        return {
            "chosen": self.chosen, "shrunk": self.shrunk, "last": self.last,
            "losses": list(self._losses), "best": self._best,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.chosen, self.shrunk, self.last = state["chosen"], state["shrunk"], state["last"]
        self._losses, self._best = list(state["losses"]), state["best"]


def check_factors(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rates of groups beside a rate that is measured.

    Raises:
        ValueError: a group has an ``lr`` of its own.
    """
    for index, group in enumerate(groups):
        if "lr" in group:
            raise ValueError(
                f"parameter group {index} has lr={group['lr']!r} while the rate is measured "
                "(lr='auto'); give lr as a number, or leave it out of the groups"
            )
