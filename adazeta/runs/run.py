"""One training run, from settings to a folder."""

import json
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from adazeta.adapters.attach import add_tt_adapters, disable_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.loading import load_values
from adazeta.adapters.mixer import check_forward_only
from adazeta.forward.contexts import context_of
from adazeta.models.arguments import ModelArguments
from adazeta.models.loading import load_model, settle_head
from adazeta.models.structure import HEADS
from adazeta.models.whole_checkpoint import trained_head
from adazeta.recording.folder import DATA_NAME, INITIAL_NAME, LOG_NAME, TASK_NAME, claimed
from adazeta.recording.snapshot import checkpoints
from adazeta.rewards.loading import load_rewards
from adazeta.runs.answering import AnsweringFOTrainer, AnsweringTrainer
from adazeta.runs.base import check_causal, checked_share, set_up_base
from adazeta.runs.baselines import measure_baselines, with_intervals
from adazeta.runs.begun_with import begun_with, warn_of_changes
from adazeta.runs.first_files import FirstFiles
from adazeta.runs.inference import BASE_QUANTISE, check_examples, score
from adazeta.runs.informed_prompts import answer_directions, inform_by_prompts
from adazeta.runs.informed_rewards import inform_by_rewards
from adazeta.runs.made_data import made_data, makes_data
from adazeta.runs.teaching import hardest_part, taught, untaught
from adazeta.support.settings import build
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.base import Task
from adazeta.tasks.causal_lm import CausalLMTask
from adazeta.tasks.classification import ClassificationTask
from adazeta.tasks.examples import Examples
from adazeta.tasks.generation import GenerationTask
from adazeta.tasks.head import HeadTask
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.records import Records, load_records
from adazeta.tasks.reward import RewardTask
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.first_order import FOTrainer
from adazeta.training.first_order_arguments import FOTrainingArguments
from adazeta.training.guard import Guard
from adazeta.training.order import training_arguments
from adazeta.training.rewarded import check_method
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
        report_baselines: measure a classification without its adapters, too.
        begun: what is learnt from, see :func:`begun_with`.
        first_files: texts that are written into the folder before the first step, by name.
    """

    folder: Path
    task: Task
    model: PreTrainedModel
    trainer: ZOTrainer
    examples: dict[str, Examples]
    checkpoint: str | bool | None
    report_baselines: bool = True
    begun: dict[str, Any] = field(default_factory=dict)
    first_files: dict[str, str] = field(default_factory=dict)

    def score(self, name: str, *, base: bool = False) -> tuple[Tensor, Tensor]:
        """Compute losses and outputs of a data set, see :func:`score`.

        Args:
            name: ``"train"``, ``"validation"`` or ``"test"``.
            base: score the model without its adapters.
        """
        size = self.trainer.args.per_device_eval_batch_size
        without = disable_adapters(self.model) if base else nullcontext()
        with self.trainer.final_weights(), without:
            return score(self.model, self.task, self.examples[name], batch_size=size)

    def train(self) -> dict[str, float]:
        """Train, measure on the validation and test data, and save everything in the folder.

        Returns:
            The metrics of training, validation and test.
        """
        trainer = self.trainer
        files = dict(self.first_files)
        if self.checkpoint is None:
            files[DATA_NAME] = f"{json.dumps(self.begun, indent=2, ensure_ascii=False)}\n"
        elif trainer.args.should_save:
            warn_of_changes(self.folder, self.begun)
        trainer.add_callback(FirstFiles(files))
        metrics = dict(trainer.train(resume_from_checkpoint=self.checkpoint).metrics)
        for name in ("validation", "test"):
            if name in self.examples:
                metrics |= trainer.evaluate(self.examples[name], metric_key_prefix=name)
        measured = [name for name in ("validation", "test") if name in self.examples]
        if self.report_baselines and measured and isinstance(self.task, PromptTask):
            metrics |= measure_baselines(trainer, self.examples, measured)
        metrics |= with_intervals(metrics, {name: self.examples[name] for name in measured})
        trainer.save_model()
        trainer.save_state()
        trainer.save_metrics("all", metrics, combined=False)
        if trainer.args.should_save:
            described = self.task.to_dict()
            quantise = getattr(self.model, "quantised_as", None)
            if quantise is not None:
                described |= {BASE_QUANTISE: quantise}
            text = json.dumps(described, indent=2, ensure_ascii=False)
            (self.folder / TASK_NAME).write_text(f"{text}\n", encoding="utf-8")
        return metrics


def prepare_from(settings: Mapping[str, Any]) -> Run:
    """Set up a training run from settings by name, as a file of settings has them.

    Args:
        settings: of the model, the data and prompt, the adapters and the trainer.

    Returns:
        The run, ready to train.

    Raises:
        ValueError: see :func:`prepare`.
    """
    return prepare(
        build(ModelArguments, settings),
        build(TaskArguments, settings),
        build(TTAdapterConfig, settings),
        training_arguments(settings),
    )


def prepare(
    model_arguments: ModelArguments,
    task_arguments: TaskArguments,
    adapters: TTAdapterConfig,
    training: ZOTrainingArguments | FOTrainingArguments,
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
    made_by = makes_data(task_arguments)
    for name, value in (
        ("model", model_arguments.model),
        ("train_data", task_arguments.train_data or made_by),
    ):
        if value is None:
            raise ValueError(f"{name} is missing: set it in the configuration or with --{name}")
    if task_arguments.labels is not None:
        raise ValueError(
            f"labels={task_arguments.labels!r} stands for settings that 'adazeta train' fills in; "
            "in Python, adazeta.runs.proposal.with_proposals does it to a mapping of settings"
        )
    if not isinstance(training, FOTrainingArguments):
        check_forward_only(adapters)
    share = checked_share(task_arguments)
    evaluates = task_arguments.validation_data is not None or share or made_by is not None
    if training.eval_strategy != "no" and not evaluates:
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
    found = set_up_base(model_arguments, task_arguments, adapters.revision)
    base, kind, task, tokenizer = found.base, found.kind, found.task, found.tokenizer
    options = _objective(task, task_arguments)
    if isinstance(training, FOTrainingArguments) and (
        "loss_fn" not in options or "objective" in options
    ):
        what = "the share of right answers" if "objective" in options else "a reward"
        raise ValueError(
            f"order='first' needs the gradient of a loss, and {what} has none; set order to "
            "'zeroth'"
        )
    if "loss_fn" not in options or "objective" in options:
        check_method(training.method)  # of scores
    data = {
        "validation": (task_arguments.validation_data, task_arguments.validation_split),
        "test": (task_arguments.test_data, task_arguments.test_split),
    }
    made = made_data(task_arguments, evaluates=training.eval_strategy != "no")
    training_records = made.pop("train", found.records)
    assert training_records is not None  # train_data is set
    examples = {name: task.encode_all(records) for name, records in made.items()}
    parts = {"train": training_records}
    if share:
        parts["train"], parts["validation"] = _parts(training_records, share)
    for name, (source, split) in data.items():
        if source is not None:
            examples[name] = task.encode_all(load_records(source, split))
    has_teacher = task_arguments.teacher is not None
    for name, records in parts.items():
        if has_teacher:
            examples[name] = untaught(task, records)
        else:
            encode = task.encode_training if name == "train" else task.encode_all
            examples[name] = encode(records)
    if found.rows is not None:
        for encoded in examples.values():
            check_examples(task, encoded, found.rows)
    guard = _guard(task_arguments, tokenizer)
    if isinstance(task, RewardTask):  # an argument that no column fills is told of now
        columns = examples["train"][0]["columns"]
        options["reward_funcs"].check([*columns, "completion_ids", "trainer_state"])
    if not has_teacher:
        _check_classes(task, examples["train"])
    if training.cache_trunk != "none" and not isinstance(
        task, PromptTask | CausalLMTask | RewardTask
    ):
        raise ValueError(
            f"cache_trunk={training.cache_trunk!r} keeps what is computed of an example's one "
            "text, and this task has candidates of several tokens, or a head; leave it off"
        )
    checkpoint = _checkpoint(training)
    if training.should_save:  # an error here should not wait for the weights either
        with claimed(training.output_dir):
            pass
    if has_teacher:
        examples |= taught(task, parts, model_arguments, task_arguments)
    classes = len(task.labels) if isinstance(task, HeadTask) else None
    drawn: list[str] = []
    model = load_model(
        base,
        dtype=model_arguments.dtype,
        task=kind,
        revision=adapters.revision,
        new=() if classes is None else _NEW,
        classes=classes,
        seed=training.seed,
        drawn=drawn,
        quantise=model_arguments.quantise,
    )
    if classes is not None:
        settle_head(model, tokenizer)
        _train_head(model, adapters, classes, drawn)
    check_causal(model, found)
    if task_arguments.hardest < 1:
        examples["train"] = hardest_part(
            model, task, examples["train"], task_arguments.hardest, training
        )
    adapters.base_model_name_or_path, adapters.task_type = base, kind
    if adapters.form == "informed":
        adapters.answers = answer_directions(task)
        if isinstance(task, RewardTask) and adapters.read_layers is None:
            adapters.read_layers = []  # random directions want few numbers
    add_tt_adapters(model, adapters, seed=training.seed)
    first = isinstance(training, FOTrainingArguments)
    kind_of_trainer: Any = FOTrainer if first else ZOTrainer
    if isinstance(task, GenerationTask):
        kind_of_trainer = partial(AnsweringFOTrainer if first else AnsweringTrainer, task=task)
    trainer: ZOTrainer = kind_of_trainer(
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
        initial = Path(str(training.output_dir)) / INITIAL_NAME
        if checkpoint is not None and initial.is_dir():
            load_values(model, initial)  # as the run began with them
        elif trainer.rollouts is not None:
            inform_by_rewards(model, trainer.rollouts, examples["train"], training)
        else:
            assert isinstance(task, PromptTask)
            inform_by_prompts(model, task, examples["train"], training)
    folder = Path(str(training.output_dir))
    begun = begun_with(task, examples["train"], task_arguments)
    return Run(
        folder, task, model, trainer, examples, checkpoint, task_arguments.report_baselines, begun
    )


def _parts(records: Records, share: float) -> tuple[Records, Records]:
    """Split the rows into those that are trained on and those that are kept."""
    parts = records.split(share)
    if not all(parts):
        raise ValueError(
            f"validation_share={share} keeps {len(parts[1])} of the {len(records)} rows of "
            f"{records.source}; set validation_data instead, or another share"
        )
    return parts


_NEW = (*HEADS, "pooler")  # what a checkpoint of a language model lacks of a classifier


def _train_head(
    model: PreTrainedModel, adapters: TTAdapterConfig, classes: int, drawn: list[str]
) -> None:
    """Let the head be trained and saved with the adapters, as everything that was drawn for it."""
    adapters.num_labels = classes
    modules = trained_head(model) if adapters.tt_head_rank is None else []
    if any("pooler" in name for name in drawn):
        modules = [*modules, "pooler"]
    more = [name for name in modules if name not in (adapters.modules_to_save or [])]
    adapters.modules_to_save = [*(adapters.modules_to_save or []), *more]


def _objective(task: Task, arguments: TaskArguments) -> dict[str, Any]:
    """Return what a trainer is given of what is to be learnt."""
    if not isinstance(task, RewardTask):
        options = {"loss_fn": task.losses, "compute_metrics": task.metrics}
        return options | ({"objective": "accuracy"} if arguments.objective == "accuracy" else {})
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


def _check_classes(task: Task, examples: Examples) -> None:
    """Warn if all training examples have the same label."""
    if isinstance(task, ClassificationTask):
        found = set(examples.labels.tolist())
        if len(found) == 1:
            warnings.warn(
                f"all {len(examples)} training examples have the label "
                f"{task.labels[found.pop()]!r}: a model that always says its word is perfect on "
                "them; add examples of the other labels",
                stacklevel=3,
            )


def _checkpoint(training: ZOTrainingArguments | FOTrainingArguments) -> str | bool | None:
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
