"""Streams, events, graphs and the memory pool of the stand-in for CuPy.

Nothing that is queued runs before something waits for it. Then the streams take turns in a random
order with a seed, as far as events and the default stream leave it open. A block without references
goes back to the pool of the stream on which it was taken, and is handed out again at once,
poisoned: if another stream still uses it, NaN appears.

Rules from CuPy 14 (main of 2026-08-20) and the CUDA programming guide, each with its place:

- one pool for each device and stream; a freed block goes to the stream of its allocation
  (cupy/cuda/memory.pyx, `SingleDeviceMemoryPool._malloc`, `free`)
- the current stream is that of the current device and thread (cupy/cuda/stream.pyx, `_ThreadLocal`)
- ``with stream`` on another device is a RuntimeError (stream.pyx, `check_stream_device_match`)
- the default stream (ptr 0) waits for the blocking streams of its device and they for it; a
  non-blocking stream waits for no other (programming guide, "Default stream")
- the default stream cannot be captured (stream.pyx, `begin_capture`); a call that a captured stream
  receives becomes a node; waiting for that stream is an error that invalidates the capture
- a graph holds addresses and no arrays (cupy/cuda/graph.pyx, `Graph`)
- a capture is CuPy's, in the relaxed mode: what another thread of the host does meanwhile is its own
  (stream.pyx, `begin_capture`); what the capturing thread does, the stand-in refuses all the same
- a captured stream cannot wait for an event of a stream that is not captured, and `end_capture`
  raises an error of the capture again (runtime API, cudaStreamWaitEvent, cudaStreamEndCapture)
- a stream that waits for an event of a captured stream is captured with it, until the capture ends;
  it must be joined by then, the stream that began the capture alone can end it, and nobody waits for
  an event of a capture that is over (programming guide, "Cross-stream Dependencies and Events",
  "Prohibited and Unhandled Operations")
"""

from __future__ import annotations

import itertools
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from tests.emulator.order import Clock, Order, merge

ALIGNMENT = 512  # bytes, as in CuPy's memory pool
POISON = 0xFF  # every byte of poisoned memory: NaN in each float type
RANK_SECONDS = 60.0  # for the thread of another rank to come to a collective call
LONGEST = 1024  # calls that a stream holds before its launches wait; CUDA's number is similar

Call = Callable[[], None]


class CUDARuntimeError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


@dataclass
class Counts:
    """What was done since `clear`.

    Attributes
    ----------
    kernels : counter
        Entries launched, by name; CuPy's elementwise kernels are among them.
    products : int
        Calls of cuBLAS.
    graphs : int
        Launches of graphs. Kernels and products of a graph count each time that it is launched, and
        not when they are captured.
    waits : int
        Times that the host has waited for the device.
    allocations : int
        Arrays made.
    uploads : int
        Copies from the host.
    compiled : int
        Entries compiled.
    """

    kernels: list[str] = field(default_factory=list)
    products: int = 0
    graphs: int = 0
    waits: int = 0
    allocations: int = 0
    uploads: int = 0
    compiled: list[str] = field(default_factory=list)

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]


class _Thread(threading.local):
    """The state that CUDA and CuPy keep for each thread of the host."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, list[Stream]] = {}  # by device, the current one last


class Machine:
    """All devices: the calls that are queued on them, and their memory.

    Attributes
    ----------
    devices : int
        Number of devices.
    memory : int
        Bytes of each.
    lazy : bool
        If False, each call runs when it is queued, for memory that others read too.
    """

    def __init__(self) -> None:
        self.counts, self._lock = Counts(), threading.RLock()
        self._more = threading.Condition(self._lock)  # a thread of the host has queued something
        self.reset()

    def reset(self, seed: int = 0, *, lazy: bool = True) -> None:
        self.devices, self.memory, self.lazy = 2, 1 << 34, lazy
        self.random, self.thread = random.Random(seed), _Thread()
        self.default: dict[int, Stream] = {}
        self.busy: set[Stream] = set()
        self.captured: set[Stream] = set()
        self.pools: dict[tuple[int, int], list[np.ndarray]] = {}
        self.number = 0  # the number of the call that was queued last
        self.order = Order()
        self.counts.clear()

    @property
    def device(self) -> int:
        """The current device of this thread."""
        return self.thread.device

    @device.setter
    def device(self, index: int) -> None:
        self.thread.device = index

    # -- streams ----------------------------------------------------------------------------------

    @property
    def stream(self) -> Stream:
        """The current stream of this thread on its current device."""
        stack = self.thread.streams.get(self.device)
        if stack:
            return stack[-1]
        if self.device not in self.default:
            self.default[self.device] = Stream(null=True)
        return self.default[self.device]

    def queue(
        self, call: Call | Mark, stream: Stream | None = None, *, collective: bool = False
    ) -> None:
        """Give a call to the (current) stream, or to the graph that is captured from it.

        `call` holds NumPy arrays and no `ndarray` of the stand-in; otherwise a block would never be
        free.
        """
        stream = stream or self.stream
        with self._lock:
            if stream.graph is not None:
                stream.graph.order.note(stream, call, collective)
                stream.graph.nodes.append((stream, call))
            else:
                self.order.note(stream, call, collective)
                self.append(stream, call)

    def count_kernel(self, name: str) -> None:
        (self.stream.graph or self.counts).kernels.append(name)

    def count_product(self) -> None:
        (self.stream.graph or self.counts).products += 1

    def append(self, stream: Stream, item: Call | Mark) -> None:
        with self._lock:
            self.number += 1
            stream.queue.append((self.number, item))
            self.busy.add(stream)
            self._more.notify_all()
            if not self.lazy or len(stream.queue) > LONGEST:
                self.run(stream)

    def wait(self, done: Callable[[], bool], what: str = "waiting for the device") -> None:
        """Make the host wait."""
        self.not_while_capturing(what)
        self.counts.waits += 1
        with self._lock:
            while not done():
                self.turn()

    def run(self, stream: Stream) -> None:
        with self._lock:
            while stream.queue:
                self.turn()

    def run_all(self) -> None:
        """Let all devices finish, without a wait of the host that counts."""
        with self._lock:
            while self.busy:
                self.turn()

    def turn(self) -> None:
        """Let one stream do one thing."""
        ready = sorted(
            (s for s in self.busy if self._ready(s)), key=lambda s: (s.device_id, s.number)
        )
        if not ready and self._another_thread_may_come():
            return
        assert ready, "the streams wait for one another, or for an event that nobody records"
        stream = self.random.choice(ready)
        _, item = stream.queue.popleft()
        if not stream.queue:
            self.busy.discard(stream)
        if isinstance(item, Mark):
            item.reached = True
        else:
            item()

    def _ready(self, stream: Stream) -> bool:
        number, item = stream.queue[0]
        if isinstance(item, _Wait) and not item.mark.reached:
            return False
        if stream.non_blocking:
            return True
        others = [s for s in self.busy if s.device_id == stream.device_id and not s.non_blocking]
        if stream.null:
            return all(s is stream or s.queue[0][0] > number for s in others)
        return all(not s.null or s.queue[0][0] > number for s in others)

    def _another_thread_may_come(self) -> bool:
        """Return whether a stream waits for a rank of NCCL, after giving its thread time to come."""
        fronts = [stream.queue[0][1] for stream in self.busy]
        if not any(isinstance(item, _Wait) and item.mark.elsewhere for item in fronts):
            return False
        assert self._more.wait(RANK_SECONDS), "a rank did not call NCCL as often as the others"
        return True

    def capturing_here(self) -> list[Stream]:
        """The streams that this thread of the host captures."""
        return [s for s in self.captured if s.capturing_thread == threading.get_ident()]

    def not_while_capturing(self, what: str) -> None:
        """Raise an error that invalidates the captures under way, as CUDA's does."""
        captured = self.capturing_here()
        for stream in captured:
            stream.invalid = True
        if captured:
            raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while capturing")

    # -- memory -----------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Block:
        """Return a block of the current stream's pool; it is poisoned when the stream gets there."""
        self.not_while_capturing("allocation")
        if nbytes > self.memory:
            raise OutOfMemoryError(
                f"Out of memory allocating {nbytes:,} bytes (allocated so far: 0)."
            )
        self.counts.allocations += 1
        stream, size = self.stream, -(-nbytes // ALIGNMENT) * ALIGNMENT
        free = self.pools.setdefault((self.device, stream.number), [])
        place = next((n for n, raw in enumerate(free) if raw.size == size), None)
        if place is not None:
            raw = free.pop(place)
        else:
            room = np.empty(size + ALIGNMENT, np.uint8)
            start = -room.ctypes.data % ALIGNMENT
            raw = room[start : start + size]
        self.queue(partial(raw.fill, POISON), stream)
        return Block(raw, nbytes, free)


class Block:
    """Memory of the pool, until there is no reference to this."""

    def __init__(self, raw: np.ndarray, nbytes: int, free: list[np.ndarray]) -> None:
        self.bytes = raw[:nbytes]
        weakref.finalize(self, free.append, raw).atexit = False


class Mark:
    """A place in a stream, for an event. `elsewhere`: another thread of the host may have to come.

    Attributes
    ----------
    clock : Clock
        What is done when it is reached.
    graph : Graph or None
        The capture to which it belongs.
    """

    reached = False
    elsewhere = False

    def __init__(self, clock: Clock | None = None, graph: Graph | None = None) -> None:
        self.clock, self.graph = dict(clock or {}), graph


class _Wait(Mark):
    def __init__(self, mark: Mark) -> None:
        super().__init__()
        self.mark = mark


class Event:
    """cupy.cuda.Event."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.disable_timing = disable_timing
        self.mark: Mark | None = None
        self.time: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or STATE.stream
        graph = stream.graph
        self.mark = Mark((graph.order if graph else STATE.order).clock(stream), graph)
        if graph is not None:
            assert self.disable_timing, "a capture has no times here"
            graph.nodes.append((stream, self.mark))
            return
        if not self.disable_timing:
            STATE.append(stream, self._note_time)
        STATE.append(stream, self.mark)

    def _note_time(self) -> None:
        self.time = time.perf_counter()

    def _reached(self) -> bool:
        if self.mark is None:
            return True
        if self.mark.graph is not None:
            raise CUDARuntimeError("cudaErrorCapturedEvent: the event was recorded in a capture")
        return self.mark.reached

    @property
    def done(self) -> bool:
        return self._reached()

    def synchronize(self) -> None:
        STATE.wait(self._reached, "waiting for an event")
        if self.mark is not None:
            STATE.order.host_has(self.mark.clock)


def elapsed(start_event: Event, end_event: Event) -> float:
    """Milliseconds: cupy.cuda.get_elapsed_time."""
    for event in (start_event, end_event):
        if event.mark is None:
            raise CUDARuntimeError("cudaErrorInvalidResourceHandle: an event was never recorded")
        if not event._reached():
            raise CUDARuntimeError("cudaErrorNotReady: an event was not waited for")
    return 1e3 * (end_event.time - start_event.time)  # type: ignore[operator]


class Graph:
    """The calls that were captured. It keeps no array alive.

    Attributes
    ----------
    nodes : list of (Stream, call)
        In the order of the capture.
    origin : Stream
        Where the capture began.
    order : Order
        What is before what in it.
    """

    def __init__(self, origin: Stream) -> None:
        self.nodes: list[tuple[Stream, Call | Mark]] = []
        self.origin, self.order = origin, Order(STATE.order.watches)
        self.kernels: list[str] = []
        self.products = 0
        self.when_launched: list[Callable[[Order, Stream], None]] = []

    def streams(self) -> list[Stream]:
        return list({id(stream): stream for stream, _ in self.nodes}.values())

    def launch(self, stream: Stream | None = None) -> None:
        """Queue the calls: those of other streams than the origin on streams of this launch."""
        STATE.counts.graphs += 1
        STATE.counts.kernels += self.kernels
        STATE.counts.products += self.products
        target = stream or STATE.stream
        others = {id(s): Stream(non_blocking=True) for s in self.streams() if s is not self.origin}
        assert target.graph is None or not others, "a graph of several streams in another capture"
        marks = {id(node): Mark() for _, node in self.nodes if type(node) is Mark}
        STATE.order.note(target, None)
        spans = [span for use in self.order.collectives for span in use.spans]
        STATE.order.use(target, spans, "the launch of a graph", collective=bool(spans))
        for check in self.when_launched:
            check(STATE.order, target)
        for origin, node in self.nodes:
            if isinstance(node, _Wait):
                node = _Wait(marks.get(id(node.mark), node.mark))
            else:
                node = marks.get(id(node), node)
            place = others.get(id(origin), target)
            if place.graph is None:
                STATE.append(place, node)
            else:
                place.graph.nodes.append((place, node))


class Stream:
    """cupy.cuda.Stream. Equal streams are one object; `number` stands for the address in `ptr`."""

    _numbers = itertools.count(1)

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.null, self.non_blocking = null, non_blocking
        self.number = self.ptr = 0 if null else next(self._numbers)
        self.device_id = STATE.device
        self.queue: deque[tuple[int, Call | Mark]] = deque()
        self.graph: Graph | None = None
        self.invalid, self.capturing_thread = False, 0

    def __enter__(self) -> Stream:
        if self.device_id != STATE.device:
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) does not match with "
                f"the current device ({STATE.device})"
            )
        STATE.thread.streams.setdefault(self.device_id, []).append(self)
        return self

    def __exit__(self, *error: object) -> None:
        STATE.thread.streams[self.device_id].pop()

    def begin_capture(self) -> None:
        if self.null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self._join(Graph(self))

    def _join(self, graph: Graph) -> None:
        self.graph, self.invalid = graph, False
        self.capturing_thread = threading.get_ident()
        STATE.captured.add(self)

    def end_capture(self) -> Graph:
        graph = self.graph
        if graph is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        if graph.origin is not self:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureUnmatched: the capture was begun on another stream"
            )
        captured = [stream for stream in STATE.captured if stream.graph is graph]
        invalid = any(stream.invalid for stream in captured)
        for stream in captured:
            stream.graph = None
            STATE.captured.discard(stream)
        if not invalid and graph.order.unjoined(self):
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureUnjoined: the capture has a stream that it does not wait for"
            )
        if invalid:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error "
                "during capture"
            )
        return graph

    def is_capturing(self) -> bool:
        return self.graph is not None

    @property
    def done(self) -> bool:
        return not self.queue

    def synchronize(self) -> None:
        """Wait; the default stream also waits for the streams for which it waits itself."""
        STATE.not_while_capturing("waiting for the device")
        end = Mark()
        STATE.append(self, end)
        STATE.wait(lambda: end.reached)
        STATE.order.host_has(STATE.order.clock(self))

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        mark = event.mark
        if mark is None:
            return  # the event was never recorded, so there is nothing to wait for
        if mark.graph is not None:
            self._wait_in_capture(mark, mark.graph)
            return
        if self.graph is not None:
            self.invalid = True
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureIsolation: dependency created on uncaptured work in another "
                "stream"
            )
        merge(STATE.order.clock(self), mark.clock)
        STATE.append(self, _Wait(mark))

    def _wait_in_capture(self, mark: Mark, graph: Graph) -> None:
        """Wait for an event of a capture: this stream is captured, too, if it is not yet."""
        if graph.origin.graph is not graph:
            raise CUDARuntimeError("cudaErrorCapturedEvent: the event's capture has ended")
        if self.null:
            raise CUDARuntimeError("cudaErrorStreamCaptureImplicit: the default stream")
        if self.graph is None:
            self._join(graph)
        elif self.graph is not graph:
            raise CUDARuntimeError("cudaErrorStreamCaptureMerge: the event is of another capture")
        merge(graph.order.clock(self), mark.clock)
        graph.nodes.append((self, _Wait(mark)))


STATE = Machine()
