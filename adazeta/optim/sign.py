"""Sign descent, whose gradients are probes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from adazeta.estimation.probes import Probes
from adazeta.kernels import sign_update_
from adazeta.optim.optimizer import Params, ZerothOrderOptimizer
from adazeta.optim.rate import AUTO


class ZOSign(ZerothOrderOptimizer):
    """Sign descent on zeroth-order estimates (ZO-signSGD, Liu et al., ICLR 2019).

    ``theta <- (1 - lr wd) theta - lr sign(g)`` with the sign of each element of
    ``g = sum_k c_k z(seed_k)``. (ZO-Bench's code takes the sign of the scalar c alone, and steps by
    ``sign(c) z``: that is :class:`ZOSGD` without the size of the estimate.)

    Args:
        params: see :class:`ZerothOrderOptimizer`.
        lr: size of the step of every element, or ``"auto"``: measured before the first step.
        weight_decay: decoupled weight decay.
        **options: of the estimator, see :class:`ZerothOrderOptimizer`.

    Raises:
        ValueError: a hyper-parameter is out of its range.
    """

    def __init__(
        self, params: Params, lr: float | str = AUTO, *, weight_decay: float = 0.0, **options: Any
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, **options)

    def unit(self, group: dict[str, Any], square: float, count: int) -> float:
        """Return 1, the size of each element of a step at a rate of 1."""
        return 1.0

    def update(
        self,
        group: dict[str, Any],
        probes: Probes,
        tensors: Sequence[Tensor],
        options: dict[str, Any],
    ) -> None:
        """Apply the probes to the parameters of one group."""
        sign_update_(
            tensors, probes.seeds, probes.coefficients, lr=float(group["lr"]), **options
        )  # fmt: skip
