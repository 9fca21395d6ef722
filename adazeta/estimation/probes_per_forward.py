"""How many perturbed evaluations of a batch share one forward: a number, or measured once.

Stacking reads the frozen weights once for several evaluations and makes its products larger, which
pays while they are small: on a GPU, and for small batches on a CPU. It costs the activations of
that many copies of the batch. ``"auto"`` measures both on the first batch and keeps the number of
elements of a forward, so that shorter batches stack more evaluations and longer ones fewer.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from adazeta.support.memory import PeakMemory, available_memory, is_out_of_memory

logger = logging.getLogger(__name__)

_MOST = 64  # evaluations; beyond it there is nothing to win
_MOST_UNMEASURED = 4  # where the memory of a forward cannot be measured
_SHARE = 0.5  # of the free memory that a stacked forward may take
_TIMINGS = 2  # of each size; the better one counts, since whatever else runs can only slow it
_GAIN = 0.95  # a larger stack must take at most this share of the time of the best smaller one


class StackSize:
    """The number of evaluations in one forward, per batch.

    Args:
        wanted: the number, or ``"auto"``: 1 until :meth:`measure` has run.
        limit: most evaluations that a step makes.

    Attributes:
        wanted: as given.
        limit: most evaluations in one forward; lower once memory has run out.
        elements: for ``"auto"``, elements of the batch in one forward, once measured.
    """

    def __init__(self, wanted: int | str, limit: int) -> None:
        if wanted != "auto" and not (isinstance(wanted, int) and wanted > 0):
            raise ValueError(f"probes_per_forward must be 1 or more, or 'auto', got {wanted!r}")
        self.wanted = wanted
        self.limit = min(limit, _MOST) if wanted == "auto" else int(wanted)
        self.elements: int | None = None

    @property
    def undecided(self) -> bool:
        """Whether :meth:`measure` is still to be called."""
        return self.wanted == "auto" and self.elements is None

    def of(self, batch: Mapping[str, Any] | None) -> int:
        """Return how many evaluations of a batch share a forward.

        Without a batch it is the number that was asked for.
        """
        if batch is None:
            return 1 if self.wanted == "auto" else self.limit
        if self.wanted != "auto":
            return self.limit
        return max(min((self.elements or 0) // _elements(batch), self.limit), 1)

    def shrink(self, batch: Mapping[str, Any], count: int) -> None:
        """Take half as many from now on, after memory ran out with ``count`` evaluations."""
        fewer = count // 2
        if self.elements is not None:
            self.elements = min(self.elements, fewer * _elements(batch))
        else:
            self.limit = fewer
        logger.warning(
            "memory ran out with %d evaluations in one forward; from now on it is %d for such a "
            "batch",
            count,
            fewer,
        )

    def state_dict(self) -> dict[str, int | None]:
        """Return what was found out, so that a resumed run computes in the same groups."""
        return {"limit": self.limit, "elements": self.elements}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Take over what an earlier run found out."""
        if self.wanted == "auto":
            self.elements = state["elements"]
        if state["limit"] is not None:
            self.limit = min(self.limit, state["limit"])

    def measure(self, batch: Mapping[str, Any], forward: Callable[[int], Tensor], rows: int) -> int:
        """Choose the number for a batch by time, as far as memory allows.

        Tries 1, 2, 4, ... evaluations in a forward, stops where doubling does not pay or the next
        size would take more than half of the memory that is free, and keeps the smallest of about
        the best.

        Args:
            batch: the batch.
            forward: evaluates so many perturbed losses of the batch in one forward and returns
                the losses of the examples.
            rows: examples in the batch.

        Returns:
            Evaluations of the batch that this took.
        """
        spent, chosen, best = 0, 1, float("inf")
        peaks: dict[int, float] = {}  # above what was in use at the start
        start = 0.0
        free = available_memory()
        count, reason = 1, "no larger stack is possible"
        while count <= self.limit:
            if count > 1 and not _fits(peaks, count, free):
                reason = "memory allows no more"
                break
            try:
                with PeakMemory() as peak:
                    losses = forward(count)
                    single = losses.shape != (rows * count,)
                    seconds = min(_timed(forward, count) for _ in range(_TIMINGS))
            except (RuntimeError, MemoryError) as error:
                if count == 1 or not is_out_of_memory(error):
                    raise
                reason = "memory allows no more"
                break
            spent += (1 + _TIMINGS) * count
            if single:
                reason = "the loss function returns no loss per example"
                self.limit = 1  # shorter batches cannot be stacked either
                break
            start = start or peak.before
            peaks[count] = peak.mebibytes - start if peak.exact else float("nan")
            if seconds / count > _GAIN * best:
                reason = "more does not pay"
                break
            chosen, best = count, seconds / count
            count *= 2
        self.elements = chosen * _elements(batch)
        logger.info(
            "probes_per_forward: %d for a batch of %d elements (%.3g s an evaluation; %s)",
            chosen,
            _elements(batch),
            best,
            reason,
        )
        return spent


def _fits(peaks: Mapping[int, float], count: int, free: float | None) -> bool:
    """Predict from smaller stacks whether one fits into a share of the free memory (MiB)."""
    last = max(peaks)
    if free is None or peaks[last] != peaks[last]:
        return count <= _MOST_UNMEASURED
    before = peaks.get(last // 2, 0.0)
    # Of two sizes the difference is per copy; growth of one alone may be its own one-off.
    per_copy = (peaks[last] - before) / (last - last // 2)
    predicted = peaks[last] + (count - last) * max(per_copy, peaks[last] / last)
    return predicted <= _SHARE * free


def _timed(forward: Callable[[int], Tensor], count: int) -> float:
    start = time.perf_counter()
    forward(count).sum().item()  # waits for the device
    return time.perf_counter() - start


def _elements(batch: Mapping[str, Any]) -> int:
    """Size of the largest tensor of a batch."""
    return max((value.numel() for value in batch.values() if isinstance(value, Tensor)), default=1)
