"""Timers: the host's clock, CUDA events, and CuPy. `peer_timers` has the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.compiling import compiled
from gpubackprop.backends.cupy.library import import_cupy

Run = Callable[[], Any]
Times = tuple[float, float]  # seconds of a call, and until the host was free again
MOST_AHEAD = 1 << 10  # at most so many copies keep a GPU busy while others are queued
QUEUED = 256  # launches at a time after those: few enough that the host never waits
MOST_QUEUES = 8  # a round is split into at most so many queues
COLD_CALLS = 32  # calls in a round with an empty cache
SWEPT = 1 << 28  # at least so many bytes: reading them takes longer than a launch
L2_TIMES = 3  # to empty a second-level cache, read more than this many times its size
# The kernel of `CupyTimer.reader`: threads in a block, packs of 16 bytes that a block has in
# flight, and blocks on a multiprocessor. First choices; not measured on a GPU.
READ_KERNEL = Path(__file__).with_name("read.cu")
READ_THREADS, READ_PACKS, READ_BLOCKS = 256, 256 * 8, 8


@dataclass
class Beside:
    """The work that a GPU does around the timed work.

    Attributes
    ----------
    warm_seconds : seconds of work before each timed round: an idle GPU has a fifth of its clock.
    busy_bytes : bytes of the copies that keep it busy while the host fills its queue.
    sweep_bytes : bytes that are read to empty the second-level cache; 0 means `L2_TIMES` its size.
    """

    warm_seconds: float = 0.03
    busy_bytes: int = 1 << 28
    sweep_bytes: int = 0


BESIDE = Beside()


@dataclass
class Work:
    """The work of a provider that is set up.

    Attributes
    ----------
    run : function that does the work once; on a GPU it returns when the work is queued.
    outputs : function that returns the first run's results as host arrays. It is called once,
        before `run`.
    units : pieces of work (steps) in a run; its time is divided by them.
    replay : `run` as a CUDA graph; None if it cannot be captured.
    uncaptured : why it cannot be captured.
    single : function that does one piece of work, if a run does several.
    capture : function that makes `replay` after the comparison, if it would change the results.
    scale : factor of the time; a limit is measured at another size than the case's.
    launches : launches in a run that is always timed with a filled queue; 0 for other runs.
    remark : function that says what was different about it.
    """

    run: Run
    outputs: Callable[[], dict[str, Any]]
    units: int = 1
    replay: Run | None = None
    uncaptured: str = ""
    scale: float = 1.0
    launches: int = 0
    single: Run | None = None
    capture: Callable[[], tuple[Run | None, str]] | None = None
    remark: Callable[[], str] = str


class Timer:
    """The host's clock, and the methods of every timer."""

    device = "cpu"
    xp: Any = np
    # It is called to read the clocks while the device works on a round's queue.
    watch: Callable[[], object] = staticmethod(lambda: None)

    def time(self, run: Run, count: int) -> Times:
        """Return the seconds of one call, from `count` calls."""
        start = time.perf_counter()
        for _ in range(count):
            run()
        seconds = (time.perf_counter() - start) / count
        return seconds, seconds

    def warm(self, run: Run) -> None:
        """Work for a moment so that an idle device reaches its full clock; not on the host."""

    def wait(self) -> None:
        """Wait until the device has done all queued work."""

    def finish(self, run: Run, count: int) -> None:
        """Make `count` calls and wait until the device has done them."""
        for _ in range(count):
            run()
        self.wait()

    def release(self) -> None:
        """Free the memory that a pool keeps."""

    def capture(self, run: Run) -> tuple[Run | None, str]:
        """Return `run` as a CUDA graph, or None and the reason."""
        return None, ""

    def host(self, array: Any) -> np.ndarray:
        return np.asarray(array)

    def l2_bytes(self) -> int:
        """Return the bytes of the GPU's second-level cache; 0 on the host."""
        return 0


class DeviceTimer(Timer):
    """Any accelerator."""

    def warm(self, run: Run) -> None:
        """Double the number of calls each time, so that the device rarely waits for the host."""
        end, calls = time.perf_counter() + BESIDE.warm_seconds, 1
        while time.perf_counter() < end:
            self.finish(run, calls)
            calls = min(2 * calls, QUEUED)


class EventTimer(DeviceTimer):
    """A GPU that is timed by events on the current stream."""

    def __init__(self) -> None:
        self._ahead = 1
        self._busy: Run | None = None

    def event(self) -> Any:
        raise NotImplementedError

    def reached(self, event: Any) -> bool:
        raise NotImplementedError

    def milliseconds(self, begin: Any, end: Any) -> float:
        raise NotImplementedError

    def copier(self, nbytes: int) -> Run:
        """Return a function that copies that many bytes on the device."""
        raise NotImplementedError

    def release(self) -> None:
        self._busy = None

    def time(self, run: Run, count: int) -> Times:
        begin, end, issued = self._queue(run, count)
        return self._between(begin, end) / count, issued

    def _queue(self, run: Run, count: int, *, watch: bool = True) -> tuple[Any, Any, float]:
        """Make that many calls between two events; return the events and the host's seconds a
        call."""
        begin, end = self.event(), self.event()
        begin.record()
        start = time.perf_counter()
        for _ in range(count):
            run()
        issued = (time.perf_counter() - start) / count
        end.record()
        if watch:
            self.watch()
        return begin, end, issued

    def _between(self, begin: Any, end: Any) -> float:
        end.synchronize()
        return self.milliseconds(begin, end) * 1e-3

    def queued_time(self, run: Run, count: int, launches: int = 1) -> Times:
        """Return `time` of the device alone: it copies until the host has queued the calls.

        The calls are split into as many parts as the queue makes necessary. `launches` is the
        number of launches in one call.
        """
        most = max(1, QUEUED // launches)
        queues = max(1, min(MOST_QUEUES, count // most))
        times = [self._queued(run, min(count, most)) for _ in range(queues)]
        return sum(t for t, _ in times) / queues, sum(t for _, t in times) / queues

    def _queued(self, run: Run, count: int) -> Times:
        self._busy = self._busy or self.copier(BESIDE.busy_bytes)
        while True:
            for _ in range(self._ahead):
                self._busy()
            begin, end, issued = self._queue(run, count)
            host_was_late = self.reached(begin)
            seconds = self._between(begin, end)
            if not host_was_late or self._ahead >= MOST_AHEAD:
                return seconds / count, issued
            self._ahead *= 2


class CupyTimer(EventTimer):
    """A GPU, through CuPy."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.xp = device, import_cupy()
        self.xp.cuda.Device(number(device)).use()
        self._pools: list[Any] = []
        self._sweep: Run | None = None

    def event(self) -> Any:
        return self.xp.cuda.Event()

    def reached(self, event: Any) -> bool:
        return bool(event.done)

    def milliseconds(self, begin: Any, end: Any) -> float:
        return float(self.xp.cuda.get_elapsed_time(begin, end))

    def copier(self, nbytes: int) -> Run:
        noise = np.random.default_rng(0).bytes(1 << 18)  # copying zeros would take less power
        source = self.xp.asarray(np.resize(np.frombuffer(noise, np.uint8), nbytes))
        target = self.xp.empty_like(source)
        return lambda: target.data.copy_from_device_async(source.data, nbytes)

    def reader(self, words: Any) -> Run:
        """Return a read of an array of uint32, 16 bytes at a time; a run gives the sum of each
        block."""
        cupy, index, packs = self.xp, number(self.device), words.nbytes // 16
        entry = compiled(cupy, index, (READ_KERNEL.as_posix(), "read_16_bytes", ()))
        most = READ_BLOCKS * int(cupy.cuda.Device(index).attributes["MultiProcessorCount"])
        blocks = max(1, min(most, -(-packs // READ_PACKS)))
        sums = cupy.empty(blocks, np.uint32)
        arguments = (words, np.int64(packs), sums)

        def read() -> Any:
            entry((blocks,), (READ_THREADS,), arguments)
            return sums

        return read

    def cold_time(self, run: Run, count: int) -> Times:
        """Return `time` with an empty second-level cache before each call.

        Reading other memory empties it; meanwhile the host launches the call.
        """
        if self._sweep is None:
            swept = BESIDE.sweep_bytes or max(L2_TIMES * self.l2_bytes(), SWEPT)
            self._sweep = self.reader(self.xp.zeros(swept // 4, np.uint32))
        pairs, issued = [], 0.0
        calls = min(count, COLD_CALLS)
        for call in range(calls):
            self._sweep()
            begin, end, one = self._queue(run, 1, watch=call == calls - 1)
            pairs.append((begin, end))
            issued += one
        seconds = sum(self._between(*pair) for pair in pairs)
        return seconds / len(pairs), issued / len(pairs)

    def wait(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()

    def release(self) -> None:
        super().release()
        self.wait()
        self._sweep = None
        self._pools.clear()
        self.xp.get_default_memory_pool().free_all_blocks()

    def capture(self, run: Run) -> tuple[Run | None, str]:
        """Capture `run`; its temporaries come from a pool that belongs to the graph.

        Nothing else uses the pool's blocks. They exist before the capture, which may not allocate.
        """
        cuda = self.xp.cuda
        pool, stream = self.xp.cuda.MemoryPool(), cuda.Stream(non_blocking=True)
        try:
            with cuda.using_allocator(pool.malloc), stream:
                for _ in range(2):
                    run()
                stream.synchronize()
                stream.begin_capture()
                try:
                    run()
                finally:
                    graph = stream.end_capture()
        except Exception as error:  # calls that cannot be captured raise different errors
            return None, first_line(error)
        self._pools.append(pool)
        return graph.launch, ""

    def host(self, array: Any) -> np.ndarray:
        return np.asarray(array.get() if hasattr(array, "get") else array)

    def l2_bytes(self) -> int:
        return int(self.xp.cuda.Device().attributes.get("L2CacheSize", 0)) or 64 << 20


def number(device: str) -> int:
    """Return the number in a device's name: 1 for "cuda:1"."""
    return int(device.partition(":")[2] or 0)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def rotated(works: list[Work]) -> Work:
    """Use several sets of arrays in turn, so that a GPU's cache holds none of them."""
    if len(works) == 1:
        return works[0]
    runs, replays = [work.run for work in works], [work.replay for work in works]
    numbers = {"run": 0, "replay": 0}

    def turn(kind: str, calls: list[Any]) -> Run:
        def run() -> Any:
            numbers[kind] = (numbers[kind] + 1) % len(calls)
            return calls[numbers[kind]]()

        return run

    first = works[0]
    return Work(
        turn("run", runs), first.outputs, first.units,
        turn("replay", replays) if all(replays) else None, first.uncaptured, first.scale,
        remark=first.remark,
    )  # fmt: skip
