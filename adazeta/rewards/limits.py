"""Calls that are waited for no longer than a limit: functions in a thread, coroutines in a loop."""

import asyncio
import ctypes
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import Any

import torch

_GRACE = 1.0  # seconds that a coroutine has to end once it is cancelled


class TimedOut(Exception):
    """A call took longer than it was given."""


class Deadline:
    """A point in time by which calls are to be done.

    Args:
        seconds: from now on; None: there is no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Return the seconds that are left, at least 0; None: there is no limit."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)


def run(call: Callable[[], Any], deadline: Deadline) -> Any:
    """Run a function: here, or in a thread where there is a limit.

    A function that is late is sent ``SystemExit``, which ends Python code between two of its
    instructions. One that waits in C code goes on in its thread until it returns, and nothing can
    be done while C code keeps Python's lock (a regular expression that backtracks, for one).

    Raises:
        TimedOut: it took too long.
    """
    seconds = deadline.left()
    if seconds is None:
        return call()
    outcome: Future[Any] = Future()
    # What a thread does not inherit, and a function that uses a model sees.
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def work() -> None:
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
                outcome.set_result(call())
        except BaseException as error:  # handed over to the thread that waits
            outcome.set_exception(error)

    thread = threading.Thread(target=work, name="reward", daemon=True)
    thread.start()
    try:
        return outcome.result(seconds)
    except FutureTimeout:
        if outcome.done():  # the function's own TimeoutError
            raise
        _end(thread)
        raise TimedOut from None


def _end(thread: threading.Thread) -> None:
    """Raise ``SystemExit`` in a thread, which ends it silently once it runs Python again."""
    number = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(SystemExit))


class Loop:
    """An event loop in a thread of its own, which lasts as long as this object.

    It is not made anew for each call: clients of servers keep their connections in a loop.

    Attributes:
        stuck: a coroutine did not give the loop back in time, so it is of no more use. It ends
            once it gets it back.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_serve, args=(self._loop,), name="rewards", daemon=True)
        thread.start()
        self._close = weakref.finalize(self, _stop, self._loop, thread)
        self.stuck = False

    def start(self, coroutine: Coroutine[Any, Any, Any], deadline: Deadline) -> Callable[[], Any]:
        """Begin a coroutine.

        Returns:
            Waits for it and returns its result; raises what it raised, or :class:`TimedOut`.
        """
        future = asyncio.run_coroutine_threadsafe(_limited(coroutine, deadline), self._loop)

        def wait() -> Any:
            seconds = deadline.left()
            try:
                return future.result(None if seconds is None else seconds + _GRACE)
            except FutureTimeout:
                if future.done():
                    raise
                self.stuck = True
                self._close()
                raise TimedOut from None

        return wait


async def _limited(coroutine: Coroutine[Any, Any, Any], deadline: Deadline) -> Any:
    task = asyncio.ensure_future(coroutine)
    done, _ = await asyncio.wait({task}, timeout=deadline.left())
    if not done:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
        raise TimedOut
    return task.result()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped; coroutines that are left are cancelled."""
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    with suppress(RuntimeError):  # it is closed already
        loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join(_GRACE)  # no longer: a coroutine may have the loop
