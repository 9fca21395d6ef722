"""Rows of a suite that takes long, written after each run, so that a call goes on where one ended.

Apart from the harness, whose suites begin anew each time.
"""

import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from benchmarks.measure.harness import Options, Row


def mode_and_seed(row: Row) -> tuple[Hashable, ...]:
    """Return what tells the runs of most suites apart."""
    return row["mode"], row["x_value"]


def provider_too(row: Row) -> tuple[Hashable, ...]:
    """Return what tells runs apart where each provider is one."""
    return row["mode"], row["x_value"], row["provider"]


def named(rate: float | str) -> str:
    """Return the provider of the runs with one rate; a text stands for itself."""
    return rate if isinstance(rate, str) else f"rate_{rate:g}"


def as_written(settings: Any) -> Any:
    """Return settings as rows read from a file hold them: tuples are lists there."""
    return json.loads(json.dumps(settings))


class Log:
    """The rows so far; written to the file after each addition.

    Args:
        options: ``json`` is the file, None if nothing is kept.
        benchmark: name of the suite; rows of others stay in the file.
        op: of the rows of runs.
        is_current: tells of a row whether it is of the present settings. What has no such row is
            forgotten, and measured anew.
        summary: makes the rows that summarise those of the runs, which are all other rows of the
            suite then; without one, other rows of it stay in the file.
        run: what tells the run of a row from others.
    """

    def __init__(
        self,
        options: Options,
        benchmark: str,
        op: str,
        is_current: Callable[[Row], bool],
        summary: Callable[[Sequence[Row]], list[Row]] | None = None,
        run: Callable[[Row], tuple[Hashable, ...]] = mode_and_seed,
    ) -> None:
        self._file, self._summary, self._run = options.json, summary, run
        every: list[Row] = []
        if self._file is not None and self._file.is_file():
            every = json.loads(self._file.read_text())
        self._foreign = [
            row
            for row in every
            if row["benchmark"] != benchmark or (summary is None and row["op"] != op)
        ]
        kept = [row for row in every if (row["benchmark"], row["op"]) == (benchmark, op)]
        current = {run(row) for row in kept if is_current(row)}
        self._rows = [row for row in kept if run(row) in current]

    def known(self, *run: Hashable) -> bool:
        """Tell whether a run is in the file, given what ``run`` returns for its rows."""
        return any(self._run(row) == run for row in self._rows)

    def add(self, fresh: Sequence[Row]) -> None:
        """Add rows and write the file."""
        self._rows += fresh
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps([*self._foreign, *self.finished()], indent=1)
            self._file.write_text(text + "\n")

    def finished(self) -> list[Row]:
        """Return the rows of all runs, and those that summarise them."""
        return [*self._rows, *(self._summary(self._rows) if self._summary else [])]
