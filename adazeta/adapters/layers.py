"""The two modules of a tensor-train adapter: a linear layer in TT form, and the adapter itself."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.shapes import TTShape, tt_svd
from adazeta.kernels import FactorLayer, Factors, gaussian, tt_adapter, tt_apply, tt_factors
from adazeta.kernels.plan import fits_plan
from adazeta.kernels.reference.philox import INIT_STREAM
from adazeta.parameters.dropping import Droppable
from adazeta.parameters.stacking import FactoredParameters

# Names of transformers' activations that the fused adapter computes itself.
FUSED_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "linear": "identity",
}


class TTLinear(FactoredParameters):
    """A linear layer whose matrix W (in x out) is a tensor train: ``y = (x A) B + bias``.

    W is never built: A (in x R) is chained from the input cores, B (R x out) from the output cores.
    Parameters are float32, named ``cores.0`` ... and ``bias``. They are functions of ``seed`` and
    ``start`` alone: the same on every device, and torch's global generator is left as it was.

    Source: AdaZeta (arXiv 2406.18060) and LoRETTA (arXiv 2402.11417), as their code initialises it:
    core k has standard deviation ``t^(1/d) / sqrt(r_k)`` with ``t = (in + out)^(-1/2)``, so that
    every element of W has variance ``1 / (in + out)``; the bias is uniform in
    ``+-1 / sqrt(out)``.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        rank: one inner rank, or the list of all ``d - 1``.
        in_modes: modes of the input width. Default: balanced.
        out_modes: modes of the output width. Default: balanced.
        bias: whether to add a dense bias.
        init: ``"normal"`` as above, or ``"zero"``: the last core and the bias are exactly zero.
        seed: seed of the initial values; None leaves them uninitialised.
        start: index of the first initial value in the noise of ``seed``; a layer takes
            :attr:`num_parameters` values, so that layers can share one seed.
        device: device of the parameters.

    Raises:
        ValueError: on widths, modes and ranks that do not fit, or an unknown ``init``.
    """

    enabled = True
    scale = 1.0  # of a layer in a linear's place: its share of the output, see adapter_scale
    handle: RemovableHandle

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int | Sequence[int],
        in_modes: Sequence[int] | None = None,
        out_modes: Sequence[int] | None = None,
        bias: bool = True,
        init: Literal["normal", "zero"] = "normal",
        seed: int | None = 0,
        start: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if init not in ("normal", "zero"):
            raise ValueError(f"init must be 'normal' or 'zero', got {init!r}")
        self.shape = TTShape.of(in_features, out_features, rank, in_modes, out_modes)
        self.init = init

        def parameter(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(size, dtype=torch.float32, device=device))

        self.cores = nn.ParameterList(parameter(*size) for size in self.shape.core_shapes)
        self.bias = parameter(out_features) if bias else None
        if seed is not None:
            self.reset_parameters(seed, start)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear | Conv1D,
        rank: int | Sequence[int],
        *,
        in_modes: Sequence[int] | None = None,
        out_modes: Sequence[int] | None = None,
    ) -> "TTLinear":
        """Compress a dense linear layer by TT-SVD.

        Args:
            linear: the layer; it is not changed.
            rank: see the class.
            in_modes: see the class.
            out_modes: see the class.

        Returns:
            The TT layer, on the device of ``linear``, with its bias. It computes the same function
            if the ranks suffice, see :func:`adazeta.adapters.shapes.tt_svd`.
        """
        # Conv1D stores its weight as in x out, nn.Linear as out x in.
        weight = linear.weight if isinstance(linear, Conv1D) else linear.weight.T
        layer = cls(
            weight.shape[0],
            weight.shape[1],
            rank=rank,
            in_modes=in_modes,
            out_modes=out_modes,
            bias=linear.bias is not None,
            seed=None,
            device=weight.device,
        )
        with torch.no_grad():
            for core, value in zip(layer.cores, tt_svd(weight.float(), layer.shape), strict=True):
                core.copy_(value)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer

    @property
    def num_parameters(self) -> int:
        """Elements of the cores and the bias."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0, start: int = 0) -> None:
        """Draw the initial values again.

        Args:
            seed: see the class.
            start: see the class.
        """
        if self.cores[0].is_meta:
            return
        # On the CPU for every device: erf need not have the same bits everywhere.
        noise = gaussian(seed, start, self.num_parameters, stream=INIT_STREAM)
        sizes = [core.numel() for core in self.cores]
        *values, uniform = noise.split([*sizes, len(noise) - sum(sizes)])
        shape = self.shape
        t = (shape.in_features + shape.out_features) ** -0.5
        for core, right, value in zip(self.cores, (*shape.ranks, 1), values, strict=True):
            core.copy_(value.view_as(core) * (t ** (1 / len(sizes)) / math.sqrt(right)))
        if self.bias is not None:
            self.bias.copy_(torch.erf(uniform / math.sqrt(2)) / math.sqrt(shape.out_features))
        if self.init == "zero":
            for zero in (self.cores[-1], self.bias):
                if zero is not None:
                    zero.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: ``(..., in_features)``. Under a stack of P parameter sets the leading dimension is P
                equal groups of rows, see :class:`adazeta.parameters.stacking.StackedParameters`.

        Returns:
            ``(..., out_features)`` in the dtype of ``x``; the sums are float32.
        """
        return tt_apply(x, self.current_factors())

    def current_factors(self) -> Factors:
        """Return the factors to compute with: those that are set, else the chains of the cores.

        Returns:
            A ``(in_features, R)``, B ``(R, out_features)`` and the bias or None, each with P in
            front under a stack of P parameter sets. The chains are differentiable.
        """
        if self.factors is not None:
            return self.factors
        a, b = tt_factors(
            [self.value(f"cores.{k}") for k in range(len(self.cores))],
            cut=self.shape.cut,
            in_features=self.shape.in_features,
            out_features=self.shape.out_features,
        )
        return Factors(a, b, None if self.bias is None else self.value("bias"))

    def factor_layer(self, offsets: Mapping[str, int]) -> FactorLayer | None:
        """Describe the layer, see :class:`~adazeta.parameters.stacking.FactoredParameters`.

        Args:
            offsets: see there.

        Returns:
            See there.
        """
        shape = self.shape
        if not fits_plan(shape.core_shapes):
            return None
        return FactorLayer(
            offsets=tuple(offsets[f"cores.{k}"] for k in range(len(self.cores))),
            shapes=tuple(shape.core_shapes),
            cut=shape.cut,
            in_features=shape.in_features,
            out_features=shape.out_features,
            bias=None if self.bias is None else offsets["bias"],
        )

    def to_matrix(self) -> Tensor:
        """Return the dense matrix ``(in_features, out_features)`` of the layer."""
        return self.shape.to_matrix(list(self.cores))

    def extra_repr(self) -> str:
        """Describe the shape in ``print(model)``."""
        shape = self.shape
        return (
            f"in_features={shape.in_features}, out_features={shape.out_features}, "
            f"modes={list(shape.in_modes)}+{list(shape.out_modes)}, ranks={list(shape.ranks)}, "
            f"bias={self.bias is not None}"
        )


def activation_of(config: TTAdapterConfig) -> nn.Module:
    """Return the activation between the two layers of an adapter.

    Raises:
        ValueError: transformers does not know it.
    """
    if config.activation not in ACT2FN:
        raise ValueError(
            f"activation {config.activation!r} is unknown to transformers; "
            f"use one of {', '.join(sorted(ACT2FN))}"
        )
    found: nn.Module = ACT2FN[config.activation]
    return found


def down_layer(
    width: int,
    config: TTAdapterConfig,
    *,
    seed: int | None,
    start: int,
    device: torch.device | str | None,
) -> TTLinear:
    """Make the layer from the width of a model down to that of an adapter, see :class:`TTLinear`.

    Raises:
        ValueError: modes or ranks do not fit the width.
    """
    return TTLinear(
        width,
        config.bottleneck,
        rank=config.rank,
        in_modes=config.modes_of(width),
        out_modes=config.modes_of(config.bottleneck),
        bias=config.bias,
        seed=seed,
        start=start,
        device=device,
    )


def up_layer(
    down: TTLinear,
    config: TTAdapterConfig,
    *,
    seed: int | None,
    start: int,
    device: torch.device | str | None,
) -> TTLinear:
    """Make the layer up again, of the modes of ``down`` in reverse; ``config.init`` is for it."""
    shape = down.shape.transposed
    return TTLinear(
        shape.in_features,
        shape.out_features,
        rank=shape.ranks,
        in_modes=shape.in_modes,
        out_modes=shape.out_modes,
        bias=config.bias,
        init="zero" if config.init == "zero" else "normal",
        seed=seed,
        start=start,
        device=device,
    )


class TTAdapter(nn.Module, Droppable):
    """A bottleneck adapter of two TT layers: ``y = x + s * Up(phi(Down(x)))``.

    Computed in float32 whatever the dtype of ``x``, and cast back; in one fused op where the
    activation is one of :data:`FUSED_ACTIVATIONS`. The modes of Up are those of
    Down in reverse order. With ``init="zero"`` the new adapter returns its input bit for bit.

    Source: AdaZeta (arXiv 2406.18060), LoRETTA (arXiv 2402.11417).

    Args:
        width: width of input and output.
        config: rank, bottleneck, activation, scale, bias, init, drop and modes.
        seed: see :class:`TTLinear`.
        start: see :class:`TTLinear`.
        device: device of the parameters.

    Raises:
        ValueError: on modes or ranks that do not fit the width, or an unknown activation.
    """

    handle: RemovableHandle
    side = "output"  # of its linear, see Placement

    def __init__(
        self,
        width: int,
        config: TTAdapterConfig,
        *,
        seed: int | None = 0,
        start: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.down = down_layer(width, config, seed=seed, start=start, device=device)
        self.activation = activation_of(config)
        self.fused_activation = FUSED_ACTIVATIONS.get(config.activation)
        start += self.down.num_parameters
        self.up = up_layer(self.down, config, seed=seed, start=start, device=device)
        self.scale, self.drop = config.scale, config.drop

    @property
    def num_parameters(self) -> int:
        """Elements of both layers."""
        return self.down.num_parameters + self.up.num_parameters

    def forward(self, x: Tensor) -> Tensor:
        """Apply the adapter.

        Args:
            x: ``(..., width)`` of any floating dtype.

        Returns:
            The same shape and dtype.
        """
        if self.fused_activation is not None:
            return tt_adapter(
                x,
                self.down.current_factors(),
                self.up.current_factors(),
                activation=self.fused_activation,
                scale=self.scale,
            )
        hidden = x.to(torch.promote_types(x.dtype, torch.float32))
        delta = self.up(self.activation(self.down(hidden)))
        # -(-x - s d) has the bits of x + s d, and keeps the sign of x = -0.0 where d is zero.
        return torch.neg(hidden).add_(delta, alpha=-self.scale).neg_().to(x.dtype)

    def extra_repr(self) -> str:
        """Describe the scale in ``print(model)``."""
        return f"scale={self.scale}"
