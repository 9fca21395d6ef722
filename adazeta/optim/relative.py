"""Steps relative to each tensor's size, after AdaLomo; the gradients are probes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adazeta.estimation.probes import Probes
from adazeta.kernels import add_noise_
from adazeta.optim.optimizer import Params, ZerothOrderOptimizer
from adazeta.optim.rate import AUTO

_PIECE = 1 << 20  # elements squared at a time


class ZOAdaLomo(ZerothOrderOptimizer):
    """What is left of AdaLomo (arXiv 2310.10195) where the gradient is a few scalars.

    With the estimate ``g = sum_k c_k z(s_k)`` and ``s = sum_k c_k^2``, at step t from 1, for each
    tensor p of a group::

        v       = b v + (1 - b) s,  b = 1 - t^decay_rate
        rate_p  = lr max(floor, RMS(theta_p before training))
        theta_p = (1 - rate_p weight_decay) theta_p
                  - rate_p g / (sqrt(v) max(1, sqrt(s / v) / clip))

    A row and a column of second moments would forget the gradient: the square of a full-rank
    estimate is the same for all elements but for noise. So there is one number v a group, and no
    state beside it. What remains of the paper is a rate in units of each tensor's size, and a bound
    on the estimates that stand out. Nothing adapts to single tensors or elements.

    The sizes are those before training, where the paper's are the present ones: computed once, they
    cost no pass. A tensor that is all zero, such as the last core of a new adapter, has the mean
    size of its group's other tensors.

    Args:
        params: see :class:`ZerothOrderOptimizer`.
        lr: learning rate, as a share of each tensor's root mean square; or ``"auto"``: measured
            before the first step.
        decay_rate: power by which b nears 1, below 0.
        clip: largest root mean square of a step, in units of the rate; above 0.
        floor: least root mean square that counts of a tensor, 0 or more.
        weight_decay: decoupled weight decay.
        **options: of the estimator, see :class:`ZerothOrderOptimizer`.

    Raises:
        ValueError: a hyper-parameter is out of its range, or decay is to be anchored.
    """

    group_state = ("updates", "variance", "sizes")

    def __init__(
        self,
        params: Params,
        lr: float | str = AUTO,
        *,
        decay_rate: float = -0.8,
        clip: float = 1.0,
        floor: float = 1e-3,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        if not decay_rate < 0:
            raise ValueError(f"decay_rate must be below 0, got {decay_rate}")
        if not clip > 0:
            raise ValueError(f"clip must be above 0, got {clip}")
        if not floor >= 0:
            raise ValueError(f"floor must be 0 or more, got {floor}")
        if options.get("anchored"):
            raise ValueError(
                "anchored decay has one rate for all tensors, and here each has its own; leave it "
                "off, or choose another method"
            )
        defaults = {
            "lr": lr, "decay_rate": decay_rate, "clip": clip, "floor": floor,
            "weight_decay": weight_decay, "updates": 0, "variance": 0.0, "sizes": (),
        }  # fmt: skip
        super().__init__(params, defaults, **options)

    def unit(self, group: dict[str, Any], square: float, count: int) -> float:
        """Return the root mean square of the tensors' sizes: of all elements of a step."""
        numbers = [parameter.numel() for parameter in group["params"]]
        sizes = zip(numbers, self._sizes(group), strict=True)
        return math.sqrt(math.fsum(n * size**2 for n, size in sizes) / max(sum(numbers), 1))

    def update(
        self,
        group: dict[str, Any],
        probes: Probes,
        tensors: Sequence[Tensor],
        options: dict[str, Any],
    ) -> None:
        """Apply the probes to the parameters of one group."""
        group["updates"] += 1
        decay = 1 - float(group["updates"]) ** group["decay_rate"]
        square = probes.expected_square
        group["variance"] = decay * group["variance"] + (1 - decay) * square
        root = math.sqrt(group["variance"])
        factor = 0.0
        if root:
            factor = 1 / (root * max(1.0, math.sqrt(square) / root / group["clip"]))
        sized: dict[float, tuple[list[Tensor], list[int]]] = {}
        for parameter, size in zip(group["params"], self._sizes(group), strict=True):
            found, offsets = self.space.pieces([parameter])
            alike = sized.setdefault(size, ([], []))
            alike[0].extend(found)
            alike[1].extend(offsets)
        for size, (found, offsets) in sized.items():
            rate = float(group["lr"]) * size
            own = {"offsets": offsets, "decay": 1 - rate * group["weight_decay"]}
            add_noise_(
                found, probes.seeds, probes.coefficients * (-rate * factor), **{**options, **own}
            )

    def _sizes(self, group: dict[str, Any]) -> list[float]:
        """Return the size of each tensor before the first step, and at least the floor."""
        if not group["sizes"]:
            found = [_rms(parameter.data) for parameter in group["params"]]
            known = [size for size in found if size]
            mean = math.fsum(known) / len(known) if known else 0.0
            group["sizes"] = tuple(size or mean for size in found)
        return [max(group["floor"], size) for size in group["sizes"]]


def _rms(value: Tensor) -> float:
    """Root mean square in bfloat16, so that no order of summation shows.

    Args:
        value: of any shape and floating dtype.
    """
    parts = value.reshape(-1).split(_PIECE) if value.numel() else ()
    total = math.fsum(part.double().square().sum().item() for part in parts)
    return float(torch.tensor(math.sqrt(total / max(value.numel(), 1))).bfloat16())
