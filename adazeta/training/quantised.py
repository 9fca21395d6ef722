"""Base models whose weights are quantised, under a ``transformers.Trainer`` without gradients."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from adazeta.adapters.attached import has_adapters
from adazeta.methods import method_named
from adazeta.models.structure import linear_widths
from adazeta.support.settings import dtype_name

_ATTACHED = "_hf_peft_config_loaded"


def quantised_linears(model: nn.Module) -> dict[str, Tensor]:
    """Find the linears whose weight is no ordinary tensor of floating-point numbers.

    Args:
        model: any model.

    Returns:
        The weight, a parameter or a buffer, by the path of its linear.
    """
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None) if linear_widths(module) is not None else None
        if isinstance(weight, Tensor):
            plain = type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()
            if not plain:
                found[name] = weight
    return found


def check_trained(model: nn.Module, method: str, settings: Mapping[str, Any] | None = None) -> None:
    """Refuse to train a quantised model in full, which could only change what is not quantised.

    Args:
        model: the model.
        method: name of the method; those that train in subspaces can do it, if they are set to.
        settings: of the method; without them it is taken to be set to what it can.

    Raises:
        ValueError: the method is unknown; or linears are quantised, there are no adapters, and
            nothing was frozen.
    """
    linears = quantised_linears(model)
    found = method_named(method)
    setting = found.drawn.trains_frozen
    reached = setting is not None and (settings is None or found.with_settings(settings)[setting])
    if not linears or has_adapters(model) or reached:
        return
    weights = {id(weight) for weight in linears.values()}
    others = [p.requires_grad for p in model.parameters() if id(p) not in weights]
    if others and all(others):
        name, weight = next(iter(linears.items()))
        reach = "" if setting is None else f"set method_settings={{{setting!r}: True}}, "
        raise ValueError(
            f"{len(linears)} linears of this model are quantised ({name}: "
            f"{dtype_name(weight.dtype)}) and cannot be trained, so only what is "
            "left, such as norms and embeddings, would be; call add_tt_adapters(model, config) "
            f"first, {reach}or freeze what is not to be trained"
        )


def check_offloaded(model: nn.Module) -> None:
    """Refuse a model whose weights are not in memory, unless the base class leaves them in place.

    Args:
        model: the model.

    Raises:
        ValueError: what is to be trained is offloaded; or accelerate's hooks have offloaded weights
            of a model that transformers would then move to a device.
    """
    absent = {name: p.requires_grad for name, p in model.named_parameters() if p.is_meta}
    trained = [name for name, trainable in absent.items() if trainable]
    if trained:
        raise ValueError(
            f"{trained[0]} is to be trained and has no data (offloaded weights); offload the model "
            "first and add adapters afterwards, or freeze what is offloaded"
        )
    if absent and not hasattr(model, "hf_device_map"):
        raise ValueError(
            f"{len(absent)} weights of the model, such as {next(iter(absent))}, have no data: they "
            "were offloaded by hooks, and the trainer would try to move them. Load the model by "
            "from_pretrained(..., device_map={...}, offload_folder=...) instead, with modules on "
            "'cpu' or 'disk', which stay where they are"
        )


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Let ``transformers.Trainer.__init__`` take a quantised model.

    It refuses one unless adapters of PEFT are on it or its kind of quantisation has gradients.
    Forward passes need neither. The mark by which it knows of adapters is set on the model, whose
    class has it, and is what it was when the block ends.

    Args:
        model: the model, compiled or not.

    Yields:
        None.
    """
    inner = getattr(model, "_orig_mod", model)
    if not getattr(inner, "is_quantized", False) or getattr(inner, _ATTACHED, False):
        yield
        return
    own = _ATTACHED in vars(inner)
    setattr(inner, _ATTACHED, True)
    try:
        yield
    finally:
        if own:
            setattr(inner, _ATTACHED, False)
        else:
            delattr(inner, _ATTACHED)
