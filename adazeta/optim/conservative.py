"""The conservative step: of theta, theta - update and theta + update, the one of least loss.

ZO-conservative of ZO-Bench (arXiv 2402.11592). Its code moves the parameters by optimizer steps of
+1 and -2 to try the candidates, which advances a momentum three times. Here parameters and state
are put back after each trial, and the state is advanced once whatever is chosen. The choice is a
setting of the parameter groups, so the probe log has it, and a replay evaluates nothing.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adazeta.estimation.perturbed_losses import Evaluation, evaluate
from adazeta.estimation.probes import Probes
from adazeta.optim.optimizer import Params, ZerothOrderOptimizer
from adazeta.optim.rate import AUTO
from adazeta.optim.sgd import ZOSGD
from adazeta.support.batches import rows_of

CHOICES = (0, 1, -1)
"""Factors on the update, in the order of preference among equal losses."""

Job = tuple[Callable[..., Tensor], Mapping[str, Any] | None]


class Kept(NamedTuple):
    """Parameters and state of the rule before a step."""

    parameters: list[Tensor]
    states: dict[str, Tensor]
    groups: list[dict[str, Any]]


class ConservativeSGD(ZOSGD):
    """SGD whose every step is the best of theta, theta - update and theta + update.

    Three evaluations of each micro-batch more than :class:`ZOSGD`, and a copy of the parameters and
    of the rule's state while the best is found out.

    Args:
        params: see :class:`ZOSGD`.
        lr: learning rate, or ``"auto"``.
        **options: see :class:`ZOSGD`.
    """

    def __init__(self, params: Params, lr: float | str = AUTO, **options: Any) -> None:
        super().__init__(params, lr, **options)
        self._jobs: list[Job] = []
        self.defaults["choice"] = 1
        for group in self.param_groups:
            group.setdefault("choice", 1)

    @property
    def rule(self) -> str:
        """The groups hold what was chosen, so SGD replays these steps without an evaluation."""
        return ZOSGD.__name__

    def accumulate(
        self,
        closure: Callable[..., Tensor],
        batch: Mapping[str, Any] | None = None,
        *,
        epoch: float = 0.0,
    ) -> Probes:
        """Estimate on one micro-batch, and keep it for the choice."""
        try:
            probes = super().accumulate(closure, batch, epoch=epoch)
        except BaseException:
            self._jobs = []
            raise
        self._jobs.append((closure, batch))
        return probes

    def decide(self, probes: Probes) -> None:
        """Choose the candidate of the step, and count what that took."""
        jobs, self._jobs = self._jobs, []
        choice = choose(self, probes, jobs) if len(probes) else 1
        if len(probes):
            probes.evaluations += len(CHOICES) * len(jobs)
            self.evaluations += len(CHOICES) * len(jobs)
        for group in self.param_groups:
            group["choice"] = choice


def choose(optimizer: ZerothOrderOptimizer, probes: Probes, jobs: Sequence[Job]) -> int:
    """Find the factor on the update that gives the least loss.

    Parameters and state are as before when this returns or raises. Needs a copy of both.

    Args:
        optimizer: its rule makes the update.
        probes: the gradient estimate.
        jobs: loss function and batch of each micro-batch of the step.

    Returns:
        1, 0 or -1.
    """
    space = optimizer.space
    before = Kept(
        [parameter.data.clone() for parameter in space.parameters],
        {name: buffer.clone() for name, buffer in optimizer.buffers.items()},
        [
            {name: copy.deepcopy(group[name]) for name in optimizer.group_state}
            for group in optimizer.param_groups
        ],
    )
    losses = []
    for choice in CHOICES:
        try:
            if choice:
                optimizer.move(probes, choice)
            plan = [Evaluation((0,), 0.0)]
            found = [evaluate(space, loss, batch, plan, optimizer.estimator.stack).mean()
                     for loss, batch in jobs]  # fmt: skip
        finally:
            if choice:
                restore(optimizer, before)
        losses.append(torch.stack(found).mean())
    rows = sum(1 if batch is None else rows_of(batch) for _, batch in jobs)
    place = f"the choice of step {optimizer.steps}"
    means = optimizer.estimator.ranks.average(torch.stack(losses).tolist(), rows, place)
    finite = [loss if math.isfinite(loss) else math.inf for loss in means]
    return CHOICES[finite.index(min(finite))]


def restore(optimizer: ZerothOrderOptimizer, before: Kept) -> None:
    """Put parameters and state back."""
    for parameter, value in zip(optimizer.space.parameters, before.parameters, strict=True):
        parameter.data.copy_(value)
    for name, buffer in optimizer.buffers.items():
        # What the first update made was zero before it.
        buffer.copy_(before.states[name]) if name in before.states else buffer.zero_()
    for group, values in zip(optimizer.param_groups, before.groups, strict=True):
        group.update(copy.deepcopy(values))
