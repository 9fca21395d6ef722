"""A template and label words proposed from the rows of a file and the name of its label column."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from adazeta.tasks.label_words import Labels, is_missing, place_words
from adazeta.tasks.records import Records
from adazeta.tasks.template import MASK, Template

_MOST_LABELS = 100
_WORDS = 3  # in a text column's values, on average
_LETTERS = 0.9  # share of a text column's values that have any
_SHORTEST = 3  # letters of a word's beginning that may stand for it
_PAIRS = (("negative", "positive"), ("no", "yes"))  # what 0 and 1 may stand for
_WORD = re.compile(r"[^\W\d_]+")
_INTEGER = re.compile(r"(-?\d+)(?:\.0+)?")
_BRACES = re.compile(r"[{}!:]")


def label_values(records: Records, column: str) -> list[str]:
    """Return the labels of a column as text, numbers in ascending and others in alphabetical order.

    Raises:
        ValueError: there is no such column, it holds one label only, or more than labels are.
    """
    columns = list(dict.fromkeys(name for record in records for name in record))
    if column not in columns:
        raise ValueError(
            f"{records.source} has no column {column!r} for the labels; there are "
            f"{', '.join(map(repr, columns))}"
        )
    names = records.names.get(column)
    found = dict.fromkeys(
        str(names[value] if names and isinstance(value, int) and value >= 0 else value).strip()
        for record in records
        if not is_missing(value := record.get(column))
    )
    texts: list[str] = []
    for text in found:
        try:
            Labels([*texts, text])
        except ValueError:
            continue  # the same label in another form, as 1.0 and 1
        texts.append(text)
        if len(texts) > min(_MOST_LABELS, len(records) / 2):
            raise ValueError(
                f"column {column!r} of {records.source} has {len(found)} different values in "
                f"{len(records)} rows, e.g. {texts[0][:40]!r}: it holds no labels; name another by "
                "--labels"
            )
    if len(texts) < 2:
        only = f"only the label {texts[0]!r}" if texts else "no label"
        raise ValueError(
            f"column {column!r} of {records.source} holds {only}; a classification needs two"
        )
    return sorted(texts, key=_place)


def _place(label: str) -> tuple[int, int, str]:
    number = _INTEGER.fullmatch(label)
    return (0, int(number[1]), label) if number else (1, 0, label)


def text_columns(records: Records, label: str) -> tuple[list[str], dict[str, str]]:
    """Find the columns that hold texts: letters in nearly all values, and several words on average.

    Args:
        records: the rows.
        label: column of the labels.

    Returns:
        Names of the columns, and why each other one is left out. Where no column has several
        words, those with letters.

    Raises:
        ValueError: there is none.
    """
    columns = [c for c in dict.fromkeys(n for record in records for n in record) if c != label]
    left: dict[str, str] = {}
    lettered: dict[str, float] = {}
    for column in columns:
        values = [record.get(column) for record in records]
        texts = [v for v in values if isinstance(v, str) and not is_missing(v)]
        if _BRACES.search(column) or column == MASK or not column:
            left[column] = "its name cannot stand in a template"
        elif sum(bool(_WORD.search(text)) for text in texts) < _LETTERS * max(len(values), 1):
            share = sum(map(is_missing, values)) / max(len(values), 1)
            left[column] = "often empty" if share > 1 - _LETTERS else "no text"
        else:
            lettered[column] = sum(len(text.split()) for text in texts) / len(texts)
    chosen = [column for column, words in lettered.items() if words >= _WORDS] or list(lettered)
    left |= {column: "single words" for column in lettered if column not in chosen}
    if not chosen:
        why = ", ".join(f"{column!r} ({reason})" for column, reason in left.items()) or "none"
        raise ValueError(
            f"{records.source} has no column of texts beside the labels in {label!r}; of its other "
            f"columns: {why}. Set --template, e.g. --template '{{column}} It was'"
        )
    return chosen, left


QUESTIONS = ("Sentiment", "Topic", "Category", "Answer")
"""What labels are often called, tried beside the name of their column."""


def proposed_templates(columns: Sequence[str], label: str, *, masked: bool) -> list[str]:
    r"""Return templates: the text, or a named line for each of several, and a name for the label.

    Args:
        columns: of the texts.
        label: column of the label.
        masked: the model is a masked one.

    Returns:
        The template with the name of the label's column, and those with :data:`QUESTIONS`.
    """
    lines = [f"{{{column}}}" for column in columns]
    if len(columns) > 1:
        lines = [f"{_title(column)}: {{{column}}}" for column in columns]
    own = _title(label).replace("{", "{{").replace("}", "}}")
    questions = [f"{name}:" for name in dict.fromkeys([own, *QUESTIONS])]
    return [
        "\n".join([*lines, f"{question} {{mask}}" if masked else question])
        for question in questions
    ]


def _title(column: str) -> str:
    name = " ".join(column.replace("_", " ").split())
    return name[:1].upper() + name[1:]


def proposed_words(
    template: str, labels: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, str]]:
    """Find for each label a word that the tokenizer tells from those of the others.

    That is the label itself, in small letters or as a name if need be, else one of its words, a
    long one first, else the beginning of one. The numbers 0 and 1 are negative and positive, or no
    and yes; other numbers are themselves, else capital letters. The first of these kinds is taken
    with which all labels have words of their own.

    Args:
        template: the template.
        labels: the labels as text.
        tokenizer: of the model.

    Returns:
        One set of words; of 0 and 1 each of the two pairs that the tokenizer tells apart.

    Raises:
        ValueError: a label has no such word.
    """
    placed = Template(template, tokenizer)
    known: dict[str, int | None] = {}

    def token(word: str) -> int | None:
        if word not in known:
            try:
                known[word] = place_words(placed, [word])[1][0]
            except ValueError:
                known[word] = None
        return known[word]

    if _numbers(labels) == ["0", "1"]:
        apart = [pair for pair in _PAIRS if len({token(word) for word in pair} - {None}) == 2]
        if apart:
            return [dict(zip(labels, pair, strict=True)) for pair in apart]
    rungs = [_rungs(index, label, labels) for index, label in enumerate(labels)]
    for height in range(1, max(map(len, rungs)) + 1):
        options: list[dict[int, str]] = [{} for _ in labels]
        for words, each in zip(options, rungs, strict=True):
            for word in (word for rung in each[:height] for word in rung):
                if (found := token(word)) is not None:
                    words.setdefault(found, word)
        matched = _matched([list(each) for each in options])
        if matched is not None:
            pairs = zip(labels, options, matched, strict=True)
            return [{label: words[choice] for label, words, choice in pairs}]
    example = ", ".join(f"{label}: ..." for label in labels[:3])
    lone = [label for label, each in zip(labels, options, strict=True) if not each]
    what = f"label {lone[0]!r} has no word" if lone else f"the labels {list(labels)} have no words"
    raise ValueError(
        f"{what} that the tokenizer has as one token of its own; choose words by --label_words "
        f"'{{{example}}}'"
    )


def _numbers(labels: Sequence[str]) -> list[str]:
    """Return labels that are all integers, as such; else none."""
    numbers = [number[1] for each in labels if (number := _INTEGER.fullmatch(each))]
    return numbers if len(numbers) == len(labels) else []


def _rungs(index: int, label: str, labels: Sequence[str]) -> list[list[str]]:
    """Return words for a label, in groups of which the first are the best."""
    numbers = _numbers(labels)
    if numbers:
        letter = [chr(ord("A") + index)] if index < 26 else []
        return [[numbers[index]], letter]
    words = sorted(_WORD.findall(label), key=len, reverse=True)  # short ones say little
    small = [form for word in words for form in (word.lower(), word.capitalize())]
    starts = [
        word[:length]
        for word in dict.fromkeys([*words, *small])
        for length in range(len(word) - 1, _SHORTEST - 1, -1)
    ]
    return [[label], [label.lower()], [label.capitalize()], [*words, *small], starts]


def _matched(options: Sequence[Sequence[int]]) -> list[int] | None:
    """Give each label one of its tokens, no token twice; None if that is impossible.

    Augmenting paths; the tokens of a label are tried in their order.
    """
    owner: dict[int, int] = {}

    def settle(label: int, seen: set[int]) -> bool:
        free = [option for option in options[label] if option not in owner]
        if free:
            owner[free[0]] = label
            return True
        for option in options[label]:
            if option not in seen:
                seen.add(option)
                if settle(owner[option], seen):
                    owner[option] = label
                    return True
        return False

    if not all(settle(label, set()) for label in range(len(options))):
        return None
    chosen = {label: option for option, label in owner.items()}  # one each: moves hand over
    return [chosen[label] for label in range(len(options))]


def shown(words: Mapping[Any, str]) -> str:
    """Write label words as YAML and flags have them."""
    return "{" + ", ".join(f"{label}: {word}" for label, word in words.items()) + "}"
