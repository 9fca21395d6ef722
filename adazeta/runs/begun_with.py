"""What a run began to learn from, so that one that goes on with something else says so.

Nothing of it decides how the run goes on: more data, or a better template, may be what is wanted.
"""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments

from adazeta.recording.folder import DATA_NAME
from adazeta.support.batches import TEACHER
from adazeta.support.files import write_whole
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.base import Task
from adazeta.tasks.examples import Examples

_ALIKE = 1e-3  # the same teacher on another machine rounds differently


def begun_with(task: Task, examples: Examples, arguments: TaskArguments) -> dict[str, Any]:
    """Describe what is learnt, in JSON types.

    Args:
        task: the task.
        examples: that are trained on; a teacher's probabilities enter by their mean.
        arguments: with the reward and the objective.
    """
    digest = hashlib.sha256()
    taught = []
    for index in range(len(examples)):
        example = examples[index]
        digest.update(repr(sorted((k, v) for k, v in example.items() if k != TEACHER)).encode())
        if TEACHER in example:
            taught.append(example[TEACHER])
    found = {
        "task": task.to_dict(),
        "objective": arguments.objective,
        "reward": arguments.reward,
        "reward_weights": arguments.reward_weights,
        "examples": len(examples),
        "sha256": digest.hexdigest(),
        "teacher": torch.tensor(taught).double().mean(0).tolist() if taught else None,
    }
    back: dict[str, Any] = json.loads(json.dumps(found))
    return back


class Beginning(TrainerCallback):
    """Writes what a run begins with into its folder, before the first step.

    Only then: a run that is refused must leave the file of the run that was there before.

    Args:
        present: see :func:`begun_with`.
    """

    def __init__(self, present: dict[str, Any]) -> None:
        self.present, self.written = present, False

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any
    ) -> None:
        """Write the file, once; all checks are passed."""
        if args.should_save and not self.written:
            text = json.dumps(self.present, indent=2, ensure_ascii=False)
            write_whole(Path(str(args.output_dir)) / DATA_NAME, f"{text}\n".encode())
        self.written = True


def warn_of_changes(folder: Path, present: dict[str, Any]) -> None:
    """Warn if a run goes on with something else than it began with.

    Args:
        folder: of the run; one from before this was kept says nothing.
        present: see :func:`begun_with`.
    """
    file = folder / DATA_NAME
    if not file.is_file():
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = [name for name in present if not _alike(before.get(name), present[name])]
    if changed:
        what = ["the training examples" if name == "sha256" else name for name in changed]
        warnings.warn(
            f"this run began with something else: {', '.join(what)} changed (see {file}). The "
            "steps to come learn from what is set now; those that were done are kept",
            stacklevel=3,
        )


def _alike(before: Any, present: Any) -> bool:
    numbers = (before, present)
    if all(isinstance(v, list) and all(isinstance(x, float) for x in v) for v in numbers):
        return len(before) == len(present) and all(
            abs(one - other) <= _ALIKE for one, other in zip(before, present, strict=True)
        )
    return bool(before == present)
