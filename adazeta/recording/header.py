"""What a probe log says about the run it belongs to, and how two runs differ.

The header is JSON. An earlier version wrote less, so what is missing is None or empty here; a later
one may write more, of which settings are kept. What the values are is for those to check who use
them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from adazeta.recording.step_record import LogError

T = TypeVar("T")

FORMAT = 1
# Of the configuration of adapters, what says where the model is and who wrote it.
_NAMES_ONLY = (
    "adazeta_version", "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type",
    "revision", "task_type",
)  # fmt: skip
NOISE = 1
"""Version of the noise (design: counter-based Gaussian and Rademacher noise)."""


class Parameter(NamedTuple):
    """A trainable parameter: its name, shape and dtype, and the element its noise begins at."""

    name: str
    shape: list[int]
    dtype: str
    offset: int


@dataclass(frozen=True)
class Layout:
    """Which noise falls on which element.

    Attributes:
        distribution: of the noise.
        direction: ``name`` and ``settings`` of the directions; earlier logs, which had one kind
            only, have none.
        parameters: the trainable parameters; None in place of one that cannot be read.
    """

    distribution: str | None = None
    direction: dict[str, Any] | None = None
    parameters: tuple[Parameter | None, ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Layout":
        """Read the layout that :meth:`to_json` returned."""
        rows = values.get("parameters")
        return cls(
            values.get("distribution"),
            values.get("direction"),
            tuple(
                Parameter(*row) if isinstance(row, list) and len(row) == 4 else None
                for row in (rows if isinstance(rows, list) else ())
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the layout as JSON has it."""
        values = {"distribution": self.distribution, "direction": self.direction}
        return {**_said(values), "parameters": [row and list(row) for row in self.parameters]}


@dataclass(frozen=True)
class Base:
    """The model that was trained, and how to make it again.

    Attributes:
        fingerprint: of its frozen tensors.
        dtype: of its frozen parameters.
        name_or_path: where it came from, if that is known.
        model_class: its class.
        adapters: configuration of its adapters, if it has any.
        adapter_seed: of their first values; None if those came from a file.
        quantise: how its weights are held (:data:`adazeta.models.quantise.CHOICES`), if not in
            its dtype.
    """

    fingerprint: str | None = None
    dtype: str | None = None
    name_or_path: str | None = None
    model_class: str | None = None
    adapters: dict[str, Any] | None = None
    adapter_seed: int | None = None
    quantise: str | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Base":
        """Read the description that :meth:`to_json` returned."""
        return cls(
            fingerprint=values.get("fingerprint"),
            dtype=values.get("dtype"),
            name_or_path=values.get("base_model_name_or_path"),
            model_class=values.get("class"),
            adapters=values.get("adapters"),
            adapter_seed=values.get("adapter_seed"),
            quantise=values.get("quantise"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON has it."""
        values = {"fingerprint": self.fingerprint, "dtype": self.dtype, "class": self.model_class}
        adapted = {"adapters": self.adapters, "adapter_seed": self.adapter_seed}
        return {
            **_said(values),
            "base_model_name_or_path": self.name_or_path,
            **({} if self.adapters is None else adapted),
            **_said({"quantise": self.quantise}),
        }


@dataclass(frozen=True)
class OptimizerSettings:
    """What the update rule was.

    Attributes:
        rule: the class of the optimizer.
        rounding: of the parameters; earlier logs do not say.
        groups: of each parameter group its settings, and under ``"parameters"`` the places of its
            parameters in the layout.
        more: settings of a later version.
    """

    rule: str | None = None
    rounding: str | None = None
    groups: list[dict[str, Any]] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "OptimizerSettings":
        """Read the settings that :meth:`to_json` returned."""
        more = {k: v for k, v in values.items() if k not in ("class", "rounding", "groups")}
        return cls(values.get("class"), values.get("rounding"), values.get("groups"), more)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        values = {"class": self.rule, "rounding": self.rounding, "groups": self.groups}
        return {**_said(values), **self.more}


@dataclass(frozen=True)
class LogHeader:
    """The header of a log.

    Attributes:
        seed: of the run.
        first_step: steps the optimizer had done before the first record.
        first_global_step: steps the trainer had.
        version: of the package.
        noise: version of the noise.
        layout: which noise falls on which element.
        base: the model.
        optimizer: what the update rule was, which a run may change when it goes on.
        estimator: settings of the estimator, which a run may change as well.
        initial: fingerprint of the trainable parameters and of the optimizer's state before the
            first record; None in the header of no log.
    """

    seed: int
    first_step: int
    first_global_step: int | None = None
    version: str | None = None
    noise: int | None = None
    layout: Layout = Layout()
    base: Base = Base()
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    estimator: dict[str, Any] = field(default_factory=dict)
    initial: str | None = None

    @classmethod
    def from_json(cls, values: Any, path: object = "log") -> "LogHeader":
        """Read the header that :meth:`to_json` returned.

        Args:
            values: any value of JSON.
            path: of the log, for messages.

        Raises:
            LogError: it is no header, or of another format, or has no seed or first step.
        """
        if not isinstance(values, dict) or "format" not in values:
            raise LogError(f"{path} has a header without a format version")
        if values["format"] != FORMAT:
            raise LogError(
                f"{path} has log format {values['format']!r}, this version of adazeta reads "
                f"{FORMAT}; use the version that wrote it"
            )
        for key in ("seed", "first_step", *({"first_global_step"} & values.keys())):
            if type(values.get(key)) is not int:
                raise LogError(
                    f"{path} has a header whose {key!r} is {values.get(key)!r}, not a number"
                )

        def section(key: str) -> dict[str, Any]:
            found = values.get(key)
            return found if isinstance(found, dict) else {}

        return cls(
            seed=values["seed"],
            first_step=values["first_step"],
            first_global_step=values.get("first_global_step"),
            version=values.get("adazeta"),
            noise=values.get("noise"),
            layout=Layout.from_json(section("layout")),
            base=Base.from_json(section("base")),
            optimizer=OptimizerSettings.from_json(section("optimizer")),
            estimator=section("estimator"),
            initial=values.get("initial"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the header as JSON has it, without what is missing."""
        values = {
            "format": FORMAT,
            "adazeta": self.version,
            "noise": self.noise,
            "seed": self.seed,
            "first_step": self.first_step,
            "first_global_step": self.first_global_step,
            "initial": self.initial,
        }
        sections = {
            "layout": None if self.layout == Layout() else self.layout.to_json(),
            "base": None if self.base == Base() else self.base.to_json(),
            "optimizer": self.optimizer.to_json() or None,
            "estimator": self.estimator or None,
        }
        return _said({**values, **sections})


def given(value: T | None, key: str) -> T:
    """Return a value of a header that cannot be done without.

    Raises:
        KeyError: the log does not say it.
    """
    if value is None:
        raise KeyError(key)
    return value


def _said(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def check_same(log: LogHeader, run: LogHeader, what: str) -> None:
    """Refuse a log that was not written by a run like this one.

    Args:
        log: header of the log.
        run: header that this run would write.
        what: the log, for the message.

    Raises:
        LogError: they differ in what decides the parameters; the message names the difference.
    """
    for found in _differences(log, run):
        raise LogError(
            f"{what} does not belong to this run: {found}. Restore that, or choose another "
            "output_dir"
        )


def check_layout(log: LogHeader, run: LogHeader, what: str) -> None:
    """Refuse a log whose noise would fall on other elements than it did.

    Raises:
        LogError: naming the first parameter, or the setting, that differs.
    """
    for found in _layout_differences(log, run):
        raise LogError(f"{what} does not fit this model: {found}")


def _layout_differences(log: LogHeader, run: LogHeader) -> Iterable[str]:
    if log.noise != run.noise:
        yield f"it was written with noise version {log.noise}, this is {run.noise}"
    there, here = log.layout, run.layout
    if there.distribution != here.distribution:
        yield f"its directions are {there.distribution!r}, here they are {here.distribution!r}"
    if there.direction is not None and there.direction != here.direction:
        yield f"its directions are drawn by {there.direction}, here by {here.direction}"
    for index in range(max(len(there.parameters), len(here.parameters))):
        ours, theirs = (
            each.parameters[index] if index < len(each.parameters) else None
            for each in (here, there)
        )
        if ours != theirs:
            yield f"trainable parameter {index} is {_shown(theirs)} there and {_shown(ours)} here"


def _differences(log: LogHeader, run: LogHeader) -> Iterable[str]:
    yield from _layout_differences(log, run)
    there, here = log.optimizer, run.optimizer
    if there.rounding != here.rounding:
        yield f"its rounding is {there.rounding!r}, here it is {here.rounding!r}"
    if log.seed != run.seed:
        yield f"its seed is {log.seed}, here it is {run.seed}"
    if there.rule != here.rule:
        yield f"its optimizer is {there.rule}, here it is {here.rule}"
    if _averages(there) != _averages(here):
        yield f"its average is {_averages(there)}, here it is {_averages(here)}"
    # A run may go on with another drop, and says so: it decides no value of what is trained.
    theirs, ours = deciding(log.base.adapters), deciding(run.base.adapters)
    for name in sorted((theirs.keys() & ours.keys()) - {"drop"}):
        if theirs[name] != ours[name]:
            yield f"its adapters have {name}={theirs[name]!r}, here they have {ours[name]!r}"
    if log.base.fingerprint != run.base.fingerprint:
        yield (
            f"its base model ({log.base.name_or_path}) has other weights than this one "
            f"({run.base.name_or_path})"
        )


def deciding(adapters: dict[str, Any] | None) -> dict[str, Any]:
    """Return what of the configuration of adapters decides what they compute, as JSON has it."""
    found = {k: v for k, v in (adapters or {}).items() if k not in _NAMES_ONLY}
    return dict(json.loads(json.dumps(found, default=list)))


def _averages(settings: OptimizerSettings) -> str:
    """Say which average of the parameters is kept; its past cannot be made up for."""
    groups = settings.groups if isinstance(settings.groups, list) else []
    found = groups[0] if groups and isinstance(groups[0], dict) else {}
    if not found.get("average"):
        return "0"
    return f"{found['average']}{'' if found.get('average_warmup', True) else ' without warm-up'}"


def _shown(parameter: Parameter | None) -> str:
    if parameter is None:
        return "absent"
    return f"{parameter.name} {parameter.dtype} {parameter.shape} at {parameter.offset}"
