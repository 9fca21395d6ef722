"""Edits that make the columns of a benchmark's prompt from those of its data set, by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Edit = str | Mapping[str, Any]


def _lower_first_word(text: str) -> str:
    first, space, rest = text.partition(" ")
    return f"{first if first == 'I' else first.lower()}{space}{rest}"


_PLAIN: Mapping[str, Callable[[str], str]] = {
    "strip": str.strip,
    "strip_end": str.rstrip,
    "drop_last": lambda text: text[:-1],
    "lower": str.lower,
    "lower_first": lambda text: text[:1].lower() + text[1:],
    "upper_first": lambda text: text[:1].upper() + text[1:],
    "lower_first_word": _lower_first_word,  # but for the word I
}


def _fill(value: Any, argument: Any, record: Mapping[str, Any]) -> list[str]:
    column, placeholder = argument
    return [str(record[column]).replace(placeholder, str(one)) for one in value]


_WITH_ARGUMENT: Mapping[str, Callable[[Any, Any, Mapping[str, Any]], Any]] = {
    "ending": lambda text, end, _: text if text.endswith(end) else f"{text}{end}",
    "without_ending": lambda text, end, _: text.removesuffix(end),
    "replace": lambda text, pair, _: text.replace(*pair),
    "map": lambda text, table, _: table[text],
    "take": lambda value, key, _: value[key] if isinstance(value, Mapping) else value,
    # each of a list of texts in the place of a placeholder in another column
    "fill": _fill,
}


def check_edits(edits: Sequence[Edit], place: str) -> None:
    """Refuse edits that do not exist.

    Raises:
        ValueError: one is unknown; the message says where it stands.
    """
    for edit in edits:
        name, known = _parts(edit)
        if name not in known:
            raise ValueError(f"{place}: unknown edit {name!r}; known: {', '.join(known)}")


def derived(
    record: Mapping[str, Any], columns: Mapping[str, tuple[str, Sequence[Edit]]]
) -> dict[str, Any]:
    """Return a record with columns made from its own.

    Args:
        record: as the data set has it.
        columns: for each new column, the one that it is made from and the edits in their order; all
            are made from the record as it was.

    Raises:
        ValueError: the record lacks a column, or an edit does not fit its value.
    """
    made: dict[str, Any] = {}
    for name, (source, edits) in columns.items():
        if source not in record:
            raise ValueError(f"no column {source!r}; there are {', '.join(map(repr, record))}")
        value = record[source]
        for edit in edits:
            try:
                value = _edited(value, edit, record)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"column {source!r} holds {value!r}, to which {edit!r} does not apply "
                    f"({type(error).__name__}: {error})"
                ) from None
        made[name] = value
    return {**record, **made}


def _edited(value: Any, edit: Edit, record: Mapping[str, Any]) -> Any:
    if isinstance(edit, str):
        return _PLAIN[edit](value)
    ((name, argument),) = edit.items()
    return _WITH_ARGUMENT[name](value, argument, record)


def _parts(edit: Edit) -> tuple[str, Mapping[str, Any]]:
    if isinstance(edit, str):
        return edit, _PLAIN
    if len(edit) != 1:
        return str(dict(edit)), _WITH_ARGUMENT
    return str(next(iter(edit))), _WITH_ARGUMENT
