"""Plan once, run many: calls on fixed arrays, recorded once and replayed without allocation.

This is for NumPy what a CUDA graph is for a GPU. An operation of the backend issues its work as
calls ``call(f, *args)``. If they run at once they are executed; if they are recorded they become a
`RecordedCalls`. Slices, scratch arrays and the split over threads are made while recording, so a
replay is a loop of NumPy calls into existing memory.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from queue import SimpleQueue
from typing import Any

import numpy as np

from gpubackprop.backends.host import available_cores
from gpubackprop.errors import OptionError

Call = tuple[Callable[..., Any], tuple[Any, ...]]


# Elements of the buffers that NumPy's iterators make for broadcast operands. The default is 8192;
# this number keeps a replay's transient memory at a few KiB and costs nothing measurable.
ITERATOR_BUFFER = 1024


class RecordedCalls:
    """Calls in order: ``recorded(f, *args)`` adds one, ``recorded.run()`` replays them all.

    A replay gives no float warnings.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> None:
        self.calls.append((function, args))

    def run(self) -> None:
        run_now(replay, self.calls)


_QUIET: list[Context] = []  # contexts that are not in use


def quiet_context() -> Context:
    """Return a context without float warnings, with the buffers of a plan."""

    def quiet() -> None:
        np.seterr(all="ignore")
        np.setbufsize(ITERATOR_BUFFER)  # it decides how some sums are grouped, too

    context = Context()
    context.run(quiet)
    return context


def replay(calls: list[Call]) -> None:
    for function, args in calls:
        function(*args)


def run_now(function: Callable[..., Any], *args: Any) -> None:
    """Execute a call at once, instead of recording it.

    NumPy's floating-point settings belong to a `contextvars.Context`. Entering one that already has
    them is much cheaper than `np.errstate`. A context takes one caller at a time, so it leaves the
    list meanwhile.
    """
    try:
        context = _QUIET.pop()
    except IndexError:
        context = quiet_context()
    try:
        context.run(function, *args)
    finally:
        _QUIET.append(context)


class _Job:
    """Recorded calls in parts: the parts that are not begun, and the workers that are active.

    A worker enters `active` before it takes a part and leaves after it is done. A part is therefore
    in `todo`, or its worker is in `active`, or it is finished. List operations are atomic.
    """

    __slots__ = ("active", "errors", "left", "todo")

    def __init__(self, parts: list[list[Call]]) -> None:
        self.todo = parts.copy()
        self.active: list[None] = []
        self.errors: list[BaseException] = []
        self.left: SimpleQueue[None] = SimpleQueue()  # a token for every worker that leaves

    def replay_parts(self, end: int) -> None:
        """Replay parts from that end of `todo`, 0 or -1, until there is none."""
        while True:
            try:
                part = self.todo.pop(end)
            except IndexError:
                return
            replay(part)

    def fail(self, error: BaseException) -> None:
        self.todo.clear()
        self.errors.append(error)

    def wait(self) -> None:
        """Wait until no worker is active, even if Ctrl-C interrupts: they write into buffers."""
        while True:
            try:
                while self.active:
                    self.left.get()
                return
            except BaseException as interrupt:
                self.fail(interrupt)


class Workers:
    """Threads that help to replay the parts of split recorded calls.

    NumPy releases the interpreter lock inside a ufunc, so blocks of some ten thousand elements run
    side by side. One set of threads serves the process. A job's caller replays parts from the
    front, and every free worker replays parts from the back. If all workers are busy with other
    callers' jobs, or late, the caller does everything itself.
    """

    def __init__(self) -> None:
        self._started = 0
        self._starting = threading.Lock()
        self._inbox: SimpleQueue[_Job] = SimpleQueue()

    def run(self, parts: list[list[Call]]) -> None:
        """Replay all parts; return when the last is done; raise the first error."""
        job = _Job(parts)
        try:
            if self._started < len(parts) - 1:
                with suppress(RuntimeError):  # if no thread can be started, this one does it all
                    self._start(len(parts) - 1)
            for _ in range(min(len(parts) - 1, self._started)):
                if self._inbox.qsize() < self._started:  # else they are late: jobs would pile up
                    self._inbox.put(job)
            job.replay_parts(0)
        except BaseException as error:
            job.fail(error)
        finally:
            job.wait()
        if job.errors:
            raise job.errors[0]

    def _start(self, threads: int) -> None:
        with self._starting:
            while self._started < threads:
                name = f"gpubackprop-{self._started + 1}"
                thread = threading.Thread(
                    target=_serve, args=(self._inbox,), name=name, daemon=True
                )
                thread.start()
                self._started += 1


def _serve(inbox: SimpleQueue[_Job]) -> None:
    with np.errstate(all="ignore"):  # the setting belongs to a thread, so it is made here too
        np.setbufsize(ITERATOR_BUFFER)
        while True:
            job = inbox.get()
            job.active.append(None)
            try:
                job.replay_parts(-1)
            except BaseException as error:
                job.fail(error)
            job.active.pop()
            job.left.put(None)


WORKERS = Workers()
if hasattr(os, "register_at_fork"):  # threads do not survive a fork, so the child starts its own
    os.register_at_fork(after_in_child=WORKERS.__init__)  # type: ignore[misc]


def usable_cores() -> int:
    """Return the cores that this process may use, at most OMP_NUM_THREADS if that is set."""
    cores = available_cores()
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return max(1, min(cores, int(limit)) if limit.isdigit() else cores)


_threads: int | None = None


def get_num_threads() -> int:
    """Return the threads over which NumPy's elementwise work is split; BLAS has its own number."""
    global _threads
    if _threads is None:
        _threads = min(usable_cores(), 8)
    return _threads


def set_num_threads(threads: int) -> None:
    """Set that number, at least 1. Results do not depend on it, bit for bit."""
    global _threads
    try:
        count = 0 if isinstance(threads, bool) else operator.index(threads)
    except TypeError:
        count = 0
    if count < 1:
        raise OptionError(f"threads is {threads!r} but must be a whole number of at least 1")
    _threads = count
