"""The task that settings describe, with demonstrations from its training data in every prompt.

Apart from the registry, which makes tasks of descriptions too and reads no data.
"""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.base import Task
from adazeta.tasks.classification import ClassificationTask
from adazeta.tasks.records import Records, load_records
from adazeta.tasks.registry import make_task


def set_up_task(
    arguments: TaskArguments,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    records: Records | None = None,
) -> tuple[Task, Records | None]:
    """Make a task with its demonstrations.

    Args:
        arguments: the task's settings.
        tokenizer: of the model.
        kind: of model, see :func:`adazeta.tasks.registry.model_kind`.
        records: the training records, where they were read before.

    Returns:
        The task, and the training records, if there are any, without those that demonstrate it.

    Raises:
        ValueError: the settings do not describe a task, or there are too few records.
    """
    task = make_task(arguments, tokenizer, kind=kind)
    if arguments.train_data is None:
        if arguments.shots:
            raise ValueError(
                f"shots={arguments.shots} draws demonstrations from the training data; set "
                "train_data"
            )
        return task, None
    if records is None:
        records = load_records(arguments.train_data, arguments.train_split)
    if not arguments.shots:
        return task, records
    count = arguments.shots
    if count >= len(records):
        raise ValueError(
            f"shots={count} needs more training records than that, and {records.source} has "
            f"{len(records)}"
        )
    if isinstance(task, ClassificationTask):
        records = task.named(records)
    generator = torch.Generator().manual_seed(arguments.shots_seed)
    order = torch.randperm(len(records), generator=generator).tolist()
    make: Any = task  # classes=, which has none, is refused above
    shots = [make.demonstration(records[index]) for index in order[:count]]
    rest = sorted(order[count:])
    task = make_task(arguments, tokenizer, kind=kind, shots=shots)
    return task, records.chosen(rest)
