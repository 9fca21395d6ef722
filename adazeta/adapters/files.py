"""Adapters on disk, in PEFT's format of two files.

``adapter_config.json`` holds the configuration, ``adapter_model.safetensors`` the trained tensors
under the keys ``base_model.model.<path>``. Nothing is pickled.
"""

import json
import os
import weakref
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from adazeta.adapters.attached import Adapter, adapter_config, attached_adapters, saved_modules
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.informed import InformedAdapter
from adazeta.adapters.layers import TTAdapter
from adazeta.adapters.mixer import FeatureMixer
from adazeta.models.arguments import AUTO_CLASSES
from adazeta.models.loading import SAFE
from adazeta.models.structure import HEADS
from adazeta.models.whole_checkpoint import load_whole
from adazeta.support.files import read_object
from adazeta.support.tensor_files import save_tensors
from adazeta.version import __version__

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PEFT_TYPE = "ADAZETA"
PREFIX = "base_model.model."

_MODEL_CARD = """\
---
base_model: {base}
library_name: adazeta
tags:
- adazeta
- tensor-train
- zeroth-order
---

# Tensor-train adapters for {base}

```python
import adazeta

model = adazeta.from_pretrained({base_argument!r}, "path/of/this/folder")
```
"""

COMPILED = "_orig_mod."
"""What ``torch.compile`` puts into the names of what is in a compiled module."""


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a model's adapter file holds.

    Args:
        model: a model with adapters.

    Returns:
        The tensors of the adapters and of ``modules_to_save`` by their key in ``model.state_dict``;
        they share memory with the model.

    Raises:
        ValueError: if the model has no adapters.
    """
    modules = {**dict(attached_adapters(model)), **saved_modules(model, adapter_config(model))}
    return {
        key: tensor for name, module in modules.items() for key, tensor in state_of(name, module)
    }


def save_pretrained(model: nn.Module, folder: str | Path) -> None:
    """Write a model's adapters to a folder, with a model card if it has none.

    Args:
        model: a model with adapters.
        folder: where to; it is made if need be, and files of earlier adapters are replaced.

    Raises:
        ValueError: if the model has no adapters.
    """
    config = config_to_save(model)
    state = {
        # safetensors refuses tensors that share memory, as views into one buffer do.
        f"{PREFIX}{plain_name(k)}": t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, t in adapter_state_dict(model).items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    widths = {plain_name(name): widths_of(adapter) for name, adapter in attached_adapters(model)}
    metadata = {"format": "pt", "widths": json.dumps(widths)}
    save_tensors(state, folder / WEIGHTS_NAME, metadata)
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / CONFIG_NAME).write_text(f"{text}\n", encoding="utf-8")
    card = folder / "README.md"
    if not card.exists():
        base = config["base_model_name_or_path"]
        card.write_text(
            _MODEL_CARD.format(base=base or "a model of your own", base_argument=base),
            encoding="utf-8",
        )


def load_config(folder: str | Path) -> TTAdapterConfig:
    """Read the configuration of saved adapters.

    Args:
        folder: a folder written by :func:`save_pretrained`.

    Returns:
        The configuration.

    Raises:
        FileNotFoundError: if the folder holds no adapters.
        ValueError: if they are of another method, or have settings unknown to this version.
    """
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"no {CONFIG_NAME} in {folder}; give a folder written by save_pretrained"
        )
    values = read_object(path)
    peft_type, version = values.pop("peft_type", None), values.pop("adazeta_version", None)
    values.pop("peft_version", None)  # PEFT saved them
    if peft_type != PEFT_TYPE:
        raise ValueError(
            f"{path} has peft_type {peft_type!r}, not {PEFT_TYPE!r}; load it with peft.PeftModel"
        )
    unknown = sorted(values.keys() - {setting.name for setting in fields(TTAdapterConfig)})
    if unknown:
        raise ValueError(
            f"{path}, written by adazeta {version}, has settings that adazeta {__version__} does "
            f"not know: {', '.join(unknown)}; upgrade adazeta"
        )
    return TTAdapterConfig.saved(values)


def state_of(name: str, module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the tensors of a module by the names that files have."""
    return list(module.state_dict(prefix=f"{name}.").items())


def config_to_save(model: nn.Module) -> dict[str, Any]:
    """Return what ``adapter_config.json`` holds for a model with adapters."""
    config = asdict(adapter_config(model))
    kind = type(getattr(model, "_orig_mod", model))  # from under torch.compile
    if config["base_model_name_or_path"] is None:
        config["base_model_name_or_path"] = getattr(model, "name_or_path", None) or None
    if config["task_type"] is None and hasattr(transformers, kind.__name__):
        config["auto_mapping"] = {
            "base_model_class": kind.__name__,
            "parent_library": kind.__module__,
        }
    config["inference_mode"] = True
    return {**config, "peft_type": PEFT_TYPE, "adazeta_version": __version__}


def load_base(
    base: str | Path | None, config: TTAdapterConfig, arguments: dict[str, Any]
) -> nn.Module:
    """Load a base model as the configuration of its adapters says.

    Args:
        base: its folder or hub id, if it is not the one that the configuration names.
        config: the configuration.
        arguments: for ``from_pretrained`` of the model's class.

    Raises:
        ValueError: the configuration does not tell the model or its class, or the checkpoint
            lacks weights (:func:`adazeta.models.whole_checkpoint.load_whole`).
    """
    name = base or config.base_model_name_or_path
    if name is None:
        raise ValueError(
            f"{CONFIG_NAME} does not name the base model; pass the model, its folder or its hub id "
            "as the first argument"
        )
    if config.task_type is not None:
        class_name = AUTO_CLASSES[config.task_type]
    else:
        class_name = (config.auto_mapping or {}).get("base_model_class", "")
    kind: Any = getattr(transformers, class_name, None)
    if not hasattr(kind, "from_pretrained"):
        raise ValueError(
            f"{CONFIG_NAME} does not tell the class of the base model: it has neither a task_type "
            "nor an auto_mapping to a class of transformers; pass the model itself"
        )
    if config.revision is not None and base is None:
        arguments = {"revision": config.revision, **arguments}
    if config.num_labels is not None:
        arguments = {"num_labels": config.num_labels, **arguments}
    arguments = {**SAFE, **arguments}
    model: nn.Module = load_whole(kind, name, str(name), new=brought_modules(config), **arguments)
    return model


def brought_modules(config: TTAdapterConfig) -> list[str]:
    """Return the suffixes of the base's modules whose weights come with saved adapters."""
    heads = HEADS if config.tt_head_rank is not None else ()
    return [*(config.modules_to_save or []), *heads]


def widths_of(adapter: Adapter) -> list[int]:
    """Return what padded cores do not tell: the widths of the base, for the check on loading."""
    if isinstance(adapter, InformedAdapter):
        return [adapter.mean.shape[-1]] * 2
    if isinstance(adapter, FeatureMixer):
        return [adapter.up.shape.out_features] * 2
    shape = adapter.down.shape if isinstance(adapter, TTAdapter) else adapter.shape
    return [shape.in_features, shape.out_features]


class SavingWithAdapters:
    """Saves the whole model as its class does, and the adapters' files beside it.

    transformers would write the adapters' tensors among the base's and leave them out again when
    it loads them. With the files beside it, ``adazeta.from_pretrained(base, folder)`` loads what
    was trained.

    It stands in the place of the method on one model, and goes with copies and pickles of it. It
    does not keep the model alive.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle together with the model, for the copy."""
        return type(self), (self._model(),)

    def __call__(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save; the arguments are those of ``PreTrainedModel.save_pretrained``.

        Raises:
            ValueError: ``push_to_hub=True``, which would leave out the adapters' files.
            ReferenceError: nothing holds the model but the expression that made it.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError(
                "save_pretrained(push_to_hub=True) would leave the adapters' files out; call "
                "model.push_to_hub(name), or adazeta.save_pretrained(model, folder) and upload that"
            )
        model: Any = self._model()
        if model is None:
            raise ReferenceError(
                "the model is gone before it could be saved; hold it in a variable: "
                "model = add_tt_adapters(...), then model.save_pretrained(folder)"
            )
        type(model).save_pretrained(model, save_directory, *args, **kwargs)
        main = args[0] if args else kwargs.get("is_main_process", True)
        if main:
            save_pretrained(model, os.fspath(save_directory))


def plain_name(name: str) -> str:
    """Return the name of a tensor or module as it is in the model that was not compiled."""
    return name.replace(COMPILED, "")
