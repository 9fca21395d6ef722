"""Built-in rewards that need no other model: reference answers, patterns, lengths and JSON."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adazeta.rewards.one_function import RewardFunction
from adazeta.rewards.records import Completion, text_of
from adazeta.support import answers
from adazeta.support.words import word_pairs

_LENGTH = re.compile(r"(\d+)\s*(words?|characters?|tokens?)?")


def exact_match(column: str, folder: Path) -> RewardFunction:
    """Make :func:`adazeta.support.answers.exact_match` of completions a reward.

    Args:
        column: of the reference answers: a text, a list of texts, or SQuAD's ``{"text": [...]}``;
            None or no text at all: the reward does not apply.
        folder: unused.
    """
    return _compared("exact_match", column, answers.exact_match)


def f1(column: str, folder: Path) -> RewardFunction:
    """Make :func:`adazeta.support.answers.token_f1` of completions a reward; see above."""
    return _compared("f1", column, answers.token_f1)


def _compared(
    name: str, column: str, measure: Callable[[str, Iterable[str]], float]
) -> RewardFunction:
    def compared(completions: list[Completion], **columns: Any) -> list[float | None]:
        rewards: list[float | None] = []
        for completion, value in zip(completions, columns[column], strict=True):
            references, text = _references(value), text_of(completion)
            rewards.append(measure(text, references) if references else None)
        return rewards

    compared.__name__ = name
    vars(compared)["needs"] = (column,)
    return compared


def _references(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        value = value.get("text")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(one) for one in value if one is not None]
    return [] if value is None else [str(value)]


def regex(pattern: str, folder: Path) -> RewardFunction:
    """Make a reward: 1 if a pattern of ``re`` is found anywhere in the completion, otherwise 0.

    Raises:
        ValueError: it is no pattern.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"reward regex: {pattern!r} is no regular expression ({error})") from None

    def regex(completions: list[Completion], **columns: Any) -> list[float]:
        return [float(compiled.search(text_of(one)) is not None) for one in completions]

    return regex


def length(argument: str, folder: Path) -> RewardFunction:
    """Make a reward: the shorter over the longer of a completion's length and a target, in [0, 1].

    It differs for any two lengths on one side of the target, so a completion far from it can
    still be told from one that is farther.

    Args:
        argument: the target and its unit: ``"20"``, ``"20 words"`` (what spaces separate),
            ``"100 characters"`` or ``"30 tokens"`` (of ``completion_ids``, with an end token).
        folder: unused.

    Raises:
        ValueError: it is no length.
    """
    match = _LENGTH.fullmatch(argument.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(
            f"reward length: {argument!r} is no length; write a number above 0 and a unit, words, "
            "characters or tokens"
        )
    target, unit = int(match[1]), (match[2] or "words").rstrip("s")

    def rewards(lengths: Iterable[int]) -> list[float]:
        return [min(one, target) / max(one, target) for one in lengths]

    if unit == "token":

        def length(completion_ids: list[list[int]], **columns: Any) -> list[float]:
            return rewards(map(len, completion_ids))

        return length

    def length_of_text(completions: list[Completion], **columns: Any) -> list[float]:
        texts = [text_of(one) for one in completions]
        return rewards(len(one.split() if unit == "word" else one) for one in texts)

    length_of_text.__name__ = "length"
    return length_of_text


def distinct(argument: str, folder: Path) -> RewardFunction:
    """Make a reward against texts that all say the same: the share of word pairs of one's own.

    Of a completion's pairs of neighbouring words it is the share that no completion of another
    prompt has, among those that are scored in one call; 0 without a pair. It depends on which texts
    are scored together, so runs with other numbers of processes differ.
    """

    def distinct(prompts: list[Any], completions: list[Completion], **columns: Any) -> list[float]:
        pairs = [word_pairs(text_of(one)) for one in completions]
        asked = [repr(prompt) for prompt in prompts]
        users: dict[tuple[str, str], set[str]] = defaultdict(set)
        for prompt, found in zip(asked, pairs, strict=True):
            for pair in found:
                users[pair].add(prompt)
        return [
            sum(len(users[pair]) == 1 for pair in set(found)) / len(found) if found else 0.0
            for found in pairs
        ]

    return distinct


def is_json(argument: str, folder: Path) -> RewardFunction:
    """Make a reward: 1 if the whole completion is JSON (RFC 8259), otherwise 0."""

    def json(completions: list[Completion], **columns: Any) -> list[float]:
        return [float(_parsed(text_of(one)) is not _NOT_JSON) for one in completions]

    return json


def json_schema(file: str, folder: Path) -> RewardFunction:
    """Make a reward: 1 if the whole completion is JSON that fits a JSON schema, otherwise 0.

    A schema that refers to another file or address is not followed there.

    Args:
        file: path of the schema.
        folder: that the path is relative to.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no schema.
        ImportError: jsonschema is not installed.
    """
    try:
        from jsonschema import SchemaError, validators
        from referencing import Registry
    except ImportError:
        raise ImportError(
            "reward json_schema needs jsonschema: pip install 'adazeta[rewards]'"
        ) from None
    path = folder / Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"reward json_schema: there is no file {path}")
    schema = _parsed(path.read_text(encoding="utf-8"))
    if not isinstance(schema, dict | bool):
        raise ValueError(f"reward json_schema: {path} does not hold a JSON schema")
    kind = validators.validator_for(schema, default=validators.validator_for({}))
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"reward json_schema: {path}: {error.message}") from None
    validator = kind(schema, registry=Registry())

    def json_schema(completions: list[Completion], **columns: Any) -> list[float]:
        values = [_parsed(text_of(one)) for one in completions]
        return [float(one is not _NOT_JSON and validator.is_valid(one)) for one in values]

    return json_schema


_NOT_JSON = object()


def _parsed(text: str) -> Any:
    """Return the value of JSON, ``_NOT_JSON`` for other texts."""
    try:
        # Python's parser takes NaN and Infinity, which JSON does not have.
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _refuse(constant: str) -> None:
    raise ValueError(constant)
