"""How the gradient of a micro-batch is taken where that is not plainly at the parameters.

It may be taken ahead of them (:mod:`adazeta.training.extrapolation`), at embeddings that are moved
(:mod:`adazeta.training.adversarial`), or both: each of its evaluations is then adversarial.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from adazeta.training.adversarial import Adversary
from adazeta.training.extrapolation import Extrapolation
from adazeta.training.first_order_arguments import FOTrainingArguments
from adazeta.training.reproducible import trained_parameters


class Gradients:
    """How gradients are taken in one run.

    Args:
        args: the settings.
        module: the model.
        steps: of the whole run.
        past: the gradient that :attr:`past` was when the run stopped.

    Raises:
        ValueError: the model computes the first tokens of its texts apart.
    """

    def __init__(
        self, args: FOTrainingArguments, module: nn.Module, steps: int, past: list[Tensor]
    ) -> None:
        self._ahead: Extrapolation | None = None
        self._adversary: Adversary | None = None
        if args.extrapolation != "none":
            assert args.extrapolation_scale is not None
            until = _steps_of(steps, args.extrapolation_until)
            self._ahead = Extrapolation(
                args.extrapolation, args.extrapolation_scale, until, args.seed
            )
            self._ahead.past = past
        if args.adversarial_radius:
            if getattr(module, "tt_adapter_suffix", None):
                raise ValueError(
                    f"adversarial_radius={args.adversarial_radius} moves the embeddings of whole "
                    "texts, and adapt='suffix' or 'last' computes the first tokens apart; set "
                    "adapt='all', or leave it at 0"
                )
            start = _steps_of(steps, args.adversarial_start)
            self._adversary = Adversary(
                args.adversarial_kind, args.adversarial_radius, args.adversarial_step, start,
                args.seed,
            )  # fmt: skip

    @property
    def past(self) -> list[Tensor]:
        """The gradient of the last step, where the next one is taken along it."""
        return [] if self._ahead is None else self._ahead.past

    def evaluate(
        self,
        backward: Callable[[], Tensor],
        loss: Callable[[], Tensor],
        module: nn.Module,
        inputs: Mapping[str, Any],
        *,
        place: tuple[int, int],
        count: int,
        last: bool,
    ) -> Tensor:
        """Add the gradient of a micro-batch to ``.grad`` of the parameters.

        Args:
            backward: evaluates the micro-batch, adds its gradient divided by ``count`` to
                ``.grad``, and returns its loss.
            loss: computes the mean loss of the micro-batch, with a graph.
            module: the model, in evaluation mode.
            inputs: the micro-batch.
            place: optimizer steps done, and micro-batches of this one.
            count: micro-batches of the step.
            last: whether this is the last of them.

        Returns:
            What ``backward`` returned, see :meth:`Extrapolation.evaluate`.
        """
        if self._adversary is not None:
            backward = partial(self._adversary.evaluate, backward, loss, module, inputs, place)
        if self._ahead is None:
            return backward()
        parameters = list(trained_parameters(module).values())
        return self._ahead.evaluate(backward, parameters, place=place, count=count, last=last)


def _steps_of(steps: int, share: float) -> int:
    """Return the steps of a share, rounded up; 0.55 of 100 are 55, not 56 by the last bit."""
    return math.ceil(round(steps * share, 6))
