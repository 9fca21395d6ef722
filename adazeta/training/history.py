"""What the trainer of either order logs goes to the history of the run."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adazeta.recording.history import History


class HistoryCallback(TrainerCallback):
    """Appends each entry of the trainer's log to the history, once a subclass has opened it.

    Attributes:
        history: of the run; None where none is kept, or it is not open yet.
    """

    history: History | None = None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep what was logged."""
        if self.history is not None:
            self.history.append(state.log_history[-1])

    def close(self) -> None:
        """Close the history."""
        if self.history is not None:
            self.history.close()
