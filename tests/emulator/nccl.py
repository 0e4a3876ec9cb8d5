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
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import types
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
        name, _, _, root, _ = call
        if name == "broadcast":
            self.result = self.brought[root][1]
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

    def broadcast(
        self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int
    ) -> None:
        self._queue(("broadcast", count, datatype, root), sendbuff, recvbuff, stream)

    def _queue(self, call: tuple[Any, ...], source: int, target: int, stream: int) -> None:
        assert all(isinstance(value, int) for value in (source, target, stream, *call[1:]))
        assert STATE.device == self._device, "the communicator is of another device"
        current: Stream = STATE.stream
        assert current.ptr == stream, "not the current stream"
        call = (*call, current.graph is not None)
        dtype = np.dtype(TYPES[call[2]])
        memory = [self._memory(address, call[1], dtype) for address in (source, target)]
        STATE.count_kernel(f"nccl {call[0]}")
        STATE.queue(partial(self._arrive, call, memory[0]), current, collective=True)
        STATE.queue(_Wait(self._arrived), current)
        STATE.queue(partial(self._finish, memory[1]), current, collective=True)
        graph = current.graph
        self._in_order(STATE.order if graph is None else graph.order, current)
        if graph is not None and self._in_order not in graph.when_launched:
            graph.when_launched.append(self._in_order)

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

    def _finish(self, target: np.ndarray) -> None:
        made = self._arrived.collective
        assert made is not None
        assert not made.wrong, made.wrong
        target[...] = made.result


def module() -> types.SimpleNamespace:
    """Return what stands for `cupy.cuda.nccl`."""
    return types.SimpleNamespace(
        get_unique_id=get_unique_id, get_version=get_version, NcclCommunicator=NcclCommunicator,
        NcclError=NcclError, NCCL_SUM=NCCL_SUM, NCCL_UINT8=NCCL_UINT8, NCCL_FLOAT32=NCCL_FLOAT32,
        NCCL_FLOAT64=NCCL_FLOAT64,
    )  # fmt: skip
