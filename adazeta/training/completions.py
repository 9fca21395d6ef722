"""The completions of an evaluation: on the terminal, in a file, and in the loggers at work."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from adazeta.recording.folder import COMPLETIONS_NAME
from adazeta.training.completion_loggers import log_completions
from adazeta.training.rollouts import Rollouts, Shown

_WIDTH = 60  # characters of a text on the terminal
_ON_TERMINAL = 4


class CompletionsTable(TrainerCallback):
    """Shows some completions after each evaluation, beside those of the base.

    All that were kept go to ``completions.jsonl`` in the folder of the run, a line each, and to
    tensorboard, wandb and trackio where ``report_to`` names them.

    Args:
        rollouts: has the completions.
        handler: has the trainer's callbacks, among them those of the loggers.
    """

    def __init__(self, rollouts: Rollouts, handler: CallbackHandler) -> None:
        self._rollouts, self._handler = rollouts, handler

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show what the evaluation has left."""
        shown = self._rollouts.shown
        if not shown or not state.is_world_process_zero:
            return
        tqdm.write(table_of(shown[:_ON_TERMINAL]))
        log_completions(self._handler.callbacks, shown, state.global_step)
        folder = Path(str(args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / COMPLETIONS_NAME).open("a", encoding="utf-8") as file:
            for one in shown:
                line = {"step": state.global_step, **asdict(one)}
                file.write(f"{json.dumps(line, ensure_ascii=False)}\n")


def table_of(shown: Sequence[Shown]) -> str:
    """Return completions as lines for the terminal: prompt, then before and now with rewards."""
    lines = []
    for one in shown:
        prompt = one.prompt if isinstance(one.prompt, str) else one.prompt[-1].get("content", "")
        lines.append(f"  {_short(prompt, last=True)}")
        if one.before is not None:
            lines.append(f"    before {_number(one.reward_before)}  {_short(one.before)}")
        lines.append(f"    now    {_number(one.reward)}  {_short(one.completion)}")
    return "\n".join(lines)


def _number(reward: float | None) -> str:
    return f"{'none':>7}" if reward is None else f"{reward:7.3f}"


def _short(text: Any, *, last: bool = False) -> str:
    """Return a text in one line, cut to what a terminal shows."""
    line = " ".join(str(text).split())
    if len(line) <= _WIDTH:
        return line
    return f"...{line[3 - _WIDTH :]}" if last else f"{line[: _WIDTH - 3]}..."
