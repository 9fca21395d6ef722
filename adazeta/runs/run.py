"""One training run, from settings to a folder."""

import json
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adazeta.adapters.attach import add_tt_adapters, disable_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.informed import InformedAdapter, inform
from adazeta.adapters.loading import load_values
from adazeta.forward.contexts import context_of
from adazeta.models.arguments import ModelArguments
from adazeta.models.loading import load_configuration, load_model, load_tokenizer, sees_ahead
from adazeta.recording.folder import INITIAL_NAME, LOG_NAME, TASK_NAME, claimed
from adazeta.recording.snapshot import checkpoints
from adazeta.rewards.loading import load_rewards
from adazeta.runs.inference import check_examples, score
from adazeta.runs.informed_rewards import inform_by_rewards
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.base import Task
from adazeta.tasks.causal_lm import CausalLMTask
from adazeta.tasks.examples import Examples
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.records import load_records
from adazeta.tasks.registry import make_task
from adazeta.tasks.reward import RewardTask
from adazeta.tasks.vocabulary import rows_in, settle_padding
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.guard import Guard
from adazeta.training.rollouts import Rollouts
from adazeta.training.trainer import ZOTrainer


@dataclass
class Run:
    """A training run that is set up: data encoded, adapters attached, trainer made.

    Attributes:
        folder: where the adapters, the tokenizer and the task go.
        task: the task.
        model: the model with its adapters.
        trainer: the trainer, with its log.
        examples: encoded ``"train"`` and, if given, ``"validation"`` and ``"test"`` data.
        checkpoint: the checkpoint to resume from; True: the last step that was logged.
    """

    folder: Path
    task: Task
    model: PreTrainedModel
    trainer: ZOTrainer
    examples: dict[str, Examples]
    checkpoint: str | bool | None

    def score(self, name: str, *, base: bool = False) -> tuple[Tensor, Tensor]:
        """Compute losses and outputs of a data set, see :func:`score`.

        Args:
            name: ``"train"``, ``"validation"`` or ``"test"``.
            base: score the model without its adapters.
        """
        size = self.trainer.args.per_device_eval_batch_size
        with disable_adapters(self.model) if base else nullcontext():
            return score(self.model, self.task, self.examples[name], batch_size=size)

    def train(self) -> dict[str, float]:
        """Train, measure on the validation and test data, and save everything in the folder.

        Returns:
            The metrics of training, validation and test.
        """
        trainer = self.trainer
        metrics = dict(trainer.train(resume_from_checkpoint=self.checkpoint).metrics)
        for name in ("validation", "test"):
            if name in self.examples:
                metrics |= trainer.evaluate(self.examples[name], metric_key_prefix=name)
        trainer.save_model()
        trainer.save_state()
        trainer.save_metrics("all", metrics, combined=False)
        if trainer.args.should_save:
            text = json.dumps(self.task.to_dict(), indent=2, ensure_ascii=False)
            (self.folder / TASK_NAME).write_text(f"{text}\n", encoding="utf-8")
        return metrics


def prepare(
    model_arguments: ModelArguments,
    task_arguments: TaskArguments,
    adapters: TTAdapterConfig,
    training: ZOTrainingArguments,
) -> Run:
    """Set up a training run.

    Args:
        model_arguments: the base model.
        task_arguments: data and prompt.
        adapters: adapters, with the base model's ``revision``; its name and task type are filled
            in here.
        training: settings of the trainer; ``output_dir`` is the folder.

    Returns:
        The run, ready to train.

    Raises:
        ValueError: a setting is missing, or the data do not fit the task.
    """
    for name, value in (
        ("model", model_arguments.model),
        ("train_data", task_arguments.train_data),
    ):
        if value is None:
            raise ValueError(f"{name} is missing: set it in the configuration or with --{name}")
    if training.eval_strategy != "no" and task_arguments.validation_data is None:
        raise ValueError(
            "eval_strategy is set, but there is no validation_data to evaluate on; set it, or set "
            "eval_strategy to 'no'"
        )
    if training.do_predict:
        raise ValueError(
            "do_predict=True predicts nothing in a training run; leave it off, and label texts "
            "with 'adazeta predict' afterwards"
        )
    if training.remove_unused_columns:
        raise ValueError(
            "remove_unused_columns=True has nothing to remove: a task reads the columns that its "
            "templates name; leave it off"
        )
    # The data first: a mistake there should not wait for the weights to load.
    kind = "MASKED_LM" if "{mask}" in task_arguments.template else "CAUSAL_LM"
    base = _absolute(str(model_arguments.model))
    config = load_configuration(base, task=kind, revision=adapters.revision)
    tokenizer = load_tokenizer(base, task=kind, revision=adapters.revision)
    rows = rows_in(config)
    if rows is not None:
        settle_padding(tokenizer, rows)
    context = getattr(config, "max_position_embeddings", None)
    if context is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    task = make_task(task_arguments, tokenizer)
    options = _objective(task, task_arguments)
    data = {
        "train": (task_arguments.train_data, task_arguments.train_split),
        "validation": (task_arguments.validation_data, task_arguments.validation_split),
        "test": (task_arguments.test_data, task_arguments.test_split),
    }
    examples = {
        name: task.encode_all(load_records(source, split))
        for name, (source, split) in data.items()
        if source is not None
    }
    if rows is not None:
        for encoded in examples.values():
            check_examples(task, encoded, rows)
    guard = _guard(task_arguments, tokenizer)
    if isinstance(task, RewardTask):  # an argument that no column fills is told of now
        columns = examples["train"][0]["columns"]
        options["reward_funcs"].check([*columns, "completion_ids", "trainer_state"])
    _check_classes(task, examples["train"])
    checkpoint = _checkpoint(training)
    if training.should_save:  # an error here should not wait for the weights either
        with claimed(training.output_dir):
            pass
    model = load_model(base, dtype=model_arguments.dtype, task=kind, revision=adapters.revision)
    if kind == "CAUSAL_LM" and sees_ahead(model):
        raise ValueError(
            f"in {base} ({type(model).__name__}) every position sees the words after it, so it is "
            "no causal language model; put {mask} where the word belongs in the template"
        )
    adapters.base_model_name_or_path, adapters.task_type = base, kind
    if adapters.form == "informed":
        adapters.answers = _answers(task)
    add_tt_adapters(model, adapters, seed=training.seed)
    trainer = ZOTrainer(
        model,
        training,
        train_dataset=examples["train"],
        eval_dataset=examples.get("validation"),
        data_collator=task.collate_mixed,
        processing_class=tokenizer,
        **options,
    )
    if trainer.rollouts is not None:
        trainer.rollouts.guard = guard
    if isinstance(task, PromptTask) and task.suffix:
        context_of(model, task.suffix)  # what it refuses is refused here, before training
    if adapters.form == "informed":
        _inform(model, task, examples["train"], training, trainer.rollouts)
    return Run(Path(str(training.output_dir)), task, model, trainer, examples, checkpoint)


def _objective(task: Task, arguments: TaskArguments) -> dict[str, Any]:
    """Return what a trainer is given of what is to be learnt."""
    if not isinstance(task, RewardTask):
        return {"loss_fn": task.losses, "compute_metrics": task.metrics}
    assert arguments.reward is not None
    rewards = load_rewards(
        arguments.reward, arguments.reward_weights, folder=None, timeout=arguments.reward_timeout
    )
    return {"reward_funcs": rewards, "reward_task": task}


def _guard(arguments: TaskArguments, tokenizer: Any) -> Guard | None:
    """Return what measures the texts that are not to be forgotten."""
    if arguments.guard_data is None:
        return None
    task = CausalLMTask(tokenizer, "{text}", max_length=arguments.max_length)
    examples = task.encode_all(load_records(arguments.guard_data))
    return Guard(task, [examples[index] for index in range(len(examples))])


_PROMPTS = 1000  # that inform adapters
_MOST_ANSWERS = 7


def _answers(task: Task) -> int:
    """Return the number of directions of informed adapters."""
    if isinstance(task, RewardTask):
        return _MOST_ANSWERS
    if not isinstance(task, PromptTask) or task.adapt == "all":
        raise ValueError(
            "form='informed' is for rewards, and for classification with a causal model whose "
            "adapters act on the last token: set reward, or label_words and adapt: last; or form: "
            "bottleneck"
        )
    return min(len(task.labels) - 1, _MOST_ANSWERS)


def _inform(
    model: PreTrainedModel,
    task: Task,
    examples: Examples,
    training: ZOTrainingArguments,
    rollouts: Rollouts | None,
) -> None:
    """Give informed adapters their bases: from training prompts, or as the run began with them."""
    initial = Path(str(training.output_dir)) / INITIAL_NAME
    if _checkpoint(training) is not None and initial.is_dir():
        load_values(model, initial)
        return
    if rollouts is not None:
        inform_by_rewards(model, rollouts, examples, training)
        return
    assert isinstance(task, PromptTask)
    head = model.get_output_embeddings()
    if head is None or not isinstance(getattr(head, "weight", None), Tensor):
        raise ValueError(
            f"form='informed' needs the rows of an output embedding, and {type(model).__name__} "
            "shows none; use form='bottleneck'"
        )
    generator = torch.Generator().manual_seed(training.seed)
    chosen = torch.randperm(len(examples), generator=generator)[:_PROMPTS].tolist()
    size = training.per_device_train_batch_size
    device = next(model.parameters()).device
    batches = (
        {name: value.to(device) for name, value in task.collate(rows).items()}
        for rows in (
            [examples[index] for index in chosen[begin : begin + size]]
            for begin in range(0, len(chosen), size)
        )
    )
    adapters = [a for _, a in attached_adapters(model) if isinstance(a, InformedAdapter)]
    words = head.weight[task.candidates.to(head.weight.device)].float()
    inform(adapters, lambda batch: task.logits(model, batch), batches, words)


def _check_classes(task: Task, examples: Examples) -> None:
    """Warn if all training examples have the same label."""
    if isinstance(task, PromptTask):
        found = set(examples.labels.tolist())
        if len(found) == 1:
            warnings.warn(
                f"all {len(examples)} training examples have the label "
                f"{task.labels[found.pop()]!r}: a model that always says its word is perfect on "
                "them; add examples of the other labels",
                stacklevel=3,
            )


def _checkpoint(training: ZOTrainingArguments) -> str | bool | None:
    """Return what to resume from; True stands for the last step that was logged."""
    wanted = training.resume_from_checkpoint
    if wanted is None or wanted.lower() == "false":
        return None
    folder = Path(str(training.output_dir))
    if wanted.lower() != "true":
        if not Path(wanted).is_dir():
            raise FileNotFoundError(f"resume_from_checkpoint: there is no folder {wanted}")
        return wanted
    if not (folder / LOG_NAME).exists() and not any(checkpoints(folder)):
        raise FileNotFoundError(f"resume_from_checkpoint: there is no checkpoint in {folder}")
    return True


def _absolute(name: str) -> str:
    """Make the path of a local model independent of the working directory."""
    return str(Path(name).resolve()) if Path(name).exists() else name
