"""The trainer's side of the probe log: writes each step down before it is applied."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from adazeta.adapters.attached import is_informed
from adazeta.adapters.files import save_pretrained
from adazeta.estimation.probes import Probes
from adazeta.recording.folder import (
    BEGIN_NAME,
    GENERATORS_NAME,
    HISTORY_NAME,
    INITIAL_NAME,
    LOG_NAME,
    set_aside,
)
from adazeta.recording.history import History, read_history, up_to
from adazeta.recording.identity import describe, settings_of
from adazeta.recording.probe_log import LogWriter
from adazeta.recording.replay import group_settings, with_settings
from adazeta.recording.snapshot import read_snapshot
from adazeta.recording.step_record import MEASURED, StepRecord
from adazeta.support.files import write_whole
from adazeta.training.catch_up import forward_schedule, make_up_evaluation, merge_history
from adazeta.training.history import HistoryCallback
from adazeta.training.host import Host
from adazeta.training.reproducible import begin_epoch, save_generators
from adazeta.training.resume import Start, materialise
from adazeta.training.termination import Termination


class RunIsDone(Exception):
    """All steps of the run that is resumed were done before."""


class Journal(HistoryCallback):
    """Restores the state that training begins with, and records its steps.

    Args:
        trainer: one call of its ``train`` is recorded.
        start: where training begins.
        termination: is told when a step begins and ends.
    """

    def __init__(self, trainer: Host, start: Start, termination: Termination) -> None:
        self.trainer, self.start, self.termination = trainer, start, termination
        self.folder = Path(str(trainer.args.output_dir))
        self.writer: LogWriter | None = None
        self._settings: list[dict[str, Any]] = []
        self._measured: dict[str, Any] = {}
        self._epoch = 0.0
        self._passes = self._done_before = 0  # over data without a length; steps before this one
        self._resumed = start.checkpoint is not None
        self._evaluates_first = trainer.args.eval_on_start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the snapshot, if there is one, and open the log.

        Raises:
            RunIsDone: there is nothing left to do; the base class would do one step more.
            ValueError: the data are a stream whose place cannot be found again.
        """
        start, optimizer = self.start, self.trainer.zo_optimizer
        if start.checkpoint is not None:
            read_snapshot(start.checkpoint).restore(optimizer)
            forward_schedule(self.trainer, state, start.log)
            logged = read_history(self.folder / HISTORY_NAME)
            merge_history(state, up_to(logged, state.global_step), args, self.folder)
        batches = _length(kwargs["train_dataloader"])
        self.trainer.agreement.start(self.trainer.unwrapped, optimizer, args, state, batches)
        if args.should_save and self.trainer.args.probe_log:
            self.history = History(self.folder, state.global_step, state.log_history)
        if start.checkpoint is not None:
            if (state.epoch or 0) > 1 and _length(kwargs["train_dataloader"]) is None:
                raise ValueError(
                    f"the data are a stream without a length, of which {state.epoch:.2f} passes "
                    "were read: where in it the run stopped cannot be told. Give the data set a "
                    "__len__, or stream as many examples as the run takes"
                )
            args.eval_on_start = False  # the run that goes on has had it
            make_up_evaluation(self.trainer, state)
            if state.global_step >= state.max_steps or self.trainer.control.should_training_stop:
                raise RunIsDone
        if not args.should_save:
            return
        if not self.trainer.args.probe_log:
            set_aside(self.folder)
            return
        if start.log is not None:
            self.writer = LogWriter(start.log)
        else:
            if start.checkpoint is None:
                write_whole(
                    self.folder / BEGIN_NAME, f"{json.dumps(asdict(state), indent=2)}\n".encode()
                )
            header = describe(self.trainer.unwrapped, optimizer, state.global_step)
            if is_informed(self.trainer.unwrapped):
                save_pretrained(self.trainer.unwrapped, self.folder / INITIAL_NAME)
            self.writer = LogWriter.create(self.folder / LOG_NAME, header)
        self.trainer.log_of_run = self.writer
        if start.log is None and start.checkpoint is not None:
            # The new log goes on from here, and the checkpoint may lie elsewhere.
            materialise(self.trainer, self.folder, state)
        self._settings = list(group_settings(self.writer.header))
        if start.log is not None:
            for record, settings in with_settings(start.log):
                self._settings = settings
                self._measured = record.changes.get(MEASURED, self._measured)
        optimizer.journal = self.record

    def record(self, probes: Probes) -> None:
        """Write down the probes of the step that is about to be applied.

        Raises:
            OSError: the disk is full or failed; nothing is to be applied then.
        """
        optimizer = self.trainer.zo_optimizer
        assert self.writer is not None
        settings = [settings_of(optimizer, group) for group in optimizer.param_groups]
        measured = optimizer.measured()
        measured.pop("eps")
        changes = {
            str(index): changed
            for index, (old, new) in enumerate(zip(self._settings, settings, strict=True))
            if (changed := {k: v for k, v in new.items() if k != "lr" and old.get(k) != v})
        }
        if measured != self._measured:
            changes[MEASURED] = measured
        self.writer.append(
            StepRecord.of(
                probes,
                step=optimizer.steps,
                epoch=self._epoch,
                eps=optimizer.estimator.eps or 0.0,
                rates=[float(group["lr"]) for group in settings],
                changes=changes,
            )
        )
        self._settings, self._measured = settings, measured

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the generators the state that they had here, or keep it for a run that resumes."""
        self._done_before = state.global_step if self._passes else 0
        self._passes += 1
        epoch, path = int(state.epoch or 0), self.folder / GENERATORS_NAME
        begin_epoch(kwargs["train_dataloader"], epoch, path if self._resumed else None)
        if self._resumed:
            self._resumed = False
            # The main process is about to write the file that the others have to read first.
            self.trainer.ranks.exchange("the state of the generators", None)
        if args.should_save:
            save_generators(path, epoch)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """A step begins: it is to be finished."""
        self.termination.begin()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compute the epoch as it is after this step, as the trainer will."""
        batches, done = _length(kwargs["train_dataloader"]), state.global_step
        if batches is not None:
            self._epoch = epoch_after(done, args, batches, state.max_steps)
        else:
            part = epoch_after(done - self._done_before, args, None, state.max_steps)
            self._epoch = self._passes - 1 + part

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A step is done: leave, if that was asked for.

        Raises:
            SystemExit: with status 143.
        """
        optimizer = self.trainer.zo_optimizer
        asked = self.trainer.agreement.after_step(optimizer, self.termination.asked)
        self.termination.asked = asked
        if asked and self.writer is None and args.should_save:
            materialise(self.trainer, self.folder, state)  # no log holds the step
        self.termination.end()

    def close(self) -> None:
        """Stop recording."""
        self.trainer.args.eval_on_start = self._evaluates_first
        self.trainer.log_of_run = None
        if self.writer is not None:
            self.trainer.zo_optimizer.journal = None
            self.writer.close()
        super().close()


def epoch_after(done: int, args: TrainingArguments, batches: int | None, max_steps: int) -> float:
    """Return the epochs done after one more optimizer step, in the trainer's own arithmetic.

    Args:
        done: optimizer steps done before.
        args: has the number of micro-batches a step.
        batches: micro-batches an epoch, None if they cannot be counted.
        max_steps: optimizer steps of the run.
    """
    micro = args.gradient_accumulation_steps
    if batches is None:
        batches, steps = max_steps * micro, max_steps
    else:
        steps = max(-(-batches // micro), 1)
    epoch, step = divmod(done, steps)
    return epoch + min((step + 1) * micro, batches) / batches


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:
        return None
