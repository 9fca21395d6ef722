"""What a model has of adapters: the layers, their settings, what is saved with them."""

from collections.abc import Iterator

from torch import nn

from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.informed import InformedAdapter
from adazeta.adapters.layers import TTAdapter, TTLinear
from adazeta.adapters.mixer import FeatureMixer
from adazeta.adapters.placement import matching

ADAPTER = "tt_adapter"

Adapter = TTAdapter | TTLinear | InformedAdapter | FeatureMixer


def attached_adapters(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """Yield the adapters of a model.

    Args:
        model: any model.

    Yields:
        The path (``<path of the linear>.tt_adapter``) and the module, each once.
    """
    for name, module in model.named_modules():
        if isinstance(module, Adapter) and name.rpartition(".")[2] == ADAPTER:
            yield name, module


def has_adapters(model: nn.Module) -> bool:
    """Tell whether a model has adapters.

    Args:
        model: any model.

    Returns:
        True if :func:`attached_adapters` yields any.
    """
    return any(True for _ in attached_adapters(model))


def is_informed(model: nn.Module) -> bool:
    """Tell whether a model has informed adapters."""
    return any(isinstance(adapter, InformedAdapter) for _, adapter in attached_adapters(model))


def adapter_config(model: nn.Module) -> TTAdapterConfig:
    """Return the configuration of a model's adapters.

    Args:
        model: a model with adapters.

    Returns:
        The configuration that they were added with.

    Raises:
        ValueError: if the model has none.
    """
    config = getattr(model, "tt_adapter_config", None)
    if config is None:
        raise ValueError("the model has no TT adapters; call add_tt_adapters(model, config) first")
    return config


def saved_modules(model: nn.Module, config: TTAdapterConfig) -> dict[str, nn.Module]:
    """Find the base modules that are trained in full beside the adapters.

    Args:
        model: the base model.
        config: a configuration; ``modules_to_save`` is read.

    Returns:
        The modules by path.

    Raises:
        ValueError: if an entry of ``modules_to_save`` matches no module.
    """
    modules = dict(model.named_modules())
    return {name: modules[name] for name in matching(modules, config.modules_to_save or [])}
