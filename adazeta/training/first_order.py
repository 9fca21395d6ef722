"""A ``transformers.Trainer`` that trains the same things by backpropagation."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerControl
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from adazeta.estimation.distributed import ranks
from adazeta.forward.batch_losses import BatchLosses
from adazeta.forward.losses import example_losses
from adazeta.forward.trained_loss import ExampleLoss
from adazeta.methods import DEFAULT
from adazeta.optim.averaging import check_dtypes, follow_, weight_at
from adazeta.optim.fused_backward import FusedBackward, fuse_into_backward
from adazeta.parameters.dropping import droppables, dropping
from adazeta.parameters.perturbation import shown
from adazeta.recording.first_order import (
    RunMark,
    begin_run,
    read_checkpoint,
    read_mark,
    write_checkpoint,
)
from adazeta.recording.folder import claimed, set_aside
from adazeta.recording.header import deciding
from adazeta.recording.identity import fingerprint_of_base
from adazeta.recording.model_description import description_of
from adazeta.recording.snapshot import checkpoints
from adazeta.recording.state_files import SavedState, SnapshotError, check_parameters
from adazeta.support.seeds import DROP_SEEDS, derive_seed
from adazeta.training.adversarial import embedding_of
from adazeta.training.course import Course
from adazeta.training.first_order_arguments import RULES, FOTrainingArguments
from adazeta.training.gradients import Gradients
from adazeta.training.journal import RunIsDone
from adazeta.training.loss import TrainingLoss
from adazeta.training.progress import show_lines
from adazeta.training.quantised import check_offloaded, check_trained
from adazeta.training.reproducible import (
    ExactTrainer,
    partial_checkpoints,
    trained_parameters,
)

logger = logging.getLogger(__name__)

# What the steps that were done depend on: a run that goes on must have it again.
_KEPT = (
    "rule", "rule_settings", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "seed",
    "data_seed", "train_sampling_strategy", "dataloader_drop_last", "label_smoothing_factor",
    "bf16", "fp16", "average", "average_warmup",
    "extrapolation", "extrapolation_scale", "extrapolation_until",
    "adversarial_radius", "adversarial_step", "adversarial_start", "adversarial_kind",
)  # fmt: skip


class FOTrainer(ExactTrainer):
    """Trains the parameters with ``requires_grad`` by the gradients of the mean loss.

    The loss, the adapters, the shared trunk and the contexts are those of
    :class:`~adazeta.training.trainer.ZOTrainer`, and dropout is off as there, so both orders
    minimise the same function of the same numbers.

    Args:
        model: a model with trainable parameters, e.g. from :func:`adazeta.add_tt_adapters`.
        args: :class:`FOTrainingArguments`.
        loss_fn: ``loss_fn(model, inputs) -> (losses, logits)`` with the losses of the examples,
            ``(B,)``; by default :func:`adazeta.forward.losses.example_losses`. Where
            ``loss_fn.couples_examples`` is true, its mean is one loss of the batch.
        **kwargs: of ``transformers.Trainer``.

    Attributes:
        batch_losses: how the losses of a batch are computed.
        average: the running average of what is trained, by name; None where there is none, or no
            step was done.
        micro_step: micro-batches of the present step that were done.

    Raises:
        TypeError: ``args`` is not a :class:`FOTrainingArguments`.
        ValueError: nothing is to be trained, a quantised model is to be trained in full, or
            something would be ignored.
    """

    args: FOTrainingArguments
    optimizer: torch.optim.Optimizer | None
    control: TrainerControl

    def __init__(
        self,
        model: nn.Module,
        args: FOTrainingArguments,
        *,
        loss_fn: ExampleLoss = example_losses,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, FOTrainingArguments):
            raise TypeError(f"args must be FOTrainingArguments, got {type(args).__name__}")
        for name in ("reward_funcs", "reward_task", "objective"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"{name}: a score has no gradient; train with ZOTrainer")
        if kwargs.get("optimizer_cls_and_kwargs") is not None:
            raise ValueError(
                "optimizer_cls_and_kwargs would leave args.rule without a meaning; choose a rule, "
                "or pass optimizers=(optimizer, None)"
            )
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError(
                "no parameter of the model has requires_grad, so there is nothing to train; call "
                "add_tt_adapters(model, config) first"
            )
        if args.adversarial_radius:
            embedding_of(model)
            if args.share_trunk:
                logger.info("share_trunk is off, since adversarial_radius moves embeddings")
        own = None if type(self).compute_loss is FOTrainer.compute_loss else type(self).__name__
        self._loss = TrainingLoss(loss_fn, args, model, self._loss_of_batch, own, **kwargs)
        self.batch_losses = BatchLosses(
            model,
            self._loss,
            padding_free=False,
            share_trunk=args.share_trunk and not args.adversarial_radius,
            cache=args.cache_trunk,
            cache_limit=args.cache_trunk_limit,
            cache_folder=args.cache_trunk_folder,
        )
        self._mark: RunMark | None = None
        self._given_optimizer = (kwargs.get("optimizers") or (None, None))[0] is not None
        self.average: dict[str, Tensor] | None = None
        self.micro_step = 0
        self._droppable = droppables(model)
        if args.average:
            check_dtypes(p for p in model.parameters() if p.requires_grad)
        self._gradients: Gradients | None = None
        self._past: list[Tensor] = []  # of a checkpoint
        if args.n_gpu > 1:
            logger.warning("this process sees %d GPUs and uses the first", args.n_gpu)
            args._n_gpu = 1  # the base class would copy the model to all for each forward
        check_trained(model, DEFAULT)
        check_offloaded(model)
        super().__init__(model=model, args=args, **kwargs)
        show_lines(self.callback_handler.callbacks)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "DeepSpeed and FSDP divide a model among processes, and first-order training here "
                "is for one: start it without them"
            )
        self.ranks = ranks(None, args.ddp_timeout_delta)
        self._loss.check_trainer(self)
        # Gradient accumulation averages micro-batches; it does not scale by items in the batch.
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer of ``args.rule`` over the trainable parameters.

        Weight decay applies to the parameters that the base class decays.
        """
        if self.optimizer is None:
            module = self.unwrapped if model is None else model
            groups = self._groups(module, trained_parameters(module).items())
            self.optimizer = self.args.make_optimizer(groups)
        return self.optimizer

    def final_weights(self) -> AbstractContextManager[None]:
        """Enter to compute with what is evaluated and saved in the end: an average, if one is kept.

        The parameters themselves stay as they are.
        """
        if self.average is None:
            return nullcontext()
        trained = trained_parameters(self.unwrapped)
        return shown(list(trained.values()), [self.average[name] for name in trained])

    def begin_average(self) -> None:
        """Let the average begin with the parameters as they are, if one is to be kept."""
        if self.args.average:
            trained = trained_parameters(self.unwrapped)
            self.average = {name: p.detach().clone() for name, p in trained.items()}

    def follow_average(self, step: int) -> None:
        """Move the average, if one is kept, towards the parameters after a step."""
        if self.average is not None:
            trained = trained_parameters(self.unwrapped)
            tensors = [trained[name].data for name in self.average]
            follow_(list(self.average.values()), tensors, weight_at(vars(self.args), step))

    def begin(self, steps: int) -> FusedBackward | None:
        """Set up how gradients are taken, for a run that begins or goes on.

        Args:
            steps: of the whole run.

        Returns:
            The updates that hang in the backward pass, if ``args.rule`` works there.
        """
        self._gradients = None
        if self.args.extrapolation != "none" or self.args.adversarial_radius:
            self._gradients = Gradients(self.args, self.unwrapped, steps, self._past)
        self._past = []
        made: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        fused = RULES[self.args.rule].fused
        return fuse_into_backward(made) if fused else None

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Add the gradient of one micro-batch, taken where the settings say.

        All its evaluations leave the same adapters out.

        Returns:
            The mean loss, a scalar, divided by the number of accumulated micro-batches.

        Raises:
            FloatingPointError: the loss is not finite. Where one of single examples is not, neither
                is the mean, and a gradient cannot leave it out, as an estimate can.
        """
        loss = self._training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}: the run has "
                f"diverged; lower learning_rate ({self.args.learning_rate}), and begin again or "
                "go on from an earlier checkpoint"
            )
        return loss

    def _training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        place = self.state.global_step, self.micro_step
        self.micro_step += 1
        backward = partial(super().training_step, model, inputs, num_items_in_batch)
        with dropping(self._droppable, derive_seed(int(self.args.seed), DROP_SEEDS, *place)):
            if self._gradients is None:
                return backward()
            module, batch = self.unwrapped.eval(), self._prepare_inputs(inputs)
            self._loss.check(module, batch)  # it may take evaluations of its own

            def loss() -> Tensor:
                with self.compute_loss_context_manager():
                    return self._loss_of_batch(module, batch)

            return self._gradients.evaluate(
                backward, loss, module, batch, place=place,
                count=self.current_gradient_accumulation_steps,
                last=self.accelerator.sync_gradients,
            )  # fmt: skip

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean loss of the examples, or the loss of the batch that is trained; without dropout."""
        model.eval()
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._droppable and torch.is_grad_enabled() and not return_outputs:
            if not found.requires_grad:  # all are left out: the gradients are zero, and there
                for parameter in trained_parameters(self.unwrapped).values():
                    found = found + 0 * parameter.sum()
        return found

    def _loss_of_batch(self, module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        loss: Tensor = self.compute_loss(module, dict(batch))
        return loss

    def account(self) -> str:
        """Say what training took: its steps, by which rule."""
        rule = self.args.rule
        if self._given_optimizer:
            rule = type(getattr(self.optimizer, "optimizer", self.optimizer)).__name__
        return f"{self.state.global_step:,} steps of {rule}, forward and backward"

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train as ``transformers.Trainer.train`` does, with checkpoints that are not pickled.

        Args:
            resume_from_checkpoint: True goes on after the newest whole checkpoint in
                ``output_dir``, the folder of a checkpoint after that one; on one device the bits
                are those of a run that was not stopped. By default a new run begins.
            *args: of ``transformers.Trainer.train``.
            **kwargs: of ``transformers.Trainer.train``.

        Raises:
            OSError: ``output_dir`` cannot be written, or another process trains into it.
            FileNotFoundError: there is nothing to resume.
            SnapshotError: the checkpoint to resume from is not whole, or of another model.
            ValueError: the run that is to go on has other settings, or another base model.
            FloatingPointError: the run diverged.
        """
        folder = Path(str(self.args.output_dir))
        with claimed(folder), partial_checkpoints(self.unwrapped):
            checkpoint = self._start(folder, resume_from_checkpoint)
            callback = Course(self, folder, checkpoint)
            self.add_callback(callback)
            path = None if checkpoint is None else str(checkpoint)
            try:
                output = super().train(path, *args, **kwargs)
                self._check_finite()
            except RunIsDone:
                output = self._finished()
            finally:
                self.remove_callback(callback)
                callback.close()
        return output

    def _check_finite(self) -> None:
        """Raise where the last step led to numbers that are none, before they are saved."""
        for name, parameter in trained_parameters(self.unwrapped).items():
            if not parameter.isfinite().all():
                raise FloatingPointError(
                    f"training ended with values of {name!r} that are not finite; lower "
                    f"learning_rate ({self.args.learning_rate})"
                )

    def _start(self, folder: Path, wanted: str | bool | None) -> Path | None:
        """Find the checkpoint to go on from, and mark the folder as that of this run."""
        settings = self._kept_settings()
        if wanted is None or wanted is False:
            aside = set_aside(folder)
            if aside is not None:
                logger.warning("the log of an earlier run in %s is now %s", folder, aside.name)
            self._mark = begin_run(folder, settings)
            return None
        if wanted is not True:
            mark, _ = read_checkpoint(Path(wanted))
            mark.check(settings, str(wanted))
            if not (Path(wanted) / TRAINER_STATE_NAME).is_file():
                raise SnapshotError(
                    f"{wanted} is not a whole checkpoint: it lacks {TRAINER_STATE_NAME}"
                )
            set_aside(folder)
            self._mark = begin_run(folder, settings)
            return Path(wanted)
        self._mark = read_mark(folder)
        self._mark.check(settings, f"the run in {folder}")
        for path in checkpoints(folder):
            try:
                mark, _ = read_checkpoint(path)
            except SnapshotError as error:
                logger.warning("%s; an earlier checkpoint serves instead", error)
                continue
            if mark.run == self._mark.run and (path / TRAINER_STATE_NAME).is_file():
                return path
        raise FileNotFoundError(
            f"resume_from_checkpoint: there is no whole checkpoint of the run in {folder}; begin "
            "it again"
        )

    def _kept_settings(self) -> dict[str, Any]:
        module = self.unwrapped
        values = {name: getattr(self.args, name) for name in _KEPT}
        values |= deciding(description_of(module).adapters)
        trained = trained_parameters(module).values()
        values["fingerprint of the base model"] = fingerprint_of_base(module, trained)[:12]
        values["drop"] = max((module.drop for module in self._droppable), default=0.0)
        return {name: getattr(value, "value", value) for name, value in values.items()}

    def _write_state(self, folder: Path) -> None:
        assert self._mark is not None and self.optimizer is not None
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            **({} if self.average is None else {"average": self.average}),
        }
        if self._gradients is not None and self._gradients.past:
            state["past"] = self._gradients.past
        trained = trained_parameters(self.unwrapped)
        write_checkpoint(folder, self._mark, self.state.global_step, trained, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.optimizer is not None
        found = self._restored(Path(checkpoint))
        self.optimizer.load_state_dict(found.state["optimizer"])
        self.lr_scheduler.load_state_dict(found.state["scheduler"])
        if self.args.average:
            if "average" not in found.state:
                raise ValueError(
                    f"{checkpoint} holds no average of the parameters, and average is "
                    f"{self.args.average}: set it to 0, as it was, or begin a new run"
                )
            self.begin_average()
            for name, value in (self.average or {}).items():
                value.copy_(found.state["average"][name])
        self._past = [tensor.to(self.args.device) for tensor in found.state.get("past", [])]

    def _restore_parameters(self, checkpoint: str) -> None:
        self._restored(Path(checkpoint))

    def _restored(self, folder: Path) -> SavedState:
        """Give the trained parameters the values of a checkpoint, and return all that it holds."""
        trained = trained_parameters(self.unwrapped)
        _, found = read_checkpoint(folder)
        check_parameters(folder, found.parameters, trained)
        for name, parameter in trained.items():
            parameter.data.copy_(found.parameters[name])
        return found

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict=state_dict)
        # The base class pickles the settings beside a whole model; nothing here reads them.
        (Path(output_dir or str(self.args.output_dir)) / TRAINING_ARGS_NAME).unlink(missing_ok=True)
