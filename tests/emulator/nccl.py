"""The stand-in for `cupy.cuda.nccl`: ranks are threads of one process, each with a device of its own.

A collective call is queued on a stream. It is done when the streams of all ranks have come to it, so
that a rank that waits for its own device waits for the others. At least as strict as NCCL 2 through
CuPy 14; each rule with its place:

- `get_unique_id` gives bytes (CuPy 14; a tuple before), which every rank passes on as they are
  (cupy_backends/cuda/libs/nccl.pyx)
- the constructor waits for all ranks, on the current device of each (NCCL user guide, "Creating a
  communicator"); two ranks of one device are ncclInvalidUsage ("Using multiple NCCL communicators")
- all ranks call the same collectives in the same order with the same count and type, else NCCL hangs
  or computes nonsense ("Collective Operations"): here an error
- send and receive buffers are memory of the communicator's device, and the stream is one of that
  device: NCCL does not look; here an error
- a call may be captured into a graph; it is then captured on all ranks ("Using NCCL with CUDA Graphs")
- calls of one communicator on several streams are queued in one order on all ranks ("CUDA Stream
  Semantics" has them together in a group; outside of one NCCL orders them as they were issued): here
  each must be ordered behind the one before by its stream or by events
- memory that a collective call uses is used by no other call that is not ordered with it (`order.py`)
- the order of a sum is the same on all ranks, and is not that of the ranks: here it goes backwards
- `reduceScatter` and `allGather` have parts of one length, and are in place if a rank's pointer is at
  its own part of the whole buffer ("In-place Operations"); buffers that meet in another way: an error
- what a rank sends stays as it is outside of what it receives (`const void* sendbuff`); nobody here
  wants it: its numbers become NaN, but 0 stays 0, since gaps between layers must
- calls between `groupStart` and `groupEnd` are queued by the latter ("Group Calls")
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tests.emulator.cupy_queue import RANK_SECONDS, STATE, Mark, Stream, _Wait
from tests.emulator.order import Order, key_of

NCCL_UNIQUE_ID_BYTES = 128
NCCL_SUM = 0
NCCL_UINT8, NCCL_FLOAT32, NCCL_FLOAT64 = 1, 7, 8
TYPES = {NCCL_UINT8: np.uint8, NCCL_FLOAT32: np.float32, NCCL_FLOAT64: np.float64}
_numbers = itertools.count(1)
_groups: dict[bytes, _Group] = {}


class _Pending(threading.local):
    """The calls of the group that this thread has started; None without one."""

    calls: list[Callable[[], None]] | None = None


_pending = _Pending()


class NcclError(RuntimeError):
    pass


class _Collective:
    """One collective call: what the ranks that have come to it have brought."""

    def __init__(self, size: int) -> None:
        self.brought: list[Any] = [None] * size
        self.result: np.ndarray | None = None
        self.wrong = ""

    def bring(self, rank: int, call: tuple[Any, ...], data: np.ndarray) -> None:
        self.brought[rank] = call, data
        if any(each is None for each in self.brought):
            return
        calls = {each[0] for each in self.brought}
        if len(calls) > 1:
            self.wrong = f"the ranks call different collectives: {calls}"
            return
        name, _, _, root, *_ = call
        if name == "broadcast":
            self.result = self.brought[root][1]
            return
        if name == "allGather":
            self.result = np.concatenate([data for _, data in self.brought])
            return
        total = self.brought[-1][1].copy()
        for _, data in reversed(self.brought[:-1]):
            total += data
        self.result = total


class _Group:
    """The ranks of one unique id."""

    def __init__(self, size: int) -> None:
        self.size, self.devices = size, [-1] * size
        self.barrier = threading.Barrier(size)
        self.collectives: dict[int, _Collective] = {}


class _Arrived(Mark):
    """Reached when all ranks have come to the collective call to which this rank came last."""

    elsewhere = True

    def __init__(self) -> None:
        super().__init__()
        self.collective: _Collective | None = None

    @property
    def reached(self) -> bool:  # type: ignore[override]
        made = self.collective
        return made is None or made.result is not None or bool(made.wrong)

    @reached.setter
    def reached(self, value: bool) -> None:
        raise AssertionError("only the ranks reach it")


def get_unique_id() -> bytes:
    return next(_numbers).to_bytes(NCCL_UNIQUE_ID_BYTES, "big")


def get_version() -> int:
    return 22_700


def groupStart() -> None:
    assert _pending.calls is None, "a group within a group is not used here"
    _pending.calls = []


def groupEnd() -> None:
    calls, _pending.calls = _pending.calls, None
    assert calls is not None, "no group was started"
    for call in calls:
        call()


class NcclCommunicator:
    """cupy.cuda.nccl.NcclCommunicator."""

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        assert isinstance(commId, bytes)
        assert len(commId) == NCCL_UNIQUE_ID_BYTES
        STATE.not_while_capturing("a new communicator")
        STATE.order.watches = True
        group = _groups.setdefault(commId, _Group(ndev))
        assert group.size == ndev
        group.devices[rank] = STATE.device
        group.barrier.wait(RANK_SECONDS)
        if len(set(group.devices)) < ndev:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: invalid usage")
        self._group, self._rank, self._device = group, rank, STATE.device
        self._calls, self._arrived = 0, _Arrived()

    def allReduce(
        self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int
    ) -> None:
        assert op == NCCL_SUM
        self._queue(("allReduce", count, datatype, op), sendbuf, recvbuf, stream)

    def reduce(
        self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, root: int, stream: int
    ) -> None:
        assert op == NCCL_SUM
        there = slice(None) if self._rank == root else slice(0)
        self._queue(("reduce", count, datatype, root, op), sendbuf, recvbuf, stream, there)

    def reduceScatter(
        self, sendbuf: int, recvbuf: int, recvcount: int, datatype: int, op: int, stream: int
    ) -> None:
        assert op == NCCL_SUM
        own = slice(self._rank * recvcount, (self._rank + 1) * recvcount)
        sent = recvcount * self._group.size
        call = ("reduceScatter", recvcount, datatype, op)
        self._queue(call, sendbuf, recvbuf, stream, own, sent)

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        call, received = ("allGather", count, datatype, 0), count * self._group.size
        self._queue(call, sendbuf, recvbuf, stream, received=received)

    def broadcast(
        self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int
    ) -> None:
        self._queue(("broadcast", count, datatype, root), sendbuff, recvbuff, stream)

    def _queue(
        self,
        call: tuple[Any, ...],
        source: int,
        target: int,
        stream: int,
        there: slice = slice(None),
        sent: int = 0,
        received: int = 0,
    ) -> None:
        """Queue a call, or keep it for `groupEnd`.

        `there` is what this rank receives of the result. `sent` and `received` are elements, where
        they are not the count of the call.
        """
        assert all(isinstance(value, int) for value in (source, target, stream, *call[1:]))
        assert STATE.device == self._device, "the communicator is of another device"
        current: Stream = STATE.stream
        assert current.ptr == stream, "not the current stream"
        count, call = call[1], (*call, current.graph is not None)
        dtype = np.dtype(TYPES[call[2]])
        sending = self._memory(source, sent or count, dtype)
        receiving = self._memory(target, received or count, dtype)
        self._check_in_place(call[0], source, sending.nbytes, target, receiving.nbytes)
        spoiled = []
        if call[0] == "reduceScatter" and np.shares_memory(sending, receiving):
            spoiled = [sending[: there.start], sending[there.stop :]]
        if call[0] == "reduce" and source == target and there.stop == 0:
            spoiled, receiving = [sending], receiving[:0]

        def issue() -> None:
            STATE.count_kernel(f"nccl {call[0]}")
            STATE.queue(partial(self._arrive, call, sending), current, collective=True)
            STATE.queue(_Wait(self._arrived), current)
            finish = partial(self._finish, receiving, there, spoiled)
            STATE.queue(finish, current, collective=True)
            graph = current.graph
            self._in_order(STATE.order if graph is None else graph.order, current)
            if graph is not None and self._in_order not in graph.when_launched:
                graph.when_launched.append(self._in_order)

        if _pending.calls is None:
            issue()
        else:
            _pending.calls.append(issue)

    def _check_in_place(
        self, name: str, source: int, sent: int, target: int, received: int
    ) -> None:
        """Check that the two buffers are apart, or in place."""
        offset = {"reduceScatter": received, "allGather": -sent}.get(name, 0) * self._rank
        apart = source + sent <= target or target + received <= source
        assert apart or target - source == offset, f"{name}: the buffers meet and are not in place"

    def _in_order(self, order: Order, stream: Stream) -> None:
        """Check that what this stream was given last is behind the communicator's call before."""
        key = key_of(stream)
        before = order.last.get(self, (key, 0))
        assert order.is_before(*before, stream), (
            "two calls of a communicator on two streams, and no event orders them"
        )
        order.last[self] = key, order.clock(stream)[key]

    def _memory(self, address: int, count: int, dtype: np.dtype) -> np.ndarray:
        block = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        return np.frombuffer(block, dtype)

    def _arrive(self, call: tuple[Any, ...], data: np.ndarray) -> None:
        self._calls += 1
        collectives = self._group.collectives
        collective = collectives.setdefault(self._calls, _Collective(self._group.size))
        self._arrived.collective = collective
        collective.bring(self._rank, call, data.copy())

    def _finish(self, target: np.ndarray, there: slice, spoiled: list[np.ndarray]) -> None:
        made = self._arrived.collective
        assert made is not None
        assert not made.wrong, made.wrong
        assert made.result is not None
        target[...] = made.result[there]
        for part in spoiled:
            part[part != 0] = np.nan


def module() -> types.SimpleNamespace:
    """Return what stands for `cupy.cuda.nccl`."""
    return types.SimpleNamespace(
        get_unique_id=get_unique_id, get_version=get_version, NcclCommunicator=NcclCommunicator,
        groupStart=groupStart, groupEnd=groupEnd, NcclError=NcclError, NCCL_SUM=NCCL_SUM, NCCL_UINT8=NCCL_UINT8, NCCL_FLOAT32=NCCL_FLOAT32,
        NCCL_FLOAT64=NCCL_FLOAT64,
    )  # fmt: skip
