"""Functions that run side by side, each in a thread, and stop together at Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from gpubackprop.training.interrupt import InterruptGuard

_WAIT = 0.05  # seconds between two looks at Ctrl-C
_own = threading.local()


def side_by_side(functions: Sequence[Callable[[], None]]) -> list[BaseException | None]:
    """Run each function in a thread; return the error of each, or None.

    The first Ctrl-C makes `stop_requested` true in these threads. The second one raises
    KeyboardInterrupt here, while they come to their ends.

    Parameters
    ----------
    functions : sequence of callable
        Functions without arguments.
    """
    stop = threading.Event()
    errors: list[BaseException | None] = [None] * len(functions)

    def run(place: int) -> None:
        _own.stop = stop
        try:
            functions[place]()
        except BaseException as error:
            errors[place] = error

    threads = [
        threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(functions))
    ]
    with InterruptGuard() as guard:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_WAIT)
                if guard.requested:
                    stop.set()
    return errors


def stop_requested() -> bool:
    """Return whether the function of this thread is to end."""
    stop: threading.Event | None = getattr(_own, "stop", None)
    return stop is not None and stop.is_set()
