"""What is ordered before what on the stand-in's streams, and who uses memory out of order.

Each stream counts its calls. An event keeps, for each stream, how many of its calls are done when the
event is reached; a stream that waits for the event takes these numbers over (vector clocks). A
collective call and any other call that use the same memory must be ordered, whatever the streams' turns
make of it: here that is an error when the later one is queued, in every seed.

A captured graph has an order of its own, since its calls run when it is launched.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

Key = tuple[int, int]  # device and number of a stream
Clock = dict[Key, int]  # by stream: so many of its calls
Span = tuple[int, int]  # the first byte, and behind the last one
KEPT = 1024  # calls that are remembered


@dataclass
class Use:
    """A call that uses memory.

    Attributes
    ----------
    key : Key
        Its stream.
    count : int
        Its number on the stream.
    spans : list of Span
        The memory.
    name : str
        For messages.
    """

    key: Key
    count: int
    spans: list[Span]
    name: str


class Order:
    """The order of the calls of a machine, or of a graph.

    Attributes
    ----------
    watches : bool
        Whether memory is looked at: as soon as there are collective calls.
    """

    def __init__(self, watches: bool = False) -> None:
        self.watches, self._lock = watches, threading.RLock()
        self.clocks: dict[Key, Clock] = {}
        self.blocking: set[Key] = set()
        self.host: Clock = {}  # what the host has waited for
        self.last: dict[Any, tuple[Key, int]] = {}  # by communicator: its last call
        self.collectives: deque[Use] = deque(maxlen=KEPT)
        self.others: deque[Use] = deque(maxlen=KEPT)

    def clock(self, stream: Any) -> Clock:
        """Return the clock of what a stream does next."""
        return self.clocks.setdefault(key_of(stream), {})

    def note(self, stream: Any, call: Any, collective: bool = False) -> None:
        """Count a call on a stream; check its memory against calls that are not ordered."""
        with self._lock:
            key, clock = key_of(stream), self.clock(stream)
            merge(clock, self.host)
            if not stream.non_blocking:  # the default stream waits for these, and they for it
                self.blocking.add(key)
                for other in self.blocking:
                    if other[0] == key[0] and (stream.null or other[1] == 0):
                        merge(clock, self.clocks[other])
            clock[key] = clock.get(key, 0) + 1
            if self.watches:
                self.use(stream, spans_of(call), name_of(call), collective)

    def use(self, stream: Any, spans: list[Span], name: str, collective: bool) -> None:
        """Check memory that the last call of a stream uses, and remember it."""
        with self._lock:
            key = key_of(stream)
            use = Use(key, self.clocks[key][key], spans, name)
            for other in itertools.chain(self.collectives, self.others if collective else ()):
                if other.key[0] != key[0] or self.is_before(other.key, other.count, stream):
                    continue
                assert not _meet(other.spans, use.spans), (
                    f"{use.name} uses memory of {other.name} on another stream, and no event "
                    f"orders them"
                )
            (self.collectives if collective else self.others).append(use)

    def host_has(self, clock: Clock) -> None:
        """Note that the host has waited for these calls."""
        with self._lock:
            merge(self.host, clock)

    def is_before(self, key: Key, count: int, stream: Any) -> bool:
        """Return whether call number `count` of a stream is before what `stream` does next."""
        return self.clock(stream).get(key, 0) >= count

    def unjoined(self, stream: Any) -> list[Key]:
        """Return the streams whose last call is not before what `stream` does next."""
        counts = {key: clock.get(key, 0) for key, clock in self.clocks.items()}
        return [key for key, count in counts.items() if not self.is_before(key, count, stream)]


def key_of(stream: Any) -> Key:
    return stream.device_id, stream.number


def merge(into: Clock, clock: Clock) -> None:
    """Let what has the first clock wait for what the second one says."""
    for key, count in clock.items():
        into[key] = max(into.get(key, 0), count)


def _meet(ours: list[Span], theirs: list[Span]) -> bool:
    return any(a < d and c < b for a, b in ours for c, d in theirs)


def name_of(call: Any) -> str:
    """Return a name of a queued call, for messages."""
    for value in getattr(call, "args", ()):
        if hasattr(value, "entry"):
            return str(value.entry)
    function = getattr(call, "func", call)
    return str(getattr(function, "__name__", type(function).__name__))


def spans_of(call: Any) -> list[Span]:
    """Return the memory that a queued call is given: of its arrays, wherever they are named."""
    if hasattr(call, "spans"):
        return list(call.spans())
    found: list[Span] = []
    if isinstance(call, partial):
        parts = [call.func, *call.args, *call.keywords.values()]
    else:
        parts = [call]
    for part in parts:
        for array in _arrays(part):
            if array.size:
                low, high = np.lib.array_utils.byte_bounds(array)
                found.append((low, high))
    return found


def _arrays(part: Any) -> list[np.ndarray]:
    if isinstance(part, np.ndarray):
        return [part]
    if isinstance(part, (list, tuple)):
        return [array for each in part for array in _arrays(each)]
    if hasattr(part, "entry"):  # a launch
        return _arrays(part.arguments)
    if isinstance(getattr(part, "arrays", None), dict):  # a record
        return list(part.arrays.values())
    owner = getattr(part, "__self__", None)
    cells = [cell.cell_contents for cell in getattr(part, "__closure__", None) or ()]
    return [each for each in (owner, *cells) if isinstance(each, np.ndarray)]
