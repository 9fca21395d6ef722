"""Settings from a YAML file and from flags of the same names, into dataclasses."""

import argparse
import dataclasses
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from adazeta.support.yaml_values import number, parse_yaml

if TYPE_CHECKING:
    import torch

# Labels and their words are texts: 1e3 and 010 are no numbers there.
_AS_WRITTEN = ("label_words",)
_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z])")

T = TypeVar("T")


def setting(default: Any, text: str) -> Any:
    """Make a field of a dataclass, with the text that help shows."""
    return field(default=default, metadata={"help": text})


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions, for the caller to report."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving.

        Raises:
            ValueError: always.
        """
        raise ValueError(message)


def settings_of(kind: type, *, leave_out: Iterable[str] = ()) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a dataclass that a user sets."""
    return {f.name: f for f in dataclasses.fields(kind) if f.init and f.name not in leave_out}


def add_flags(
    parser: argparse.ArgumentParser,
    kind: type,
    title: str,
    *,
    group: Any = None,
    leave_out: Iterable[str] = (),
    defaults: Mapping[str, Any] | None = None,
    briefly: Mapping[str, str | None] | None = None,
) -> Any:
    """Give a parser one flag for each field of a dataclass; flags not given are not set.

    A flag may be written with dashes as well.

    Args:
        parser: the parser.
        kind: the dataclass; its own fields are listed before those that it inherits.
        title: of the flags in the help.
        group: of an earlier call, to which these flags are added, instead of one with the title.
        leave_out: fields without a flag.
        defaults: what the help shows as default where it is not the dataclass's own.
        briefly: the only fields that the help shows, each with this text or, for None, with the
            first sentence of its own; by default the help shows all, with all their text.

    Returns:
        The group of the flags.
    """
    group = group or parser.add_argument_group(title)
    hints = get_type_hints(kind)
    settings = settings_of(kind, leave_out=leave_out)
    for name in sorted(settings, key=lambda name: name not in vars(kind)["__annotations__"]):
        members = _members(hints[name])
        options: dict[str, Any] = {"metavar": name.rpartition("_")[2].upper()}
        if bool in members:
            options["nargs"], options["const"] = "?", "true"
        elif any(get_origin(member) is list for member in members):
            options["nargs"] = "+"
        default = settings[name].default
        if defaults and name in defaults:
            default = defaults[name]
        text = str(settings[name].metadata.get("help", "")).replace("%", "%%")
        if briefly is not None:
            text = briefly.get(name) or _SENTENCE_END.split(text)[0]
        if default not in (None, "", dataclasses.MISSING):
            shown = default.value if isinstance(default, Enum) else default
            text = f"{text} (default: {shown})"
        if briefly is not None and name not in briefly:
            text = argparse.SUPPRESS
        options |= {"dest": name, "default": argparse.SUPPRESS}
        group.add_argument(f"--{name}", help=text, **options)
        if "_" in name:
            group.add_argument(f"--{name.replace('_', '-')}", help=argparse.SUPPRESS, **options)
    return group


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a file of settings, see :func:`~adazeta.support.yaml_values.parse_yaml`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or not a mapping.
    """
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold lines of the form 'key: value'")
    return {str(key): value for key, value in values.items()}


def check_keys(given: Iterable[str], known: Sequence[str], place: str) -> None:
    """Refuse keys that no dataclass has.

    Raises:
        ValueError: naming the first such key and the known one nearest to it.
    """
    for key in given:
        if key not in known:
            hint = nearest(key, known)
            raise ValueError(f"unknown setting {key!r} in {place}{hint and '; '}{hint}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Ask whether the known name nearest to an unknown one was meant; empty if none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def dtype_name(dtype: "torch.dtype") -> str:
    """Return the name of a dtype as settings have it, an attribute of ``torch``."""
    return str(dtype).removeprefix("torch.")


def flag_values(given: Mapping[str, Any], kinds: Iterable[type]) -> dict[str, Any]:
    """Read the texts of flags as what stands for them in a YAML file.

    Flags are texts; ``null``, and lists and mappings in YAML, are written out where the setting may
    be one. A flag that may be a list has several texts; one alone is that text where the setting
    may be a text or a number, as in Python: ``--target_modules c_attn`` is a regular expression,
    ``--target_modules "[c_attn]"`` a list.

    Args:
        given: flags that :func:`add_flags` made.
        kinds: the dataclasses.

    Raises:
        ValueError: a list or mapping is malformed; the message names the flag.
    """
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    return {name: _flag_value(value, hints[name], name) for name, value in given.items()}


def _flag_value(value: Any, hint: Any, name: str) -> Any:
    members = _members(hint)
    containers = [m for m in members if (get_origin(m) or m) in (list, dict)]
    single = len(containers) < len([m for m in members if m is not type(None)])
    if isinstance(value, list) and len(value) == 1:
        if single or value[0] == "null" or value[0].startswith(("[", "{")):
            value = value[0]
    if not isinstance(value, str):
        return value
    if type(None) in members and value == "null":
        return None
    if containers and value.startswith(("[", "{")):
        try:
            return parse_yaml(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            if str not in members:
                raise ValueError(f"{name} is not a list or mapping in YAML: {value!r}") from None
    return value


def build(kind: type[T], values: Mapping[str, Any], *, leave_out: Iterable[str] = ()) -> T:
    """Make a dataclass from those values that are its fields, converted to the fields' types.

    Args:
        kind: the dataclass.
        values: of a YAML file, of :func:`flag_values`, or of Python.
        leave_out: fields that are not set.

    Raises:
        ValueError: a value does not convert; the message names the setting.
    """
    hints = get_type_hints(kind)
    names = settings_of(kind, leave_out=leave_out)
    return kind(**{k: _convert(v, hints[k], k) for k, v in values.items() if k in names})


def like(value: Any, default: Any, name: str) -> Any:
    """Read a value of a mapping of settings as what its default is: a truth, a number or a word.

    Args:
        value: of YAML, where ``no`` is a word, or of Python; a number stays as it is.
        default: of the setting; None, and what is none of these, say nothing.
        name: of the setting, for the message.

    Raises:
        ValueError: it reads as something else.
    """
    if isinstance(default, bool):
        return _convert(value, bool, name)
    if isinstance(default, int | float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        return _convert(value, int | float, name)
    if isinstance(default, str) and not isinstance(value, str):
        raise ValueError(f"{name} must be a word such as {default!r}, got {value!r}")
    if default is None and value is not None:
        return _convert(value, float, name)
    return value


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _convert(value: Any, hint: Any, key: str) -> Any:
    """Convert a value of YAML, or the text of a flag, to the type of a field."""
    members = _members(hint)
    if type(None) in members and value is None:
        return None
    # Text converts to text last, so that "5" may be a number where a number may stand.
    for member in sorted(members, key=lambda member: member is str):
        try:
            return _converted(value, member, key)
        except (TypeError, ValueError):
            continue
    names = " or ".join(
        str(m) if get_args(m) else m.__name__ for m in members if m is not type(None)
    )
    remedy = "; leave the key out for the default" if value is None else ""
    if isinstance(value, str) and list[str] in members:
        remedy = f"; a list of one is written [{value}]"
    raise ValueError(f"{key} must be {names}, got {value!r}{remedy}")


def _converted(value: Any, kind: Any, key: str) -> Any:
    """Convert to one plain type; raise ValueError or TypeError if that is impossible."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return value
    if value is None:
        raise TypeError
    if origin in (list, dict) or isinstance(value, list | dict):
        if not isinstance(value, origin):
            raise TypeError
        if origin is list:
            return [_convert(item, arguments[0], key) for item in value] if arguments else value
        if key in _AS_WRITTEN:
            return value
        of_keys, of_values = arguments or (Any, Any)
        return {_convert(k, of_keys, key): _item(v, of_values, key) for k, v in value.items()}
    if origin is bool:
        return _boolean(str(value).lower())
    if origin is str:
        return str(value)
    if isinstance(value, bool):
        raise TypeError
    if origin is int:
        return _integer(value)
    return origin(value)  # float, an enumeration


def _item(value: Any, hint: Any, key: str) -> Any:
    """Convert a value of a mapping; of any type, it is a number where it reads as one."""
    if hint is not Any:
        return _convert(value, hint, key)
    if isinstance(value, dict):
        return {k: _item(v, Any, key) for k, v in value.items()}
    if isinstance(value, list):
        return [_item(v, Any, key) for v in value]
    return number(value) if isinstance(value, str) else value


def _boolean(text: str) -> bool:
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    raise ValueError


def _integer(value: Any) -> int:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)  # 1e3
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return int(value)
