"""Reward functions called on completions, and the weighted sum of their rewards.

A reward function has TRL's signature: ``f(prompts, completions, **columns) -> list[float | None]``,
sync or async. None says that it does not apply to an example.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adazeta.rewards.limits import Deadline, Loop
from adazeta.rewards.one_function import (
    LOGGING,
    WHOLE,
    Arguments,
    Batch,
    RewardFunction,
    is_async,
)
from adazeta.rewards.records import Completion, Prompt

_NOT_MADE = {
    "environments": "there are no environments of agents here; score the completions themselves",
}


@dataclass
class Scores:
    """Rewards of N completions.

    Attributes:
        total: weighted sum, float64 ``(N,)``. A function that returned None for a completion is
            left out of its sum, as in TRL. NaN where none applies, and where one of them failed:
            it raised, took too long, or returned infinity.
        each: the rewards of each function before they are weighted, float64 ``(N,)``, by name; NaN
            where it did not apply or failed.
        faults: what failed: the function, the error, and how many completions it concerns.
        extra: what functions gave to ``log_extra``, by column; where two functions name one alike,
            the second's is ``function.column``.
        metrics: what functions gave to ``log_metric``, the mean by name.
    """

    total: Tensor
    each: dict[str, Tensor]
    faults: list[str] = field(default_factory=list)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class Rewards:
    """Several reward functions with weights.

    Each is given what its signature asks for: ``prompts``, ``completions``, the columns, and
    ``completion_ids`` and ``trainer_state`` if the caller has them; ``log_extra`` and
    ``log_metric`` collect into the scores. Coroutines run together.

    A function that raises on a batch is called on each example alone, and once more on all of those
    for which it did not raise. If both agree to the last bit, it looks at one example at a time,
    and only those that raised have no reward; otherwise none of the batch has.

    Args:
        functions: the functions.
        weights: one each, finite; by default 1. A function of weight 0 is only watched: its
            failures do not matter to the total.
        timeout: seconds that a function may take for a batch; None: as long as it wants. A function
            that is late has no rewards for the batch.

    Raises:
        TypeError: a function is not one.
        ValueError: there is none, or the weights or the time do not fit.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        self.functions = list(functions)
        if not self.functions:
            raise ValueError("there is no reward function; give at least one")
        for function in self.functions:
            _check_function(function)
        self.names = _unique([_name(function) for function in self.functions])
        self.weights = [1.0] * len(self.functions) if weights is None else [*map(float, weights)]
        if len(self.weights) != len(self.functions):
            raise ValueError(
                f"there are {len(self.weights)} weights for {len(self.functions)} reward functions "
                f"({', '.join(self.names)}); give one each"
            )
        if not all(map(math.isfinite, self.weights)) or not any(self.weights):
            raise ValueError(f"weights of rewards are finite and not all 0, got {self.weights}")
        if timeout is not None and not 0 < timeout < math.inf:
            raise ValueError(f"the timeout of rewards is a number of seconds, got {timeout}")
        self.timeout = timeout
        self._loop: Loop | None = None

    def check(self, columns: Iterable[str]) -> None:
        """Refuse functions that need an argument that they will not be given.

        Args:
            columns: names of the columns, and ``"completion_ids"`` and ``"trainer_state"`` if the
                caller has them.

        Raises:
            ValueError: naming the function and the argument.
        """
        known = ["prompts", "completions", *columns, *LOGGING]
        for name, function in zip(self.names, self.functions, strict=True):
            for argument in Arguments.of(function).needed:
                if argument not in known:
                    own = [column for column in known if column not in LOGGING]
                    remedy = _NOT_MADE.get(argument, f"there are {', '.join(own)}")
                    raise ValueError(
                        f"reward function {name!r} needs the argument {argument!r}: {remedy}"
                    )

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any
    ) -> Scores:
        """Score completions.

        Args:
            prompts: N texts or conversations.
            completions: of the prompts, texts or lists of one message.
            columns: N values each, but ``trainer_state``.

        Raises:
            ValueError: an argument that a function needs is missing, lengths differ, or a function
                returned another number of rewards than there are completions.
            TypeError: a function returned something else than numbers and None.
            ImportError: a function needs a package that is not installed.
        """
        self.check(columns)
        given = {"prompts": list(prompts), "completions": list(completions), **columns}
        for name, values in given.items():
            if name not in WHOLE and len(values) != len(completions):
                raise ValueError(
                    f"{name} has {len(values)} values for {len(completions)} completions"
                )
        batches = self._scored(given, len(completions))
        scores = Scores(torch.full((len(completions),), math.nan, dtype=torch.float64), {})
        metrics: dict[str, list[float]] = defaultdict(list)
        failed = torch.zeros(len(completions), dtype=torch.bool)
        for weight, batch in zip(self.weights, batches, strict=True):
            scores.each[batch.name] = batch.values
            scores.faults += batch.faults
            for column, values in batch.extra.items():
                own = f"{batch.name}.{column}" if column in scores.extra else column
                scores.extra[own] = values
            for metric, values in batch.metrics.items():
                metrics[metric] += values
            if weight:
                there = ~batch.values.isnan()
                scores.total[there] = (
                    scores.total[there].nan_to_num(0) + weight * batch.values[there]
                )
                failed |= batch.failed
        scores.total[failed] = math.nan
        scores.metrics = {name: sum(values) / len(values) for name, values in metrics.items()}
        return scores

    def _scored(self, given: Mapping[str, Any], rows: int) -> list[Batch]:
        """Call the functions; coroutines wait for their servers while the others compute."""
        batches = [
            Batch(name, function, given, rows)
            for name, function in zip(self.names, self.functions, strict=True)
        ]
        if rows == 0:
            return batches
        waited = [batch for batch in batches if is_async(batch.function)]
        if waited and (self._loop is None or self._loop.stuck):
            self._loop = Loop()
        finish = [batch.begin(Deadline(self.timeout), self._loop) for batch in waited]
        for batch in batches:
            if batch not in waited:
                batch.begin(Deadline(self.timeout), None)()
        for end in finish:
            end()
        return batches


def _check_function(function: Any) -> None:
    if isinstance(function, nn.Module):
        raise TypeError(
            f"{type(function).__name__} is a model, and a reward is a function; give "
            "'classifier:MODEL:LABEL', or a function that calls it"
        )
    if not callable(function):
        raise TypeError(f"{function!r} is no reward function: it cannot be called")


def _name(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _unique(names: list[str]) -> list[str]:
    """Number the second and later of equal names."""
    found: list[str] = []
    for name in names:
        number, one = 1, name
        while one in found:
            number += 1
            one = f"{name}_{number}"
        found.append(one)
    return found
