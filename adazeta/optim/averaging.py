"""The running average of the trained parameters, which stands for them where nothing is trained.

After each step t = 0, 1, ... of either order::

    a <- m_t a + (1 - m_t) theta,    a_0 = theta_0,    m_t = min(m, (1 + t) / (10 + t))

With a constant rate it takes the place of a schedule that falls: the end of the run need not be
known. Without the warm-up, m_t = m, it is the accumulation of R-Adapter (arXiv 2408.05749). The
average of the cores of a tensor train is not that of the matrices, which are products of cores.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adazeta.parameters.space import ParameterSpace

NAME = "average"
"""Of the state."""


def check_average(average: float, warmup: bool) -> None:
    """Refuse an average that is none.

    Raises:
        ValueError: ``average`` is not in [0, 1), or ``warmup`` is off without one.
    """
    if isinstance(average, bool) or not (isinstance(average, int | float) and 0 <= average < 1):
        raise ValueError(f"average must be 0 (off) or more and less than 1, got {average!r}")
    if not average and not warmup:
        raise ValueError("average_warmup=False belongs to an average; set average above 0, too")


def check_dtypes(parameters: Iterable[Tensor]) -> None:
    """Refuse parameters whose average their dtype could not hold.

    Raises:
        ValueError: one is not float32.
    """
    coarse = next((p.dtype for p in parameters if p.dtype != torch.float32), None)
    if coarse is not None:
        raise ValueError(
            f"average is for float32 parameters, and some are {coarse}, whose rounding would "
            "swallow what a step adds to it; train adapters, or leave it at 0"
        )


def check_space(space: ParameterSpace) -> None:
    """Refuse parameters that have no average.

    Raises:
        ValueError: the directions are refreshed in the course of training, the parameters are not
            held in a buffer, or see :func:`check_dtypes`.
    """
    if space.schedule is not None:
        raise ValueError(
            f"average means nothing with the direction {space.direction['name']!r}: what is "
            "trained is folded into the weights and begins at zero again, so it has no past; "
            "leave average at 0, or choose a method with full directions"
        )
    if space.perturbation != "buffer":
        raise ValueError(
            f"average needs perturbation='buffer', got {space.perturbation!r}: it is one more "
            "vector over all that is trained; set that, train adapters, or leave average at 0"
        )
    check_dtypes(space.parameters)


def weight_at(group: Mapping[str, Any], step: int) -> float:
    """Return the weight of the average so far, m_t.

    Args:
        group: with ``average``, and ``average_warmup`` if it may be off.
        step: t, steps done before.
    """
    average = float(group["average"])
    return min(average, (1 + step) / (10 + step)) if group.get("average_warmup", True) else average


@torch.no_grad()
def follow_(averages: Sequence[Tensor], tensors: Sequence[Tensor], weight: float) -> None:
    """Move averages towards values, with the same bits on every device.

    Args:
        averages: float32, changed in place.
        tensors: float32, of the same shapes.
        weight: of what the averages were.
    """
    for average, tensor in zip(averages, tensors, strict=True):
        average.mul_(weight)
        # Not by add_(alpha=) or lerp_, which round once or twice as the device likes.
        average.add_(tensor.mul(1 - weight))
