"""The folder of a run: who may write in it, and what a new run does with an old one's log."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG_NAME = "probes.log"
HISTORY_NAME = "history.jsonl"
GENERATORS_NAME = "generators.json"
_LOCK_NAME = ".lock"


@contextmanager
def claimed(folder: str | Path) -> Iterator[Path]:
    """Hold a folder for this process alone.

    The lock ends with the process, however it ends.

    Args:
        folder: it is made if need be.

    Raises:
        OSError: the folder cannot be written, or another process holds it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OSError(
            error.errno,
            f"output_dir cannot be written ({error.strerror}); choose another one",
            str(folder),
        ) from None
    try:
        _lock(handle, folder)
        yield folder
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return  # a system without it goes unlocked
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(handle, 20, 0).decode(errors="replace").strip() or "unknown"
        raise OSError(
            error.errno,
            f"another process ({holder}) is training into this output_dir; wait for it or choose "
            "another one",
            str(folder),
        ) from None
    except OSError:
        return  # a file system without locks
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)


def set_aside(folder: Path) -> Path | None:
    """Rename the log and history of an earlier run in a folder, so that nothing of it is lost.

    Returns:
        The new name of the log, None if there was none.
    """
    log = folder / LOG_NAME
    if not log.exists():
        return None
    number = 1
    while (folder / f"previous-{number}-{LOG_NAME}").exists():
        number += 1
    aside = folder / f"previous-{number}-{LOG_NAME}"
    history = folder / HISTORY_NAME
    if history.exists():
        os.replace(history, folder / f"previous-{number}-{HISTORY_NAME}")
    os.replace(log, aside)
    return aside
