"""The completions of an evaluation, for the loggers that ``report_to`` names.

transformers' own callbacks carry numbers only. A logger is active where its callback is at work, so
what they hold is asked for and nothing is started here.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from adazeta.training.rollouts import Shown

TITLE = "completions"


def log_completions(
    callbacks: Iterable[TrainerCallback], shown: Sequence[Shown], step: int
) -> None:
    """Give completions to the loggers among callbacks: tensorboard a text, the others a table.

    Args:
        callbacks: of the trainer.
        shown: the completions, at least one.
        step: of training.
    """
    columns, rows = table_of_completions(shown, step)
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            if callback.tb_writer is not None:
                callback.tb_writer.add_text(TITLE, as_markdown(columns, rows), step)
        elif isinstance(callback, WandbCallback):
            import wandb

            if wandb.run is not None:
                table = wandb.Table(columns=columns, data=rows)
                wandb.log({TITLE: table, "train/global_step": step})
        elif isinstance(callback, TrackioCallback):
            import trackio

            table = _trackio_table(trackio, columns, rows)
            trackio.log({TITLE: table, "train/global_step": step})


def table_of_completions(
    shown: Sequence[Shown], step: int
) -> tuple[list[str], list[list[str | float | None]]]:
    """Return the names of the columns, and a row for each completion.

    Beside the sum of several rewards each has a column of its own. What the base writes is left out
    where there is none.
    """
    based = any(one.before is not None for one in shown)
    names = [f"rewards/{name}" for name in shown[0].rewards] if len(shown[0].rewards) > 1 else []
    before = ["reward before", "before"] if based else []
    columns = ["step", "prompt", *before, "reward", "completion", *names]
    rows = []
    for one in shown:
        old = [one.reward_before, one.before] if based else []
        each = list(one.rewards.values()) if names else []
        rows.append([step, _text(one.prompt), *old, one.reward, one.completion, *each])
    return columns, rows


def as_markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown; of its texts nothing is read as Markdown's table or as HTML."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return html.escape(str(value), quote=False).replace("|", "&#124;").replace("\n", "<br>")


def _text(prompt: Any) -> str:
    """Return a prompt as one text; of a conversation each message after its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{m.get('role')}: {m.get('content')}" for m in prompt)


def _trackio_table(trackio: Any, columns: list[str], rows: list[list[Any]]) -> Any:
    try:
        from pandas import DataFrame
    except ImportError:
        return trackio.Table(columns=columns, data=rows)
    # Versions that hold a DataFrame do not heed the names of columns beside data.
    return trackio.Table(dataframe=DataFrame(rows, columns=columns))
