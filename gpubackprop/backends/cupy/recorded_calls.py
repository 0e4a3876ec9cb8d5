"""Plan once, run many, on a GPU: the calls of a step, replayed one by one or as a CUDA graph.

A recorded call holds its arrays. Launch shapes, checks, casts and scratch memory are settled while
recording, so a replay is a loop of launches: this package allocates nothing and does not wait.
If all of them can be captured, they are a CUDA graph: products by cuBLASLt can be, those through
CuPy 14 cannot (docs/decisions/2026-11-28-cublaslt.md).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from gpubackprop.backends.cupy import dependent
from gpubackprop.backends.cupy.launcher import Launcher
from gpubackprop.backends.cupy_launch import Launch
from gpubackprop.errors import one_line

Call = tuple[Callable[..., Any], tuple[Any, ...]]


def _missing(*_: Any) -> None:
    raise AssertionError("recorded calls were run before they were complete")


class RecordedCalls:
    """Calls: ``recorded(f, *args)`` records, ``recorded.run()`` issues on the current stream.

    Attributes
    ----------
    obstacle : str
        The first recorded call that a graph cannot hold, or "".
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.obstacle = ""
        self._launches: dict[int, Launch] = {}  # launches whose entries are missing in `calls`
        self._followers: frozenset[int] = frozenset()  # launches that may start before their turn

    @property
    def capturable(self) -> bool:
        return not self.obstacle

    def __call__(self, function: Callable[..., Any], *args: Any) -> None:
        self.calls.append((function, args))

    def launch(self, launch: Launch, *args: Any) -> None:
        """Record a call of the launch's entry; `complete` inserts the entry."""
        self._launches[len(self.calls)] = launch
        self(_missing, *args)

    def cut(self, begin: int) -> tuple[list[Call], dict[int, Launch]]:
        """Take back the calls from number `begin` on; return them as `put_back` takes them."""
        calls, self.calls = self.calls[begin:], self.calls[:begin]
        places = [place for place in self._launches if place >= begin]
        return calls, {place: self._launches.pop(place) for place in places}

    def put_back(self, cut: tuple[list[Call], dict[int, Launch]]) -> None:
        """Record what `cut` has returned, behind as many calls as it was."""
        self.calls += cut[0]
        self._launches |= cut[1]

    def complete(self, launcher: Launcher) -> None:
        """Resolve every launch to its compiled kernel, compiling missing ones in parallel."""
        launcher.compile_together(self._launches.values())
        for place, launch in self._launches.items():
            self.calls[place] = launcher.entry(launch), self.calls[place][1]
        self._followers = dependent.followers(self._launches, launcher.properties.capability)
        self._launches.clear()

    def run(self) -> None:
        for function, args in self.calls:
            function(*args)

    def capture(self, cupy: Any) -> Any:
        """Return the calls as a CUDA graph, without executing them; the kernels are compiled.

        Kernels that may start before their turn do, unless the driver refuses.
        """
        if self._followers:
            with suppress(Exception):
                return self._captured(cupy, partial(self._run_dependent, cupy))
        return self._captured(cupy, self.run)

    def _run_dependent(self, cupy: Any) -> None:
        for place, (function, args) in enumerate(self.calls):
            if place in self._followers:
                dependent.launch_behind(cupy, function, *args)
            else:
                function(*args)

    @staticmethod
    def _captured(cupy: Any, run: Callable[[], None]) -> Any:
        stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        with stream:
            stream.begin_capture()
            try:
                run()
            except BaseException:
                with suppress(Exception):  # the capture is over, with an error that says less
                    stream.end_capture()
                raise
            return stream.end_capture()


class Plan:
    """Recorded calls; each call of this issues them again, on the current stream.

    The calls of a plan share working memory. A call on another stream than the previous one
    therefore waits for that one, and the memory goes back to its pool after the last call.

    Attributes
    ----------
    uncaptured : str
        Why the calls are issued one by one; "" if they are a CUDA graph.
    launches : int
        Number of the calls.
    """

    uncaptured = ""

    def __init__(self, cupy: Any, recorded: RecordedCalls) -> None:
        self._cupy, self._recorded, self._graph = cupy, recorded, None
        self.launches = len(recorded.calls)
        self._made = self._last = cupy.cuda.get_current_stream()
        if not recorded.capturable:
            self.uncaptured = "a call that cannot be captured: " + recorded.obstacle
            return
        try:
            self._graph = recorded.capture(cupy)
        except Exception as error:  # a call that cannot be captured may raise anything
            self.uncaptured = f"the capture failed: {one_line(error)}"

    def __call__(self) -> None:
        current = self._cupy.cuda.get_current_stream()
        if current != self._last:
            self._after_the_last_call(current)
            self._last = current
        if self._graph is None:
            self._recorded.run()
        else:  # a graph has only the addresses, so the recorded calls keep the arrays
            self._graph.launch()

    def _after_the_last_call(self, stream: Any) -> None:
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(self._last)
        stream.wait_event(event)

    def close(self) -> None:
        """Let the pool's stream wait for the last call, before the arrays go back there."""
        if self._last != self._made:
            self._after_the_last_call(self._made)
