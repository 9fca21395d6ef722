"""Files that a run leaves in its folder as soon as it has begun."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from adazeta.support.files import write_whole


class FirstFiles(TrainerCallback):
    """Writes files before the first step, so that a run that is killed has them.

    Only then: a run that is refused, as the folder is another's or the log does not fit, must leave
    those of the run that was there before.

    Args:
        texts: what they hold, by their names in the folder of the run.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts, self.written = dict(texts), False

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any
    ) -> None:
        """Write the files, once; all checks are passed."""
        if args.should_save and not self.written:
            for name, text in self.texts.items():
                write_whole(Path(str(args.output_dir)) / name, text.encode())
        self.written = True

    # A run that had no step left to do has no epoch.
    on_train_end = on_epoch_begin
