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
from adazeta.models.quantise import NONE
from adazeta.models.whole_checkpoint import load_whole
from adazeta.recording.folder import INITIAL_NAME
from adazeta.recording.header import Base, LogHeader, given
from adazeta.recording.step_record import LogError

_DTYPES = ("float32", "bfloat16", "float16")


def description_of(model: nn.Module) -> Base:
    """Describe the base model and its adapters, without fingerprint and dtype."""
    kind, quantise = type(model).__name__, getattr(model, "quantised_as", None)
    if not has_adapters(model):
        name = getattr(model, "name_or_path", None) or None
        return Base(name_or_path=name, model_class=kind, quantise=quantise)
    config = config_to_save(model)
    return Base(
        name_or_path=config["base_model_name_or_path"],
        model_class=kind,
        adapters=config,
        adapter_seed=getattr(model, "tt_adapter_seed", None),
        quantise=quantise,
    )


def model_as_described(header: LogHeader, folder: Path, *, model: str | None = None) -> nn.Module:
    """Load the base model and make its adapters as they were before training.

    Args:
        header: of a log.
        folder: of the run; informed adapters have their bases there.
        model: base model, if it is no longer where it was.

    Raises:
        LogError: the description does not say how.
    """
    try:
        base = header.base
        dtype, name = given(base.dtype, "dtype"), model or base.name_or_path
        if dtype not in _DTYPES or name is None:
            raise LogError(
                "the log does not name its base model; pass it (--model, or in Python "
                "adazeta.replay(log, model))"
            )
        if base.adapters is not None:
            return _with_adapters(base, base.adapters, folder, name, dtype)
        if base.quantise is not None:
            raise LogError(
                "the run trained a quantised base without adapters; replay its log in Python with "
                "adazeta.replay(log, model) onto the model as it was before training"
            )
        kind: Any = getattr(transformers, given(base.model_class, "class"), None)
        if not hasattr(kind, "from_pretrained"):
            raise LogError(f"transformers has no model class {base.model_class!r}")
        made: nn.Module = load_whole(kind, name, str(name), dtype=getattr(torch, dtype))
        trained = {matrix_of(given(p, "parameters").name) for p in header.layout.parameters}
        for key, parameter in made.named_parameters():
            parameter.requires_grad_(key in trained)
        return made
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise LogError(f"the log's header does not describe its model: {error!r}") from None


def _with_adapters(
    base: Base, saved: dict[str, Any], folder: Path, name: str, dtype: str
) -> nn.Module:
    known = {setting.name for setting in fields(TTAdapterConfig)}
    config = TTAdapterConfig.saved({k: v for k, v in saved.items() if k in known})
    config.inference_mode = False
    if not isinstance(base.adapter_seed, int):
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
            classes=config.num_labels,
            seed=base.adapter_seed,
            quantise=base.quantise or NONE,
        )
    elif base.quantise is not None:
        raise LogError(
            "the log does not name the task of its quantised base; replay it in Python with "
            "adazeta.replay(log, model), or set task_type in TTAdapterConfig before training"
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
    return add_tt_adapters(loaded, config, seed=base.adapter_seed)
