"""Ranks with a GPU each: NCCL adds their gradients, on the stream of the step, inside its graph.

Parts of a large gradient are added up on a second stream, in another branch of the graph. NCCL
wants the calls of one communicator in one order on all ranks: all of them are behind one another,
by the second stream and by the events between the two.

Records go by the communicator that the ranks had before. `Binding` is all that this package calls
of NCCL: CuPy's `cupy.cuda.nccl` is behind it, and another binding can take its place. Not measured
on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.distributed.buckets import least_bytes
from gpubackprop.distributed.contract import Communicator
from gpubackprop.errors import DeviceUnavailable, one_line

if TYPE_CHECKING:
    from gpubackprop.backends.cupy import CupyBackend

Array = Any  # an array of the communicator's GPU
KEPT: dict[tuple[int, int], Nccl] = {}  # by the communicator of the records, and the device


class Binding(Protocol):
    """The functions of NCCL that are called, on the current device and its current stream."""

    def unique_id(self) -> Any:
        """Return a new id, which can be pickled."""

    def connect(self, size: int, unique_id: Any, rank: int) -> Any:
        """Return this rank's communicator of NCCL; wait for the other ranks."""

    def allreduce(self, connection: Any, buffer: Array) -> None:
        """Queue buffer = the sum of all ranks' buffers."""

    def broadcast(self, connection: Any, buffer: Array, root: int) -> None:
        """Queue buffer = rank `root`'s buffer."""

    def reduce_scatter(
        self, connection: Any, buffer: Array, parts: Sequence[slice], rank: int
    ) -> None:
        """Queue buffer[parts[rank]] = the sum of all ranks' buffers there."""

    def allgather(self, connection: Any, buffer: Array, parts: Sequence[slice], rank: int) -> None:
        """Queue buffer[parts[r]] = rank r's, for each rank r."""


class CupyBinding:
    """NCCL as CuPy has it.

    Parameters
    ----------
    cupy : module
        CuPy.

    Raises
    ------
    DeviceUnavailable
        CuPy has no NCCL.
    """

    def __init__(self, cupy: Any) -> None:
        try:
            nccl = cupy.cuda.nccl
            if not hasattr(nccl, "NcclCommunicator"):
                raise AttributeError("cupy.cuda.nccl is not available")
        except (AttributeError, ImportError) as error:
            raise DeviceUnavailable(
                f"several GPUs need NCCL, which CuPy does not find ({one_line(error)}); run: pip "
                f"install nvidia-nccl-cu12 (or nvidia-nccl-cu13)"
            ) from error
        self._cupy, self._nccl = cupy, nccl
        self._types = {
            np.dtype(np.float32): nccl.NCCL_FLOAT32, np.dtype(np.float64): nccl.NCCL_FLOAT64
        }  # fmt: skip

    def unique_id(self) -> Any:
        return self._nccl.get_unique_id()

    def connect(self, size: int, unique_id: Any, rank: int) -> Any:
        return self._nccl.NcclCommunicator(size, unique_id, rank)

    def allreduce(self, connection: Any, buffer: Array) -> None:
        address, stream = int(buffer.data.ptr), self._stream()
        kind = self._types[buffer.dtype]
        connection.allReduce(address, address, int(buffer.size), kind, self._nccl.NCCL_SUM, stream)

    def broadcast(self, connection: Any, buffer: Array, root: int) -> None:
        address, stream = int(buffer.data.ptr), self._stream()
        connection.broadcast(
            address, address, int(buffer.nbytes), self._nccl.NCCL_UINT8, root, stream
        )

    def reduce_scatter(
        self, connection: Any, buffer: Array, parts: Sequence[slice], rank: int
    ) -> None:
        stream, kind, add = self._stream(), self._types[buffer.dtype], self._nccl.NCCL_SUM
        count = _length_of_all(parts, int(buffer.size))
        if count:
            address, own = int(buffer.data.ptr), int(buffer[parts[rank]].data.ptr)
            connection.reduceScatter(address, own, count, kind, add, stream)
            return
        with self._group(parts) as roots:
            for root, part in roots:
                address, size = int(buffer[part].data.ptr), part.stop - part.start
                connection.reduce(address, address, size, kind, add, root, stream)

    def allgather(self, connection: Any, buffer: Array, parts: Sequence[slice], rank: int) -> None:
        stream = self._stream()
        count = _length_of_all(parts, int(buffer.size)) * int(buffer.itemsize)
        if count:
            address, own = int(buffer.data.ptr), int(buffer[parts[rank]].data.ptr)
            connection.allGather(own, address, count, self._nccl.NCCL_UINT8, stream)
            return
        with self._group(parts) as roots:
            for root, part in roots:
                self.broadcast(connection, buffer[part], root)

    @contextmanager
    def _group(self, parts: Sequence[slice]) -> Iterator[list[tuple[int, slice]]]:
        """Return each rank and its part, if that is not empty; the calls within are one launch."""
        self._nccl.groupStart()
        yield [(root, part) for root, part in enumerate(parts) if part.stop > part.start]
        self._nccl.groupEnd()

    def _stream(self) -> int:
        return int(self._cupy.cuda.get_current_stream().ptr)


def _length_of_all(parts: Sequence[slice], size: int) -> int:
    """Return the length of each part, if all have one length and are the whole buffer, else 0."""
    count = size // len(parts)
    wanted = [slice(count * rank, count * (rank + 1)) for rank in range(len(parts))]
    return count if list(parts) == wanted and count * len(parts) == size else 0


class Nccl(Communicator):
    """The ranks of another communicator, with sums on GPUs.

    Parameters
    ----------
    records : Communicator
        Moves the records, and the id with which the GPUs find each other.
    backend : CupyBackend
        This rank's device.
    binding : Binding or None
        NCCL; None is CuPy's.

    Raises
    ------
    DeviceUnavailable
        CuPy has no NCCL, or NCCL cannot connect these GPUs.
    """

    kind = "NCCL"

    def __init__(
        self, records: Communicator, backend: CupyBackend, binding: Binding | None = None
    ) -> None:
        from gpubackprop.backends.cupy.second_stream import SecondStream

        self.records, self.backend = records, backend
        self.rank, self.size, self.local_rank = records.rank, records.size, records.local_rank
        self.binding = binding or CupyBinding(backend.cupy)
        self.least_bucket = least_bytes()
        self._second = SecondStream(backend.cupy, backend.index)
        unique_id = records.from_root(self.binding.unique_id)
        with backend.cupy.cuda.Device(backend.index):
            try:
                self._connection = self.binding.connect(self.size, unique_id, self.rank)
            except RuntimeError as error:
                raise DeviceUnavailable(
                    f"NCCL does not connect {self.who()} on {backend.device} ({one_line(error)}); "
                    f'give every rank of a machine its own GPU: device="cuda:N" with N = '
                    f"gpubackprop.distributed.join().local_rank"
                ) from error
        # NCCL makes its buffers at the first call, which must not be within a capture.
        self.allreduce(backend.zeros(1, np.float32))

    def gather(self, record: Any) -> list[Any]:
        return self.records.gather(record)

    def allreduce(self, buffer: Array) -> None:
        self.emit_allreduce(self.backend, buffer)

    def emit_allreduce(self, backend: Backend, buffer: Array) -> None:
        cast("CupyBackend", backend).enqueue(self.binding.allreduce, self._connection, buffer)

    def reduce_scatter(self, buffer: Array, parts: Sequence[slice]) -> None:
        self.emit_reduce_scatter(self.backend, buffer, parts)

    def emit_reduce_scatter(self, backend: Backend, buffer: Array, parts: Sequence[slice]) -> None:
        there, function = cast("CupyBackend", backend), self.binding.reduce_scatter
        there.enqueue(function, self._connection, buffer, parts, self.rank)

    def emit_beside(
        self, backend: Backend, buffer: Array, parts: Sequence[slice] | None = None
    ) -> None:
        there, args = cast("CupyBackend", backend), (self._connection, buffer)
        if parts is None:
            there.enqueue(self._second.issue, self.binding.allreduce, *args)
        else:
            function = self.binding.reduce_scatter
            there.enqueue(self._second.issue, function, *args, parts, self.rank)

    def emit_join(self, backend: Backend) -> None:
        cast("CupyBackend", backend).enqueue(self._second.join)

    def broadcast(self, buffer: Array, root: int = 0) -> None:
        self.backend.enqueue(self.binding.broadcast, self._connection, buffer, root)

    def allgather(self, buffer: Array, parts: Sequence[slice]) -> None:
        self.emit_allgather(self.backend, buffer, parts)

    def emit_allgather(self, backend: Backend, buffer: Array, parts: Sequence[slice]) -> None:
        there, function = cast("CupyBackend", backend), self.binding.allgather
        there.enqueue(function, self._connection, buffer, parts, self.rank)

    def abort(self, reason: str) -> NoReturn:
        self.records.abort(reason)


def on_device(ranks: Communicator, backend: Backend) -> Communicator:
    """Return the communicator of these ranks for arrays of a backend: their own for the host's.

    Parameters
    ----------
    ranks : Communicator
        The ranks. All of them make the first call for a GPU.
    backend : Backend
        Where the arrays are.

    Returns
    -------
    Communicator
        One object for each device.

    Examples
    --------
    >>> from gpubackprop.backends import HOST
    >>> from gpubackprop.distributed import join
    >>> on_device(join(None), HOST)
    Alone(rank 0 of 1)
    """
    if ranks.size == 1 or not backend.asynchronous or isinstance(ranks, Nccl):
        return ranks
    there = cast("CupyBackend", backend)
    key = id(ranks), there.index
    if key not in KEPT or KEPT[key].records is not ranks:
        KEPT[key] = Nccl(ranks, there)
    return KEPT[key]
