"""The few scalars that a zeroth-order gradient consists of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Probes:
    """A zeroth-order gradient estimate: ``g = sum_k coefficients[k] * z(seeds[k])``.

    Attributes:
        seeds: int64 (K,), one per direction.
        coefficients: float32 (K,), projected gradients times their weight in the mean.
        projected: float32 (K,), the raw projected gradients
            ``(l(theta + eps z) - l(theta - eps z)) / (2 eps)``.
        loss: mean loss over the evaluations (for two sides: at theta up to O(eps^2)).
        evaluations: number of losses of the whole batch that were computed.
        queries: directions per example that the estimate averages.
        dropped: probes left out because a loss was not finite.
    """

    seeds: Tensor
    coefficients: Tensor
    projected: Tensor
    loss: float
    evaluations: int
    queries: int
    dropped: int = 0

    def __len__(self) -> int:
        """Return the number of probes K."""
        return self.seeds.numel()

    @property
    def spread(self) -> float:
        """Standard deviation of the projected gradients (0 below two probes)."""
        return self.projected.std().item() if len(self) > 1 else 0.0

    @property
    def expected_square(self) -> float:
        """Expectation of ``g_i^2`` given the coefficients, ``sum_k c_k^2``.

        On the host and rounded once: the same on every device, whatever the order of the sum.
        """
        return math.fsum(c * c for c in self.coefficients.tolist())

    @property
    def mean(self) -> float:
        """Mean absolute projected gradient (0 without probes)."""
        return self.projected.abs().mean().item() if len(self) else 0.0


def merge(parts: Sequence[Probes], weights: Sequence[int] | None = None) -> Probes:
    """Average the probes of several micro-batches of one step.

    Coefficients of equal seeds are added, so that micro-batches evaluated along the same
    directions give one probe a direction.

    Args:
        parts: one estimate per micro-batch, one or more.
        weights: of the micro-batches in the mean, e.g. their numbers of examples; by default they
            count equally.

    Returns:
        The estimate of the mean loss over the micro-batches.
    """
    if not parts:
        raise ValueError("no micro-batch was estimated; call accumulate() before step()")
    if len(parts) == 1:
        return parts[0]
    weights = weights or [1] * len(parts)
    shares = [weight * len(parts) / sum(weights) for weight in weights]  # 1.0 where all are equal
    seeds = torch.cat([part.seeds for part in parts])
    weighted = torch.cat(
        [part.coefficients * share for part, share in zip(parts, shares, strict=True)]
    ) / len(parts)
    unique, index = torch.unique(seeds, return_inverse=True)
    return Probes(
        seeds=unique,
        coefficients=torch.zeros_like(weighted[: len(unique)]).index_add_(0, index, weighted),
        projected=torch.cat([part.projected for part in parts]),
        loss=sum(part.loss * share for part, share in zip(parts, shares, strict=True)) / len(parts),
        evaluations=sum(part.evaluations for part in parts),
        queries=parts[0].queries,
        dropped=sum(part.dropped for part in parts),
    )
