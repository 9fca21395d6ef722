"""Trained adapters written into the weights of their linears: a plain model again."""

import math
from collections import Counter

import torch
from torch import Tensor, nn

from adazeta.adapters.attach import remove_adapters
from adazeta.adapters.attached import Adapter
from adazeta.adapters.layers import TTAdapter, TTLinear
from adazeta.adapters.linear_form import TTLora
from adazeta.adapters.low_rank import adapted_linears, dense_layer, dense_weight, low_rank_term


@torch.no_grad()
def merge_adapters(model: nn.Module, alpha: float = 1.0) -> nn.Module:
    """Write trained adapters into the weights of their linears, in place, and take them off.

    The sums are made in float32 and rounded once to the dtype of the weight: float32 models keep
    their outputs to rounding, and others as far as their weights can say what was added.

    Args:
        model: a model with adapters of the linear form, or bottlenecks of the activation
            ``"linear"``, and possibly a tensor-train head.
        alpha: share of what the adapters add: 1 all of it, 0 nothing.

    Returns:
        The same model, without adapters. Its base stays frozen, and modules of ``modules_to_save``
        have their trained values.

    Raises:
        ValueError: ``alpha`` is not finite, or the adapters are not what a weight can hold, with
            the reason: an activation, informed adapters, adapters on the last tokens only,
            quantised, offloaded or shared weights, a bias for a linear that has none. The model is
            left as it was.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha!r}")
    linears = adapted_linears(model)
    places = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    for name, (linear, adapter) in linears.items():
        _check(name, linear, adapter, places)
    for name, (linear, adapter) in linears.items():
        weight = dense_weight(name, linear)
        if isinstance(adapter, TTLinear) and not isinstance(adapter, TTLora):
            matrix, bias = dense_layer(adapter)
            share = alpha * adapter.scale
            added = share * (matrix - weight.float())
            own = getattr(linear, "bias", None)
            shift = None
            if own is not None:
                shift = share * ((torch.zeros_like(own) if bias is None else bias) - own.float())
        else:
            term = low_rank_term(name, linear, adapter)
            added = (alpha * term.scale) * (term.a @ term.b)
            shift = None if term.shift is None else (alpha * term.scale) * term.shift
        weight.copy_(weight.float() + added)
        if shift is not None:
            bias_of: Tensor = linear.bias  # type: ignore[assignment]
            bias_of.copy_(bias_of.float() + shift)
    return remove_adapters(model)


def _check(name: str, linear: nn.Module, adapter: Adapter, places: Counter[int]) -> None:
    """Raise ValueError unless an adapter can be written into its linear."""
    dense_weight(name, linear)
    if places[id(linear.weight)] > 1:
        raise ValueError(
            f"the weight of {name} is shared with another module, which would change as well; "
            "untie them first, or export to a LoRA"
        )
    if getattr(linear, "bias", None) is not None:
        return
    if isinstance(adapter, TTLora):
        return
    if isinstance(adapter, TTAdapter):
        bias = low_rank_term(name, linear, adapter).shift
    else:
        assert isinstance(adapter, TTLinear)
        bias = adapter.bias if adapter.bias is not None and bool(adapter.bias.any()) else None
    if bias is not None:
        raise ValueError(
            f"the adapter of {name} adds a bias and this {type(linear).__name__} has none; train "
            "with bias: false, or export to a LoRA, which can hold it"
        )
