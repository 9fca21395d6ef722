"""Prompts and columns of a data set in TRL's format, and completions in the form of the prompts.

A prompt is a text, or a conversation: a list of messages ``{"role": ..., "content": ...}``. A
completion of a text is a text; that of a conversation is a list of one message.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
Prompt = str | list[Message]
Completion = str | list[Message]

_RESERVED = ("prompt", "completion", "completion_ids")


def columns_of(records: Sequence[Mapping[str, Any]]) -> tuple[list[Prompt], dict[str, list[Any]]]:
    """Separate the prompts of records from the columns that reward functions are given.

    Args:
        records: each with a ``"prompt"``.

    Returns:
        The prompts, and of each other column its values, in the order of the records. Columns
        named ``completion`` and ``completion_ids`` are left out, as in TRL: the trainer fills
        these arguments.

    Raises:
        ValueError: a prompt is missing or malformed, texts and conversations are mixed, or the
            records differ in their columns.
    """
    prompts = []
    for place, record in enumerate(records):
        prompts.append(_prompt(record.get("prompt"), place))
        if isinstance(prompts[-1], str) != isinstance(prompts[0], str):
            raise ValueError(
                f"record {place} has a prompt of another kind than the first: texts and "
                "conversations cannot be mixed"
            )
        if record.keys() != records[0].keys():
            (odd, *_) = sorted(record.keys() ^ records[0].keys())
            raise ValueError(
                f"column {odd!r} is in record 0 or record {place}, but not in both; give every "
                "record the same columns"
            )
    names = [name for name in (records[0] if records else ()) if name not in _RESERVED]
    return prompts, {name: [record[name] for record in records] for name in names}


def completions_of(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Completion]:
    """Return the texts that a model wrote in the form of their prompts."""
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def text_of(completion: Completion) -> str:
    """Return the text of a completion: itself, or the content of its last message.

    Raises:
        ValueError: it has no text.
    """
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    if isinstance(content, list):  # parts, as models for images and texts write
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise ValueError(f"the completion {completion!r} has no text as its last content")
    return content


def _prompt(value: Any, place: int) -> Prompt:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        if all(isinstance(m, dict) and "role" in m and "content" in m for m in value):
            return value
    raise ValueError(
        f"record {place} has the prompt {value!r}; a prompt is a text, or a list of messages with "
        "'role' and 'content'"
    )
