"""Gradient descent on estimates made ahead of the parameters, after extrapolation."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adazeta.estimation.probes import Probes
from adazeta.kernels import add_noise_
from adazeta.optim.optimizer import Params, ZerothOrderOptimizer
from adazeta.optim.rate import AUTO


class ZOExtrapolated(ZerothOrderOptimizer):
    """Extrapolation from the past (arXiv 2006.05720) on zeroth-order estimates.

    The estimate is made at ``h = w - extrapolation lr g`` with the last step's g, and moves w.
    Only h is kept: with the rates lr of each step,

        h <- (1 - lr weight_decay) h - lr (1 + x) g + x lr' g',   x = extrapolation

    where g' and lr' are of the step before. That is one pass with the seeds of both steps, no
    further evaluation and no state but the last probes. What is evaluated and saved is h, which
    meets w as the rate falls to 0. ``extrapolation=0`` is :class:`~adazeta.optim.sgd.ZOSGD` without
    momentum, bit for bit; a negative one looks uphill, as SAM does, along the last estimate.

    Args:
        params: see :class:`ZerothOrderOptimizer`.
        lr: learning rate, or ``"auto"``: measured before the first step.
        extrapolation: x, how far ahead in steps of the rate.
        weight_decay: decoupled weight decay.
        **options: of the estimator, see :class:`ZerothOrderOptimizer`.

    Raises:
        ValueError: a hyper-parameter is out of its range.
    """

    group_state = ("past",)

    def __init__(
        self,
        params: Params,
        lr: float | str = AUTO,
        *,
        extrapolation: float = 1.0,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        if not math.isfinite(extrapolation):
            raise ValueError(f"extrapolation must be finite, got {extrapolation}")
        defaults = {
            "lr": lr, "extrapolation": extrapolation, "weight_decay": weight_decay, "past": ()
        }  # fmt: skip
        super().__init__(params, defaults, **options)

    def on_refresh(self) -> None:
        """Forget the last step: its probes are of directions that are no more."""
        for group in self.param_groups:
            group["past"] = ()

    def unit(self, group: dict[str, Any], square: float, count: int) -> float:
        """Return the size of a step's elements at a rate of 1: what is added is taken back."""
        return math.sqrt(square / count)

    def update(
        self,
        group: dict[str, Any],
        probes: Probes,
        tensors: Sequence[Tensor],
        options: dict[str, Any],
    ) -> None:
        """Apply the probes to the parameters of one group, and take back what was ahead."""
        lr, ahead = float(group["lr"]), float(group["extrapolation"])
        seeds, coefficients = probes.seeds, probes.coefficients * (-lr * (1 + ahead))
        if ahead and group["past"]:
            past, factors = group["past"]
            seeds = torch.cat([seeds, seeds.new_tensor(past)])
            coefficients = torch.cat([coefficients, coefficients.new_tensor(factors)])
        if ahead:
            factors = probes.coefficients * (lr * ahead)
            group["past"] = (tuple(probes.seeds.tolist()), tuple(factors.tolist()))
        add_noise_(tensors, seeds, coefficients, **options)
