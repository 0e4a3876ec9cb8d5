"""Clocks: time on the host, by CUDA events of CuPy or PyTorch, or by waiting for JAX."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.library import import_cupy

Run = Callable[[], Any]
Times = tuple[float, float]  # seconds of a call: by the clock, and until the host was free again
MOST_AHEAD = 1 << 10  # calls that keep a GPU busy while others are queued


@dataclass
class Work:
    """A contestant, set up.

    Attributes
    ----------
    run : does the work once; on a GPU it returns when the work is queued.
    outputs : the results of the first run as host arrays; called once, before `run`.
    units : pieces of work in a run (steps), by which its time is divided.
    replay : the same as a CUDA graph; None where it cannot be captured, `uncaptured` says why.
    capture : makes `replay` when the results were compared, where it would change them.
    scale : factor of the time (a limit is measured on other sizes than the case's).
    clock : times that many calls instead of the place's, where that is not fit for it.
    remark : what turned out to be different about it.
    """

    run: Run
    outputs: Callable[[], dict[str, Any]]
    units: int = 1
    replay: Run | None = None
    uncaptured: str = ""
    scale: float = 1.0
    clock: Callable[[int], Times] | None = None
    capture: Callable[[], tuple[Run | None, str]] | None = None
    remark: Callable[[], str] = str


class Place:
    """The host, and what every place can do."""

    device = "cpu"
    xp: Any = np

    def time(self, run: Run, count: int) -> Times:
        """Seconds of one of `count` calls."""
        start = time.perf_counter()
        for _ in range(count):
            run()
        seconds = (time.perf_counter() - start) / count
        return seconds, seconds

    def wait(self) -> None:
        """Until the device has done what was queued."""

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


class CupyPlace(Place):
    """A GPU through CuPy; events on the current stream."""

    def __init__(self, device: str) -> None:
        self.device, self.xp = device, import_cupy()
        self.xp.cuda.Device(number(device)).use()
        self._pools: list[Any] = []
        self._ahead = 1

    def time(self, run: Run, count: int) -> Times:
        begin, end, issued = self._queue(run, count)
        return self._between(begin, end) / count, issued

    def _queue(self, run: Run, count: int) -> tuple[Any, Any, float]:
        """Events before and after that many calls, and the host's seconds for each."""
        begin, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        begin.record()
        start = time.perf_counter()
        for _ in range(count):
            run()
        issued = (time.perf_counter() - start) / count
        end.record()
        return begin, end, issued

    def _between(self, begin: Any, end: Any) -> float:
        end.synchronize()
        return float(self.xp.cuda.get_elapsed_time(begin, end)) * 1e-3

    def queued_time(self, run: Run, count: int, busy: Run) -> Times:
        """As `time`, of the device alone: it does `busy`, as often as it takes, until the host has
        queued all the calls."""
        while True:
            for _ in range(self._ahead):
                busy()
            begin, end, issued = self._queue(run, count)
            host_was_late = begin.done
            seconds = self._between(begin, end)
            if not host_was_late or self._ahead >= MOST_AHEAD:
                return seconds / count, issued
            self._ahead *= 2

    def wait(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()

    def release(self) -> None:
        self.wait()
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
            return None, _first_line(error)
        self._pools.append(pool)
        return graph.launch, ""

    def host(self, array: Any) -> np.ndarray:
        return np.asarray(array.get() if hasattr(array, "get") else array)

    def l2_bytes(self) -> int:
        return int(self.xp.cuda.Device().attributes.get("L2CacheSize", 0)) or 64 << 20


class TorchPlace(Place):
    """PyTorch on a GPU; events on its current stream."""

    def __init__(self, device: str) -> None:
        self.device, self.torch = device, importlib.import_module("torch")
        self.torch.cuda.set_device(number(device))

    def time(self, run: Run, count: int) -> Times:
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        start = time.perf_counter()
        for _ in range(count):
            run()
        issued = (time.perf_counter() - start) / count
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3 / count, issued

    def wait(self) -> None:
        self.torch.cuda.synchronize()

    def release(self) -> None:
        self.wait()
        self.torch.cuda.empty_cache()

    def capture(self, run: Run) -> tuple[Run | None, str]:
        """As PyTorch's documentation has it: warmed up on a side stream, then captured."""
        cuda = self.torch.cuda
        try:
            side = cuda.Stream()
            side.wait_stream(cuda.current_stream())
            with cuda.stream(side):
                for _ in range(3):
                    run()
            cuda.current_stream().wait_stream(side)
            graph = cuda.CUDAGraph()
            with cuda.graph(graph):
                run()
        except Exception as error:
            return None, _first_line(error)
        return graph.replay, ""

    def host(self, array: Any) -> np.ndarray:
        """In its own dtype, by which it is compared; bfloat16 by its bits."""
        array = array.detach().cpu()
        if array.dtype != self.torch.bfloat16:
            return np.asarray(array)
        bits: np.ndarray = array.view(self.torch.int16).numpy()
        return bits.view(importlib.import_module("ml_dtypes").bfloat16)

    def l2_bytes(self) -> int:
        properties = self.torch.cuda.get_device_properties(self.device)
        return int(getattr(properties, "L2_cache_size", 0)) or 64 << 20


class JaxPlace(Place):
    """JAX on any device: its work is queued, and waited for once, after the last call."""

    def __init__(self, device: str) -> None:
        self.device, self.jax = device, importlib.import_module("jax")

    def time(self, run: Run, count: int) -> Times:
        start = time.perf_counter()
        for _ in range(count):
            out = run()
        issued = (time.perf_counter() - start) / count
        self.jax.block_until_ready(out)
        return (time.perf_counter() - start) / count, issued

    def l2_bytes(self) -> int:
        return 0 if self.device == "cpu" else 64 << 20


def number(device: str) -> int:
    """1 of "cuda:1"."""
    return int(device.partition(":")[2] or 0)


def _first_line(error: BaseException) -> str:
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
