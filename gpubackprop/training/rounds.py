"""Fits of several threads that train together, epoch by epoch: `fit_many` and `together`.

Each fit runs in a thread of its own and asks for one epoch at a time. Epochs that can share a
launch wait for one another: as soon as every fit that trains has asked, one of the threads launches
all of them. Epochs of the CPU share nothing and take turns, as many at a time as are of use there.

A result does not depend on who else is in a round, nor on the order in which the fits come. No fit
waits for one that does not come: a fit that has ended is not waited for, and one that does
something else for longer than `LINGER` seconds misses the round.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpubackprop.training.interrupt import InterruptGuard

LINGER = 0.05  # seconds that a round waits for fits that train but have not asked
TURNS = 1  # epochs on the CPU at a time: their threads share Python's one lock
Launch = Callable[[Sequence[Any]], None]


class _Job:
    """One epoch that a fit has asked for."""

    def __init__(self, work: Any, launch: Launch) -> None:
        self.work, self.launch = work, launch
        self.done = False
        self.error: Exception | None = None


class Rounds:
    """The rounds of all fits of this process that train together."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[_Job] = []
        self._fits, self._launching = 0, False
        self._turns = threading.Semaphore(TURNS)
        self._own = threading.local()

    @contextlib.contextmanager
    def fit(self, asks: bool = True) -> Iterator[None]:
        """Count a fit of this thread among those for which a round waits, until it ends in any way.

        Parameters
        ----------
        asks : bool
            Whether the fit asks for epochs. One that does not gives up the place that was reserved.
        """
        reserved = getattr(self._own, "reserved", False)
        if not asks and reserved:
            self._own.reserved = False
            self._count(-1)
        counts = asks and not reserved
        if counts:
            self._count(1)
        try:
            yield
        finally:
            if counts:
                self._count(-1)

    def reserve(self, fits: int) -> list[contextlib.AbstractContextManager[None]]:
        """Have rounds wait for so many fits that have not begun.

        Returns
        -------
        list
            A context for each, which its thread enters; at the end of it the place is free.
        """
        self._count(fits)
        return [self._reserved() for _ in range(fits)]

    @contextlib.contextmanager
    def _reserved(self) -> Iterator[None]:
        self._own.reserved = True
        try:
            yield
        finally:
            if self._own.reserved:
                self._own.reserved = False
                self._count(-1)

    def _count(self, more: int) -> None:
        with self._changed:
            self._fits += more
            self._changed.notify_all()

    def turn(self) -> threading.Semaphore:
        """Return a context in which one epoch of the CPU is trained."""
        return self._turns

    def train(self, work: Any, launch: Launch) -> None:
        """Have `work` done in a launch, with that of the other fits; return when it is done.

        Parameters
        ----------
        work : object
            An epoch of a fit that has entered `fit`.
        launch : callable
            Does a sequence of works; works of the same function share its calls. If it raises, it
            has changed nothing.

        Raises
        ------
        Exception
            What `launch` raises for this work alone.
        KeyboardInterrupt
            Ctrl-C came while this thread launched; the work is done.
        """
        job = _Job(work, launch)
        until = time.monotonic() + LINGER
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()
            while not job.done:
                left = until - time.monotonic()
                ready = len(self._waiting) >= self._fits or left <= 0
                if self._launching or job not in self._waiting or not ready:
                    self._changed.wait(None if self._launching else max(left, 1e-3))
                else:
                    self._lead()
        if job.error is not None:
            raise job.error

    def _lead(self) -> None:
        """Launch all that waits; the lock is held at the beginning and at the end."""
        jobs, self._waiting, self._launching = self._waiting, [], True
        self._changed.release()
        try:
            with InterruptGuard() as guard:  # Ctrl-C in the midst would leave others half trained
                for launch in dict.fromkeys(job.launch for job in jobs):
                    _launch(launch, [job for job in jobs if job.launch is launch])
        finally:
            self._changed.acquire()
            self._launching = False
            for job in jobs:
                job.done = True
            self._changed.notify_all()
        if guard.requested:
            raise KeyboardInterrupt


def _launch(launch: Launch, jobs: list[_Job]) -> None:
    """Launch the jobs together, or if that fails each alone, so that the one at fault is found."""
    try:
        launch([job.work for job in jobs])
    except Exception as error:
        if len(jobs) == 1:
            jobs[0].error = error
            return
        for job in jobs:
            _launch(launch, [job])


class Shared:
    """The rounds in which fits of this process train now, in whatever thread.

    Attributes
    ----------
    rounds : Rounds or None
        The rounds; None if each fit trains for itself.
    """

    def __init__(self) -> None:
        self.rounds: Rounds | None = None
        self._users, self._lock = 0, threading.Lock()
        self._devices: list[itertools.cycle[str]] = []  # of the contexts, the innermost last

    @contextlib.contextmanager
    def together(self) -> Iterator[Rounds]:
        """Have all fits train together; contexts of several threads may overlap."""
        with self._lock:
            own = self.rounds = self.rounds or Rounds()
            self._users += 1
        try:
            yield own
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self.rounds = None

    @contextlib.contextmanager
    def spread(self, devices: Sequence[str]) -> Iterator[None]:
        """Have fits that may choose their GPU take these in turn, in the order in which they come.

        Parameters
        ----------
        devices : sequence of str
            Names of GPUs; several contexts may be open.
        """
        own = itertools.cycle(devices)
        with self._lock:
            self._devices.append(own)
        try:
            yield
        finally:
            with self._lock:  # by identity: contexts may end in any order
                self._devices = [each for each in self._devices if each is not own]

    def next_device(self, chosen: str) -> str:
        """Return the GPU of a fit that may choose: the next in turn, or `chosen` if none are."""
        with self._lock:
            return next(self._devices[-1]) if self._devices else chosen


SHARED = Shared()
