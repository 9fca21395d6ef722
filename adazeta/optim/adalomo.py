"""AdaLomo: gradient descent with factored second moments, in steps relative to each tensor's size.

The rule of AdaLomo (arXiv 2310.10195), which is Adafactor's (arXiv 1804.04235, its algorithm 5)
without a first moment. It is for training all of a model: its state is a row and a column of each
matrix, and :func:`~adazeta.optim.fused_backward.fuse_into_backward` spares the gradients as well.
With adapters there is little to save.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.kernels import aligned_offsets
from adazeta.kernels.reference.noise import stretches
from adazeta.optim.loaded_state import keep_dtypes
from adazeta.support.seeds import ROUNDING_SEEDS, derive_seed


class AdaLomo(torch.optim.Optimizer):
    """AdaLomo (arXiv 2310.10195), for any training loop that has gradients.

    For each tensor, at its step t = 1, 2, ..., in float32 (float64 of float64 parameters)::

        b      = 1 - t^decay_rate, or beta
        R     <- b R + (1 - b) mean_{-1}(G^2 + epsilon)         without the last dimension
        C     <- b C + (1 - b) mean_{-2}(G^2 + epsilon)         without the one before
        U      = G / sqrt(R / mean_{-1}(R) C)
        rate   = lr max(floor, RMS(theta))
        theta <- (1 - rate weight_decay) theta - rate U / max(1, RMS(U) / clip)

    A tensor without two dimensions keeps one second moment an element. A matrix of m x n has a
    state of m + n numbers. bfloat16 and float16 parameters are rounded stochastically, by noise
    that is a function of ``seed``, the step and the element alone; their gradients may be of
    either dtype.

    Args:
        params: parameters, or groups of them, of any real floating dtype.
        lr: learning rate, as a share of each tensor's root mean square.
        decay_rate: power by which the moments' decay nears 1, below 0.
        beta: a constant decay in place of that, as the paper prints it; in [0, 1).
        clip: largest root mean square of U, above 0.
        floor: least root mean square that counts of a tensor, 0 or more.
        epsilon: added to squares, above 0.
        weight_decay: decoupled weight decay, 0 or more.
        seed: of the rounding of 16-bit parameters.

    Raises:
        ValueError: a hyper-parameter is out of its range, or there is no parameter.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        decay_rate: float = -0.8,
        beta: float | None = None,
        clip: float = 1.0,
        floor: float = 1e-3,
        epsilon: float = 1e-30,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, value in (("lr", lr), ("floor", floor), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        for name, value in (("clip", clip), ("epsilon", epsilon)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not decay_rate < 0:
            raise ValueError(f"decay_rate must be below 0, got {decay_rate}")
        if beta is not None and not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), or left out, got {beta}")
        defaults = {
            "lr": lr, "decay_rate": decay_rate, "beta": beta, "clip": clip, "floor": floor,
            "epsilon": epsilon, "weight_decay": weight_decay, "seed": seed,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the parameters that have a gradient.

        Args:
            closure: computes the loss and the gradients first.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update_parameter(parameter, group)
        return loss

    @torch.no_grad()
    def update_parameter(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """Update one parameter from its gradient, which stays as it is.

        Args:
            parameter: has a gradient.
            group: of the parameter.

        Raises:
            ValueError: the gradient is sparse.
        """
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            raise ValueError("AdaLomo needs dense gradients; make the embedding with sparse=False")
        if not parameter.numel():
            return
        wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        gradient, theta = parameter.grad.to(wide), parameter.data.to(wide)
        state = self.state[parameter]
        state["step"] = step = state.get("step", 0) + 1
        decay = 1 - float(step) ** group["decay_rate"] if group["beta"] is None else group["beta"]
        update = self._scaled(state, gradient, decay, group["epsilon"])
        update.div_((_rms(update) / group["clip"]).clamp_(min=1.0))
        rate = float(group["lr"]) * _rms(theta).clamp_(min=group["floor"])
        # In place: of a parameter that is as wide, theta is the parameter itself.
        if group["weight_decay"]:
            theta.mul_(1 - rate * group["weight_decay"])
        theta.sub_(update.mul_(rate))
        if theta.dtype != parameter.dtype:
            if "offset" not in state:
                state["offset"] = self._offset(parameter)
            self._round(
                parameter, theta, state["offset"], derive_seed(group["seed"], ROUNDING_SEEDS, step)
            )

    def _scaled(
        self, state: dict[str, Any], gradient: Tensor, decay: float, epsilon: float
    ) -> Tensor:
        """Advance the second moments, and return the gradient divided by their root."""
        square = gradient.square().add_(epsilon)
        if gradient.dim() < 2:
            moment = _advanced(state, "moment", square, decay)
            return moment.rsqrt().mul_(gradient)
        row = _advanced(state, "row", square.mean(dim=-1), decay)
        column = _advanced(state, "column", square.mean(dim=-2), decay)
        factor = (row / row.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
        return factor.mul(column.unsqueeze(-2).rsqrt()).mul_(gradient)

    def _round(self, parameter: nn.Parameter, value: Tensor, offset: int, seed: int) -> None:
        """Give a 16-bit parameter its value, rounded stochastically."""
        flat = value.flatten()
        rounded = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        key = torch.full((1,), seed, dtype=torch.int64, device=parameter.device)
        for stretch in stretches([offset], [rounded]):  # by parts, as noise is larger than this
            stretch.scatter_rounded(0, flat[stretch.begin - offset : stretch.stop - offset], key)
        parameter.data.copy_(rounded)

    def _offset(self, parameter: nn.Parameter) -> int:
        """Return where a parameter begins if all lie one after another, for its noise."""
        every = [each for group in self.param_groups for each in group["params"]]
        index = next(i for i, each in enumerate(every) if each is parameter)
        return aligned_offsets([each.numel() for each in every[: index + 1]])[-1]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; the moments stay float32 whatever the parameters are."""
        super().load_state_dict(state_dict)
        keep_dtypes(self, state_dict)


def _rms(value: Tensor) -> Tensor:
    """Root mean square, as a tensor of one element, so that nothing waits for it."""
    return value.norm(2) / value.numel() ** 0.5


def _advanced(state: dict[str, Any], name: str, value: Tensor, decay: float) -> Tensor:
    """Advance a running mean of the state, zero at first, and return it."""
    if name not in state:
        state[name] = torch.zeros_like(value)
    moment: Tensor = state[name]
    return moment.mul_(decay).add_(value, alpha=1 - decay)
