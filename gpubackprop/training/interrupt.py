"""Ctrl-C ends training after the current step; a second one ends it at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class InterruptGuard:
    """Context manager; the first Ctrl-C sets `requested`, the second raises KeyboardInterrupt.

    Outside the main thread Python delivers no signals, and nothing is installed.

    Parameters
    ----------
    speaks : bool
        Whether the first Ctrl-C is answered on stderr: of several ranks one answers.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.requested, self._speaks = False, speaks
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)
            # A program that ignores or handles Ctrl-C in its own way keeps it.
            if self._previous is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._handle)
                self._installed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A callback may have put its own handler there in the meantime.
        if self._installed and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if not self._speaks:
            return
        # The signal may have come in the middle of another print, which then refuses a second one.
        with contextlib.suppress(RuntimeError, OSError, ValueError):
            print(
                "\ninterrupted: stopping after this step (Ctrl-C again to stop at once)",
                file=sys.stderr,
                flush=True,
            )
