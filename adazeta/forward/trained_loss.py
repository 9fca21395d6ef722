"""The loss that is trained: those of the examples of a batch, or one of the whole batch.

Losses of single examples allow everything: directions of examples, several evaluations in one
forward, batches without padding. A loss that a user wrote for the whole batch, and what a model
adds to its loss (losses of routers, weights of classes, a ``loss_function`` of its own), is of a
batch. It is computed as it is written, once an evaluation, with directions of the batch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adazeta.forward.class_losses import pretrained
from adazeta.forward.losses import example_losses, losses_only
from adazeta.models.structure import coarsest_dtype
from adazeta.support.batches import IGNORED, has_rows, targets_of

ExampleLoss = Callable[..., tuple[Tensor, Any]]
BatchLoss = Callable[[nn.Module, Mapping[str, Any]], Tensor]


class TrainedLoss:
    """What an evaluation computes; found out on the first batch if the loss is the default one.

    Args:
        loss_fn: ``loss_fn(model, inputs) -> (losses, logits)`` with the losses of the examples,
            ``(B,)``.
        of_batch: computes the loss of a whole batch, a scalar, where :attr:`batch` says so.
        label_smoothing: share of each target that is spread over all classes, handed to
            ``loss_fn`` unless it is 0.
        compare: hold the losses of the examples against the model's own on the first batch.

    Attributes:
        batch: why the loss is one of the whole batch; None if it is not.
        of_model: whether it is the model's own.
        examples: computes the losses of the examples and the logits.
        reads_only_the_batch: whether these are known to depend on nothing else that changes, but
            the parameters; of a method, what its object says of itself.
    """

    def __init__(
        self,
        loss_fn: ExampleLoss,
        of_batch: BatchLoss,
        *,
        label_smoothing: float = 0.0,
        compare: bool = True,
    ) -> None:
        self.batch: str | None = None
        self.of_model = False
        self.examples = loss_fn
        self._of_batch = of_batch
        self._open = compare
        self._without_logits = None
        task = getattr(loss_fn, "__self__", None)
        self.reads_only_the_batch: bool = loss_fn is example_losses or getattr(
            task, "reads_only_the_batch", False
        )
        if loss_fn is example_losses:
            self._without_logits = partial(losses_only, label_smoothing=label_smoothing)
        if label_smoothing:
            self.examples = partial(loss_fn, label_smoothing=label_smoothing)

    def losses(self, module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Compute what is trained, for which no logits are needed.

        Args:
            module: the model, in evaluation mode.
            batch: the inputs.

        Returns:
            The losses of the examples, float32 ``(B,)``, or that of the batch, a scalar.
        """
        if self.batch is not None:
            return self._of_batch(module, batch)
        if self._without_logits is not None:
            return self._without_logits(module, batch)
        return self.examples(module, batch)[0]

    def logits(self, module: nn.Module, batch: Mapping[str, Any]) -> Any:
        """Compute the logits of the examples, for a method that makes the loss of them itself.

        Raises:
            ValueError: what is to be trained is not the cross entropy of these logits.
        """
        losses, logits = self.examples(module, batch)
        labels = batch.get("labels")
        told = self.batch is None
        if told and isinstance(labels, Tensor) and labels.dim() == 1 and logits.dim() == 2:
            told = not labels.is_floating_point()
            if told:
                expected = functional.cross_entropy(
                    logits.float(), targets_of(batch), reduction="none"
                )
                # The same logits; a loss in 16 bits rounds once more.
                told = torch.allclose(
                    losses.float(), expected, rtol=2e-2, atol=1e-3, equal_nan=True
                )
        if not told:
            raise ValueError(
                "this method minimises the cross entropy of the logits of a classification, and "
                "the loss that is to be trained is another; choose another method, e.g. 'zo-adam'"
            )
        return logits

    def outputs(self, module: nn.Module, batch: Mapping[str, Any]) -> Any:
        """Compute the logits of the examples."""
        return self.examples(module, batch)[1]

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
        added = added_to_loss(module)
        if added is None:
            added = self._difference(module, inputs)
        if added is not None:
            self.of_model, self._open = True, False
            self.take_batch(added)

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
            self.take_batch("as an earlier part of this run has found, the model computes")

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

    def take_batch(self, reason: str) -> None:
        """Use a loss of the whole batch from now on.

        Args:
            reason: which it is, as the beginning of a sentence.
        """
        self.batch = f"{reason} one loss of the whole batch"


def added_to_loss(module: nn.Module) -> str | None:
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
