"""SIGTERM, as schedulers of jobs send it: finish the step, then leave with status 143."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

STATUS = 128 + signal.SIGTERM


class Termination:
    """While entered, SIGTERM ends the process between two steps.

    Every step is on disk when it is done, so nothing else has to be saved. Outside the main thread,
    where no handler can be set, it does nothing.

    Args:
        alone: whether this process may leave whenever no step is under way; several that train
            together leave only after a step, and all at once.

    Attributes:
        asked: whether SIGTERM came.
    """

    def __init__(self, alone: bool = True) -> None:
        self.asked = False
        self._alone = alone
        self._working = False
        self._before: Any = None

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._alone and not self._working:
            raise SystemExit(STATUS)

    def begin(self) -> None:
        """A step begins: it is to be finished."""
        self._working = True

    def end(self) -> None:
        """A step is done.

        Raises:
            SystemExit: SIGTERM came meanwhile; the status is 143.
        """
        self._working = False
        if self.asked:
            raise SystemExit(STATUS)
