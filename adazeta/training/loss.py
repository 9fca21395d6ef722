"""What settings and a trainer say of the loss that is trained: which it is, and what it excludes.

A loss that a user wrote for ``transformers.Trainer`` (``compute_loss``, ``compute_loss_func``) is
of a whole batch; see :mod:`adazeta.forward.trained_loss`.
"""

import inspect
import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import IterableDataset

from adazeta.forward.losses import example_losses
from adazeta.forward.trained_loss import BatchLoss, ExampleLoss, TrainedLoss, added_to_loss
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.first_order_arguments import FOTrainingArguments

logger = logging.getLogger(__name__)

_REMEDY = "pass loss_fn=..., which returns the losses of the examples, to the trainer"


class TrainingLoss(TrainedLoss):
    """What the evaluations of a step compute, within what the settings allow.

    Args:
        loss_fn: see :class:`~adazeta.training.trainer.ZOTrainer`.
        args: the settings.
        model: the model, None if it is not known yet.
        of_batch: computes the loss of a whole batch as the trainer does.
        overriding: name of the trainer's class if that has a ``compute_loss`` of its own.
        compute_loss_func: of the trainer.
        **kwargs: the other arguments of the trainer.

    Raises:
        ValueError: settings exclude each other, or would be ignored.
    """

    def __init__(
        self,
        loss_fn: ExampleLoss,
        args: ZOTrainingArguments | FOTrainingArguments,
        model: nn.Module | None,
        of_batch: BatchLoss,
        overriding: str | None,
        *,
        compute_loss_func: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> None:
        own = None if overriding is None else f"compute_loss of {overriding}"
        if compute_loss_func is not None:
            own = "compute_loss_func"
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
        compare = not given and own is None and not smoothing
        super().__init__(loss_fn, of_batch, label_smoothing=smoothing, compare=compare)
        self._args = args
        if own is not None:
            self.take_batch(f"{own} computes")
        elif getattr(loss_fn, "couples_examples", False):
            self.take_batch("loss_fn couples the examples of a batch: it computes")

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

    def take_batch(self, reason: str) -> None:
        """Use a loss of the whole batch from now on.

        Args:
            reason: which it is, as the beginning of a sentence.

        Raises:
            ValueError: the settings need losses of examples.
        """
        super().take_batch(reason)
        args = self._args
        for name in args.needing_examples():
            raise ValueError(
                f"{self.batch}, but {name}={getattr(args, name)!r} needs those of the examples; "
                f"leave {name} at its default, or {_REMEDY}"
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
    added = None if model is None else added_to_loss(model)
    if added is not None:
        raise ValueError(f"{added} its own loss, which {place} would replace; set it to 0")
