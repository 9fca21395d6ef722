"""Examples as plain dictionaries, from a file or from the Hugging Face hub."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adazeta.tasks.delimited import DELIMITERS, not_text, read_delimited

Record = dict[str, Any]

_Lines = Iterator[tuple[int, Record]]


class Records(list[Record]):
    """A list of examples that knows where each came from.

    Args:
        records: the examples.
        source: name of the file or data set.
        lines: line of each example in the file, if it is one.
        names: names of the classes of those columns that hold numbers of classes.
    """

    def __init__(
        self,
        records: Iterable[Record],
        source: str,
        lines: list[int] | None = None,
        names: Mapping[str, Sequence[str]] | None = None,
    ):
        super().__init__(records)
        self.source = source
        self.lines = lines
        self.names = dict(names or {})

    def place(self, index: int) -> str:
        """Say where an example came from, e.g. ``"train.csv, line 3"``."""
        if self.lines is None:
            return f"{self.source}, example {index}"
        return f"{self.source}, line {self.lines[index]}"

    def map(self, change: Callable[[Record], Record]) -> "Records":
        """Return changed examples from the same places."""
        return Records(map(change, self), self.source, self.lines, self.names)

    def split(self, share: float) -> tuple["Records", "Records"]:
        """Split by the hash of each example: where an example is does not depend on the others.

        Args:
            share: of the second part, about; at least 0 and below 1.
        """
        kept = [_place(record) < share for record in self]

        def part(wanted: bool) -> Records:
            return self.chosen([index for index, found in enumerate(kept) if found == wanted])

        return part(False), part(True)

    def chosen(self, indices: Sequence[int]) -> "Records":
        """Return some of the examples, each with its place."""
        lines = None if self.lines is None else [self.lines[index] for index in indices]
        return Records((self[index] for index in indices), self.source, lines, self.names)


def _place(record: Record) -> float:
    """Return a number in [0, 1) that only the example decides."""
    text = json.dumps(record, sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / (1 << 48)


def load_records(path_or_name: str | Path, split: str | None = None) -> Records:
    """Load examples.

    Args:
        path_or_name: a ``.jsonl``, ``.csv`` or ``.tsv`` file (the first line of the latter two
            names the columns), or a data set of the hub, ``"owner/name"`` or
            ``"owner/name:config"``, which needs the ``datasets`` package.
        split: of a data set of the hub, e.g. ``"train"`` or ``"validation[:1000]"``; unused for
            files.

    Returns:
        One dictionary an example, column to value. In csv and tsv files values are texts, letter by
        letter those of the file, and None where a field is empty.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line is malformed (the message names it), or there are no examples.
        ImportError: ``datasets`` is needed but not installed.
    """
    path = Path(path_or_name)
    if path.suffix == ".jsonl":
        records = _from_lines(path, _read_jsonl(path))
    elif path.suffix in DELIMITERS:
        records = _from_lines(path, read_delimited(path))
    elif path.exists():
        raise ValueError(f"{path} is not a .jsonl, .csv or .tsv file; convert it to one of these")
    else:
        records = _read_hub(str(path_or_name), split)
    if not records:
        raise ValueError(f"{path_or_name} holds no examples")
    return records


def _from_lines(path: Path, numbered: _Lines) -> Records:
    pairs = list(numbered)
    return Records((record for _, record in pairs), str(path), [line for line, _ in pairs])


def _read_jsonl(path: Path) -> _Lines:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                # Editors put a byte-order mark before the first line.
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if not line.strip():
                    continue
                record = json.loads(line, object_pairs_hook=_object)
            except UnicodeDecodeError as error:
                raise not_text(path, number, error) from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from None
            if not isinstance(record, dict):
                raise ValueError(
                    f"{path}, line {number}: expected an object such as "
                    f'{{"text": "...", "label": 0}}, got {line.strip()[:40]!r}'
                )
            yield number, record


def _object(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice in an object; keep one")
    return record


def _read_hub(name: str, split: str | None) -> Records:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError(
            f"{name!r} is not a .jsonl, .csv or .tsv file, so it is taken for a data set of the "
            "Hugging Face hub, which needs the datasets package: pip install adazeta[data]"
        ) from None
    repository, _, config = name.partition(":")
    split = split or "train"
    data = load_dataset(repository, config or None, split=split)
    features = getattr(data, "features", None) or {}
    names = {
        column: list(feature.names)
        for column, feature in features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    return Records(data, f"{name} ({split})", names=names)
