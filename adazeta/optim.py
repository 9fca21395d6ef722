"""Zeroth-order optimizers: probes in, one pass over the parameters out.

The gradient estimate ``g = sum_k c_k z(seed_k)`` is never more than scalars until it is applied.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.estimator import RandomizedGradientEstimator
from adazeta.kernels import add_noise_
from adazeta.probes import Probes, merge
from adazeta.schedule import QuerySchedule
from adazeta.space import ParameterSpace

Params = nn.Module | ParameterSpace | Iterable[nn.Parameter] | Iterable[dict[str, Any]]


class ZerothOrderOptimizer(torch.optim.Optimizer):
    """Base of the optimizers: estimation, state, and the loop around an update rule.

    A subclass implements :meth:`update`.

    Args:
        params: a model, a :class:`ParameterSpace`, parameters, or parameter groups. A model (or a
            space made from one) allows stacked evaluation. All parameters must be trainable.
        defaults: hyper-parameters of the groups.
        space: the space that ``params`` belong to, when ``params`` are groups of one.
        queries, eps, probes, one_sided, probes_per_forward, check_eps, seed: see
            :class:`~adazeta.estimator.RandomizedGradientEstimator`.
        distribution: ``"gaussian"`` or ``"rademacher"`` directions.

    Attributes:
        space: the parameters.
        estimator: the estimator that :meth:`step` and :meth:`accumulate` use.
        steps: optimizer steps done.
        evaluations: losses of a whole batch computed so far.
        last: the probes of the last step.
    """

    def __init__(
        self,
        params: Params,
        defaults: dict[str, Any],
        *,
        space: ParameterSpace | None = None,
        queries: int | QuerySchedule = 1,
        eps: float | str = "auto",
        probes: int | str = "batch",
        one_sided: bool = False,
        probes_per_forward: int = 1,
        check_eps: bool = True,
        distribution: str = "gaussian",
        seed: int = 0,
    ) -> None:
        if not defaults["lr"] >= 0:
            raise ValueError(f"lr must be 0 or more, got {defaults['lr']}")
        if not defaults["weight_decay"] >= 0:
            raise ValueError(f"weight_decay must be 0 or more, got {defaults['weight_decay']}")
        space, groups = _space_and_groups(params, space, distribution)
        super().__init__(groups, defaults)
        self.space = space
        self.estimator = RandomizedGradientEstimator(
            space,
            queries=queries,
            eps=eps,
            probes=probes,
            one_sided=one_sided,
            probes_per_forward=probes_per_forward,
            check_eps=check_eps,
            seed=seed,
        )
        self.steps = 0
        self.evaluations = 0
        self.last: Probes | None = None
        self._pending: list[Probes] = []
        self._buffers: dict[str, Tensor] = {}

    def update(self, group: dict[str, Any], probes: Probes) -> None:
        """Apply the probes to the parameters of one group."""
        raise NotImplementedError

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[..., Tensor] | None = None,
        batch: Mapping[str, Any] | None = None,
        *,
        epoch: float = 0.0,
    ) -> float | None:
        """Estimate the gradient and update the parameters.

        Args:
            closure: the loss, evaluated at perturbed parameters; see
                :meth:`RandomizedGradientEstimator.__call__`. Without a closure the probes that
                :meth:`accumulate` gathered are applied.
            batch: the examples, if the closure takes them.
            epoch: epochs done so far, for a query schedule.

        Returns:
            The mean loss, or None without a closure. If no loss was finite the parameters stay as
            they are, and NaN is returned.
        """
        if closure is not None:
            self.accumulate(closure, batch, epoch=epoch)
        probes = merge(self._pending)
        self._pending = []
        self.last = probes
        if len(probes):
            for group in self.param_groups:
                self.update(group, probes)
        self.steps += 1
        return None if closure is None else probes.loss

    def accumulate(
        self,
        closure: Callable[..., Tensor],
        batch: Mapping[str, Any] | None = None,
        *,
        epoch: float = 0.0,
    ) -> Probes:
        """Estimate on one micro-batch and keep the probes for :meth:`step`.

        The micro-batches of a step count equally.

        Args:
            closure: see :meth:`step`.
            batch: see :meth:`step`.
            epoch: see :meth:`step`.

        Returns:
            The probes of this micro-batch.
        """
        probes = self.estimator(
            closure, batch, step=self.steps, micro_step=len(self._pending), epoch=epoch
        )
        self._pending.append(probes)
        self.evaluations += probes.evaluations
        return probes

    def buffer(self, name: str) -> Tensor:
        """Return a float32 state vector over the index space, ``(size,)``, zero at first.

        Every parameter's state holds its part of it as a view, so that one kernel launch serves
        all parameters and ``state_dict()`` sees ordinary tensors.
        """
        if name not in self._buffers:
            buffer = self.space.new_buffer()
            for parameter in self.space.parameters:
                view = self.space.view_of(buffer, parameter)
                if name in self.state[parameter]:
                    view.copy_(self.state[parameter][name])
                self.state[parameter][name] = view
            self._buffers[name] = buffer
        return self._buffers[name]

    def noise_sum(self, buffer: Tensor, probes: Probes, *, scale: float, decay: float) -> None:
        """Compute ``buffer <- decay buffer + scale sum_k c_k z(seed_k)`` in one pass."""
        add_noise_(
            [buffer],
            probes.seeds,
            probes.coefficients * scale,
            offsets=[0],
            decay=decay,
            distribution=self.space.distribution,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the step and the chosen eps, which fix the directions to come."""
        return {
            **super().state_dict(),
            "zeroth_order": {
                "steps": self.steps,
                "evaluations": self.evaluations,
                "eps": self.estimator.eps,
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; training then continues as if it had not been interrupted.

        Raises:
            ValueError: the state is not that of a zeroth-order optimizer.
        """
        if "zeroth_order" not in state_dict:
            raise ValueError(
                "this optimizer state lacks 'zeroth_order': it was not saved by a zeroth-order "
                "optimizer; start without it"
            )
        ours = state_dict["zeroth_order"]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "zeroth_order"})
        # torch casts loaded state to the parameter's dtype; ours is float32 whatever that is.
        order = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, values in state_dict["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    self.state[order[index]][name] = value.to(self.space.device, copy=True)
        self._buffers = {}
        self.steps = ours["steps"]
        self.evaluations = ours["evaluations"]
        self.estimator.eps = ours["eps"]
        if self.steps:
            self.estimator.check_eps = False


class ZOSGD(ZerothOrderOptimizer):
    """Stochastic gradient descent on zeroth-order estimates (MeZO, 2305.17333; AdaZeta).

    Without momentum, in one pass: ``theta <- (1 - lr wd) theta - lr g``. With momentum, as
    ``torch.optim.SGD``: ``m <- momentum m + g``, ``theta <- (1 - lr wd) theta - lr m``. Weight
    decay is decoupled from the estimate.

    Args:
        params: see :class:`ZerothOrderOptimizer`.
        lr: learning rate.
        momentum: 0 or more, below 1.
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
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults, **options)

    def update(self, group: dict[str, Any], probes: Probes) -> None:
        """Apply the probes to the parameters of one group."""
        lr, decay = float(group["lr"]), 1 - float(group["lr"]) * group["weight_decay"]
        tensors, offsets = self.space.pieces(group["params"])
        if group["momentum"] == 0:
            add_noise_(
                tensors,
                probes.seeds,
                probes.coefficients * -lr,
                offsets=offsets,
                decay=decay,
                distribution=self.space.distribution,
            )
            return
        momentum = self.buffer("momentum_buffer")
        if group is self.param_groups[0]:
            self.noise_sum(momentum, probes, scale=1.0, decay=group["momentum"])
        for tensor, offset in zip(tensors, offsets, strict=True):
            m = momentum[offset : offset + tensor.numel()].view(tensor.shape)
            tensor.copy_(tensor.float().mul_(decay).add_(m, alpha=-lr))


class ZOAdam(ZerothOrderOptimizer):
    """Adam on zeroth-order estimates, with a second moment per element or per tensor.

    ``m <- b1 m + (1 - b1) g``, ``v <- b2 v + (1 - b2) s``, both bias-corrected, and
    ``theta <- (1 - lr wd) theta - lr m / (sqrt(v) + epsilon)``, where ``s`` is ``g^2`` per element
    or, by default, the mean of ``g^2`` over each tensor. For a full-rank estimate
    ``E (c z_i)^2 = |grad|^2 + 2 grad_i^2``: the square of an element says almost nothing about
    that element, so one scalar a tensor keeps the information at no memory.

    Args:
        params: see :class:`ZerothOrderOptimizer`.
        lr: learning rate; about the root mean square of an update's elements.
        betas: decay of the first and second moment.
        epsilon: added to the root of the second moment (``eps`` is the perturbation scale).
        weight_decay: decoupled weight decay.
        second_moment: ``"tensor"`` or ``"element"``.
        **options: of the estimator, see :class:`ZerothOrderOptimizer`.

    Raises:
        ValueError: a hyper-parameter is out of its range.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        epsilon: float = 1e-12,
        weight_decay: float = 0.0,
        second_moment: str = "tensor",
        **options: Any,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas}")
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be 0 or more, got {epsilon}")
        if second_moment not in ("tensor", "element"):
            raise ValueError(f"second_moment must be 'tensor' or 'element', got {second_moment!r}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "epsilon": epsilon,
            "weight_decay": weight_decay,
            "second_moment": second_moment,
        }
        super().__init__(params, defaults, **options)
        self._gradient: Tensor | None = None

    def update(self, group: dict[str, Any], probes: Probes) -> None:
        """Apply the probes to the parameters of one group."""
        first = self.buffer("exp_avg")
        if group is self.param_groups[0]:
            if self._gradient is None or self._gradient.device != self.space.device:
                self._gradient = self.space.new_buffer()
            self.noise_sum(self._gradient.zero_(), probes, scale=1.0, decay=1.0)
        assert self._gradient is not None
        self.space.synchronize()
        elementwise = group["second_moment"] == "element"
        if elementwise:
            self.buffer("exp_avg_sq")
        beta1, beta2 = group["betas"]
        lr, decay = float(group["lr"]), 1 - float(group["lr"]) * group["weight_decay"]
        for parameter in group["params"]:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            g = self.space.view_of(self._gradient, parameter)
            m = self.space.view_of(first, parameter)
            m.lerp_(g, 1 - beta1)
            square = g.square() if elementwise else g.square().mean()
            v = state.setdefault("exp_avg_sq", torch.zeros_like(square))
            v.lerp_(square, 1 - beta2)
            correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
            update = m / ((v / correction2).sqrt_() + group["epsilon"])
            theta = parameter.data
            theta.copy_(theta.float().mul_(decay).add_(update, alpha=-lr / correction1))


def _space_and_groups(
    params: Params, space: ParameterSpace | None, distribution: str
) -> tuple[ParameterSpace, list[dict[str, Any]]]:
    """Find the parameter space and the groups behind whatever form the parameters came in."""
    if isinstance(params, ParameterSpace):
        return params, [{"params": params.parameters}]
    if isinstance(params, nn.Module):
        space = space or ParameterSpace(params, distribution=distribution)
        return space, [{"params": space.parameters}]
    entries: list[Any] = list(params)
    groups = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
    groups = [{**group, "params": list(group["params"])} for group in groups]
    groups = [group for group in groups if group["params"]]
    if space is None:
        every = [parameter for group in groups for parameter in group["params"]]
        named = [(f"parameter {index}", parameter) for index, parameter in enumerate(every)]
        space = ParameterSpace(named, distribution=distribution)
    return space, groups
