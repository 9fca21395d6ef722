"""Labels as they stand in data, and the words that stand for them in a prompt."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adazeta.tasks.records import Records
from adazeta.tasks.template import Template

_OPENING = "([{<\"'`“‘"  # what a word follows without a space
_WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")
_TRUTH_WORDS = ("yes", "no", "on", "off", "y", "n")
# Scripts written without spaces between words, with their punctuation: Thai, Lao, Tibetan, Burmese,
# Khmer, Tai Tham, Chinese and Japanese with all that is as wide as they are, Yi, Burmese again,
# compatibility forms, the planes of rare ideographs.
_UNSPACED = (
    *((0x0E00, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0x1A20, 0x1AAF), (0x2E80, 0x312F)),
    *((0x3190, 0x9FFF), (0xA000, 0xA4CF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF)),
    *((0xFE30, 0xFE4F), (0xFF01, 0xFF9F), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF)),
)


class Labels:
    """The label values of a task, compared as text.

    White space around a value means nothing; ``1.0`` is the label ``1``, as tables write it whose
    column has gaps; and ``true`` is ``True``, as JSON, YAML and Python write it.

    Args:
        values: the labels, in the order of the classes.
        counted: the values are those of a list, 0, 1, ...

    Attributes:
        texts: the values as text.

    Raises:
        ValueError: a value is missing, or two are the same label.
    """

    def __init__(self, values: Iterable[Any], *, counted: bool = False) -> None:
        self.texts: list[str] = []
        self._counted = counted
        self._classes: dict[str, int] = {}
        for index, value in enumerate(values):
            if is_missing(value):
                raise ValueError(
                    f"a label is {value!r}; labels are texts or numbers (in YAML in quotes where "
                    "they mean nothing, such as null and ~)"
                )
            text = str(value).strip()
            same = self._classes.setdefault(_canonical(text), index)
            if same != index:
                raise ValueError(
                    f"the labels {self.texts[same]!r} and {value!r} are compared as text and are "
                    "the same; keep one of them"
                )
            self.texts.append(text)

    def __contains__(self, value: Any) -> bool:
        """Tell whether a value is one of the labels."""
        return not is_missing(value) and _canonical(str(value).strip()) in self._classes

    def index(self, value: Any) -> int:
        """Return the class of a value.

        Raises:
            ValueError: the value is missing or unknown; the message has a remedy where one is
                known.
        """
        if is_missing(value):
            raise ValueError(f"the label is missing ({value!r}); fill it in or remove the example")
        text = str(value).strip()
        found = self._classes.get(_canonical(text))
        if found is not None:
            return found
        raise ValueError(
            f"unknown label {text!r}; the label words are for {self.texts}{self._hint(text)}"
        )

    def _hint(self, text: str) -> str:
        as_in_data = "write the labels as the data do, in quotes"
        if text.lower() in _TRUTH_WORDS and {"true", "false"} & self._classes.keys():
            return f"; {as_in_data}: {text!r} is text and not true or false"
        if self._counted:
            return (
                "; a list of words is for the labels 0, 1, ...: give a mapping of label to word, "
                f"e.g. {{{text}: ...}}"
            )
        if text == "-1":
            return "; -1 marks examples without a label, as in hidden test sets"
        if any(text.lstrip("0") == known.lstrip("0") for known in self._classes):
            return f"; {as_in_data}: they are compared as text"
        return ""


def words_by_label(label_words: Mapping[Any, str] | Sequence[str]) -> tuple[Labels, list[str]]:
    """Read the label words of a task.

    Args:
        label_words: label value -> word, or a list of words for the labels 0, 1, ...

    Returns:
        The labels, and their words in the same order.

    Raises:
        ValueError: there are fewer than two, or two labels are the same.
        TypeError: a word is not text.
    """
    counted = not isinstance(label_words, Mapping)
    pairs = dict(label_words if isinstance(label_words, Mapping) else enumerate(label_words))
    if len(pairs) < 2:
        raise ValueError(f"a task needs two or more label words, got {dict(pairs)}")
    for label, word in pairs.items():
        if not isinstance(word, str) or not word.strip():
            raise TypeError(
                f"the word of label {label!r} must be text, got {word!r}; in YAML put words "
                "such as yes, no, on and off in quotes"
            )
    return Labels(pairs, counted=counted), list(pairs.values())


def is_missing(value: Any) -> bool:
    """Tell whether a value of a record stands for none: None, NaN, NaT or nothing but space."""
    if isinstance(value, str):
        return not value.strip()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and math.isnan(value)


def with_class_names(records: Records, column: str, labels: Labels) -> Records:
    """Replace the numbers of classes in a column by their names, if the labels are names.

    Raises:
        ValueError: the labels are both, in different orders.
    """
    names = records.names.get(column, [])
    named = [name in labels for name in names]
    if not any(named):
        return records
    if all(number in labels for number in range(len(names))):
        if all(named) and any(labels.index(n) != labels.index(k) for k, n in enumerate(names)):
            raise ValueError(
                f"{records.source}: the labels {labels.texts} are both the numbers and the names "
                f"of its classes, {names}; convert the data to .jsonl with one of the two"
            )
        return records

    def change(record: dict[str, Any]) -> dict[str, Any]:
        value = record.get(column)
        if isinstance(value, int) and 0 <= value < len(names):
            return {**record, column: names[value]}
        return record

    return records.map(change)


def place_words(template: Template, words: Sequence[str]) -> tuple[list[str], list[int]]:
    """Find the form and the token in which each word follows a template.

    A word follows a space, unless it has white space of its own or the template ends in white
    space other than spaces, an opening bracket or a quotation mark. Where the template ends, or
    the word begins, in a script without spaces, it follows directly, and after a space only if that
    alone makes it one token.

    Returns:
        The words with the white space before them, and their token ids.

    Raises:
        ValueError: a word is not one token of its own in its place.
    """
    placed = []
    for word in words:
        forms = _forms(template.before_word, word)
        found = [(form, token) for form in forms if (token := _token(template, form)) is not None]
        if not found:
            raise _refusal(template, forms[0])
        placed.append(found[0])
    return [word for word, _ in placed], [token for _, token in placed]


def place_phrases(template: Template, phrases: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Find the form and the tokens in which texts of one token or more follow a template.

    White space before them is as in :func:`place_words`. Where the template is closed, a decoder
    writes them, and they stand alone.

    Returns:
        The texts with the white space before them, and their token ids.

    Raises:
        ValueError: the tokenizer does not know a text, or two have the same tokens.
    """
    unknown = template.tokenizer.unk_token_id
    pairs = [place_text(template, phrase) for phrase in phrases]
    placed, tokens = [text for text, _ in pairs], [found for _, found in pairs]
    for phrase, found in zip(placed, tokens, strict=True):
        if not found or unknown in found:
            raise ValueError(
                f"label word {phrase!r} has a part that the tokenizer does not know; choose "
                "another word"
            )
        if tokens.count(found) > 1:
            shared = [p for p, other in zip(placed, tokens, strict=True) if other == found]
            raise ValueError(
                f"the label words {shared} are the same tokens; choose words that the tokenizer "
                "tells apart"
            )
    return placed, tokens


def place_text(template: Template, text: str) -> tuple[str, list[int]]:
    """Return the form and the tokens in which one text follows a template."""
    if template.closed:
        quiet: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        return text.strip(), list(template.tokenizer(text.strip(), **quiet)["input_ids"])
    form = _forms(template.before_word, text)[0]
    return form, template.continuation(form)


def _canonical(text: str) -> str:
    whole = _WHOLE_NUMBER.fullmatch(text)
    if whole:
        return "0" if whole[1] == "-0" else whole[1]
    return text.lower() if text.lower() in ("true", "false") else text


def _forms(before: str, word: str) -> list[str]:
    if word[0].isspace():
        return [word]
    if not before or before[-1].isspace() or before[-1] in _OPENING:
        return [word]
    if _unspaced(before[-1]) or _unspaced(word[0]):
        return [word, f" {word}"]
    return [f" {word}"]


def _unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _UNSPACED)


def _token(template: Template, word: str) -> int | None:
    """Return the token that stands where the word belongs, if it is one alone."""
    found, rest = _in_place(template, word)
    if not found or found[0] == template.tokenizer.unk_token_id:
        return None
    # Behind a mask token some tokenizers start anew with a space that the word does not have.
    behind, wanted = (
        "".join(template.tokenizer.decode(tokens).split()) for tokens in (found[1:], rest)
    )
    return found[0] if behind == wanted else None


def _in_place(template: Template, word: str) -> tuple[list[int], list[int]]:
    """Tokenize with a word in its place.

    Returns:
        The tokens from the word on (none, if the word changes those before), and those that follow
        the mask token, if there is one.
    """
    values = {name: "It" for name in template.columns}
    prompt = template.tokens(template.render(values))
    if template.masked:
        at = prompt.index(template.tokenizer.mask_token_id)
        filled = template.tokens(template.render(values, mask=word))
    else:
        at = len(prompt)
        filled = template.tokens(template.render(values) + word)
    return filled[at:] if filled[:at] == prompt[:at] else [], prompt[at + 1 :]


def _refusal(template: Template, word: str) -> ValueError:
    before = template.before_word
    found, rest = _in_place(template, word)
    names = template.tokenizer.convert_ids_to_tokens(found[: max(len(found) - len(rest), 1)])
    tokens = ", ".join(map(repr, names))
    there = f"there it is {tokens}" if found else "the tokenizer merges the two"
    remedy = "choose a word that the tokenizer has as one token"
    if word[0].isspace() and not template.masked:
        remedy += (
            " after a space, or end the template in a line break, after which the word has no space"
        )
    elif not before[-1:].isspace() and not template.masked:
        remedy += ", or end the template in a line break"
    elif template.masked:
        remedy += ", with or without a space before it"
    return ValueError(
        f"label word {word!r} is not one token of its own after {before[-20:]!r}: {there}; {remedy}"
    )
