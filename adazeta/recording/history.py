"""What the trainer logged, one JSON object a line, so that a crash loses none of it.

Unlike the probe log it holds times and other things that differ from run to run, and training does
not depend on it.
"""

import json
from pathlib import Path
from typing import Any

from adazeta.recording.folder import HISTORY_NAME
from adazeta.support.files import write_whole


class History:
    """The file ``history.jsonl`` of a run.

    Args:
        folder: of the run.
        step: entries of later steps are dropped, and so is a line that was not finished.
        entries: what the file holds if there is none yet.

    Attributes:
        entries: what it held when it was opened.
    """

    def __init__(self, folder: Path, step: int, entries: list[dict[str, Any]]) -> None:
        self.path = folder / HISTORY_NAME
        self.entries = up_to(read_history(self.path) or entries, step)
        text = "".join(_line(entry) for entry in self.entries)
        write_whole(self.path, text.encode())
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry."""
        self._file.write(_line(entry))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, default=str) + "\n"


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a file that may be missing or end in the middle of a line."""
    entries = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step", 0), int | float):
            entries.append(entry)
    return entries


def up_to(entries: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """Return the entries of the steps up to one."""
    return [entry for entry in entries if entry.get("step", 0) <= step]
