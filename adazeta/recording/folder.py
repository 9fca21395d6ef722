"""The folder of a run: its files, who may write in it, and what becomes of an old log."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adazeta.support.files import SCRATCH

# What this package writes into the folder of a run. The adapters' two files are named in
# adazeta/adapters/files.py, everything else by transformers.
LOG_NAME = "probes.log"  # the probe log, see adazeta/recording/probe_log.py
HISTORY_NAME = "history.jsonl"  # what the trainer logged
COMPLETIONS_NAME = "completions.jsonl"  # what the model wrote at the evaluations of a reward
GENERATORS_NAME = "generators.json"  # states of the random generators when the epoch began
BEGIN_NAME = "begin.json"  # the trainer's state at the first step, for want of a checkpoint
INITIAL_NAME = "initial_adapters"  # folder of adapters whose first values no seed tells: informed
SETTINGS_NAME = "config.yaml"  # the settings of the command that trained
DATA_NAME = "training_data.json"  # what the run began to learn from
TASK_NAME = "task.json"  # the task, to evaluate and predict with
_LOCK_NAME = ".lock"  # holds the number of the process that is training

# And into each checkpoint of it, see adazeta/recording/snapshot.py.
STATE_NAME = "zeroth_order.json"  # the snapshot's marker, written last
TENSORS_NAME = "zeroth_order.safetensors"  # state of the optimizer
FIRST_ORDER_NAME = "first_order.json"  # marker of a first-order run, and of its checkpoints
FIRST_ORDER_TENSORS_NAME = "first_order.safetensors"  # state of optimizer and schedule
PARAMETERS_NAME = "trainable.safetensors"  # trainable parameters that the model's file lacks

_held: set[int] = set()  # open lock files of this process


def _leave_to_the_parent() -> None:
    """Close the locks in a forked process: a data loader's worker may outlive its parent."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)


@contextmanager
def claimed(folder: str | Path) -> Iterator[Path]:
    """Hold a folder for this process alone.

    The lock ends with the process, however it ends. Scratch files of a process that was killed are
    removed.

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
    _held.add(handle)
    try:
        if _lock(handle, folder):
            _clear(folder)
        yield folder
    finally:
        if handle in _held:
            _held.remove(handle)
            os.close(handle)


def _clear(folder: Path) -> None:
    """Remove what a process that was killed had not finished writing."""
    for scratch in [*folder.glob(f"*{SCRATCH}"), *folder.glob(f"checkpoint-*/*{SCRATCH}")]:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)


def _lock(handle: int, folder: Path) -> bool:
    """Lock the folder; return whether it is, which not every system can."""
    try:
        import fcntl
    except ImportError:
        return False
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
        return False  # a file system without locks
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return True


def set_aside(folder: Path) -> Path | None:
    """Rename log, history and completions of an earlier run in a folder, so that none is lost.

    Returns:
        The new name of the log, None if there was none.
    """
    log = folder / LOG_NAME
    (folder / FIRST_ORDER_NAME).unlink(missing_ok=True)  # what goes on is another run
    if not log.exists():
        return None
    number = 1
    while (folder / f"previous-{number}-{LOG_NAME}").exists():
        number += 1
    aside = folder / f"previous-{number}-{LOG_NAME}"
    for name in (HISTORY_NAME, COMPLETIONS_NAME):
        if (folder / name).exists():
            os.replace(folder / name, folder / f"previous-{number}-{name}")
    os.replace(log, aside)
    return aside
