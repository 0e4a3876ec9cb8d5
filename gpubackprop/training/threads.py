"""Fits that run side by side, each in a thread, and stop together at Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from gpubackprop.training.interrupt import InterruptGuard
from gpubackprop.training.rounds import SHARED

_WAIT = 0.05  # seconds between two looks at Ctrl-C
_own = threading.local()


def side_by_side(fits: Sequence[Callable[[], None]]) -> list[BaseException | None]:
    """Run each fit in a thread, and have them train together; return the error of each, or None.

    The first Ctrl-C makes `stop_requested` true in these threads. The second one raises
    KeyboardInterrupt here, while they come to their ends.

    Parameters
    ----------
    fits : sequence of callable
        Functions without arguments, each of which fits once.
    """
    stop = threading.Event()
    errors: list[BaseException | None] = [None] * len(fits)

    def run(number: int, place: AbstractContextManager[None]) -> None:
        _own.stop = stop
        try:
            with place:
                fits[number]()
        except BaseException as error:
            errors[number] = error

    with SHARED.together() as rounds, InterruptGuard() as guard:
        threads = [
            threading.Thread(target=run, args=(number, place), daemon=True)
            for number, place in enumerate(rounds.reserve(len(fits)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_WAIT)
                if guard.requested:
                    stop.set()
    return errors


def stop_requested() -> bool:
    """Return whether the fit of this thread is to end."""
    stop: threading.Event | None = getattr(_own, "stop", None)
    return stop is not None and stop.is_set()
