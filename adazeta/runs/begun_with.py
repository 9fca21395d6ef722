"""What a run began to learn from, so that one that goes on with something else says so.

Nothing of it decides how the run goes on: more data, or a better template, may be what is wanted.
"""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from adazeta.recording.folder import DATA_NAME
from adazeta.support.batches import TEACHER
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
    changed = [name for name in present if before.get(name) != present[name]]
    if "teacher" in changed and _alike(before.get("teacher"), present["teacher"]):
        changed.remove("teacher")
    if changed:
        what = ["the training examples" if name == "sha256" else name for name in changed]
        warnings.warn(
            f"this run began with something else: {', '.join(what)} changed (see {file}). The "
            "steps to come learn from what is set now; those that were done are kept",
            stacklevel=3,
        )


def _alike(before: list[float] | None, present: list[float] | None) -> bool:
    """Tell whether the mean probabilities of teachers differ by no more than rounding."""
    return (
        before is not None
        and present is not None
        and len(before) == len(present)
        and all(abs(a - b) <= _ALIKE for a, b in zip(before, present, strict=True))
    )
