"""What an adapter adds to the weight of its linear, as a low-rank matrix, or why it cannot be said.

An adapter of the linear form is such a term, and so is a bottleneck with nothing between its two
tensor trains: ``(x W + b)(1 + s A1 B1 A2 B2) = x W + x (W A1)(s B1 A2 B2) + ...``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adazeta.adapters.attached import ADAPTER, Adapter, adapter_config, attached_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.layers import TTAdapter, TTLinear
from adazeta.adapters.linear_form import TTLora
from adazeta.models.structure import linear_widths


@dataclass(frozen=True)
class LowRankTerm:
    """What an adapter adds: ``y = W x + bias`` becomes ``W x + s (x A) B + bias + s shift``.

    Attributes:
        a: float32 ``(in_features, R)``.
        b: float32 ``(R, out_features)``.
        scale: s.
        shift: float32 ``(out_features,)``, or None where nothing is added to the bias.
    """

    a: Tensor
    b: Tensor
    scale: float
    shift: Tensor | None = None


def adapted_linears(model: nn.Module) -> dict[str, tuple[nn.Module, Adapter]]:
    """Return the linears of a model that have adapters, and these, by the linear's path.

    Raises:
        ValueError: there are none, or what they do is no function of a linear's weight: they act on
            the last tokens only, or on what a block or a mixture of experts returns, or have an
            activation.
    """
    check_form(adapter_config(model))
    suffix = getattr(model, "tt_adapter_suffix", None)
    if suffix is not None:
        raise ValueError(only_last_tokens(f"its last {suffix} tokens"))
    found: dict[str, tuple[nn.Module, Adapter]] = {}
    for path, adapter in attached_adapters(model):
        name = path.removesuffix(f".{ADAPTER}")
        linear = model.get_submodule(name)
        if linear_widths(linear) is None:
            raise ValueError(
                f"the adapter of {name} acts on what a {type(linear).__name__} returns, which is "
                "no linear and has no weight for it; train with form='lora'"
            )
        found[name] = (linear, adapter)
    return found


def check_form(config: TTAdapterConfig) -> None:
    """Refuse adapters that are no matrices, by their settings.

    Raises:
        ValueError: they are informed, a mixer, or have an activation.
    """
    if config.form == "informed":
        raise ValueError(
            "informed adapters act on what a whole block returns, which no weight can stand for; "
            "train with form='lora' to merge or export"
        )
    if config.form == "mixer":
        raise ValueError(
            "a mixer adds what the inputs of several blocks give together, which no weight can "
            "stand for; train with form='lora' to merge or export"
        )
    if config.form == "bottleneck" and config.activation != "linear":
        raise ValueError(
            f"these adapters have the activation {config.activation!r} between their tensor "
            "trains, so they are no matrices; train with form='lora', or activation='linear'"
        )


def only_last_tokens(which: str) -> str:
    """Say why adapters on the last tokens of a prompt can be neither merged nor exported."""
    return (
        f"these adapters were trained to act on the end of a prompt only ({which}), and a weight "
        "acts on every token; train with adapt: all to merge or export"
    )


@torch.no_grad()
def low_rank_term(name: str, linear: nn.Module, adapter: Adapter) -> LowRankTerm:
    """Return what an adapter adds to the weight of its linear.

    Args:
        name: path of the linear, for messages.
        linear: the linear.
        adapter: its adapter, of those that :func:`adapted_linears` returns.

    Raises:
        ValueError: the adapter stands in for the linear (``tt_head_rank``), or the term depends on
            the linear's weight and that cannot be read.
    """
    if isinstance(adapter, TTLora):
        a, b, _ = adapter.current_factors()
        return LowRankTerm(a.float(), b.float(), adapter.scale)
    if not isinstance(adapter, TTAdapter):
        raise ValueError(
            f"the tensor train of {name} stands in for the whole linear (tt_head_rank), which is "
            "no term of low rank; merge it instead"
        )
    weight = dense_weight(name, linear).double()
    (a1, b1, low), (a2, b2, high) = (
        [None if part is None else part.double() for part in layer.current_factors()]
        for layer in (adapter.down, adapter.up)
    )
    assert a1 is not None and b1 is not None and a2 is not None and b2 is not None
    base = getattr(linear, "bias", None)
    shift = torch.zeros_like(b2[0]) if high is None else high
    middle = 0 if low is None else low
    if adapter.side == "input":
        a, b = a1, (b1 @ a2) @ (b2 @ weight)
        shift = ((middle @ a2) @ b2 + shift if low is not None else shift) @ weight
    else:
        a, b = weight @ a1, (b1 @ a2) @ b2
        if base is not None:
            middle = middle + (base.double() @ a1) @ b1
        if not isinstance(middle, int):
            shift = shift + (middle @ a2) @ b2
    shift = shift.float() if bool(shift.any()) else None
    return LowRankTerm(a.float(), b.float(), float(adapter.scale), shift)


def dense_weight(name: str, linear: nn.Module) -> Tensor:
    """Return the weight of a linear as ``(in_features, out_features)``, a view of it.

    Args:
        name: path of the linear, for messages.
        linear: ``nn.Linear`` or transformers' ``Conv1D``.

    Raises:
        ValueError: its weight is quantised, or not in memory, or it is another kind of module.
    """
    weight = getattr(linear, "weight", None)
    plain = (
        isinstance(linear, nn.Linear | Conv1D)
        and type(weight) is nn.Parameter
        and type(weight.data) is Tensor
        and weight.is_floating_point()
        and weight.element_size() > 1
    )
    if not plain:
        raise ValueError(
            f"the weight of {name}, a {type(linear).__name__}, is quantised: there is no exact sum "
            "with a term of low rank; export to a LoRA with form='lora', or load the adapters onto "
            "the base model in float32 or bfloat16 first"
        )
    assert isinstance(weight, Tensor)
    if weight.is_meta:
        raise ValueError(
            f"the weight of {name} is not in memory (offloaded); load the model without offloading"
        )
    # Conv1D stores its weight as in x out, nn.Linear as out x in.
    return weight.detach() if isinstance(linear, Conv1D) else weight.detach().T


def dense_layer(layer: TTLinear) -> tuple[Tensor, Tensor | None]:
    """Return the matrix ``(in_features, out_features)`` and the bias of a layer, float32."""
    with torch.no_grad():
        bias = None if layer.bias is None else layer.bias.detach().float()
        return layer.to_matrix().float(), bias
