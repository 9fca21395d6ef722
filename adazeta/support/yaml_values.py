"""YAML whose plain values mean what they look like."""

import re
from typing import Any

import yaml

_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


class _Loader(yaml.SafeLoader):
    """Plain values are null, true, false and numbers in the form that Python writes, else text.

    YAML 1.1 takes yes, no, on and off for truth values, 010 for eight, 1:30 for ninety and
    2024-01-02 for a date. A label or a word would become another one; and 1e-2, which looks like a
    number, is a text. Here all of these are texts, and a field that is a number reads it from them.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a dictionary.

        Raises:
            yaml.YAMLError: a key stands twice, as for Python 1 and true do.
        """
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        mapping = super().construct_mapping(node, deep)
        met: set[Any] = set()
        for key in own:
            value = self.construct_object(key, deep=True)
            if value in met:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {value!r} stands twice; keep one", key.start_mark
                )
            met.add(value)
        return mapping


def _as_written(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    value = float(text)
    return value if repr(value) == text else text


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"0|-?[1-9][0-9]*", list("-0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first
    )
_Loader.add_implicit_resolver(
    "!decimal", re.compile(r"-?[0-9]+\.[0-9]+(?:e[-+][0-9]+)?$"), list("-0123456789")
)
_Loader.add_constructor("!decimal", _as_written)


def parse_yaml(text: str) -> Any:
    """Parse YAML, without making objects.

    Raises:
        yaml.YAMLError: it is not YAML, or a key stands twice in a mapping.
        ValueError: a number is too long for Python.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def dump_yaml(values: Any) -> str:
    """Write as YAML what :func:`parse_yaml` reads."""
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    try:
        if parse_yaml(text) == values:
            return text
    except (yaml.YAMLError, ValueError):
        pass
    # Some rare line ends would be read as spaces; as escapes they are exact.
    return yaml.safe_dump(values, allow_unicode=False, sort_keys=False)


def number(text: str) -> int | float | str:
    """Return the number that a text reads as, or else the text."""
    if not _NUMBER.fullmatch(text):
        return text
    return int(text) if text.lstrip("+-").isdecimal() else float(text)
