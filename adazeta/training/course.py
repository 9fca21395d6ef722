"""What happens around the steps of a first-order run, for it to be stopped and to go on."""

from pathlib import Path
from typing import Any, Protocol

from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from adazeta.adapters.attached import is_informed
from adazeta.adapters.files import save_pretrained
from adazeta.optim.fused_backward import FusedBackward
from adazeta.recording.folder import GENERATORS_NAME, INITIAL_NAME
from adazeta.recording.history import History
from adazeta.training.history import HistoryCallback
from adazeta.training.journal import RunIsDone
from adazeta.training.reproducible import begin_epoch, save_generators


class FirstOrderHost(Protocol):
    """What is needed of the trainer, :class:`~adazeta.training.first_order.FOTrainer`."""

    micro_step: int

    @property
    def unwrapped(self) -> nn.Module:
        """The model."""

    def begin(self, steps: int) -> FusedBackward | None:
        """Set up how gradients are taken."""

    def begin_average(self) -> None:
        """Let the average begin."""

    def follow_average(self, step: int) -> None:
        """Move the average."""


class Course(HistoryCallback):
    """Keeps what a run needs to go on: states of generators, the history, the first adapters.

    Args:
        trainer: the trainer.
        folder: of the run.
        checkpoint: that it goes on from.
    """

    def __init__(self, trainer: FirstOrderHost, folder: Path, checkpoint: Path | None) -> None:
        self.trainer, self.folder, self.checkpoint = trainer, folder, checkpoint
        self._fused: FusedBackward | None = None
        self._generators = None if checkpoint is None else checkpoint / GENERATORS_NAME

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the history.

        Raises:
            RunIsDone: there is nothing left to do; the base class would do one step more.
        """
        self.history = History(self.folder, state.global_step, state.log_history)
        self._fused = self.trainer.begin(state.max_steps)
        if self.checkpoint is None:
            self.trainer.begin_average()
            if is_informed(self.trainer.unwrapped):
                save_pretrained(self.trainer.unwrapped, self.folder / INITIAL_NAME)
        elif state.global_step >= state.max_steps:
            state.log_history = self.history.entries  # also of its end, after the last checkpoint
            raise RunIsDone

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the generators the state that they had here, or keep it for a run that resumes."""
        epoch = int(state.epoch or 0)
        begin_epoch(kwargs["train_dataloader"], epoch, self._generators)
        self._generators = None
        save_generators(self.folder / GENERATORS_NAME, epoch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the micro-batches anew."""
        self.trainer.micro_step = 0

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the average follow."""
        self.trainer.follow_average(state.global_step)

    def close(self) -> None:
        """Close the history, and take what was hung into the backward pass off again."""
        if self._fused is not None:
            self._fused.remove()
        super().close()
