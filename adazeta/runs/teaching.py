"""A teacher in the place of labels: it scores the training texts once, and is gone.

What is learnt from it is the cross entropy with its probabilities of the labels, which is the
Kullback-Leibler divergence from the teacher to the model and a constant. Source: distillation
(Hinton et al., arXiv 1503.02531) at a temperature of 1; without data, after ZSAQ (arXiv
2310.13315), the texts are those of :mod:`adazeta.runs.written`.
"""

import gc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from adazeta.models.arguments import ModelArguments
from adazeta.models.loading import load_model, on_accelerator, settle_head
from adazeta.recording.folder import TASK_NAME
from adazeta.runs.base import check_causal, set_up_base
from adazeta.runs.inference import load_task, load_trained, predict, score
from adazeta.support.batches import TEACHER
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.base import Task
from adazeta.tasks.classification import ClassificationTask
from adazeta.tasks.examples import Examples
from adazeta.tasks.head import HeadTask
from adazeta.tasks.records import Records


def untaught(task: Task, records: Records) -> Examples:
    """Encode records for :func:`taught` as far as that goes before a teacher is loaded.

    Raises:
        ValueError: a record is unusable; the message says where it came from.
    """
    assert isinstance(task, ClassificationTask)  # make_task refuses a teacher of others
    return task.encode_taught(records, torch.zeros(len(records), len(task.labels)))


def taught(
    task: Task,
    parts: Mapping[str, Records],
    model_arguments: ModelArguments,
    task_arguments: TaskArguments,
) -> dict[str, Examples]:
    """Encode records with what a teacher says of them.

    Args:
        task: the classification that is learnt.
        parts: records by name; labels of theirs are not read.
        model_arguments: with the dtype of the teacher.
        task_arguments: with the teacher, and the prompt that a base model is asked by.

    Returns:
        Examples with the teacher's probabilities, and its likeliest class as the label.

    Raises:
        ValueError: the teacher is a run of other labels, or its model does not fit the task; its
            scores are not finite; or a record is unusable.
    """
    assert isinstance(task, ClassificationTask)
    model, asked = _loaded(task, model_arguments, task_arguments)
    order = [asked.labels.index(label) for label in task.labels]
    found = {}
    for name, records in parts.items():
        probabilities = predict(model, asked, records)[:, order]
        _check_finite(probabilities, records, str(task_arguments.teacher))
        found[name] = task.encode_taught(records, probabilities)
    del model
    gc.collect()  # a model of transformers is held by circles of its own
    return found


def hardest_part(
    model: PreTrainedModel,
    task: Task,
    examples: Examples,
    share: float,
    training: TrainingArguments,
) -> Examples:
    """Return the examples on which a model differs most from what its teacher says.

    Args:
        model: as it is before training; it is moved to the accelerator, unless the run is to be on
            the CPU.
        task: the classification.
        examples: with a teacher's probabilities.
        share: of the examples that are kept, at least one.
        training: of the run.

    Returns:
        Those with the largest divergence, in their order; of equal ones the first.
    """
    if training.device.type != "cpu":
        on_accelerator(model)
    size = training.per_device_eval_batch_size
    divergences = divergence_from_teacher(
        examples, score(model, task, examples, batch_size=size)[1]
    )
    kept = max(1, round(share * len(examples)))
    chosen = divergences.argsort(descending=True, stable=True)[:kept].sort().values
    return Examples([examples[index] for index in chosen.tolist()])


def divergence_from_teacher(examples: Examples, logits: Tensor) -> Tensor:
    """Compute the Kullback-Leibler divergence of examples from their teacher, float64 ``(N,)``.

    Args:
        examples: with a teacher's probabilities of C classes.
        logits: of the model, ``(N, C)``.
    """
    probabilities = torch.tensor(
        [examples[index][TEACHER] for index in range(len(examples))], dtype=torch.float64
    )
    entropy = torch.special.entr(probabilities).sum(-1)
    return -(probabilities * logits.double().log_softmax(-1)).sum(-1) - entropy


def _loaded(
    task: ClassificationTask, model_arguments: ModelArguments, task_arguments: TaskArguments
) -> tuple[PreTrainedModel, ClassificationTask]:
    """Load the teacher, and the task by which it is asked."""
    teacher, dtype = str(task_arguments.teacher), model_arguments.dtype
    if (Path(teacher) / TASK_NAME).is_file():
        of_run = load_task(teacher)
        theirs = of_run.labels if isinstance(of_run, ClassificationTask) else []
        if sorted(theirs) != sorted(task.labels):
            raise ValueError(
                f"the run in {teacher} tells the labels {theirs}, and this task has {task.labels}; "
                "give a teacher of the same labels"
            )
        assert isinstance(of_run, ClassificationTask)
        return load_trained(teacher, dtype=dtype), of_run
    # A base model has no adapters that would act on the last tokens alone.
    arguments = replace(task_arguments, adapt="all")
    try:
        found = set_up_base(ModelArguments(model=teacher, dtype=dtype), arguments)
    except (OSError, ValueError) as error:
        raise ValueError(f"teacher={teacher!r}: {error}") from error
    classes = len(task.labels) if isinstance(task, HeadTask) else None
    model = load_model(found.base, dtype=dtype, task=found.kind, classes=classes)
    if classes is not None:
        settle_head(model, found.tokenizer)
    check_causal(model, found)
    assert isinstance(found.task, ClassificationTask)
    return on_accelerator(model), found.task


def _check_finite(probabilities: Tensor, records: Records, teacher: str) -> None:
    bad = (~probabilities.isfinite().all(-1)).nonzero()[:1, 0].tolist()
    if bad:
        raise ValueError(
            f"{records.place(bad[0])}: the teacher {teacher} gives no finite probabilities of the "
            "labels; check its dtype, or leave the text out"
        )
