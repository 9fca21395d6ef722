"""Tables as text: csv files, and tsv files with and without quotation."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DELIMITERS = {".csv": ",", ".tsv": "\t"}

_Row = tuple[int, list[str]]  # its first line in the file, and its fields

_LONGEST = 2**31 - 1


def read_delimited(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a table whose first line names the columns.

    A csv file quotes as RFC 4180 says. A tsv file is read so as well if its writer quoted, and else
    letter by letter: most public ones do not quote, and have texts that begin with a quotation
    mark.

    Args:
        path: a file whose suffix is one of DELIMITERS.

    Yields:
        Line of the file and column -> text, or None where the field is empty.

    Raises:
        ValueError: the file is not UTF-8, a row has more or fewer fields than the first line, two
            columns have one name, quotation is malformed, or a tsv file can be read both with and
            without quotation.
    """
    text = decoded(path)
    rows = _quoted(path, text) if path.suffix == ".csv" else _tab_separated(path, text)
    columns = rows[0][1] if rows else []
    for line, row in rows[1:]:
        yield (
            line,
            {name: field if field else None for name, field in zip(columns, row, strict=True)},
        )


def decoded(path: Path) -> str:
    """Read a file as text, without the byte-order mark that spreadsheets put before it.

    Raises:
        ValueError: it is not UTF-8; the message names the line.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_text(path, data.count(b"\n", 0, error.start) + 1, error) from None


def not_text(path: Path, line: int, error: UnicodeDecodeError) -> ValueError:
    """Return the error of a line that is not UTF-8."""
    return ValueError(
        f"{path}, line {line}: not UTF-8 text ({error.reason}); save the file as UTF-8"
    )


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _quoted(path: Path, text: str) -> list[_Row]:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=DELIMITERS[path.suffix], strict=True
    )
    rows: list[_Row] = []
    line = 1
    with _fields_of_any_length():
        try:
            for row in reader:
                if row:
                    rows.append((line, row))
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {line}: {error}; a field that begins with a quotation mark ends "
                "with one, and those inside of it are doubled"
            ) from None
    return _checked(path, rows)


def _plain(path: Path, text: str) -> list[_Row]:
    lines = text.split("\n" if "\n" in text else "\r")
    if lines[0].endswith("\r"):
        lines = [line.removesuffix("\r") for line in lines]
    rows = [(number, line.split("\t")) for number, line in enumerate(lines, start=1) if line]
    return _checked(path, rows)


def _checked(path: Path, rows: list[_Row]) -> list[_Row]:
    if not rows:
        return rows
    _, columns = rows[0]
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise ValueError(f"{path}, line 1: two columns are named {twice[0]!r}; rename one")
    for line, row in rows:
        if len(row) != len(columns):
            raise ValueError(
                f"{path}, line {line}: {len(row)} fields, but the first line names "
                f"{len(columns)} columns ({', '.join(columns)})"
            )
    return rows


def _tab_separated(path: Path, text: str) -> list[_Row]:
    """Read with or without quotation, whichever the file was written with."""
    try:
        plain = _plain(path, text)
    except ValueError:
        if '"' not in text:
            raise
        plain = None
    if plain is not None and not any(f.startswith('"') for _, row in plain for f in row):
        return plain
    try:
        quoted = _quoted(path, text)
    except ValueError:
        # Without the quotation, the lines that are too long or too short are those at fault.
        return _plain(path, text) if plain is None else plain
    if plain is None or all(_in_quotes(name) for name in plain[0][1]):
        return quoted
    if len(plain) > len(quoted) and len(plain[0][1]) > 1:
        # A text of several lines would hardly have as many tabs in each of them as the table.
        return plain
    marked = [(n, f) for n, row in plain for f in row if f.startswith('"')]
    if len(plain) == len(quoted) and all('""' in field[1:-1] for _, field in marked):
        return quoted  # marks inside of a text are doubled, which is why it is in quotes
    line, field = next((pair for pair in marked if '""' not in pair[1][1:-1]), marked[0])
    raise ValueError(
        f"{path}, line {line}: the quotation mark of {field[:40]!r} may belong to the text or be "
        "put around it by the program that wrote the file; save it as .jsonl or .csv"
    )


def _in_quotes(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'
