"""What a run evaluates whose objective is the accuracy: whether the label chosen is right.

An objective of MeZO (2305.17333). It has no derivative; of it a step sees only the
examples whose answer a perturbation turns.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adazeta.estimation.shaping import ScoreSummary
from adazeta.support.batches import IGNORED
from adazeta.training.scores import Scores


class RightAnswers(Scores):
    """Scores the labels that a model chooses: 1 where it is the example's, else 0."""

    remedies = (
        "use eps='auto' or a larger eps, more examples in a batch, or, where nearly all answers "
        "are right, a loss (leave objective out)"
    )

    def of(self, outputs: Callable[[Mapping[str, Any]], Any]) -> Callable[..., Tensor]:
        """Prepare the evaluations of a batch.

        Args:
            outputs: computes the logits of a batch's examples, whose rows may be repeated.

        Returns:
            A function of the batch: 1 for a wrong answer and 0 for a right one, float64
            ``(rows,)``. Its method ``differs`` serves the choice of eps.
        """
        return _Evaluations(outputs)

    def logs(self, summaries: Sequence[ScoreSummary]) -> dict[str, float]:
        """Return the figures of estimates for a log, with ``accuracy`` for the score."""
        found = super().logs(summaries)
        found.pop("reward_std", None)
        if "reward" in found:  # the share of wrong answers with the other sign
            found["accuracy"] = 1 + found.pop("reward")
        return found


class _Evaluations:
    """The evaluations of one batch, see :meth:`RightAnswers.of`."""

    def __init__(self, outputs: Callable[[Mapping[str, Any]], Any]) -> None:
        self._outputs = outputs

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        return wrong_answers(self._outputs(batch), batch.get("labels"))

    def differs(self, batch: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Tensor]:
        """Return a function that tells which labels are not those of the parameters as they are.

        In units of what labels drawn at random would change: of C classes a share of 1 - 1 / C.

        Args:
            batch: is labelled at the parameters as they are.
        """
        logits = self._outputs(batch)
        base = logits.argmax(-1)
        chance = 1 - 1 / logits.isfinite().sum(-1).clamp_min(2).double()

        def evaluate(repeated: Mapping[str, Any]) -> Tensor:
            found = self._outputs(repeated).argmax(-1)
            times = len(found) // len(base)
            return (found != base.repeat(times)).double() / chance.repeat(times)

        return evaluate


def wrong_answers(logits: Any, labels: Any) -> Tensor:
    """Tell which examples have another largest logit than that of their label.

    Args:
        logits: ``(B, C)``; of a candidate that is missing minus infinity.
        labels: int64 ``(B,)``, or ``(B, 1)``.

    Returns:
        float64 ``(B,)``: 1 for a wrong answer, 0 for a right one, and NaN where the label is -100
        or a logit is NaN.

    Raises:
        ValueError: they are not those of a classification with one label an example.
    """
    classes = isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[-1] > 1
    one = isinstance(labels, Tensor) and labels.numel() == len(labels)
    if not classes or not one or labels.is_floating_point():
        raise ValueError(
            "objective='accuracy' scores the label chosen of a classification, one label an "
            f"example, and here are labels {_shape(labels)} and logits {_shape(logits)}; leave the "
            "objective out, or score completions by reward_funcs"
        )
    labels = labels.flatten()
    wrong = (logits.argmax(-1) != labels).double()
    return wrong.masked_fill((labels == IGNORED) | logits.isnan().any(-1), torch.nan)


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
