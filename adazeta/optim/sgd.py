"""The update rules of the zeroth-order optimizers: probes in, one pass over the parameters out."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from adazeta.estimation.probes import Probes
from adazeta.estimation.queries import queries_at
from adazeta.kernels import adam_update_, add_noise_, momentum_update_, sign_update_
from adazeta.optimizer import Params, ZerothOrderOptimizer


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
        lr: learning rate.
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
        lr: float = 1e-4,
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


class ZOSign(ZerothOrderOptimizer):
    """Sign descent on zeroth-order estimates (ZO-signSGD, Liu et al., ICLR 2019).

    ``theta <- (1 - lr wd) theta - lr sign(g)`` with the sign of each element of
    ``g = sum_k c_k z(seed_k)``. (ZO-Bench's code takes the sign of the scalar c alone, and steps by
    ``sign(c) z``: that is :class:`ZOSGD` without the size of the estimate.)

    Args:
        params: see :class:`ZerothOrderOptimizer`.
        lr: size of the step of every element.
        weight_decay: decoupled weight decay.
        **options: of the estimator, see :class:`ZerothOrderOptimizer`.

    Raises:
        ValueError: a hyper-parameter is out of its range.
    """

    def __init__(
        self, params: Params, lr: float = 1e-4, *, weight_decay: float = 0.0, **options: Any
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, **options)

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
        lr: learning rate; about the root mean square of an update's elements.
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
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
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
