"""What training shows on the terminal: one line for each log, and one progress bar at a time."""

from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

# In the log, and not on the terminal: a check says so itself when a figure is bad.
_LEFT_OUT = frozenset(
    "grad_norm total_flos num_input_tokens_seen queries projected_gradient_mean "
    "projected_gradient_std eps probes_per_forward restored drift_share drift_rms moved_share "
    "update_rms loss_resolution projected_spread largest_probe_share step".split()
)
_OF_EVALUATION = (
    "runtime", "samples_per_second", "steps_per_second", "model_preparation_time",
    "jit_compilation_time", "loss",
)  # fmt: skip


def line_of(logs: Mapping[str, Any], step: int, steps: int) -> str:
    """Return a log as one line for people; the columns of lines of one run are aligned.

    Args:
        logs: what ``Trainer.log`` was given.
        step: steps done.
        steps: steps of the run.
    """
    if "train_runtime" in logs:
        parts = [f"done: {step:,} steps in {_number(logs['train_runtime'], ',.0f')} s"]
        if "train_steps_per_second" in logs:
            parts.append(f"{_number(logs['train_steps_per_second'], '.3g')} steps a second")
        if "train_loss" in logs:
            parts.append(f"mean loss {_number(logs['train_loss'])}")
        return ", ".join(parts)
    of = f"{steps:,}"
    parts = [f"step {step:>{len(of)},}/{of}"]
    rest = {name: value for name, value in logs.items() if name not in _LEFT_OUT}
    ends = [name for name in logs if name.endswith("_runtime")]
    prefix = ends[0].removesuffix("_runtime") if ends else None
    if prefix is None:
        if "loss" in rest:
            parts.append(f"train  loss {_number(rest.pop('loss')):>9}")
        if "learning_rate" in rest:
            parts.append(f"rate {_number(rest.pop('learning_rate'), '.3g'):<9}")
        if "evaluations" in rest:
            parts.append(f"evaluations {_number(rest.pop('evaluations'), ','):>9}")
        if "epoch" in rest:
            parts.append(f"epoch {_number(rest.pop('epoch'), '.2f')}")
        if not rest.get("dropped_probes"):
            rest.pop("dropped_probes", None)
    else:
        rest.pop("epoch", None)
        parts.append(f"{prefix.replace('_', ' '):5}")
        if f"{prefix}_loss" in rest:
            parts.append(f"loss {_number(rest[f'{prefix}_loss']):>9}")
        for name in _OF_EVALUATION:
            rest.pop(f"{prefix}_{name}", None)
        rest = {name.removeprefix(f"{prefix}_"): value for name, value in rest.items()}
    parts += [f"{name.replace('_', ' ')} {_number(value)}" for name, value in rest.items()]
    if prefix is not None:
        parts.append(f"({_number(logs[ends[0]], '.0f')} s)")
    return "  ".join(parts).rstrip()


def _number(value: Any, form: str = "") -> str:
    """Format a number; whatever else a user logs is shown as it is."""
    if isinstance(value, float):
        return format(value, form or "#.4g")
    return format(value, form) if form and isinstance(value, int) else str(value)


class PlainLines(PrinterCallback):
    """Prints a line for each log, and nothing else; for ``disable_tqdm``."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the line of a log."""
        if state.is_local_process_zero and logs:
            tqdm.write(line_of(logs, state.global_step, state.max_steps))


class BarAndLines(ProgressCallback):
    """Shows one bar, with the lines of the logs above it; without a terminal, only the lines."""

    training_bar: Any
    prediction_bar: Any
    _evaluated = 0  # batches of the evaluation that is under way

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar, at the step that training goes on from."""
        self.current_step = state.global_step
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps, initial=self.current_step, dynamic_ncols=True, disable=None
            )

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Count batches of an evaluation: in the bar of training, or in one of its own."""
        if not state.is_world_process_zero:
            return
        total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
        if self.training_bar is not None:
            self._evaluated += 1
            of = "" if total is None else f"/{total}"
            self.training_bar.set_postfix_str(f"evaluation {self._evaluated}{of}")
            return
        if self.prediction_bar is None:
            self.prediction_bar = tqdm(total=total, dynamic_ncols=True, disable=None)
        self.prediction_bar.update(1)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An evaluation is over."""
        super().on_evaluate(args, state, control, **kwargs)
        self._evaluated = 0
        if self.training_bar is not None:
            self.training_bar.set_postfix_str("")

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A prediction is over."""
        self.on_evaluate(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line of a log above the bar."""
        if state.is_world_process_zero and logs:
            tqdm.write(line_of(logs, state.global_step, state.max_steps))


_OURS: dict[type[TrainerCallback], type[TrainerCallback]] = {
    PrinterCallback: PlainLines,
    ProgressCallback: BarAndLines,
}


def show_lines(callbacks: list[TrainerCallback]) -> None:
    """Put our display in the place of the one that ``Trainer`` adds last.

    A subclass that a user passes stays, as does the table that transformers shows in notebooks.
    Ours are subclasses too, so that ``remove_callback(PrinterCallback)`` still removes one.
    """
    for place in reversed(range(len(callbacks))):
        ours = _OURS.get(type(callbacks[place]))
        if ours is not None:
            callbacks[place] = ours()
            return
