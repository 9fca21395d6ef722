"""How many steps at its full rate a learning-rate schedule amounts to."""

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

_SAMPLES = 1000

ABSOLUTE = ("min_lr", "max_lr", "lr_end")
"""Settings of schedules that are rates themselves, and mean nothing before a rate is measured."""


def steps_at_full_rate(schedule: Any, steps: int) -> float:
    """Return the sum of the squared factors of a schedule: what random moves of a run add up to.

    Args:
        schedule: of ``transformers``: all that do not follow a metric are functions of the step.
        steps: of the run.

    Returns:
        The sum, from up to 1,000 evenly spaced steps; for a schedule that follows a metric, whose
        factors are not known beforehand, the number of steps.
    """
    if not isinstance(schedule, LambdaLR):
        return float(steps)
    factor = schedule.lr_lambdas[0]
    count = min(steps, _SAMPLES)
    squares = (factor(index * steps // count) ** 2 for index in range(count))
    return sum(squares) * steps / count
