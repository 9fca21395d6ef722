"""The linear form of an adapter: a tensor train added to a linear's weight, which is a LoRA."""

import torch
from torch import Tensor

from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.layers import TTLinear
from adazeta.kernels import low_rank_add
from adazeta.parameters.dropping import Droppable


class TTLora(TTLinear, Droppable):
    """Adds ``s (x A) B`` to the output of a linear, A and B chained from the cores of one train.

    The linear then computes as if its weight were ``W + s A B``, so a trained one is a LoRA of rank
    R, the inner rank at the cut (:mod:`adazeta.adapters.lora`). Computed in float32 whatever the
    dtype of the linear, with one rounding. With ``init="zero"`` the last core is zero: B is, and
    the linear's output keeps its bits.

    Source: LoRA (arXiv 2106.09685), its pair as a tensor train of AdaZeta (arXiv 2406.18060).

    Args:
        in_features: width of the linear's input.
        out_features: width of its output.
        config: rank, scale, init, drop and modes.
        seed: see :class:`TTLinear`.
        start: see :class:`TTLinear`.
        device: device of the parameters.

    Raises:
        ValueError: on modes or ranks that do not fit the widths.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: TTAdapterConfig,
        *,
        seed: int | None = 0,
        start: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            rank=config.rank,
            in_modes=config.modes_of(in_features),
            out_modes=config.modes_of(out_features),
            bias=False,
            init="zero" if config.init == "zero" else "normal",
            seed=seed,
            start=start,
            device=device,
        )
        self.scale, self.drop = float(config.scale), config.drop

    def forward(self, y: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        """Add the term.

        Args:
            y: ``(..., out_features)`` of any floating dtype, the linear's output.
            x: ``(..., in_features)``, what it was made from. Under a stack of P parameter sets the
                leading dimension is P equal, consecutive groups of rows.

        Returns:
            The shape and dtype of ``y``.

        Raises:
            ValueError: the rows under a stack are no groups of a batch.
        """
        a, b, _ = self.current_factors()
        if a.dim() == 3 and x.dim() > 2 and x.shape[0] % a.shape[0]:
            raise ValueError(
                f"a linear that reads {tuple(x.shape)} does not read the rows of a batch, so "
                f"{a.shape[0]} evaluations cannot share a forward; leave it out of target_modules, "
                "or set probes='batch' and probes_per_forward=1"
            )
        return low_rank_add(y, x, a, b, scale=self.scale)

    def extra_repr(self) -> str:
        """Describe shape and scale in ``print(model)``."""
        return f"{super().extra_repr()}, scale={self.scale}"
