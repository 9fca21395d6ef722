"""Where a run goes on: the newest whole snapshot, and the log's steps after it.

The trainer of transformers resumes from a folder. So the state at the last logged step is put
together first (snapshot, or base model, plus replay) and written as such a folder, and everything
that follows is the same for a run that was stopped and for one that was killed.
"""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.recording.folder import BEGIN_NAME, HISTORY_NAME, LOG_NAME, set_aside
from adazeta.recording.header import check_same
from adazeta.recording.history import read_history, up_to
from adazeta.recording.identity import changed_settings, check_initial, identity
from adazeta.recording.probe_log import ProbeLog, read_log
from adazeta.recording.replay import apply_log
from adazeta.recording.snapshot import Snapshot, belongs_to, checkpoints, read_snapshot
from adazeta.recording.state_files import SnapshotError
from adazeta.recording.step_record import LogError
from adazeta.support.files import SCRATCH, sync_folder, write_whole
from adazeta.training.catch_up import merge_history
from adazeta.training.host import Host

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where training begins.

    Attributes:
        checkpoint: folder of a snapshot with the trainer's state; None at step 0.
        log: the log that goes on; None if a new one begins.
    """

    checkpoint: Path | None = None
    log: ProbeLog | None = None


def find_start(trainer: Host, wanted: str | bool | None) -> Start:
    """Find where training begins, and prepare the folder of the run for it.

    Args:
        trainer: the trainer; its model gets the state of the last step.
        wanted: what ``train`` got as ``resume_from_checkpoint``.

    Returns:
        The start.

    Raises:
        FileNotFoundError: there is nothing to resume.
        LogError: the log is damaged or belongs to another run.
        SnapshotError: the checkpoint that was asked for is not whole.
    """
    folder = Path(str(trainer.args.output_dir))
    if wanted is None or wanted is False:
        aside = set_aside(folder)
        if aside is not None:
            _logger.warning("the log of an earlier run in %s is now %s", folder, aside.name)
        return Start()
    if wanted is not True:
        return _from_checkpoint(trainer, folder, Path(wanted))
    if not (folder / LOG_NAME).exists():
        return _without_log(trainer, folder)
    log = read_log(folder / LOG_NAME)
    if log.torn:
        _logger.warning(
            "%s ends in %d bytes of a step that was not finished; they are cut off, and the run "
            "goes on at step %d", log.path, log.torn, log.next_step,
        )  # fmt: skip
    return _from_log(trainer, folder, log)


def logged_distribution(folder: str | None) -> str | None:
    """Return the distribution that the log of a run's folder names; None if there is none."""
    try:
        return read_log(Path(str(folder)) / LOG_NAME).header.layout.distribution
    except (OSError, LogError):
        return None  # what goes on, and from where, is found out apart


def _without_log(trainer: Host, folder: Path) -> Start:
    snapshot = _newest_snapshot(folder, None)
    if snapshot is None or _state_in(snapshot.folder) is None:
        raise FileNotFoundError(
            f"resume_from_checkpoint: there is neither a probe log nor a whole checkpoint in "
            f"{folder}"
        )
    snapshot.check(trainer.ready_optimizer().space)
    return Start(snapshot.folder)


def _from_log(trainer: Host, folder: Path, log: ProbeLog) -> Start:
    optimizer = _checked_optimizer(trainer, log)
    snapshot = _newest_snapshot(folder, log)
    if snapshot is not None and snapshot.records == len(log) and _state_in(snapshot.folder):
        snapshot.check(optimizer.space)
        return Start(snapshot.folder, log)
    if snapshot is None:
        check_initial(log.header, optimizer, str(log.path))
        if len(log) == 0:
            return Start(None, log)
    else:
        snapshot.restore(optimizer)
    apply_log(optimizer, log, start=0 if snapshot is None else snapshot.records or 0)
    trainer.log_of_run = log
    return Start(materialise(trainer, folder, _state_after(trainer, folder, log)), log)


def _checked_optimizer(trainer: Host, log: ProbeLog) -> ZerothOrderOptimizer:
    optimizer = trainer.ready_optimizer()
    check_same(log.header, identity(trainer.unwrapped, optimizer), str(log.path))
    for change in changed_settings(log.header, optimizer):
        _logger.warning("%s; the run goes on with the new value", change)
    return optimizer


def _newest_snapshot(folder: Path, log: ProbeLog | None) -> Snapshot | None:
    """Find the newest whole snapshot (of a log), and say which folders are none."""
    for path in checkpoints(folder):
        try:
            snapshot = read_snapshot(path)
        except SnapshotError as error:
            _logger.warning("%s; an earlier checkpoint or the log serves instead", error)
            continue
        if log is None or belongs_to(path, log):
            return snapshot
        _logger.warning("%s is of another run than %s; it is left out", path, log.path)
    return None


def materialise(trainer: Host, folder: Path, state: TrainerState) -> Path:
    """Write the present state as a checkpoint that appears whole or not at all.

    Args:
        trainer: its model and optimizer are written, and its place in the log.
        folder: of the run.
        state: of the trainer.

    Returns:
        The folder ``checkpoint-N``.
    """
    target = folder / f"checkpoint-{state.global_step}"
    scratch = folder / f".{target.name}{SCRATCH}"
    shutil.rmtree(scratch, ignore_errors=True)
    trainer.save_model(str(scratch), _internal_call=True)
    state.save_to_json(str(scratch / TRAINER_STATE_NAME))
    if target.exists():
        shutil.rmtree(target)
    os.rename(scratch, target)
    sync_folder(folder)
    return target


def _from_checkpoint(trainer: Host, folder: Path, wanted: Path) -> Start:
    """Go back, or over, to a checkpoint that was named."""
    snapshot = read_snapshot(wanted)
    if _state_in(wanted) is None:
        raise SnapshotError(f"{wanted} is not a whole checkpoint: it lacks {TRAINER_STATE_NAME}")
    snapshot.check(trainer.ready_optimizer().space)
    path = folder / LOG_NAME
    if not path.exists():
        return Start(wanted)
    log = None
    try:
        log = read_log(path)
    except LogError as error:
        _logger.warning("%s", error)
    if log is None or snapshot.records is None or not belongs_to(wanted, log):
        aside = set_aside(folder)
        _logger.warning("a new log begins; the old one is now %s", aside)
        return Start(wanted)
    _checked_optimizer(trainer, log)
    if snapshot.records < len(log):
        kept = log.prefix(snapshot.records)
        aside = set_aside(folder)
        write_whole(path, kept)
        _logger.warning("back to step %d; the log with later ones is now %s", snapshot.step, aside)
        log = ProbeLog(kept, path)
    return Start(wanted, log)


def _state(path: Path) -> TrainerState | None:
    """Return a trainer's state, None if the file is missing or damaged."""
    try:
        return TrainerState.load_from_json(str(path))
    except (OSError, ValueError, TypeError):
        return None


def _state_in(folder: Path) -> TrainerState | None:
    return _state(folder / TRAINER_STATE_NAME)


def _state_after(trainer: Host, folder: Path, log: ProbeLog) -> TrainerState:
    """Put together the trainer's state after the last record."""
    steps = (log.header.first_global_step or 0) + len(log)
    # The newest that is not from after the last record.
    places = [*(path / TRAINER_STATE_NAME for path in checkpoints(folder)), folder / BEGIN_NAME]
    found = (_state(place) for place in places)
    state = next((s for s in found if s is not None and s.global_step <= steps), None)
    if state is None:
        state = TrainerState(train_batch_size=trainer.args.train_batch_size)
        state.compute_steps(trainer.args, trainer.args.max_steps)
    state.global_step = steps
    (last,) = log.records(len(log) - 1)
    state.epoch = last.epoch
    entries = up_to(read_history(folder / HISTORY_NAME), steps)
    merge_history(state, entries, trainer.args, folder)
    return state
