"""Losses at perturbed parameters, one after another or several in one forward."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from adazeta.estimation.probes_per_forward import StackSize
from adazeta.parameters.space import ParameterSpace
from adazeta.support.batches import repeat_rows, rows_of
from adazeta.support.memory import is_out_of_memory


class Evaluation(NamedTuple):
    """One evaluation of the batch: group g of its rows is computed at theta + scale z(seeds[g])."""

    seeds: Sequence[int]
    scale: float


class Evaluator(Protocol):
    """Computes several evaluations in one forward, or one; :func:`plain_losses` and the like."""

    def __call__(
        self,
        space: ParameterSpace,
        loss_fn: Callable[..., Tensor],
        batch: Mapping[str, Any] | None,
        jobs: Sequence[Evaluation],
    ) -> Tensor:
        """Return what the loss function returns."""


def plain_losses(
    space: ParameterSpace,
    loss_fn: Callable[..., Tensor],
    batch: Mapping[str, Any] | None,
    jobs: Sequence[Evaluation],
) -> Tensor:
    """Compute evaluations by running the loss function once.

    Args:
        space: the parameters.
        loss_fn: see :meth:`RandomizedGradientEstimator.__call__`.
        batch: the examples, or None for a loss function without arguments.
        jobs: one evaluation; or, with a batch and losses of examples, several.

    Returns:
        What the loss function returns: the losses of all rows of all jobs, or one number.
    """
    if not is_stacked(batch, jobs):
        with space.perturbed(jobs[0].seeds[0], jobs[0].scale):
            # A copy: a loss may be a parameter, or a part of one, which has other values after.
            return torch.as_tensor(loss_fn() if batch is None else loss_fn(dict(batch))).clone()
    assert batch is not None
    return stacked_losses(space, loss_fn, batch, jobs)


def is_stacked(batch: Mapping[str, Any] | None, jobs: Sequence[Evaluation]) -> bool:
    """Tell whether jobs are computed at several parameter vectors in one forward."""
    return batch is not None and (len(jobs) > 1 or len(jobs[0].seeds) > 1)


def evaluate(
    space: ParameterSpace,
    loss_fn: Callable[..., Tensor],
    batch: Mapping[str, Any] | None,
    plan: Sequence[Evaluation],
    size: StackSize,
    *,
    by_row: bool = False,
    evaluator: Evaluator = plain_losses,
) -> Tensor:
    """Compute the losses of a list of evaluations.

    Where memory runs out in a forward of several evaluations, it is tried again with half as many,
    and ``size`` remembers that.

    Args:
        space: the parameters.
        loss_fn: see :meth:`RandomizedGradientEstimator.__call__`.
        batch: the examples, or None for a loss function without arguments.
        plan: what to evaluate; every entry has the same number of seeds (groups of rows).
        size: how many evaluations share a forward.
        by_row: return the losses of the rows instead of the means of their groups.
        evaluator: computes those that share a forward.

    Returns:
        float64 ``(len(plan), groups)``: the mean loss of each group of rows; or, with ``by_row``,
        ``(len(plan), rows)``.

    Raises:
        ValueError: the loss function returned the wrong number of losses, or stacking was asked
            for without a batch.
    """
    groups = len(plan[0].seeds)
    if batch is None and (groups > 1 or size.of(None) > 1):
        raise ValueError(
            "evaluations can share a forward only if the loss function takes the batch: pass "
            "batch=... and loss_fn(batch) -> losses of the examples, or probes_per_forward=1"
        )
    parts: list[Tensor] = []
    done = 0
    with space.sequence():
        while done < len(plan):
            count = _share(len(plan) - done, size.of(batch))
            jobs = plan[done : done + count]
            try:
                losses = evaluator(space, loss_fn, batch, jobs)
                parts.append(_means(losses, batch, jobs, by_row))
            except (RuntimeError, MemoryError) as error:
                if batch is None or count == 1 or not is_out_of_memory(error):
                    raise
            else:
                done += count
                continue
            # Outside of the handler, which would keep the failed forward's tensors alive.
            size.shrink(batch, count)
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
    return torch.cat(parts)


def _share(rest: int, most: int) -> int:
    """Split what is left into forwards of nearly equal size, at most ``most`` each."""
    return -(-rest // -(-rest // most))


def _means(
    losses: Tensor, batch: Mapping[str, Any] | None, jobs: Sequence[Evaluation], by_row: bool
) -> Tensor:
    """Check what a loss function returned, and average it as :func:`evaluate` says."""
    if not is_stacked(batch, jobs):
        if batch is None and losses.numel() != 1:
            raise ValueError(
                f"the loss function returned shape {tuple(losses.shape)}; without a batch it must "
                "return one number (take the mean)"
            )
        return (losses.double() if by_row else losses.double().mean().view(1))[None]
    assert batch is not None
    rows, groups = rows_of(batch), len(jobs[0].seeds)
    if losses.shape != (rows * len(jobs),):
        raise ValueError(
            f"the loss function returned shape {tuple(losses.shape)} for {rows * len(jobs)} "
            f"examples; return one loss an example, ({rows * len(jobs)},)"
        )
    if by_row:
        return losses.double().view(len(jobs), rows)
    return losses.double().view(len(jobs), groups, rows // groups).mean(-1)


def stacked_losses(
    space: ParameterSpace,
    loss_fn: Callable[..., Tensor],
    batch: Mapping[str, Any],
    jobs: Sequence[Evaluation],
) -> Tensor:
    """Compute several evaluations in one forward; return what the loss function returns."""
    seeds = torch.tensor([seed for job in jobs for seed in job.seeds], dtype=torch.int64)
    scales = torch.tensor([job.scale for job in jobs for _ in job.seeds])
    stack = repeat_rows(batch, len(jobs)) if len(jobs) > 1 else dict(batch)
    with space.stacked(seeds.to(space.device), scales.to(space.device)):
        return loss_fn(stack)
