"""Adam whose second moment is of each group, or of each element; its gradients are probes."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from adazeta.estimation.probes import Probes
from adazeta.kernels import adam_update_
from adazeta.optim.optimizer import Params, ZerothOrderOptimizer
from adazeta.optim.rate import AUTO


class ZOAdam(ZerothOrderOptimizer):
    """Adam on zeroth-order estimates, with one second moment for all elements or one for each.

    ``m <- b1 m + (1 - b1) g``, ``v <- b2 v + (1 - b2) s``, both bias-corrected, and
    ``theta <- (1 - lr wd) theta - lr m / (sqrt(v) + epsilon)``. Element by element ``s = g^2``;
    but for a full-rank estimate ``E (c z_i)^2 = |grad|^2 + 2 grad_i^2``: the square of an element
    says almost nothing about that element. By default ``s = sum_k c_k^2``, the expectation of
    ``g_i^2`` given the coefficients, as the directions have unit variance: one scalar, which costs
    neither memory nor a pass over the parameters.

    Args:
        params: see :class:`ZerothOrderOptimizer`.
        lr: learning rate, about the root mean square of an update's elements; or ``"auto"``:
            measured before the first step.
        betas: decay of the first and second moment.
        epsilon: added to the root of the second moment (``eps`` is the perturbation scale).
        weight_decay: decoupled weight decay.
        second_moment: ``"scalar"`` (one for all elements of a group, kept in the group) or
            ``"element"``.
        **options: of the estimator, see :class:`ZerothOrderOptimizer`.

    Raises:
        ValueError: a hyper-parameter is out of its range.
    """

    group_state = ("updates", "variance")

    def __init__(
        self,
        params: Params,
        lr: float | str = AUTO,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-12,
        weight_decay: float = 0.0,
        second_moment: str = "scalar",
        **options: Any,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas}")
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be 0 or more, got {epsilon}")
        if second_moment not in ("scalar", "element"):
            raise ValueError(f"second_moment must be 'scalar' or 'element', got {second_moment!r}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "epsilon": epsilon,
            "weight_decay": weight_decay,
            "second_moment": second_moment,
            "updates": 0,
            "variance": 0.0,
        }
        super().__init__(params, defaults, **options)

    def unit(self, group: dict[str, Any], square: float, count: int) -> float:
        """Return 1: the estimate is divided by its size."""
        return 1.0

    def update(
        self,
        group: dict[str, Any],
        probes: Probes,
        tensors: Sequence[Tensor],
        options: dict[str, Any],
    ) -> None:
        """Apply the probes to the parameters of one group."""
        beta1, beta2 = group["betas"]
        group["updates"] += 1
        correction1 = 1 - beta1 ** group["updates"]
        correction2 = 1 - beta2 ** group["updates"]
        second = inverse_root = None
        if group["second_moment"] == "element":
            second = self.states("exp_avg_sq", tensors, options["offsets"])
        else:
            group["variance"] *= beta2
            group["variance"] += (1 - beta2) * probes.expected_square
            root = math.sqrt(group["variance"] / correction2) + group["epsilon"]
            inverse_root = 1 / root if root else 0.0
        adam_update_(
            tensors,
            self.states("exp_avg", tensors, options["offsets"]),
            second,
            probes.seeds,
            probes.coefficients,
            beta1=beta1,
            beta2=beta2,
            lr=float(group["lr"]),
            epsilon=group["epsilon"],
            correction1=correction1,
            correction2=correction2,
            inverse_root=inverse_root,
            **options,
        )
