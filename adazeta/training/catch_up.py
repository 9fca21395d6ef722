"""What a run that goes on makes up for: history, schedule, and an evaluation that was due.

A step is on disk before the evaluation that follows it, so a run may stop between the two. The
evaluation may decide the learning rate (schedules that follow a metric), the best checkpoint, and
whether training stops.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

from adazeta.recording.probe_log import ProbeLog
from adazeta.training.host import Host

_logger = logging.getLogger(__name__)


def make_up_evaluation(trainer: Host, state: TrainerState) -> None:
    """Evaluate if that was due after the step of a state, and the state has no result of it.

    Args:
        trainer: restored to the state; its schedule follows the metric if it is of that kind.
        state: is given the result.
    """
    args = trainer.args
    if not _due(args, state):
        return
    known = [entry for entry in state.log_history if entry.get("step") == state.global_step]
    names = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else ()
    prefixes = [f"eval_{name}_" for name in names] or ["eval_"]
    if all(any(key.startswith(p) for entry in known for key in entry) for p in prefixes):
        return
    metrics = trainer.evaluate()
    name = metric_name(args)
    if name is None or name not in metrics or any(name in entry for entry in known):
        return
    schedule: Any = trainer.lr_scheduler
    if follows_metric(schedule):
        schedule.step(metrics[name])
    entry = {**metrics, "step": state.global_step}
    note_best(state, entry, args, Path(str(args.output_dir)))


def _due(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether the trainer evaluates after the step of a state."""
    flow, control = DefaultFlowCallback(), TrainerControl()
    flow.on_step_end(args, state, control)
    # The trainer ends an epoch where it stops, too.
    if state.epoch == int(state.epoch or 0) or state.global_step >= state.max_steps:
        flow.on_epoch_end(args, state, control)
    return control.should_evaluate


def merge_history(
    state: TrainerState, entries: list[dict[str, Any]], args: TrainingArguments, folder: Path
) -> None:
    """Give a state of an earlier step what was logged since, the best metric included.

    Args:
        state: is changed.
        entries: all entries up to ``state.global_step``; empty if they are not known.
        args: name the metric that decides which checkpoint is the best.
        folder: of the run.
    """
    fresh = entries[len(state.log_history) :]
    state.log_history = [*state.log_history, *fresh]
    for entry in fresh:
        note_best(state, entry, args, folder)


def metric_name(args: TrainingArguments) -> str | None:
    """Return the key, among logged metrics, of the one that decides which checkpoint is best."""
    metric = args.metric_for_best_model
    return metric if metric is None or metric.startswith("eval_") else f"eval_{metric}"


def note_best(
    state: TrainerState, entry: dict[str, Any], args: TrainingArguments, folder: Path
) -> None:
    """Tell a state of a logged entry that may hold the best metric so far.

    Args:
        state: is changed.
        entry: with its ``"step"``.
        args: name the metric.
        folder: of the run.
    """
    name = metric_name(args)
    value = None if name is None else entry.get(name)
    if not isinstance(value, int | float):
        return
    best = state.best_metric
    if best is None or (value > best if args.greater_is_better else value < best):
        state.best_metric, state.best_global_step = value, entry["step"]
        checkpoint = folder / f"checkpoint-{entry['step']}"
        if checkpoint.is_dir():
            state.best_model_checkpoint = str(checkpoint)


def follows_metric(schedule: Any) -> bool:
    """Tell whether a learning-rate schedule follows the metric of evaluations, not the steps."""
    return isinstance(schedule, ReduceLROnPlateau) or type(schedule).__name__ == "GreedyLR"


def forward_schedule(trainer: Host, state: TrainerState, log: ProbeLog | None) -> None:
    """Bring a new learning-rate schedule to where it was after the steps that are done.

    Args:
        trainer: has the schedule.
        state: of the trainer.
        log: to compare with what was used.
    """
    schedule = trainer.lr_scheduler
    if schedule is None:
        return
    if follows_metric(schedule):
        name, last_step = str(metric_name(trainer.args)), 0
        for entry in state.log_history:
            # An evaluation before the first step, or a second one, is not the schedule's.
            if name in entry and entry["step"] > last_step:
                schedule.step(entry[name])
                last_step = entry["step"]
        return
    used: list[float] = []
    with warnings.catch_warnings():
        # It would warn that no optimizer step came first: they came in the process before.
        warnings.simplefilter("ignore")
        for _ in range(state.global_step):
            used = [float(group["lr"]) for group in trainer.zo_optimizer.param_groups]
            schedule.step()
    if log is None or len(log) == 0:
        return
    rate = trainer.zo_optimizer.auto_rate
    if rate is not None:
        used = [(rate.last or 0.0) * factor for factor in used]
    (last,) = log.records(len(log) - 1)
    if list(last.rates) != used:
        _logger.warning(
            "the learning rate of step %d was %s and would be %s now: the settings of the schedule "
            "have changed, and the run goes on with the new ones",
            last.step, list(last.rates), used,
        )  # fmt: skip
