"""The file of settings that a run leaves in its folder.

Apart from :mod:`adazeta.cli.train`, so that its command line is read before transformers is.
"""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from adazeta.recording.folder import SETTINGS_NAME
from adazeta.support.files import write_whole


class ConfigFile(TrainerCallback):
    """Writes ``config.yaml`` before the first step, so that a run that is killed has it.

    Only then: a run that is refused, as the folder is another's or the log does not fit, must leave
    the file of the run that was there before.

    Args:
        text: what the file holds.
    """

    def __init__(self, text: str) -> None:
        self.text, self.written = text, False

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any
    ) -> None:
        """Write the file, once; all checks are passed."""
        if args.should_save and not self.written:
            write_whole(Path(str(args.output_dir)) / SETTINGS_NAME, self.text.encode())
        self.written = True

    # A run that had no step left to do has no epoch.
    on_train_end = on_epoch_begin
