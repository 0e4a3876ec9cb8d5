"""Run a piece of a test in several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable


def run_in_threads(work: Callable[[int], None], count: int = 4) -> None:
    """Run ``work(0)`` ... ``work(count - 1)``, a thread each; return when all have ended."""
    callers = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
