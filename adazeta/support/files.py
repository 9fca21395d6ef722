"""Files that are written whole or not at all, read with a clear error, and cached."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

SCRATCH = ".part"
"""End of the names of files and folders that are still being written."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it is the old one or the new one.

    Its folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}{SCRATCH}")  # two processes do not meet
    with open(scratch, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # not every file system has it
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/adazeta``, by default ``~/.cache/adazeta``; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adazeta"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal, without reading it at once."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_object(path: str | Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else; the message names the file.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}); copy it again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it does not hold a JSON object; copy it again")
    return values
