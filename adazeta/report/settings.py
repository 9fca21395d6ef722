"""The settings of runs: what was changed from its default, and where runs differ."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from adazeta.adapters.config import TTAdapterConfig
from adazeta.models.arguments import ModelArguments
from adazeta.report.gathering import RunRecord
from adazeta.support.settings import settings_of
from adazeta.support.yaml_values import number
from adazeta.tasks.arguments import TaskArguments
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.order import OrderArguments

KINDS: tuple[type, ...] = (
    ModelArguments, TaskArguments, TTAdapterConfig, OrderArguments, ZOTrainingArguments,
)  # fmt: skip
# What the run fills in; no setting of a user's.
_FILLED = {"task_type", "base_model_name_or_path", "auto_mapping", "inference_mode", "peft_type"}


class Row(NamedTuple):
    """A setting.

    Attributes:
        name: of the setting.
        value: that it had.
        default: of the package; None also where it has no such setting.
        changed: whether they differ.
    """

    name: str
    value: Any
    default: Any
    changed: bool


def rows(run: RunRecord) -> list[Row]:
    """Return the settings of a run: the changed ones first, then what else this package has.

    They are those of ``config.yaml``. A run that was started from Python has none; of it, the
    probe log tells what it does.
    """
    defaults = _defaults()
    if not run.settings:
        return [Row(name, value, None, True) for name, value in logged(run).items()]
    given = [
        Row(name, value, defaults.get(name), not same(value, defaults.get(name)))
        for name, value in run.settings.items()
    ]
    own = [name for kind in KINDS for name in vars(kind)["__annotations__"] if name in defaults]
    unset = [name for name in own if name not in run.settings and name not in _FILLED]
    others = [Row(name, defaults[name], defaults[name], False) for name in unset]
    return sorted([*given, *others], key=lambda row: not row.changed)


def logged(run: RunRecord) -> dict[str, Any]:
    """Return the settings that a probe log tells."""
    if run.header is None:
        return {}
    header = run.header
    groups = header.optimizer.groups or [{}]
    told = {
        "rule": header.optimizer.rule,
        **{name: value for name, value in groups[0].items() if name != "parameters"},
        "rounding": header.optimizer.rounding,
        **header.estimator,
        "distribution": header.layout.distribution,
        "direction": (header.layout.direction or {}).get("name"),
        "seed": header.seed,
        "model": header.base.name_or_path,
        "dtype": header.base.dtype,
    }
    for name, value in (header.base.adapters or {}).items():
        if name not in _FILLED:
            told.setdefault(name, value)
    return {name: value for name, value in told.items() if value is not None}


def differing(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Return the settings in which runs differ: by name, the value of each run.

    Where a run does not say, it is the default. The folder of a run is no difference.
    """
    defaults = _defaults()
    told = [run.settings or logged(run) for run in runs]
    names = dict.fromkeys(name for one in told for name in one if name != "output_dir")
    found = {name: [one.get(name, defaults.get(name)) for one in told] for name in names}
    return {
        name: values
        for name, values in found.items()
        if not all(same(value, values[0]) for value in values)
    }


def same(one: Any, other: Any) -> bool:
    """Whether two values mean the same: of a file, of a flag (a text), or of Python."""
    one, other = _plain(one), _plain(other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, tuple | set):
        return list(value)
    if isinstance(value, str):
        lower = value.lower()
        if lower in ("true", "false", "null"):
            return {"true": True, "false": False, "null": None}[lower]
        return number(value)
    return value


def _defaults() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in KINDS:
        for name, field in settings_of(kind).items():
            if field.default is not dataclasses.MISSING:
                found[name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                found[name] = field.default_factory()
    return found


def shown(value: Any) -> str:
    """Return a value as a person writes it."""
    value = value.value if isinstance(value, Enum) else value
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {shown(one)}" for key, one in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(shown, value))
    return str(value)
