"""Files that are whole after a crash."""

import os
from pathlib import Path

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
