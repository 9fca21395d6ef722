"""A ``transformers.Trainer`` that trains with forward passes only."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Trainer
from transformers.utils import SAFE_WEIGHTS_NAME

from adazeta.adapter_files import save_pretrained
from adazeta.adapters import has_adapters
from adazeta.evaluation import rows_of
from adazeta.losses import example_losses
from adazeta.optim import ZOSGD, ZerothOrderOptimizer, ZOAdam
from adazeta.probes import Probes
from adazeta.space import ParameterSpace
from adazeta.training_args import ZOTrainingArguments
from adazeta.trunk import SharedTrunk

ExampleLoss = Callable[[nn.Module, Mapping[str, Any]], tuple[Tensor, Tensor]]


class ZOTrainer(Trainer):
    """Trains the parameters with ``requires_grad`` by zeroth-order estimates.

    Everything around the step is the base class's: data loading, schedules, callbacks,
    evaluation, logging, accumulation, checkpoints, resuming. No ``.grad`` is ever allocated and
    dropout is off, so that all evaluations of a step see the same function.

    Args:
        model: a model with trainable parameters, e.g. from :func:`adazeta.add_tt_adapters`.
        args: :class:`ZOTrainingArguments`.
        loss_fn: ``loss_fn(model, inputs) -> (losses, logits)`` with the losses of the examples,
            ``(B,)``; by default :func:`adazeta.losses.example_losses`.
        **kwargs: of ``transformers.Trainer``.

    Raises:
        TypeError: ``args`` is not a :class:`ZOTrainingArguments`.
    """

    args: ZOTrainingArguments
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: nn.Module,
        args: ZOTrainingArguments,
        *,
        loss_fn: ExampleLoss = example_losses,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, ZOTrainingArguments):
            raise TypeError(f"args must be ZOTrainingArguments, got {type(args).__name__}")
        self._losses = loss_fn
        self._logged: list[Probes] = []
        self._trunk: SharedTrunk | None = None
        super().__init__(model=model, args=args, **kwargs)
        # Gradient accumulation averages micro-batches; it does not scale by items in the batch.
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the zeroth-order optimizer over the trainable parameters.

        Weight decay applies to the parameters that the base class decays.
        """
        if self.optimizer is None:
            module = self.model if model is None else model
            space = ParameterSpace(module, distribution=self.args.distribution)
            decayed = set(self.get_decay_parameter_names(module))
            named = list(zip(space.names, space.parameters, strict=True))
            groups = [{"params": space.parameters, "weight_decay": 0.0}]
            if self.args.weight_decay:
                groups = [
                    {"params": [p for n, p in named if n in decayed]},
                    {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
                ]
            self.optimizer = self._optimizer_over(groups, space)
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
            "probes_per_forward": args.probes_per_forward,
            "seed": args.seed,
        }
        if args.zo_optimizer == "sgd":
            return ZOSGD(groups, momentum=args.momentum, **options)
        betas = (args.adam_beta1, args.adam_beta2)
        return ZOAdam(groups, betas=betas, second_moment=args.second_moment, **options)

    @property
    def zo_optimizer(self) -> ZerothOrderOptimizer:
        """The optimizer itself, from under the wrapper that accelerate puts around it."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if not isinstance(optimizer, ZerothOrderOptimizer):
            raise TypeError(
                f"ZOTrainer needs a ZerothOrderOptimizer, got {type(optimizer).__name__}; choose "
                "one by ZOTrainingArguments.zo_optimizer or pass optimizers=(ZOAdam(...), None)"
            )
        return optimizer

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
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            hidden = self._trunk_states(module, inputs)
            rows = rows_of(inputs)

            def losses(batch: Mapping[str, Any]) -> Tensor:
                with self._trunk_of(module).replay(hidden, rows_of(batch) // rows):
                    return self._losses(module, batch)[0]

            probes = self.zo_optimizer.accumulate(losses, inputs, epoch=self.state.epoch or 0.0)
        self._logged.append(probes)
        loss = torch.tensor(probes.loss, device=self.args.device)
        return loss / self.current_gradient_accumulation_steps

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean loss of the examples, for evaluation."""
        module = self.accelerator.unwrap_model(model)
        hidden = self._trunk_states(module, inputs)
        with self._trunk_of(module).replay(hidden):
            losses, logits = self._losses(module, inputs)
        loss = losses.mean()
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def _trunk_of(self, module: nn.Module) -> SharedTrunk:
        if self._trunk is None or self._trunk.model is not module:
            self._trunk = SharedTrunk(module, keep=self.args.cache_trunk)
        return self._trunk

    def _trunk_states(self, module: nn.Module, inputs: Mapping[str, Any]) -> Tensor | None:
        """Output of the frozen lower blocks, if they are to be shared."""
        if not self.args.share_trunk:
            return None
        return self._trunk_of(module).run(lambda batch: self._losses(module, batch), inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the base class does, with the figures of the estimates since the last time."""
        logs.pop("grad_norm", None)  # of gradients that do not exist
        if "loss" in logs and self._logged:
            projected = torch.cat([probes.projected for probes in self._logged])
            logs["queries"] = self._logged[-1].queries
            logs["projected_gradient_mean"] = projected.abs().mean().item()
            logs["projected_gradient_std"] = projected.std(correction=0).item()
            logs["eps"] = self.zo_optimizer.estimator.eps or 0.0
            logs["evaluations"] = self.evaluations
            logs["dropped_probes"] = sum(probes.dropped for probes in self._logged)
            self._logged = []
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapters in PEFT's two-file format; a model without adapters as the base does.

        A checkpoint also holds the trainable parameters as ``model.safetensors``, which is what
        resuming reads. It has no ``config.json``: it is not a model by itself.
        """
        module = self.accelerator.unwrap_model(self.model)
        if not has_adapters(module):
            super().save_model(output_dir, _internal_call)
            return
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_pretrained(module, folder)
        if self.processing_class is not None and hasattr(self.processing_class, "save_pretrained"):
            self.processing_class.save_pretrained(str(folder))
        if _internal_call:
            tensors = {n: p.data.clone() for n, p in module.named_parameters() if p.requires_grad}
            save_file(tensors, str(folder / SAFE_WEIGHTS_NAME), metadata={"format": "pt"})

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as ``transformers.Trainer.train`` does."""
        with _partial_checkpoints(self.accelerator.unwrap_model(self.model)):
            return super().train(*args, **kwargs)


@contextmanager
def _partial_checkpoints(model: nn.Module) -> Iterator[None]:
    """Let checkpoints leave out the frozen parameters without a warning about missing keys."""
    if not has_adapters(model):
        yield
        return
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    before = getattr(model, "_keys_to_ignore_on_save", None)
    model._keys_to_ignore_on_save = [k for k in model.state_dict() if k not in trainable]  # type: ignore[assignment]
    try:
        yield
    finally:
        model._keys_to_ignore_on_save = before  # type: ignore[assignment]
