"""A second stream beside that of a step: what is issued there runs while the step goes on.

In a capture the second stream is captured with the first, because it waits for an event there
(CUDA programming guide, "Cross-stream Dependencies and Events"). So the graph has two branches,
which meet where the step joins them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class SecondStream:
    """A stream whose calls are behind what the current stream has been given so far.

    Parameters
    ----------
    cupy : module
        CuPy.
    index : int
        Number of the device.
    """

    def __init__(self, cupy: Any, index: int) -> None:
        self._cupy = cupy
        with cupy.cuda.Device(index):
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._begin, self._end = (cupy.cuda.Event(disable_timing=True) for _ in range(2))

    def issue(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function that queues work on the current stream, with this as the current one.

        Parameters
        ----------
        function : callable
            It neither waits nor allocates.
        *args : object
            Its arguments.
        """
        self._begin.record(self._cupy.cuda.get_current_stream())
        self._stream.wait_event(self._begin)
        with self._stream:
            function(*args)

    def join(self) -> None:
        """Let the current stream wait for all that was issued here."""
        self._end.record(self._stream)
        self._cupy.cuda.get_current_stream().wait_event(self._end)
