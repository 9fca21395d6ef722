"""Load saved adapters onto a base model, once they are known to fit it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adazeta.adapters.attach import add_tt_adapters, build_adapters
from adazeta.adapters.attached import ADAPTER, saved_modules
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import (
    PREFIX,
    WEIGHTS_NAME,
    adapter_state_dict,
    load_base,
    load_config,
    plain_name,
    state_of,
    widths_of,
)


def from_pretrained(
    base: nn.Module | str | Path | None,
    folder: str | Path,
    *,
    trainable: bool = False,
    **base_arguments: Any,
) -> nn.Module:
    """Load adapters onto a base model.

    Args:
        base: the base model, which gets the adapters in place; or its folder or hub id; or None for
            the one that the adapters were trained on.
        folder: a folder written by :func:`save_pretrained`.
        trainable: whether training goes on. By default nothing requires a gradient.
        base_arguments: for ``from_pretrained`` of the base model's class, if it is loaded here:
            ``dtype``, ``device_map``, ``num_labels``, ... By default no pickled weights are loaded
            (``use_safetensors=True``) and no code of a repository is run
            (``trust_remote_code=False``).

    Returns:
        The base model with its adapters.

    Raises:
        FileNotFoundError: if the folder holds no adapters.
        ValueError: if they do not fit the base model, naming the first tensor that does not (the
            model is then left as it was), or if the base model or its class is not known.
    """
    config = load_config(folder)
    state, widths = _load_weights(Path(folder) / WEIGHTS_NAME)
    if isinstance(base, nn.Module):
        model = base
    else:
        model = load_base(base, config, base_arguments)
    problem = _misfit(model, config, state, widths)
    if problem is not None:
        raise ValueError(
            f"the adapters do not fit this {type(model).__name__}: {problem}. Load them onto the "
            f"model that they were trained on ({config.base_model_name_or_path})"
        )
    config.inference_mode = not trainable
    add_tt_adapters(model, config, seed=None)
    _fill(model, state)
    if not trainable:
        model.requires_grad_(False)
    return model


def load_values(model: nn.Module, folder: str | Path) -> None:
    """Give a model's adapters the values of saved ones.

    Args:
        model: a model with adapters of the same places and sizes.
        folder: a folder written by :func:`save_pretrained`.

    Raises:
        ValueError: the file lacks a tensor, or one has another shape; nothing was changed then.
    """
    state, _ = _load_weights(Path(folder) / WEIGHTS_NAME)
    for key, tensor in adapter_state_dict(model).items():
        name = plain_name(key)
        found = tuple(state[name].shape) if name in state else "missing"
        if found != tuple(tensor.shape):
            raise ValueError(
                f"{name} is {found} in {folder} and {tuple(tensor.shape)} in this model; set up "
                "the adapters as that run did"
            )
    _fill(model, state)


@torch.no_grad()
def _fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    for key, tensor in adapter_state_dict(model).items():
        tensor.copy_(state[plain_name(key)])


def _load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key.removeprefix(PREFIX): file.get_tensor(key) for key in file.keys()}
            return state, json.loads((file.metadata() or {}).get("widths", "{}"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); copy it again, or make it from the log of its run: "
            "adazeta replay"
        ) from None


def _misfit(
    model: nn.Module,
    config: TTAdapterConfig,
    state: dict[str, Tensor],
    widths: dict[str, list[int]],
) -> str | None:
    """Say what first keeps saved adapters from being loaded onto a model, None if nothing does."""
    built = build_adapters(model, config, device="meta")
    adapters = {f"{plain_name(p.name)}.{ADAPTER}": adapter for p, adapter in built.items()}
    modules = {**adapters, **saved_modules(model, config)}
    expected = {
        plain_name(key): value
        for name, module in modules.items()
        for key, value in state_of(name, module)
    }
    for key in [*expected, *state]:
        if key not in state:
            return f"{key} is missing in the file"
        if key not in expected:
            return f"the base model has no place for {key}"
        here, there = tuple(expected[key].shape), tuple(state[key].shape)
        if here != there:
            return f"{key} is {there} in the file and {here} on this base model"
    for name, adapter in adapters.items():
        if widths.get(name, widths_of(adapter)) != widths_of(adapter):
            return f"{name} is for widths {widths[name]} and this base has {widths_of(adapter)}"
    return None
