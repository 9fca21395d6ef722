"""One reward function on one batch: its rewards, or what went wrong with which example."""

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from adazeta.rewards.limits import Deadline, Loop, TimedOut, run

RewardFunction = Callable[..., Any]

LOGGING = ("log_extra", "log_metric")
"""Arguments of TRL that collect what a function wants to be logged."""

WHOLE = (*LOGGING, "trainer_state")
"""Arguments that do not have a value for each example."""

_SHOWN = 200  # characters of an error


@dataclass(frozen=True)
class Arguments:
    """Names of the arguments of a function.

    Attributes:
        needed: those without a default.
        accepted: all that can be given by name.
        others: whether it takes any others too, as ``**columns``.
    """

    needed: tuple[str, ...]
    accepted: tuple[str, ...]
    others: bool

    @classmethod
    def of(cls, function: RewardFunction) -> "Arguments":
        """Read them from a function's signature; one that shows none takes everything.

        An attribute ``needs`` names further ones, which are no names in Python or known late.
        """
        needs = tuple(getattr(function, "needs", ()))
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return cls(needs, (), True)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        return cls(
            tuple(p.name for p in named if p.default is p.empty) + needs,
            tuple(p.name for p in named),
            any(p.kind is p.VAR_KEYWORD for p in parameters),
        )

    def chosen(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values that the function takes."""
        return {name: v for name, v in values.items() if self.others or name in self.accepted}


class WrongResult(ValueError):
    """A function did not return one number or None for each completion."""


# Nothing that another batch would mend.
_FATAL = (WrongResult, ImportError, MemoryError)


class Batch:
    """A function on a batch.

    Args:
        name: of the function, for messages.
        function: the function.
        given: values of all arguments that there are.
        rows: number of examples.

    Attributes:
        values: the rewards, float64 ``(N,)``; NaN for None, and where the function failed.
        failed: where it failed, bool ``(N,)``.
        faults: of each way in which it failed, the error and the number of completions.
        extra: what it gave to ``log_extra``, by column.
        metrics: what it gave to ``log_metric``, by name.
    """

    def __init__(
        self, name: str, function: RewardFunction, given: Mapping[str, Any], rows: int
    ) -> None:
        self.name, self.function, self.given, self.rows = name, function, given, rows
        self.values = torch.full((rows,), math.nan, dtype=torch.float64)
        self.failed = torch.zeros(rows, dtype=torch.bool)
        self.faults: list[str] = []
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def begin(self, deadline: Deadline, loop: Loop | None) -> Callable[[], None]:
        """Begin with the batch.

        Args:
            deadline: of the function.
            loop: for coroutines; they run from now on, other functions when the result is awaited.

        Returns:
            Fills in the attributes, when the function is done. It raises ``ValueError`` for a
            result that is not one number or None for each completion, and ``ImportError``.
        """
        everything = range(self.rows)
        wait = self._begin(everything, deadline, loop, log=True)

        def finish() -> None:
            try:
                self.values = wait()
            except TimedOut:
                self._fail(everything, f"it took longer than {deadline.seconds:g} s")
            except _FATAL:
                raise
            except Exception as error:
                self.extra, self.metrics = {}, {}  # half of a batch
                self._each_alone(error, deadline, loop)
            infinite = torch.where(self.values.isinf())[0].tolist()
            if infinite:
                self._fail(infinite, f"it returned {self.values[infinite[0]].item()}")

        return finish

    def _each_alone(self, error: Exception, deadline: Deadline, loop: Loop | None) -> None:
        """Find out which examples a function raises on, if it looks at one at a time."""
        alone: dict[int, Tensor] = {}
        try:
            begun = [self._begin([row], deadline, loop) for row in range(self.rows)]
            for row, wait in enumerate(begun):
                try:
                    alone[row] = wait()
                except (TimedOut, *_FATAL):
                    raise
                except Exception as of_row:
                    error = of_row
            kept = list(alone)
            if len(kept) > 1:
                together = self._begin(kept, deadline, loop)()
                apart = torch.cat([alone[row] for row in kept])
                if torch.allclose(together, apart, rtol=0, atol=0, equal_nan=True):
                    self.values[kept] = together
                    if len(kept) < self.rows:
                        self._fail([r for r in range(self.rows) if r not in alone], _told(error))
                    else:
                        self._note([], f"{_told(error)}; called again, it worked")
                    return
        except TimedOut:
            pass
        except _FATAL:
            raise
        except Exception as of_some:
            error = of_some
        self._fail(range(self.rows), _told(error))

    def _begin(
        self, rows: Sequence[int], deadline: Deadline, loop: Loop | None, log: bool = False
    ) -> Callable[[], Tensor]:
        """Begin with some examples; return what waits for their rewards."""
        extra: dict[str, list[Any]] = defaultdict(list)
        metrics: dict[str, list[float]] = defaultdict(list)
        values = {
            name: value if name in WHOLE else [value[row] for row in rows]
            for name, value in self.given.items()
        }
        values["log_extra"] = lambda column, column_values: extra[column].extend(column_values)
        values["log_metric"] = lambda metric, value: metrics[metric].append(float(value))
        values = Arguments.of(self.function).chosen(values)
        if is_async(self.function):
            assert loop is not None
            result = loop.start(self.function(**values), deadline)
        else:

            def result() -> Any:
                return run(lambda: self.function(**values), deadline)

        def wait() -> Tensor:
            found = _numbers(result(), len(rows), self.name)
            if log:
                self.extra, self.metrics = dict(extra), dict(metrics)
            return found

        return wait

    def _fail(self, rows: Iterable[int], error: str) -> None:
        rows = list(rows)
        self.values[rows] = math.nan
        self.failed[rows] = True
        self._note(rows, error)

    def _note(self, rows: Sequence[int], error: str) -> None:
        self.faults.append(f"{self.name}: {error} ({len(rows)} of {self.rows} completions)")


def is_async(function: RewardFunction) -> bool:
    """Whether a function, or an object that is called like one, is a coroutine function."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def _numbers(result: Any, rows: int, name: str) -> Tensor:
    """Return rewards as float64 ``(rows,)``, NaN for None.

    Raises:
        WrongResult: they are not one number or None for each completion.
    """
    if isinstance(result, Tensor) or hasattr(result, "tolist"):  # NumPy's arrays
        result = result.tolist()
    if not isinstance(result, Sequence) or isinstance(result, str | bytes):
        raise WrongResult(
            f"reward function {name!r} returned {type(result).__name__}; it must return a list "
            "with a number or None for each completion"
        )
    if len(result) != rows:
        raise WrongResult(
            f"reward function {name!r} returned {len(result)} rewards for {rows} completions; it "
            "must return one each, None where it does not apply"
        )
    values = torch.empty(rows, dtype=torch.float64)
    for row, reward in enumerate(result):
        if isinstance(reward, Tensor) and reward.numel() == 1:
            reward = reward.item()
        if reward is not None and not isinstance(reward, Real):
            raise WrongResult(
                f"reward function {name!r} returned {reward!r} for completion {row}; a reward is a "
                "number or None"
            )
        values[row] = math.nan if reward is None else float(reward)
    return values


def _told(error: Exception) -> str:
    """Say what an error is, in one line."""
    text = " ".join(str(error).split())
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
