"""How to make a model again as it was before training: in JSON, for the header of a log."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from adazeta.adapters.attach import add_tt_adapters
from adazeta.adapters.attached import has_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import brought_modules, config_to_save, load_base
from adazeta.adapters.loading import from_pretrained
from adazeta.directions.reparametrise import matrix_of
from adazeta.models.loading import load_model
from adazeta.models.whole_checkpoint import load_whole
from adazeta.recording.folder import INITIAL_NAME
from adazeta.recording.step_record import LogError

_DTYPES = ("float32", "bfloat16", "float16")


def description_of(model: nn.Module) -> dict[str, Any]:
    """Describe the base model and its adapters.

    Returns:
        ``base_model_name_or_path``, ``class`` and, for a model with adapters, ``adapters`` (their
        configuration) and ``adapter_seed`` (None if their values came from a file).
    """
    description: dict[str, Any] = {
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "class": type(model).__name__,
    }
    if has_adapters(model):
        config = config_to_save(model)
        description["base_model_name_or_path"] = config["base_model_name_or_path"]
        description["adapters"] = config
        description["adapter_seed"] = getattr(model, "tt_adapter_seed", None)
    return description


def model_as_described(
    header: dict[str, Any], folder: Path, *, model: str | None = None
) -> nn.Module:
    """Load the base model and make its adapters as they were before training.

    Args:
        header: of a log.
        folder: of the run; informed adapters have their bases there.
        model: base model, if it is no longer where it was.

    Raises:
        LogError: the description does not say how.
    """
    try:
        base, layout = header["base"], header["layout"]["parameters"]
        dtype, name = base["dtype"], model or base["base_model_name_or_path"]
        if dtype not in _DTYPES or name is None:
            raise LogError(
                "the log does not name its base model; pass it (--model, or in Python "
                "adazeta.replay(log, model))"
            )
        if "adapters" in base:
            return _with_adapters(base, folder, name, dtype)
        kind: Any = getattr(transformers, base["class"], None)
        if not hasattr(kind, "from_pretrained"):
            raise LogError(f"transformers has no model class {base['class']!r}")
        made: nn.Module = load_whole(kind, name, str(name), dtype=getattr(torch, dtype))
        trained = {matrix_of(parameter[0]) for parameter in layout}
        for key, parameter in made.named_parameters():
            parameter.requires_grad_(key in trained)
        return made
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise LogError(f"the log's header does not describe its model: {error!r}") from None


def _with_adapters(base: dict[str, Any], folder: Path, name: str, dtype: str) -> nn.Module:
    known = {setting.name for setting in fields(TTAdapterConfig)}
    config = TTAdapterConfig.saved({k: v for k, v in base["adapters"].items() if k in known})
    config.inference_mode = False
    if not isinstance(base["adapter_seed"], int):
        raise LogError(
            "the run began with adapters that were loaded from a file; replay its log in Python "
            "with adazeta.replay(log, model) onto the model with those adapters"
        )
    if config.task_type is not None:
        loaded: nn.Module = load_model(
            name,
            dtype=dtype,
            task=config.task_type,
            revision=config.revision,
            new=brought_modules(config),
        )
    else:
        loaded = load_base(name, config, {"dtype": getattr(torch, dtype)})
    if config.form == "informed":
        if not (folder / INITIAL_NAME).is_dir():
            raise LogError(
                f"the bases of the run's informed adapters are not in {folder / INITIAL_NAME}; put "
                "that folder of the run beside its log"
            )
        return from_pretrained(loaded, folder / INITIAL_NAME, trainable=True)
    return add_tt_adapters(loaded, config, seed=base["adapter_seed"])
