"""Clocks: time on the host, and by CUDA events; CuPy's. See `peer_timers` for others."""

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
Times = tuple[float, float]  # seconds of a call: by the clock, and until the host was free again
MOST_AHEAD = 1 << 10  # calls that keep a GPU busy while others are queued
QUEUED = 256  # launches at a time behind those: fewer than make the host wait for the GPU
MOST_QUEUES = 8  # of those in a round
COLD_CALLS = 32  # in a round with an empty cache
SWEPT = 1 << 28  # bytes at least, for which a card needs longer than the host for a launch
L2_TIMES = 3  # what empties a second-level cache is more than this many times as large
# The kernel of `CupyTimer.reader`: threads of a block, packs of 16 bytes that it has in flight, and
# blocks of a multiprocessor. First choices; not measured on a GPU.
READ_KERNEL = Path(__file__).with_name("read.cu")
READ_THREADS, READ_PACKS, READ_BLOCKS = 256, 256 * 8, 8


@dataclass
class Beside:
    """What a GPU does beside the timed work.

    Attributes
    ----------
    warm_seconds : of work before each timed round: an idle GPU has a fifth of its clock.
    busy_bytes : of the copies that keep it busy while the host fills its queue.
    sweep_bytes : that are read to empty the second-level cache; 0 for `L2_TIMES` its size.
    """

    warm_seconds: float = 0.03
    busy_bytes: int = 1 << 28
    sweep_bytes: int = 0


BESIDE = Beside()


@dataclass
class Work:
    """A provider, set up.

    Attributes
    ----------
    run : does the work once; on a GPU it returns when the work is queued.
    outputs : the results of the first run as host arrays; called once, before `run`.
    units : pieces of work in a run (steps), by which its time is divided.
    replay : the same as a CUDA graph; None where it cannot be captured, `uncaptured` says why.
    single : one piece of work, where a run is several of them.
    capture : makes `replay` when the results were compared, where it would change them.
    scale : factor of the time (a limit is measured on other sizes than the case's).
    launches : of a run, where it is always timed with a GPU's queue filled; 0 elsewhere.
    remark : what turned out to be different about it.
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
    """The host, and what every place can do."""

    device = "cpu"
    xp: Any = np
    # Called while the device works on what a round has queued, to read its clocks.
    watch: Callable[[], object] = staticmethod(lambda: None)

    def time(self, run: Run, count: int) -> Times:
        """Seconds of one of `count` calls."""
        start = time.perf_counter()
        for _ in range(count):
            run()
        seconds = (time.perf_counter() - start) / count
        return seconds, seconds

    def warm(self, run: Run) -> None:
        """Work for a moment, so that a device that idled has its full clock; not on the host."""

    def wait(self) -> None:
        """Until the device has done what was queued."""

    def finish(self, run: Run, count: int) -> None:
        """So many calls, until the device has done them."""
        for _ in range(count):
            run()
        self.wait()

    def release(self) -> None:
        """Give memory back that a pool keeps."""

    def capture(self, run: Run) -> tuple[Run | None, str]:
        """`run` as a CUDA graph; or None and why not."""
        return None, ""

    def host(self, array: Any) -> np.ndarray:
        return np.asarray(array)

    def l2_bytes(self) -> int:
        """Of the GPU's second-level cache; 0 on the host."""
        return 0


class DeviceTimer(Timer):
    """Any accelerator."""

    def warm(self, run: Run) -> None:
        """Twice as many calls each time, so that the device waits for the host but rarely."""
        end, calls = time.perf_counter() + BESIDE.warm_seconds, 1
        while time.perf_counter() < end:
            self.finish(run, calls)
            calls = min(2 * calls, QUEUED)


class EventTimer(DeviceTimer):
    """A GPU whose events are the clock, on the current stream."""

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
        """A copy on the device of that many bytes."""
        raise NotImplementedError

    def release(self) -> None:
        self._busy = None

    def time(self, run: Run, count: int) -> Times:
        begin, end, issued = self._queue(run, count)
        return self._between(begin, end) / count, issued

    def _queue(self, run: Run, count: int, *, watch: bool = True) -> tuple[Any, Any, float]:
        """Events before and after that many calls, and the host's seconds for each."""
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
        """As `time`, of the device alone: it copies until the host has queued the calls, in as many
        parts as the queue makes necessary. `launches`: of one call."""
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
    """A GPU through CuPy."""

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
        noise = np.random.default_rng(0).bytes(1 << 18)  # zeros would take less power to move
        source = self.xp.asarray(np.resize(np.frombuffer(noise, np.uint8), nbytes))
        target = self.xp.empty_like(source)
        return lambda: target.data.copy_from_device_async(source.data, nbytes)

    def reader(self, words: Any) -> Run:
        """One read of an array of uint32, 16 bytes at a time; the run gives its sums by block."""
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
        """As `time`, each call with a second-level cache that was emptied by reading something
        else, during which the host launches the call."""
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
        """Temporaries come from a pool that belongs to the graph: its blocks are used by nothing
        else, and exist before the capture, which may not allocate."""
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
        except Exception as error:  # what cannot be captured raises what it likes
            return None, first_line(error)
        self._pools.append(pool)
        return graph.launch, ""

    def host(self, array: Any) -> np.ndarray:
        return np.asarray(array.get() if hasattr(array, "get") else array)

    def l2_bytes(self) -> int:
        return int(self.xp.cuda.Device().attributes.get("L2CacheSize", 0)) or 64 << 20


def number(device: str) -> int:
    """1 of "cuda:1"."""
    return int(device.partition(":")[2] or 0)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def rotated(works: list[Work]) -> Work:
    """Several sets of arrays, one after another, so that a GPU's cache holds none of them."""
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
