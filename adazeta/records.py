"""Examples as plain dictionaries, from a file or from the Hugging Face hub."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

_Lines = Iterator[tuple[int, Record]]

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Records(list[Record]):
    """A list of examples that knows where each came from.

    Args:
        records: the examples.
        source: name of the file or data set.
        lines: line of each example in the file, if it is one.
    """

    def __init__(self, records: Iterable[Record], source: str, lines: list[int] | None = None):
        super().__init__(records)
        self.source = source
        self.lines = lines

    def place(self, index: int) -> str:
        """Say where an example came from, e.g. ``"train.csv, line 3"``."""
        if self.lines is None:
            return f"{self.source}, example {index}"
        return f"{self.source}, line {self.lines[index]}"


def load_records(path_or_name: str | Path, split: str | None = None) -> Records:
    """Load examples.

    Args:
        path_or_name: a ``.jsonl``, ``.csv`` or ``.tsv`` file (the first line of the latter two
            names the columns), or a data set of the hub, ``"owner/name"`` or
            ``"owner/name:config"``, which needs the ``datasets`` package.
        split: of a data set of the hub, e.g. ``"train"`` or ``"validation[:1000]"``; unused for
            files.

    Returns:
        One dictionary an example, column to value (strings in csv and tsv files).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line is malformed (the message names it), or there are no examples.
        ImportError: ``datasets`` is needed but not installed.
    """
    path = Path(path_or_name)
    if path.suffix == ".jsonl":
        records = _from_lines(path, _read_jsonl(path))
    elif path.suffix in _DELIMITERS:
        records = _from_lines(path, _read_delimited(path, _DELIMITERS[path.suffix]))
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
                record = json.loads(line)
            except UnicodeDecodeError as error:
                raise _not_text(path, number, error) from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from None
            if not isinstance(record, dict):
                raise ValueError(
                    f"{path}, line {number}: expected an object such as "
                    f'{{"text": "...", "label": 0}}, got {line.strip()[:40]!r}'
                )
            yield number, record


def _read_delimited(path: Path, delimiter: str) -> _Lines:
    # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            columns = next(reader, [])
            twice = [name for name in columns if columns.count(name) > 1]
            if twice:
                raise ValueError(f"{path}, line 1: two columns are named {twice[0]!r}; rename one")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(columns):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, but the first line "
                        f"names {len(columns)} columns ({', '.join(columns)})"
                    )
                yield reader.line_num, dict(zip(columns, row, strict=True))
        except UnicodeDecodeError as error:
            # The text is decoded in blocks, so the reader does not know the line.
            raise _not_text(path, _first_line_of_no_text(path), error) from None
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _first_line_of_no_text(path: Path) -> int:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                raw.decode()
            except UnicodeDecodeError:
                return number
    return number  # a character that the last line breaks off


def _not_text(path: Path, line: int, error: UnicodeDecodeError) -> ValueError:
    return ValueError(
        f"{path}, line {line}: not UTF-8 text ({error.reason}); save the file as UTF-8"
    )


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
    return Records(load_dataset(repository, config or None, split=split), f"{name} ({split})")
