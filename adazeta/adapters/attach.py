"""Tensor-train adapters on any model: add, switch off, remove and count them.

An adapter is a sub-module ``tt_adapter`` of the linear it belongs to, called by a forward hook of
that linear. The keys of the base model's state dict stay as they are, and copies of the model have
their own adapters.

Source: AdaZeta (arXiv 2406.18060) and LoRETTA (arXiv 2402.11417).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.adapters.attached import (
    ADAPTER,
    Adapter,
    adapter_config,
    attached_adapters,
    has_adapters,
    saved_modules,
)
from adazeta.adapters.block_placement import find_blocks, find_mixer
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import SavingWithAdapters
from adazeta.adapters.informed import InformedAdapter
from adazeta.adapters.layers import TTAdapter, TTLinear
from adazeta.adapters.linear_form import TTLora
from adazeta.adapters.mixer import FeatureMixer
from adazeta.adapters.placement import Placement, find_head, find_placements
from adazeta.adapters.readers import (
    InputReader,
    StateReader,
    attach_reader,
    attached_readers,
    first_input,
    remove_readers,
)
from adazeta.models.structure import linear_widths, quantised_sizes
from adazeta.parameters.stacking import StackedParameters

__all__ = [
    "add_tt_adapters",
    "build_adapters",
    "disable_adapters",
    "print_trainable_parameters",
    "remove_adapters",
    "trainable_parameters",
]


def add_tt_adapters(
    model: nn.Module, config: TTAdapterConfig | None = None, *, seed: int | None = 0
) -> nn.Module:
    """Freeze a model and give it tensor-train adapters, in place.

    Args:
        model: the base model, on any device (also meta), of any dtype, quantised or not.
        config: what the adapters are and where they go. Default: :class:`TTAdapterConfig`.
        seed: seed of the initial values, which do not depend on the device; torch's global
            generator is left as it was. None leaves them uninitialised, to be loaded.

    Returns:
        The same model. Only the parameters of adapters and of ``config.modules_to_save`` require a
        gradient. Adapters are float32 and on the device of their linear.

    Raises:
        ValueError: if the model has adapters already, or the configuration does not fit it; the
            model is then left as it was.
    """
    config = config or TTAdapterConfig()
    adapters = build_adapters(model, config, seed=seed)
    extra = saved_modules(model, config)
    model.requires_grad_(False)
    readers = {
        name: reader
        for placement, adapter in adapters.items()
        if isinstance(adapter, InformedAdapter | FeatureMixer)
        for name, reader in zip(placement.reads, adapter.readers, strict=True)
    }
    for name, reader in readers.items():  # before the adapters: they read what a block makes itself
        attach_reader(model.get_submodule(name), reader)
    for placement, adapter in adapters.items():
        _attach(model.get_submodule(placement.name), adapter, placement)
    for module in extra.values():
        module.requires_grad_(True)
    if hasattr(type(model), "save_pretrained"):
        model.save_pretrained = SavingWithAdapters(model)  # type: ignore[assignment]
    model.tt_adapter_config = config  # type: ignore[assignment]
    model.tt_adapter_seed = seed  # type: ignore[assignment]
    return model


def build_adapters(
    model: nn.Module,
    config: TTAdapterConfig,
    *,
    seed: int | None = None,
    device: torch.device | str | None = None,
) -> dict[Placement, Adapter]:
    """Build the modules that :func:`add_tt_adapters` attaches, without touching the model.

    Args:
        model: the base model.
        config: see :func:`add_tt_adapters`.
        seed: see :func:`add_tt_adapters`.
        device: device of the adapters. Default: each on that of its linear.

    Returns:
        The adapter (for ``config.tt_head_rank``: the TT layer) of each placement.

    Raises:
        ValueError: see :func:`add_tt_adapters`.
    """
    if has_adapters(model):
        raise ValueError("the model has TT adapters already; call remove_adapters(model) first")
    if config.form == "informed":
        placements = find_blocks(model, config.layers, config.read_layers)
    elif config.form == "mixer":
        placements = find_mixer(model, config.features, config.late)
    else:
        placements = find_placements(
            model,
            config.target_modules,
            config.layers,
            experts=config.experts,
            weights=config.form == "lora",
        )
    if config.tt_head_rank is not None:
        placements += find_head(model)
    adapters: dict[Placement, Adapter] = {}
    readers: dict[str, StateReader] = {}
    start = 0
    for placement in placements:
        linear = model.get_submodule(placement.name)
        where = device or _device(linear)
        if placement.side == "block":
            adapter: Adapter = _build_informed(placement, config, readers, where)
        elif placement.side == "mixer":
            assert placement.width is not None
            inputs = [InputReader() for _ in placement.reads]
            adapter = FeatureMixer(
                placement.width, config, inputs, seed=seed, start=start, device=where
            )
        else:
            adapter = _build(linear, placement, config, seed, start, where)
        if placement.routed:
            # An expert sees the rows of several evaluations mixed, as they are routed to it.
            for layer in adapter.modules():
                if isinstance(layer, StackedParameters):
                    layer.can_stack = False
        adapters[placement] = adapter
        start += adapter.num_parameters
    for adapter in list(adapters.values())[:-1]:
        if isinstance(adapter, InformedAdapter):
            adapter.is_last = False
    return adapters


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Let a model compute without its adapters for the length of a ``with`` block.

    Modules of ``modules_to_save`` keep their trained values.

    Args:
        model: a model with adapters.

    Yields:
        None.
    """
    parts: list[Adapter | StateReader] = [adapter for _, adapter in attached_adapters(model)]
    parts += [reader for _, reader in attached_readers(model)]
    before = [part.enabled for part in parts]
    for part in parts:
        part.enabled = False
    try:
        yield
    finally:
        for part, enabled in zip(parts, before, strict=True):
            part.enabled = enabled


def remove_adapters(model: nn.Module) -> nn.Module:
    """Take the adapters off again, in place.

    The base stays frozen (``model.requires_grad_(True)`` thaws it), and modules of
    ``modules_to_save`` keep their trained values.

    Args:
        model: a model with adapters.

    Returns:
        The same model.

    Raises:
        ValueError: if the model has none.
    """
    adapter_config(model)
    for name, adapter in list(attached_adapters(model)):
        adapter.handle.remove()
        delattr(model.get_submodule(name.rpartition(".")[0]), ADAPTER)
    remove_readers(model)
    model.requires_grad_(False)
    del model.tt_adapter_config, model.tt_adapter_seed
    for name in ("save_pretrained", "tt_adapter_suffix"):
        vars(model).pop(name, None)
    return model


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """Count parameters, tied ones once, and quantised ones as the numbers that they stand for.

    Args:
        model: any model.

    Returns:
        The number of elements that require a gradient, and of all.
    """
    stood_for = quantised_sizes(model)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters() if id(p) not in stood_for]
    sizes += [(size, False) for size in stood_for.values()]
    return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)


def print_trainable_parameters(model: nn.Module) -> None:
    """Print the counts of :func:`trainable_parameters` in PEFT's form.

    Args:
        model: any model.
    """
    trainable, total = trainable_parameters(model)
    print(
        f"trainable params: {trainable:,d} || all params: {total:,d} || "
        f"trainable%: {100 * trainable / max(total, 1):.4f}"
    )


def _build_informed(
    placement: Placement,
    config: TTAdapterConfig,
    readers: dict[str, StateReader],
    device: torch.device | str,
) -> InformedAdapter:
    """Build an informed adapter; its readers are those of their blocks, or new ones."""
    assert placement.width is not None
    read = [readers.setdefault(name, StateReader()) for name in placement.reads]
    return InformedAdapter(placement.width, config.components, config.answers, read, device=device)


def _build(
    linear: nn.Module,
    placement: Placement,
    config: TTAdapterConfig,
    seed: int | None,
    start: int,
    device: torch.device | str,
) -> Adapter:
    widths = linear_widths(linear)
    if placement.width is not None:  # a mixture of experts
        widths = placement.width, placement.width
    assert widths is not None  # find_placements returns nothing else
    if placement.side == "head":
        assert config.tt_head_rank is not None
        return TTLinear(*widths, rank=config.tt_head_rank, seed=seed, start=start, device=device)
    if placement.side == "weight":
        return TTLora(*widths, config, seed=seed, start=start, device=device)
    width = widths[placement.side == "output"]
    return TTAdapter(width, config, seed=seed, start=start, device=device)


def _attach(linear: nn.Module, adapter: Adapter, placement: Placement) -> None:
    linear.add_module(ADAPTER, adapter)
    if isinstance(adapter, TTAdapter):
        adapter.side = placement.side
    if placement.side == "input":
        adapter.handle = linear.register_forward_pre_hook(_adapt_input)
    elif placement.side == "mixer":
        adapter.handle = linear.register_forward_pre_hook(_mix_input, with_kwargs=True)
    elif placement.side in ("output", "block"):
        adapter.handle = linear.register_forward_hook(_adapt_output)
    elif placement.side == "weight":
        adapter.handle = linear.register_forward_hook(_adapt_weight)
    else:
        adapter.handle = linear.register_forward_hook(_replace_output)


# Hooks are functions of this module, not closures, so that models can be copied and pickled.
def _adapt_input(linear: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (linear.tt_adapter(args[0]), *args[1:]) if linear.tt_adapter.enabled else args


def _mix_input(
    block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if not block.tt_adapter.enabled:
        return None
    mixed = block.tt_adapter(first_input(args, kwargs))
    return ((mixed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": mixed})


def _adapt_output(linear: Any, args: tuple[Tensor, ...], output: Any) -> Any:
    if not linear.tt_adapter.enabled:
        return output
    if isinstance(output, tuple):  # blocks and mixtures of experts return other things as well
        return (linear.tt_adapter(output[0]), *output[1:])
    return linear.tt_adapter(output)


def _adapt_weight(linear: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return linear.tt_adapter(output, args[0]) if linear.tt_adapter.enabled else output


def _replace_output(linear: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    adapter = linear.tt_adapter
    if not adapter.enabled:
        return output
    own: Tensor = adapter(args[0])
    return own if adapter.scale == 1 else output + adapter.scale * (own - output)


def _device(linear: nn.Module) -> torch.device:
    # Between calls, accelerate keeps offloaded weights on meta.
    execution_device = getattr(getattr(linear, "_hf_hook", None), "execution_device", None)
    if execution_device is not None:
        return torch.device(execution_device)
    # Quantised linears may hold their weight in a buffer.
    tensors = chain(linear.parameters(), linear.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
