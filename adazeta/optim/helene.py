"""HELENE: annealed momentum, a diagonal curvature from the probes, and a floor per layer.

HELENE, arXiv 2411.10696. No code was published; what is ours is marked so.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.estimation.probes import Probes
from adazeta.kernels import add_noise_, helene_update_, momentum_update_, square_update_
from adazeta.optim.optimizer import Params, ZerothOrderOptimizer
from adazeta.optim.rate import AUTO

HESSIANS = ("element", "scalar", "none")
STATES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "window": torch.float32}

_Layers = tuple[list[Tensor], list[int]]


class HELENE(ZerothOrderOptimizer):
    """HELENE (arXiv 2411.10696) on zeroth-order estimates; every part can be switched off.

    With the estimate ``g = sum_k c_k z(s_k)``, step t from 0, and one lambda a layer (parameter)::

        a_t   = beta1 + (1 - beta1) exp(-t / annealing)              annealed gain; 1 if off
        m     = beta1 m + a_t g                                      (not 1 - beta1)
        h     = beta2 h + (1 - beta2) hessian_scale g^2              every hessian_every steps
        theta = (1 - lr wd) theta - lr m / (gamma max(h', lambda) + epsilon)

    ``h' = h / (1 - beta2^n)`` after n refreshes: the bias correction is ours. The squared estimate
    is the paper's Gauss-Newton-Bartlett estimator with the labels of the data (A-GNB), with the
    zeroth-order estimate in the place of the gradient, so it costs no further forward.
    ``lambda = max(floor, the quantile of h' in the layer)``: the quantile is ours, ``floor`` can
    differ between parameter groups.

    As ``E (c z_i)^2 = |grad|^2 + 2 grad_i^2`` for a full-rank direction, the elements of h differ
    by noise much more than by curvature. ``hessian="scalar"`` keeps the expectation of
    ``g_i^2`` given the coefficients, ``sum_k c_k^2``, which is the same for all elements of all
    layers: one number.

    Args:
        params: see :class:`ZerothOrderOptimizer`.
        lr: learning rate, or ``"auto"``: measured before the first step. With a Hessian the step
            is in units of 1 / gradient.
        betas: factors of m and h.
        annealing: steps in which the gain of a new estimate falls to ``beta1 + (1 - beta1) / e``;
            0 keeps it at 1.
        hessian: ``"element"``, ``"scalar"`` or ``"none"``: annealed momentum alone.
        hessian_every: steps from one refresh of h to the next. The paper has more than one; as the
            probes of the step are used, a refresh takes no evaluation.
        hessian_scale: factor on the square; the batch size in Sophia's form of the estimator.
        gamma: factor on the clipped h.
        floor: least lambda.
        quantile: of h in its layer that is lambda; 0 for none. Without effect on a scalar.
        epsilon: added to the divisor.
        weight_decay: decoupled weight decay.
        state: of m and h: ``"float32"``, ``"bfloat16"``, or ``"window"``: none is kept, and each
            step makes both again from the probes of the last steps. One tensor of the largest
            parameter's size each, and ``window`` more passes of noise a step.
        window: steps of momentum, and refreshes of h, that ``state="window"`` looks back.
        **options: of the estimator, see :class:`ZerothOrderOptimizer`.

    Raises:
        ValueError: a hyper-parameter is out of its range.
    """

    linear_states = ("momentum_buffer",)
    group_state = ("updates", "refreshes", "curvature", "quantiles", "history", "squares")

    def __init__(
        self,
        params: Params,
        lr: float | str = AUTO,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        annealing: int = 1000,
        hessian: str = "scalar",
        hessian_every: int = 1,
        hessian_scale: float = 1.0,
        gamma: float = 1.0,
        floor: float = 0.0,
        quantile: float = 0.9,
        epsilon: float = 1e-12,
        weight_decay: float = 0.0,
        state: str = "float32",
        window: int = 64,
        **options: Any,
    ) -> None:
        values: dict[str, Any] = {
            "annealing": annealing, "hessian": hessian, "hessian_every": hessian_every,
            "hessian_scale": hessian_scale, "gamma": gamma, "floor": floor, "quantile": quantile,
            "epsilon": epsilon, "state": state, "window": window,
        }  # fmt: skip
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {tuple(betas)}")
        if hessian not in HESSIANS:
            raise ValueError(f"hessian must be one of {', '.join(HESSIANS)}, got {hessian!r}")
        if state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, got {state!r}")
        for name, least in (("hessian_every", 1), ("window", 1), ("annealing", 0), ("floor", 0),
                            ("epsilon", 0)):  # fmt: skip
            if not values[name] >= least:
                raise ValueError(f"{name} must be {least} or more, got {values[name]}")
        for name in ("hessian_scale", "gamma"):
            if not values[name] > 0:
                raise ValueError(f"{name} must be above 0, got {values[name]}")
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile must be in [0, 1], got {quantile}")
        defaults = {
            "lr": lr, "betas": tuple(betas), "weight_decay": weight_decay, **values,
            "updates": 0, "refreshes": 0, "curvature": 0.0, "quantiles": (), "history": (),
            "squares": (),
        }  # fmt: skip
        super().__init__(params, defaults, **options)

    def on_refresh(self) -> None:
        """Forget the window: its probes are of directions that are no more."""
        for group in self.param_groups:
            group["history"] = group["squares"] = ()

    def unit(self, group: dict[str, Any], square: float, count: int) -> float:
        """Return the size of a step's elements at a rate of 1, with the gain of the first steps."""
        size = math.sqrt(square / count) / (1 - float(group["betas"][0]))
        if group["hessian"] == "none":
            return size
        curvature = max(group["hessian_scale"] * square / count, group["floor"])
        divisor = group["gamma"] * curvature + group["epsilon"]
        return size / divisor if divisor else 0.0

    def update(
        self,
        group: dict[str, Any],
        probes: Probes,
        tensors: Sequence[Tensor],
        options: dict[str, Any],
    ) -> None:
        """Apply the probes to the parameters of one group."""
        beta1, beta2 = group["betas"]
        refresh = group["hessian"] != "none" and group["updates"] % group["hessian_every"] == 0
        gain = 1.0
        if group["annealing"]:
            gain = beta1 + (1 - beta1) * math.exp(-group["updates"] / group["annealing"])
        group["updates"] += 1
        group["refreshes"] += refresh
        annealed = probes.coefficients * gain
        layers = (list(tensors), list(options["offsets"]))
        if group["hessian"] == "element" or group["state"] == "window":
            layers = self._layers(group["params"])
        if group["state"] == "window":
            group["history"] = _pushed(group, "history", probes.seeds, annealed)
            if refresh and group["hessian"] == "element":
                group["squares"] = _pushed(group, "squares", probes.seeds, probes.coefficients)
        if group["hessian"] == "element":
            self._by_element(group, probes, annealed, layers, options, refresh)
            return
        if refresh:
            group["curvature"] *= beta2
            group["curvature"] += (1 - beta2) * group["hessian_scale"] * probes.expected_square
        rate = float(group["lr"])
        if group["hessian"] == "scalar":
            curvature = group["curvature"] / (1 - beta2 ** group["refreshes"])
            divisor = group["gamma"] * max(curvature, group["floor"]) + group["epsilon"]
            rate = rate / divisor if divisor else 0.0
        windowed = group["state"] == "window"
        for part, starts in _one_by_one(layers) if windowed else [layers]:
            kept = {**options, "offsets": starts}
            m = self._momenta(group, part, kept)
            if group["state"] == "bfloat16":
                helene_update_(
                    part, m, None, [1.0] * len(part), probes.seeds, annealed,
                    beta1=beta1, lr=rate, **kept,
                )  # fmt: skip
            else:
                momentum_update_(part, m, probes.seeds, annealed, momentum=beta1, lr=rate, **kept)

    def _by_element(
        self,
        group: dict[str, Any],
        probes: Probes,
        annealed: Tensor,
        layers: _Layers,
        options: dict[str, Any],
        refresh: bool,
    ) -> None:
        beta1, beta2 = group["betas"]
        windowed = group["state"] == "window"
        count = len(group["squares"]) if windowed else group["refreshes"]
        scale = 1 / (1 - beta2**count)
        quantiles = [] if refresh else list(group["quantiles"])
        done = 0
        for part, starts in _one_by_one(layers) if windowed else [layers]:
            kept = {**options, "offsets": starts}
            h = self._curvatures(group, probes, part, kept, refresh)
            if refresh:
                quantiles += [_quantile(square, group["quantile"]) for square in h]
            floors = [max(group["floor"], scale * q) for q in quantiles[done : done + len(part)]]
            done += len(part)
            m = self._momenta(group, part, kept)
            helene_update_(
                part, m, h, floors, probes.seeds, annealed,
                beta1=beta1, lr=float(group["lr"]), gamma=group["gamma"], scale=scale,
                epsilon=group["epsilon"], **kept,
            )  # fmt: skip
        group["quantiles"] = tuple(quantiles)

    def _layers(self, parameters: Sequence[nn.Parameter]) -> _Layers:
        """Return the tensors of the parameters one by one, with their offsets."""
        found: _Layers = ([], [])
        for parameter in parameters:
            tensors, offsets = self.space.pieces([parameter])
            found[0].extend(tensors)
            found[1].extend(offsets)
        return found

    def _momenta(
        self, group: dict[str, Any], tensors: Sequence[Tensor], options: dict[str, Any]
    ) -> list[Tensor]:
        """Return m before this step: kept, or made from the steps before it."""
        if group["state"] != "window":
            kind = STATES[group["state"]]
            return self.states("momentum_buffer", tensors, options["offsets"], kind)
        made = [torch.zeros_like(t, dtype=torch.float32) for t in tensors]
        for seeds, coefficients in group["history"][:-1]:
            add_noise_(
                made, seeds, coefficients, decay=group["betas"][0], offsets=options["offsets"],
                distribution=options["distribution"],
            )  # fmt: skip
        return made

    def _curvatures(
        self,
        group: dict[str, Any],
        probes: Probes,
        tensors: Sequence[Tensor],
        options: dict[str, Any],
        refresh: bool,
    ) -> list[Tensor]:
        """Return h with the refresh of this step, if it is one."""
        beta2 = group["betas"][1]
        rule = {"beta": beta2, "gain": (1 - beta2) * group["hessian_scale"]}
        rule |= {name: value for name, value in options.items() if name != "decay"}
        if group["state"] == "window":
            made = [torch.zeros_like(t, dtype=torch.float32) for t in tensors]
            for seeds, coefficients in group["squares"]:
                square_update_(made, seeds, coefficients, **rule)
            return made
        kind = STATES[group["state"]]
        h = self.states("curvature", tensors, options["offsets"], kind)
        if refresh:
            square_update_(h, probes.seeds, probes.coefficients, **rule)
        return h


def _pushed(group: dict[str, Any], name: str, seeds: Tensor, coefficients: Tensor) -> tuple:
    """Return a history with one step more, and no more than the window."""
    entry = (tuple(seeds.tolist()), tuple(coefficients.tolist()))
    return (*group[name], entry)[-group["window"] :]


def _one_by_one(layers: _Layers) -> list[_Layers]:
    return [([tensor], [offset]) for tensor, offset in zip(*layers, strict=True)]


def _quantile(values: Tensor, share: float) -> float:
    """Return an element of the tensor, the same on every device; 0 if there is none to return."""
    if not share or not values.numel():
        return 0.0
    flat = values.reshape(-1).float()
    return torch.kthvalue(flat, max(1, math.ceil(share * flat.numel()))).values.item()
