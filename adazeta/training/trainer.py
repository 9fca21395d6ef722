"""A ``transformers.Trainer`` that trains with forward passes only."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerControl

from adazeta.adapters.attached import adapter_config, has_adapters
from adazeta.adapters.mixer import check_forward_only
from adazeta.estimation.distributed import ranks
from adazeta.estimation.probes import Probes
from adazeta.estimation.shaping import Shaping
from adazeta.forward.batch_losses import BatchLosses
from adazeta.forward.losses import example_losses
from adazeta.forward.trained_loss import ExampleLoss
from adazeta.methods import distribution_for, make_optimizer, method_named, method_space
from adazeta.models.structure import coarsest_dtype
from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.parameters.space import ParameterSpace
from adazeta.recording.folder import claimed
from adazeta.recording.probe_log import LogWriter, ProbeLog
from adazeta.recording.snapshot import read_snapshot, write_snapshot
from adazeta.tasks.reward import RewardTask
from adazeta.training.agreement import Agreement, deal_batches
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.completions import CompletionsTable
from adazeta.training.diagnostics import Diagnostics
from adazeta.training.graphs import use_graphs
from adazeta.training.journal import Journal, RunIsDone
from adazeta.training.loss import TrainingLoss
from adazeta.training.progress import show_lines
from adazeta.training.quantised import check_offloaded, check_trained
from adazeta.training.reproducible import ExactTrainer, partial_checkpoints
from adazeta.training.resume import Start, find_start, logged_distribution
from adazeta.training.rewarded import check_rule, right_answers_of, rollouts_of
from adazeta.training.right_answers import wrong_answers
from adazeta.training.schedule import steps_at_full_rate
from adazeta.training.termination import Termination

logger = logging.getLogger(__name__)


class ZOTrainer(ExactTrainer):
    """Trains the parameters with ``requires_grad`` by zeroth-order estimates.

    Everything around the step is the base class's: data loading, schedules, callbacks,
    evaluation, logging, accumulation, checkpoints, resuming. No ``.grad`` is ever allocated and
    dropout is off, so that all evaluations of a step see the same function.

    Args:
        model: a model with trainable parameters, e.g. from :func:`adazeta.add_tt_adapters`.
        args: :class:`ZOTrainingArguments`.
        loss_fn: ``loss_fn(model, inputs) -> (losses, logits)`` with the losses of the examples,
            ``(B,)``; by default :func:`adazeta.forward.losses.example_losses`. One with a parameter
            ``label_smoothing`` is given ``args.label_smoothing_factor``. Where
            ``loss_fn.couples_examples`` is true, its mean is one loss of the batch.
        reward_funcs: what completions of the prompts are scored by, instead of a loss: functions of
            TRL's signature, ``f(prompts, completions, **columns) -> list[float | None]``, one or
            several, or a :class:`~adazeta.rewards.calling.Rewards` with weights. The score is
            raised.
        reward_task: how prompts are completed; by default ``RewardTask(processing_class)``, with
            the data's column ``prompt``.
        objective: ``"loss"``, or ``"accuracy"``: the share of examples whose label has the largest
            of ``loss_fn``'s logits, ``(B, C)``, is raised, as a reward is. The loss that is logged
            and evaluated is then the share of wrong answers.
        **kwargs: of ``transformers.Trainer``. With ``compute_loss_func``, with ``compute_loss``
            overridden, or where the model adds something to the losses of its examples, that loss
            of the whole batch is what is trained; see :mod:`adazeta.forward.trained_loss`.

    Attributes:
        ranks: the processes that train together, of which each holds the whole model.
        batch_losses: how the losses of a batch are computed.
        rollouts: how completions are written and scored; None without rewards.
        right_answers: how labels are scored; None unless the accuracy is trained.

    Raises:
        TypeError: ``args`` is not a :class:`ZOTrainingArguments`.
        ValueError: a quantised model is to be trained in full, weights are offloaded in a way that
            does not work (:func:`adazeta.training.quantised.check_offloaded`), the processes cannot
            be divided as ``args.shard`` says, DeepSpeed or FSDP is to divide the model among them,
            or a setting would be ignored.
    """

    args: ZOTrainingArguments
    optimizer: torch.optim.Optimizer | None
    control: TrainerControl

    def __init__(
        self,
        model: nn.Module,
        args: ZOTrainingArguments,
        *,
        loss_fn: ExampleLoss = example_losses,
        reward_funcs: Any = None,
        reward_task: RewardTask | None = None,
        objective: str = "loss",
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, ZOTrainingArguments):
            raise TypeError(f"args must be ZOTrainingArguments, got {type(args).__name__}")
        own = None if type(self).compute_loss is ZOTrainer.compute_loss else type(self).__name__
        if kwargs.get("optimizer_cls_and_kwargs") is not None:
            raise ValueError(
                "optimizer_cls_and_kwargs names an optimizer for gradients; choose one by "
                "args.method, or pass optimizers=(ZOAdam(...), None)"
            )
        self.right_answers = right_answers_of(objective, reward_funcs, args, kwargs, own)
        self.rollouts = rollouts_of(
            reward_funcs, reward_task, model, args, kwargs,
            other_loss=loss_fn is not example_losses, scored=self.right_answers is not None,
        )  # fmt: skip
        self._scores = self.right_answers or self.rollouts
        self._loss = TrainingLoss(loss_fn, args, model, self._loss_of_batch, own, **kwargs)
        self.batch_losses = BatchLosses(
            model,
            self._loss,
            padding_free=args.padding_mode() if self.rollouts is None else False,
            share_trunk=args.share_trunk,
            cache=args.cache_trunk if self.rollouts is None else "none",
            cache_limit=args.cache_trunk_limit,
            cache_folder=args.cache_trunk_folder,
        )
        self._items: Tensor | int | None = None
        self._logged: list[Probes] = []
        self._together = 1
        self._diagnostics: Diagnostics | None = None
        self.log_of_run: ProbeLog | LogWriter | None = None
        if args.n_gpu > 1:
            # The base class would copy the model to every GPU for each forward (DataParallel).
            logger.warning(
                "this process sees %d GPUs and uses the first; to use all: torchrun "
                "--nproc_per_node=%d", args.n_gpu, args.n_gpu)  # fmt: skip
            args._n_gpu = 1
        check_trained(model, args.method)
        check_offloaded(model)
        if has_adapters(model):
            check_forward_only(adapter_config(model))
        if method_named(args.method).whole_epochs and args.gradient_accumulation_steps == 1:
            args.gradient_accumulation_steps = _batches(kwargs.get("train_dataset"), args)
        super().__init__(model=model, args=args, **kwargs)
        show_lines(self.callback_handler.callbacks)
        if self.rollouts is not None:
            self.rollouts.state = self.state
            self.add_callback(CompletionsTable(self.rollouts, self.callback_handler))
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "DeepSpeed and FSDP divide a model and its gradients among processes; here each "
                "process holds the whole model, and there are no gradients. Start with torchrun, "
                "or accelerate launch without them"
            )
        self.ranks = ranks(args.data_shards(), args.ddp_timeout_delta)
        self.agreement = Agreement(self.ranks, args.agreement_steps)
        self._logged_distribution: str | None = None
        self._loss.check_trainer(self)
        # Gradient accumulation averages micro-batches; it does not scale by items in the batch.
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the zeroth-order optimizer over the trainable parameters.

        Weight decay applies to the parameters that the base class decays.
        """
        if self.optimizer is None:
            module = self.model if model is None else model
            check_trained(module, self.args.method, self.args.method_settings or {})
            space = method_space(
                module,
                self.args.method,
                self.args.method_settings,
                distribution=self.args.distribution
                or self._logged_distribution
                or distribution_for(self.args.method, module),
                perturbation=self.args.perturbation,
                seed=self.args.seed,
            )
            groups = self._groups(module, zip(space.names, space.parameters, strict=True))
            self.optimizer = self._optimizer_over(groups, space)
        if self.args.average and not self.zo_optimizer.averages:
            raise ValueError(
                f"average={self.args.average} is for the optimizer that this trainer makes; give "
                "average to the one that was passed, too"
            )
        estimator = self.zo_optimizer.estimator
        estimator.ranks = self.ranks
        if self._scores is not None and estimator.shaping is None:
            check_rule(self.zo_optimizer)
            estimator.shaping = Shaping(self.args.shaping, share=self.args.eps_share)
        scored = self._scores is not None
        module = self.unwrapped if model is None else model
        use_graphs(self.args, self.zo_optimizer, module, self.batch_losses, scored=scored)
        return self.optimizer

    def _optimizer_over(
        self, groups: list[dict[str, Any]], space: ParameterSpace
    ) -> ZerothOrderOptimizer:
        args = self.args
        options: dict[str, Any] = {
            "lr": args.learning_rate,
            "weight_decay": args.weight_decay,
            "space": space,
            "queries": args.query_plan(),
            "eps": args.perturbation_scale(),
            "probes": args.probe_groups(),
            "one_sided": args.one_sided,
            "probes_per_forward": args.stack_size(),
            "rounding": args.rounding,
            "seed": args.seed,
        }
        if args.anchored_decay:
            options["anchored"] = True
        if args.average:
            options |= {"average": args.average, "average_warmup": args.average_warmup}
        given = args.method_settings or {}
        settings = {**method_named(args.method).taken(args, given), **given}
        return make_optimizer(groups, args.method, method_settings=settings, **options)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Make the schedule, for whose steps a measured rate is chosen."""
        schedule = super().create_scheduler(num_training_steps, optimizer)
        rate = self.zo_optimizer.auto_rate
        if rate is not None:
            rate.horizon = steps_at_full_rate(schedule, num_training_steps)
        return schedule

    def _get_learning_rate(self) -> float:
        rate = self.zo_optimizer.auto_rate
        found = float(super()._get_learning_rate())
        return found if rate is None else found * (rate.last or 0.0)

    @property
    def zo_optimizer(self) -> ZerothOrderOptimizer:
        """The optimizer itself, from under the wrapper that accelerate puts around it."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if not isinstance(optimizer, ZerothOrderOptimizer):
            raise TypeError(
                f"ZOTrainer needs a ZerothOrderOptimizer, got {type(optimizer).__name__}; choose "
                "one by ZOTrainingArguments.method or pass optimizers=(ZOAdam(...), None)"
            )
        return optimizer

    def ready_optimizer(self) -> ZerothOrderOptimizer:
        """Return the optimizer; it is made if need be."""
        self.create_optimizer()
        return self.zo_optimizer

    def final_weights(self) -> AbstractContextManager[None]:
        """Enter to compute with what is evaluated and saved in the end: an average, if one is kept.

        The parameters themselves stay as they are.
        """
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer.averaged() if getattr(optimizer, "averages", False) else nullcontext()

    @property
    def evaluations(self) -> int:
        """Losses of a whole batch that training has computed so far."""
        return self.zo_optimizer.evaluations

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Estimate on one micro-batch; the optimizer's step applies what was estimated.

        Returns:
            The mean loss, a scalar, divided by the number of accumulated micro-batches.
        """
        module = self.accelerator.unwrap_model(model)
        module.eval()
        self._watch(module)
        inputs = self._prepare_inputs(inputs)
        self._items = num_items_in_batch
        with self.compute_loss_context_manager():
            optimizer = self.zo_optimizer
            if self.rollouts is not None:
                self.rollouts.state = self.state
                losses = self.rollouts.of(module, optimizer.space, optimizer.steps)
            else:
                gives = optimizer.closure_gives if self.right_answers is None else "outputs"
                losses = self.batch_losses.of(
                    module, inputs, optimizer.estimator.findings, gives=gives
                )
                if self.right_answers is not None:
                    losses = self.right_answers.of(losses)
            probes = optimizer.accumulate(losses, inputs, epoch=self.state.epoch or 0.0)
        self._logged.append(probes)
        if self._scores is not None:
            assert optimizer.estimator.shaping is not None
            self._scores.note(optimizer.estimator.shaping.seen[-1:])
        self._together = self.zo_optimizer.estimator.stack.of(inputs)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        loss = torch.tensor(probes.loss, device=self.args.device)
        return loss / self.current_gradient_accumulation_steps

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean loss of the examples, of the batch, or share of wrong answers, for evaluation."""
        if self.right_answers is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        module = self.accelerator.unwrap_model(model)
        self._loss.check(module, inputs)
        logits = self.batch_losses.examples(module, inputs)[1]
        loss = wrong_answers(logits, inputs.get("labels")).nanmean().float()
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as the base class does; with rewards, on completions of the prompts."""
        if self.rollouts is not None:
            self.rollouts.state = self.state
            self.rollouts.begin_evaluation()
        return super().evaluate(*args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Evaluate a batch; with rewards, by completing its prompts."""
        if self.rollouts is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.rollouts.predict(self.accelerator.unwrap_model(model), inputs)
        if prediction_loss_only:
            return loss, None, None
        return loss, outputs, torch.zeros_like(outputs[:, 0])  # labels: the base class wants some

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Load as the base class does, and deal the batches to the processes."""
        loader = super().get_train_dataloader()
        deal_batches(loader, self.ranks)
        return loader

    def get_total_train_batch_size(self, args: ZOTrainingArguments) -> int:
        """Examples of a step: processes that see the same batch count once."""
        return super().get_total_train_batch_size(args) // self.ranks.sharers

    def _watch(self, module: nn.Module) -> None:
        """Look for silent faults from the first step on."""
        if self._diagnostics is None and self.args.diagnostics_steps:
            every, dtype = self.args.diagnostics_steps, coarsest_dtype(module)
            self._diagnostics = Diagnostics(
                self.zo_optimizer, every=every, dtype=dtype, smooth=self._scores is None
            )

    def _loss_of_batch(self, module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss of a whole batch as the base class does."""
        loss: Tensor = self.compute_loss(module, dict(batch), num_items_in_batch=self._items)
        return loss * self._loss.weight(self)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the base class does, with the figures of the estimates since the last time."""
        logs.pop("grad_norm", None)  # of gradients that do not exist
        if "loss" in logs and self._logged:
            projected = torch.cat([probes.projected for probes in self._logged])
            logs["queries"] = self._logged[-1].queries
            if len(projected):  # no probe was left, or responses were measured
                logs["projected_gradient_mean"] = projected.abs().mean().item()
                logs["projected_gradient_std"] = projected.std(correction=0).item()
            logs["eps"] = self.zo_optimizer.estimator.eps or 0.0
            logs["evaluations"] = self.evaluations
            logs["probes_per_forward"] = self._together
            logs["dropped_probes"] = sum(probes.dropped for probes in self._logged)
            self._logged = []
            shaping = self.zo_optimizer.estimator.shaping
            if self._scores is not None and shaping is not None:
                logs.update(self._scores.logs(shaping.seen))
                shaping.seen.clear()
            if self._diagnostics is not None:
                logs.update(self._diagnostics.values)
        super().log(logs, start_time)

    def _write_state(self, folder: Path) -> None:
        log = self.log_of_run
        write_snapshot(folder, self.zo_optimizer, None if log is None else log.place)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train as ``transformers.Trainer.train`` does, with a log of every step.

        Args:
            resume_from_checkpoint: True goes on after the last step in the log of ``output_dir``,
                also after a crash; the folder of a checkpoint goes back to its step. By default a
                new run begins, and the log of an earlier one in ``output_dir`` is renamed.
            *args: of ``transformers.Trainer.train``.
            **kwargs: of ``transformers.Trainer.train``.

        Raises:
            OSError: ``output_dir`` cannot be written, another process trains into it, or the disk
                is full; parameters and log then hold the same steps.
            FileNotFoundError: there is nothing to resume.
            LogError: the log is damaged, or belongs to another run.
            SnapshotError: the checkpoint to resume from is not whole.
            RankError: another process failed or died, or holds other parameters.
            SystemExit: SIGTERM came; the status is 143, and the step was finished.
        """
        folder: AbstractContextManager[Any] = nullcontext()
        if self.args.should_save:
            folder = claimed(self.args.output_dir)
        alone = self.ranks.size == 1
        if not alone:
            # Prepared so, it is not wrapped in DistributedDataParallel, which is for gradients.
            self.accelerator.prepare_model(self.model, evaluation_mode=True)
        with (
            self.ranks.announcing(),
            folder,
            Termination(alone) as termination,
            partial_checkpoints(self.unwrapped),
        ):
            start = self._start(resume_from_checkpoint)
            journal = Journal(self, start, termination)
            self.add_callback(journal)
            try:
                checkpoint = None if start.checkpoint is None else str(start.checkpoint)
                output = super().train(checkpoint, *args, **kwargs)
            except RunIsDone:
                output = self._finished()
            finally:
                self.remove_callback(journal)
                journal.close()
            termination.asked = self.agreement.end(self.zo_optimizer, termination.asked)
            termination.end()
        return output

    def _restore_parameters(self, checkpoint: str) -> None:
        read_snapshot(checkpoint).load_parameters(self.zo_optimizer.space)

    def account(self) -> str:
        """Say what training took: steps, evaluations and the scale of perturbations."""
        optimizer = self.zo_optimizer
        return (
            f"{optimizer.steps:,} steps, {optimizer.evaluations:,} evaluations of a batch, eps "
            f"{optimizer.estimator.eps:.2g}"
        )

    def _start(self, wanted: str | bool | None) -> Start:
        """Find where to begin: the main process prepares the folder, the others are told."""
        if wanted and self.args.distribution is None:
            found = logged_distribution(self.args.output_dir) if self.args.should_save else None
            self._logged_distribution = self.ranks.exchange("the distribution", found)[0]
        start = find_start(self, wanted) if self.args.should_save else None
        path = None if start is None or start.checkpoint is None else str(start.checkpoint)
        first = self.ranks.exchange("the place to begin", path)[0]
        return start or Start(Path(first) if first else None)


def _batches(data: Any, args: ZOTrainingArguments) -> int:
    """Return the number of batches in an epoch of one process; 1 for data without a length."""
    if data is None or not hasattr(data, "__len__"):
        return 1
    size = args.train_batch_size * max(args.world_size, 1)
    whole = len(data) // size
    return max(whole if args.dataloader_drop_last else -(-len(data) // size), 1)
