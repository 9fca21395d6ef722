"""Losses at perturbed parameters, one after another or several in one forward."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adazeta.space import ParameterSpace


class Evaluation(NamedTuple):
    """One evaluation of the batch: group g of its rows is computed at theta + scale z(seeds[g])."""

    seeds: Sequence[int]
    scale: float


def rows_of(batch: Mapping[str, Any]) -> int:
    """Return the number of examples in a batch.

    Raises:
        ValueError: there is no tensor, or the tensors disagree on the leading dimension.
    """
    sizes = {name: value.shape[0] for name, value in batch.items() if _has_rows(value)}
    if not sizes:
        raise ValueError(f"the batch holds no tensor with a leading dimension: {list(batch)}")
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the tensors of the batch disagree on the number of examples: {sizes}; wrap what is "
            "not per example in a list or tuple"
        )
    return next(iter(sizes.values()))


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def repeat_rows(batch: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Repeat the whole batch along its leading dimension: copies one after another."""
    return {
        name: value.repeat(times, *[1] * (value.dim() - 1)) if _has_rows(value) else value
        for name, value in batch.items()
    }


def evaluate(
    space: ParameterSpace,
    loss_fn: Callable[..., Tensor],
    batch: Mapping[str, Any] | None,
    plan: Sequence[Evaluation],
    per_forward: int,
) -> Tensor:
    """Compute the losses of a list of evaluations.

    Args:
        space: the parameters.
        loss_fn: see :meth:`RandomizedGradientEstimator.__call__`.
        batch: the examples, or None for a loss function without arguments.
        plan: what to evaluate; every entry has the same number of seeds (groups of rows).
        per_forward: evaluations that share one forward.

    Returns:
        float64 ``(len(plan), groups)``: the mean loss of each group of rows.

    Raises:
        ValueError: the loss function returned the wrong number of losses, or stacking was asked
            for without a batch.
    """
    groups = len(plan[0].seeds)
    if groups == 1 and per_forward == 1:
        return torch.stack([_evaluate_alone(space, loss_fn, batch, job) for job in plan])
    if batch is None:
        raise ValueError(
            "evaluations can share a forward only if the loss function takes the batch: pass "
            "batch=... and loss_fn(batch) -> losses of the examples, or probes_per_forward=1"
        )
    rows = rows_of(batch)
    parts = []
    for start in range(0, len(plan), per_forward):
        jobs = plan[start : start + per_forward]
        seeds = torch.tensor([seed for job in jobs for seed in job.seeds], dtype=torch.int64)
        scales = torch.tensor([job.scale for job in jobs for _ in job.seeds])
        stack = repeat_rows(batch, len(jobs)) if len(jobs) > 1 else dict(batch)
        with space.stacked(seeds.to(space.device), scales.to(space.device)):
            losses = loss_fn(stack)
        if losses.shape != (rows * len(jobs),):
            raise ValueError(
                f"the loss function returned shape {tuple(losses.shape)} for "
                f"{rows * len(jobs)} examples; return one loss an example, ({rows * len(jobs)},)"
            )
        parts.append(losses.double().view(len(jobs), groups, rows // groups).mean(-1))
    return torch.cat(parts)


def _evaluate_alone(
    space: ParameterSpace,
    loss_fn: Callable[..., Tensor],
    batch: Mapping[str, Any] | None,
    job: Evaluation,
) -> Tensor:
    with space.perturbed(job.seeds[0], job.scale):
        loss = torch.as_tensor(loss_fn() if batch is None else loss_fn(dict(batch)))
    if batch is None and loss.numel() != 1:
        raise ValueError(
            f"the loss function returned shape {tuple(loss.shape)}; without a batch it must "
            "return one number (take the mean)"
        )
    return loss.double().mean().view(1)
