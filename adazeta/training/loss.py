"""Which loss a step's evaluations compute: those of the examples, or one of the whole batch.

Losses of single examples allow everything: directions of examples, several evaluations in one
forward, batches without padding. A loss that a user wrote for ``transformers.Trainer``
(``compute_loss``, ``compute_loss_func``), and what a model adds to its loss (losses of routers,
weights of classes, a ``loss_function`` of its own), is of a batch. It is computed as it is written,
once an evaluation, with directions of the batch.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from adazeta.forward.class_losses import pretrained
from adazeta.forward.losses import example_losses, losses_only
from adazeta.models.structure import coarsest_dtype
from adazeta.support.batches import IGNORED, has_rows
from adazeta.training.arguments import ZOTrainingArguments

logger = logging.getLogger(__name__)

ExampleLoss = Callable[..., tuple[Tensor, Any]]

_REMEDY = "pass loss_fn=..., which returns the losses of the examples, to the trainer"


class TrainingLoss:
    """What the evaluations of a step compute.

    Args:
        loss_fn: see :class:`~adazeta.training.trainer.ZOTrainer`.
        args: the settings.
        model: the model, None if it is not known yet.
        overriding: name of the trainer's class if that has a ``compute_loss`` of its own.
        compute_loss_func: of the trainer.
        **kwargs: the other arguments of the trainer.

    Attributes:
        batch: why the loss is one of the whole batch; None if it is not.
        of_model: whether it is the model's own.

    Raises:
        ValueError: settings exclude each other, or would be ignored.
    """

    def __init__(
        self,
        loss_fn: ExampleLoss,
        args: ZOTrainingArguments,
        model: nn.Module | None,
        overriding: str | None,
        *,
        compute_loss_func: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("optimizer_cls_and_kwargs") is not None:
            raise ValueError(
                "optimizer_cls_and_kwargs names an optimizer for gradients; choose one by "
                "args.method, or pass optimizers=(ZOAdam(...), None)"
            )
        own = None if overriding is None else f"compute_loss of {overriding}"
        if compute_loss_func is not None:
            own = "compute_loss_func"
        self._args, self._open = args, loss_fn is example_losses and own is None
        self.batch: str | None = None
        self.of_model = False
        given, smoothing = loss_fn is not example_losses, args.label_smoothing_factor
        if given and own == "compute_loss_func":
            raise ValueError(
                "loss_fn and compute_loss_func are two losses; pass one of them (loss_fn, which "
                "returns the losses of the examples, allows more)"
            )
        if given and args.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns=True drops what the model's forward does not name, which "
                "loss_fn may need; leave it off, and drop columns in the data set or the collator"
            )
        if smoothing:
            _check_smoothing(smoothing, loss_fn, model, own)
            self._open = False
            loss_fn = partial(loss_fn, label_smoothing=smoothing)
        self.examples = loss_fn
        """Losses of the examples and the logits."""
        self._without_logits = None if given else partial(losses_only, label_smoothing=smoothing)
        if own is not None:
            self._take_batch(f"{own} computes")

    def losses(self, module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Compute the losses of the examples, float32 (B,), for which no logits are needed."""
        if self._without_logits is not None:
            return self._without_logits(module, batch)
        return self.examples(module, batch)[0]

    def check_trainer(self, trainer: Any) -> None:
        """Refuse what only shows once the base class has set itself up.

        Raises:
            ValueError: something would be ignored.
        """
        state = trainer.accelerator.state
        if getattr(getattr(state, "dynamo_plugin", None), "backend", "NO") != "NO":
            raise ValueError(
                "the model is not compiled (accelerate launch asks for it): perturbed parameters "
                "are evaluated by the model as it is; launch without --dynamo_backend"
            )
        if trainer.compute_loss_func is not None and trainer.ranks.shards > 1:
            raise ValueError(
                "compute_loss_func scales its loss by the items of all processes, whose estimates "
                f"are averaged here; use shard='queries', or {_REMEDY}"
            )
        sampling, data = self._args.train_sampling_strategy, trainer.train_dataset
        if isinstance(data, IterableDataset) and sampling not in ("random", "sequential"):
            raise ValueError(
                f"train_sampling_strategy={sampling!r} needs data with an index, and an "
                "IterableDataset has none; leave it at its default"
            )
        # Processes that see the same batches must not count their items several times.
        self._args.average_tokens_across_devices = False

    def weight(self, trainer: Any) -> int:
        """Return what a micro-batch's loss of the batch is to be multiplied with.

        The estimates of the micro-batches of a step are averaged; what was scaled by the items of
        the whole step is to be summed, as the base class does.
        """
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = trainer.compute_loss_func is not None
        return int(trainer.current_gradient_accumulation_steps) if scaled else 1

    @torch.no_grad()
    def check(self, module: nn.Module, inputs: Mapping[str, Any]) -> None:
        """Compare the losses of examples with the model's own on the first batch.

        Where they differ, what is trained from now on is the model's own loss of the batch. A
        batch whose examples all have the same class leaves the question open: weights of classes
        do not show in it, and make no difference.

        Args:
            module: the model, in evaluation mode.
            inputs: the batch.

        Raises:
            ValueError: the losses differ, and the settings need losses of examples; or neither
                can be computed.
        """
        if not self._open:
            return
        added = _added_to_loss(module)
        if added is None:
            added = self._difference(module, inputs)
        if added is not None:
            self.of_model, self._open = True, False
            self._take_batch(added)

    @property
    def is_default(self) -> bool:
        """Whether the losses of examples are this package's own."""
        return self._without_logits is not None

    @property
    def finding(self) -> bool | None:
        """Whether losses of examples agree with the model's own; None while that is open."""
        return None if self._open else not self.of_model

    def take_over(self, finding: bool | None) -> None:
        """Go by what an earlier part of the run has found; with None, and no loss given, compare.

        Raises:
            ValueError: see :meth:`check`.
        """
        if finding is None or not self._open:
            return
        self._open = False
        if not finding:
            self.of_model = True
            self._take_batch("as an earlier part of this run has found, the model computes")

    def _difference(self, module: nn.Module, inputs: Mapping[str, Any]) -> str | None:
        """Say how the model's own loss differs; None if it does not, or is unknown."""
        chosen, self._open = _rows_to_compare(inputs)
        if not chosen:
            return None
        rows = {n: v[chosen] if has_rows(v) else v for n, v in inputs.items()}
        whole = _own_loss(module, rows)
        try:
            mean = float(example_losses(module, rows)[0].mean())
        except ValueError as error:
            if whole is None:
                raise
            return f"{error} The model itself computes"
        if whole is None:
            self._open = False
            return None
        # Two ways to sum the same logits, one perhaps in the dtype of the model.
        bound = max(1e-4, 4 * torch.finfo(coarsest_dtype(module)).eps) * (1 + abs(mean))
        if abs(whole - mean) <= bound or whole != whole:
            return None
        return (
            f"the loss of this model is {whole:.6g} where the mean of the examples' losses is "
            f"{mean:.6g}: it computes"
        )

    def _take_batch(self, reason: str) -> None:
        """Use a loss of the whole batch from now on.

        Raises:
            ValueError: the settings need losses of examples.
        """
        args = self._args
        self.batch = f"{reason} one loss of the whole batch"
        for name, wanted in (
            ("probes", args.probe_groups() == "batch"),
            ("probes_per_forward", args.stack_size() in (1, "auto")),
            ("padding_free", args.padding_mode() is not True),
            ("cache_trunk", args.cache_trunk == "none"),
        ):
            if not wanted:
                raise ValueError(
                    f"{self.batch}, but {name}={getattr(args, name)!r} needs those of the "
                    f"examples; leave {name} at its default, or {_REMEDY}"
                )
        logger.info("%s", self.batch)


def _check_smoothing(
    smoothing: float, loss_fn: ExampleLoss, model: nn.Module | None, own: str | None
) -> None:
    """Refuse label smoothing where it would be ignored."""
    place = f"label_smoothing_factor={smoothing}"
    config = getattr(model, "config", None)
    if own == "compute_loss_func":
        raise ValueError(f"{place} is ignored by compute_loss_func: smooth there, and set it to 0")
    if "label_smoothing" not in inspect.signature(loss_fn).parameters:
        raise ValueError(
            f"{place} is not for a loss_fn that computes the loss itself: give loss_fn a parameter "
            "label_smoothing, which will hold it, or set it to 0"
        )
    kind = getattr(config, "problem_type", None)
    if kind in ("regression", "multi_label_classification"):
        raise ValueError(
            f"{place} is for classes that exclude each other, and the model's problem_type is "
            f"{kind!r}; set it to 0, or smooth the labels yourself"
        )
    added = None if model is None else _added_to_loss(model)
    if added is not None:
        raise ValueError(f"{added} its own loss, which {place} would replace; set it to 0")


def _added_to_loss(module: nn.Module) -> str | None:
    """Say what a model's configuration adds to the loss of its examples."""
    found = pretrained(module)
    if found is None:
        return None
    if hasattr(found, "_loss_function"):
        return f"{type(found).__name__} has a loss_function that was set on it: it computes"
    for config in (found.config, found.config.get_text_config()):
        if getattr(config, "output_router_logits", False):
            return f"{type(found).__name__} adds the loss of its routers: it computes"
    return None


def _own_loss(module: nn.Module, inputs: Mapping[str, Any]) -> float | None:
    """Compute the loss that a model returns by itself; None if it returns none."""
    try:
        outputs = module(**inputs)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError):
        return None  # it takes no labels, or not these
    if isinstance(outputs, Mapping):
        loss = outputs.get("loss")
    else:
        loss = outputs[0] if isinstance(outputs, tuple) else None
    return float(loss) if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _rows_to_compare(inputs: Mapping[str, Any]) -> tuple[list[int], bool]:
    """Choose rows whose mean loss the two ways must agree on, and tell if later ones may differ.

    Of classes one row each, up to four: for these the mean over rows is the model's. Else one row
    alone: the means over tokens are taken differently.
    """
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor) or labels.dim() == 0:
        return [0], False
    if labels.numel() == len(labels):
        values = labels.flatten().tolist()
        counted = [row for row, value in enumerate(values) if value != IGNORED]
        first: dict[Any, int] = {}
        for row in counted:
            first.setdefault(values[row], row)
        return list(first.values())[:4], len(values) > 1 and len(first) < 2
    counts = (labels != IGNORED).flatten(1).sum(-1)
    row = int(counts.argmax())
    return ([row] if counts[row] else []), not counts[row]
