"""The evaluation that was due when a run stopped, made up for by the run that goes on.

A step is on disk before the evaluation that follows it, so a run may stop between the two. The
evaluation may decide the learning rate (schedules that follow a metric), the best checkpoint, and
whether training stops.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

from adazeta.recording.history import metric_name, note_best
from adazeta.resume import follows_metric

if TYPE_CHECKING:
    from adazeta.trainer import ZOTrainer


def make_up_evaluation(trainer: "ZOTrainer", state: TrainerState) -> None:
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
