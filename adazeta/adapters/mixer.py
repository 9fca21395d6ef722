"""The feature mixer: hidden states of many depths, mixed into the input of a late block.

The blocks below the mixer are frozen, so that they run once a batch whatever the perturbation, and
an evaluation costs the late blocks only; features of many depths make up for their small number.

Source: after SHERL (arXiv 2407.07523), whose projections are dense and whose residual path starts
closed. Equations of its code; tensor trains, the start as the identity and ``b = 1`` are ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.layers import activation_of, down_layer, up_layer
from adazeta.adapters.readers import InputReader
from adazeta.parameters.stacking import StackedParameters

_SHARPNESS = 0.1  # of the residual gate, tanh(gamma / 0.1)


class Gate(StackedParameters):
    """The numbers of a mixer that are no tensor trains.

    A module of its own, since one that owns tensor trains cannot be stacked with them.

    Args:
        width: of the features, r; None without features.
        residual: whether the input of the block has a trained share.
        device: of the parameters.

    Attributes:
        weight: w, float32 ``(r,)``, zero at first, or None.
        bias: b, float32 ``(1,)``, one at first, so that no feature is dead, or None.
        gamma: float32 ``(1,)``, zero at first, or None.
    """

    def __init__(
        self, width: int | None, *, residual: bool, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.weight = None if width is None else nn.Parameter(torch.zeros(width, device=device))
        self.bias = None if width is None else nn.Parameter(torch.ones(1, device=device))
        self.gamma = nn.Parameter(torch.zeros(1, device=device)) if residual else None

    def forward(self, features: Tensor, guide: Tensor) -> Tensor:
        """Return ``relu(w . (z_i * q) + b)``.

        Args:
            features: z, float32 ``(K, B, ..., r)``.
            guide: q, float32 ``(B, ..., r)``.

        Returns:
            float32 ``(K, B, ...)``.
        """
        weight, bias = self.value("weight"), self.value("bias")
        groups = weight.shape[0] if weight.dim() == 2 else 1
        products = (features * guide).view(len(features), groups, -1, features.shape[-1])
        raw = (products * weight.view(groups, 1, -1)).sum(-1) + bias.view(groups, 1)
        return raw.relu().view(features.shape[:-1])

    def share(self) -> Tensor:
        """Return the share of the block's own input, ``tanh(gamma / 0.1)``, ``(P, 1, 1)``."""
        return torch.tanh(self.value("gamma") / _SHARPNESS).view(-1, 1, 1)


class FeatureMixer(nn.Module):
    """Mixes the inputs of K blocks into that of a later one, for each token by itself.

    With H_0 ... H_{K-1} the inputs of the blocks that are read, H_K that of the mixer's own block,
    and LN a layer norm without parameters::

        z_i = LN(TT_i(H_i))                       q = z_K
        rho_i = sum_{j < K} relu(cos(z_i, z_j))   j = i included, so 1 <= rho_i <= K
        a_i = relu(w . (z_i * q) + b) / rho_i     alpha_i = a_i / (sum_j a_j + 1e-6)
        out = g H_K + s TT_out(phi(sum_i alpha_i z_i + q))

    ``g`` is 1, or with ``init="paper"`` ``tanh(gamma / 0.1)`` with a trained gamma of 0 at first:
    the block's own input is off then. With ``init="zero"`` the new mixer returns H_K bit for bit.
    Computed in float32 whatever the dtype of the hidden states, and cast back.

    Args:
        width: of the hidden states, d.
        config: rank, bottleneck (r), activation (phi), scale (s), bias, init and modes.
        readers: of the K blocks, the lowest first; may be empty.
        seed: see :class:`~adazeta.adapters.layers.TTLinear`.
        start: see there.
        device: device of the parameters.

    Attributes:
        downs: the K + 1 projections, that of the mixer's own block last.
        up: the projection back.
        gate: w, b and gamma, as far as there are any; else None.
        readers: as given.
        factor: s.
        enabled: whether the mixer acts.
        scale: share of what it changes, see :func:`adazeta.adapters.scaling.adapter_scale`.

    Raises:
        ValueError: on modes or ranks that do not fit the width, or an unknown activation.
    """

    enabled = True
    scale = 1.0
    handle: RemovableHandle

    def __init__(
        self,
        width: int,
        config: TTAdapterConfig,
        readers: Sequence[InputReader] = (),
        *,
        seed: int | None = 0,
        start: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.readers = list(readers)  # a list: they are modules of their blocks, not of this one
        self.activation = activation_of(config)
        self.downs = nn.ModuleList()
        for _ in range(len(self.readers) + 1):
            down = down_layer(width, config, seed=seed, start=start, device=device)
            self.downs.append(down)
            start += down.num_parameters
        self.up = up_layer(down, config, seed=seed, start=start, device=device)
        mixed, residual = config.bottleneck if self.readers else None, config.init == "paper"
        self.gate = None
        if mixed is not None or residual:
            self.gate = Gate(mixed, residual=residual, device=device)
        self.factor = config.scale

    @property
    def num_parameters(self) -> int:
        """Elements of all layers and of the gate."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def starts_closed(self) -> bool:
        """Whether the block's own input has a trained share, which is zero at first."""
        return self.gate is not None and self.gate.gamma is not None

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the mixer.

        Args:
            hidden: ``(B, T, d)`` of any floating dtype, what its block is given. Under a stack of P
                parameter sets the rows are P equal, consecutive groups.

        Returns:
            The same shape and dtype.

        Raises:
            RuntimeError: a block that it reads did not run before it.
        """
        read = [reader.states(hidden.shape).to(hidden.device) for reader in self.readers]
        for reader in self.readers:
            reader.free()
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        wide = hidden.to(dtype)
        *features, guide = (
            functional.layer_norm(projected, projected.shape[-1:])
            for projected in (
                down(state.to(dtype)) for down, state in zip(self.downs, [*read, wide], strict=True)
            )
        )
        mixed = guide
        if features:
            assert self.gate is not None
            stacked = torch.stack(features)
            mixed = aggregate(stacked, self.gate(stacked, guide)) + guide
        delta = self.up(self.activation(mixed))
        if self.starts_closed:
            assert self.gate is not None
            share = 1 + self.scale * (self.gate.share() - 1)
            by_group = wide.view(len(share), -1, wide.shape[-1])
            own = (by_group * share).view_as(wide)
            return (own + (self.scale * self.factor) * delta).to(hidden.dtype)
        # -(-x - s d) has the bits of x + s d, and keeps the sign of x = -0.0 where d is zero.
        return torch.neg(torch.neg(wide) - (self.scale * self.factor) * delta).to(hidden.dtype)

    def extra_repr(self) -> str:
        """Describe scale and features in ``print(model)``."""
        return f"features={len(self.readers)}, scale={self.factor}"


def redundancy(features: Tensor) -> Tensor:
    """Return how often each feature is there: ``sum_j relu(cos(z_i, z_j))``, itself counted as 1.

    Args:
        features: z, ``(K, ..., r)``; a feature of zeros counts once.

    Returns:
        ``(K, ...)``, from 1 to K.
    """
    unit = functional.normalize(features, dim=-1)
    alike = torch.einsum("i...r,j...r->ij...", unit, unit).relu()
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    alike = alike.where(~itself.view(*itself.shape, *[1] * (alike.dim() - 2)), 1.0)
    return alike.sum(1)


def weights(features: Tensor, raw: Tensor) -> Tensor:
    """Return the weights alpha of features: their share of what the gate gives each over rho.

    Args:
        features: z, ``(K, ..., r)``.
        raw: what the gate gives each, ``(K, ...)``, not negative.

    Returns:
        ``(K, ...)``, not negative; their sum is 1, or 0 where all of ``raw`` is.
    """
    shares = raw / redundancy(features)
    return shares / (shares.sum(0) + 1e-6)


def aggregate(features: Tensor, raw: Tensor) -> Tensor:
    """Return ``sum_i alpha_i z_i``, ``(..., r)``; see :func:`weights`."""
    return (weights(features, raw)[..., None] * features).sum(0)


def check_forward_only(config: TTAdapterConfig) -> None:
    """Refuse to train a mixer by forward passes that starts with its block's own input off.

    Raises:
        ValueError: these are the settings of one.
    """
    if config.form == "mixer" and config.init == "paper":
        raise ValueError(
            "init='paper' starts a mixer with the input of its block off: the model then knows "
            "nothing, and forward passes alone do not bring it back; set init to 'zero', or order "
            "to 'first'"
        )
