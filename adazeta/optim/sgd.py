"""SGD with momentum, whose gradients are probes."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from adazeta.estimation.probes import Probes
from adazeta.estimation.queries import queries_at
from adazeta.kernels import add_noise_, momentum_update_
from adazeta.optim.optimizer import Params, ZerothOrderOptimizer
from adazeta.optim.rate import AUTO


class ZOSGD(ZerothOrderOptimizer):
    """Stochastic gradient descent on zeroth-order estimates (MeZO, 2305.17333; AdaZeta).

    Without momentum, in one pass: ``theta <- (1 - lr wd) theta - lr g``. With momentum, as
    ``torch.optim.SGD``: ``m <- momentum m + g``, ``theta <- (1 - lr wd) theta - lr m``. Weight
    decay is decoupled from the estimate.

    With ``normalize`` the estimate is divided by the standard deviation (of the population) of the
    step's projected gradients first. With one-sided Rademacher directions that is FZOO
    (2506.09034): its ``sum_i (L_i - L_0) u_i / (N std(L))``, as its code has it. eps cancels, so
    the rate is the root mean square of an update's elements, up to ``1 / sqrt(N)``; the formula of
    its paper has 1 / eps as another factor, which its rates have to undo.

    Args:
        params: see :class:`ZerothOrderOptimizer`.
        lr: learning rate, or ``"auto"``: measured before the first step.
        momentum: 0 or more, below 1.
        normalize: divide by the standard deviation of the projected gradients; needs two
            directions a step or more. A step whose losses are all alike changes nothing.
        weight_decay: decoupled weight decay.
        **options: of the estimator, see :class:`ZerothOrderOptimizer`.

    Raises:
        ValueError: a hyper-parameter is out of its range.
    """

    def __init__(
        self,
        params: Params,
        lr: float | str = AUTO,
        *,
        momentum: float = 0.0,
        normalize: bool = False,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        defaults = {
            "lr": lr, "momentum": momentum, "normalize": normalize, "weight_decay": weight_decay
        }  # fmt: skip
        super().__init__(params, defaults, **options)
        estimator = self.estimator
        if normalize and estimator.probes == "batch" and queries_at(estimator.queries, 0.0) < 2:
            raise ValueError(
                "normalize divides by the deviation of the losses of several directions; use "
                f"queries of 2 or more, got {estimator.queries}"
            )

    def unit(self, group: dict[str, Any], square: float, count: int) -> float:
        """Return the size of a step's elements at a rate of 1; momentum adds up many steps."""
        # Divided by their deviation, the slopes have a square of about 1.
        size = math.sqrt((1.0 if group["normalize"] else square) / count)
        return size / (1 - float(group["momentum"]))

    def update(
        self,
        group: dict[str, Any],
        probes: Probes,
        tensors: Sequence[Tensor],
        options: dict[str, Any],
    ) -> None:
        """Apply the probes to the parameters of one group."""
        lr = float(group["lr"])
        coefficients = probes.coefficients
        if group["normalize"]:
            coefficients = coefficients * _inverse_deviation(coefficients.tolist())
        if group["momentum"] == 0:
            add_noise_(tensors, probes.seeds, coefficients * -lr, **options)
            return
        momentum_update_(
            tensors,
            self.states("momentum_buffer", tensors, options["offsets"]),
            probes.seeds,
            coefficients,
            momentum=group["momentum"],
            lr=lr,
            **options,
        )


def _inverse_deviation(coefficients: Sequence[float]) -> float:
    """Return 1 / std of the projected gradients, which are the coefficients times their number.

    On the host and rounded once: the same on every device, and known to a replay.
    """
    deviation = len(coefficients) * statistics.pstdev(coefficients)
    return 1 / deviation if deviation else 0.0
