"""The contract of a communicator, and the communicator of one process alone."""

from __future__ import annotations

import math
import os
import pickle
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.distributed.calls import Calls
from gpubackprop.errors import DistributedError, one_line

Array = Any  # an array of the host, or of the communicator's GPU
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class Communicator(ABC):
    """The ranks of a training. Every method but `part` and `abort` is called by all of them.

    Attributes
    ----------
    rank : int
        Number of this rank, from 0.
    size : int
        Number of ranks.
    local_rank : int
        Number of this rank among those of its machine: the number of its GPU.
    kind : str
        What connects the ranks: "none", "MPI", "sockets", "threads", "NCCL".
    calls : Calls or None
        Counts the calls of ranks which would not see by themselves that another one has ended.
    least_bucket : float
        Bytes of the smallest part of a gradient that is worth a sum of its own beside the backward
        pass, see `buckets`; infinite if sums cannot run beside it.

    Examples
    --------
    >>> ranks: Communicator = Alone()
    >>> ranks.rank, ranks.size, ranks.gather("ready")
    (0, 1, ['ready'])
    """

    rank: int
    size: int
    local_rank: int = 0
    kind: str = "none"
    calls: Calls | None = None
    least_bucket: float = math.inf

    @abstractmethod
    def gather(self, record: Any) -> list[Any]:
        """Return the records of all ranks, in their order, on every rank.

        Parameters
        ----------
        record : object
            Something small that can be pickled.

        Returns
        -------
        list
            One record for each rank.
        """

    @abstractmethod
    def allreduce(self, buffer: Array) -> None:
        """Set the buffer to the sum of all ranks' buffers: the same bits on every rank.

        Parameters
        ----------
        buffer : (P,) array
            C-contiguous float32 or float64, of one shape on all ranks. The host's, or for a
            communicator of a GPU an array there: the sum is then queued on the current stream.
        """

    @abstractmethod
    def broadcast(self, buffer: Array, root: int = 0) -> None:
        """Set the buffer to that of rank `root`.

        Parameters
        ----------
        buffer : (P,) array
            As for `allreduce`, of any dtype.
        root : int
            The rank that sends.
        """

    @abstractmethod
    def reduce_scatter(self, buffer: Array, parts: Sequence[slice]) -> None:
        """Set this rank's part of the buffer to the sum of all ranks' buffers there.

        The rest of the buffer stays as it is: this rank's own terms.

        Parameters
        ----------
        buffer : (P,) array
            As for `allreduce`.
        parts : sequence of slice
            One for each rank; they lie in order and are all of the buffer, and may be empty.
        """

    def allgather(self, buffer: Array, parts: Sequence[slice]) -> None:
        """Set each part of the buffer to what the rank of that number has there.

        Parameters
        ----------
        buffer : (P,) array
            As for `broadcast`.
        parts : sequence of slice
            One for each rank; they do not meet, and may be empty.
        """
        for root, part in enumerate(parts):
            if part.stop > part.start:
                self.broadcast(buffer[part], root)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.gather(None)

    def abort(self, reason: str) -> NoReturn:
        """End all ranks, after this one has written `reason` to stderr; see `watch`.

        Parameters
        ----------
        reason : str
            What has happened here.
        """
        sys.stdout.flush()
        print(f"{self.who()}: {reason}; all ranks end", file=sys.stderr, flush=True)
        os._exit(1)

    def emit_allreduce(self, backend: Backend, buffer: Array) -> None:
        """Issue `allreduce` of this buffer on a backend, or record it there.

        Parameters
        ----------
        backend : Backend
            The backend, or the recorder of a plan.
        buffer : (P,) array
            As for `allreduce`.
        """
        backend.call(self.allreduce, buffer)

    def emit_reduce_scatter(self, backend: Backend, buffer: Array, parts: Sequence[slice]) -> None:
        """Issue `reduce_scatter` on a backend, or record it there.

        Parameters
        ----------
        backend : Backend
            The backend, or the recorder of a plan.
        buffer : (P,) array
            As for `reduce_scatter`.
        parts : sequence of slice
            As for `reduce_scatter`.
        """
        backend.call(self.reduce_scatter, buffer, parts)

    def emit_beside(
        self, backend: Backend, buffer: Array, parts: Sequence[slice] | None = None
    ) -> None:
        """Issue the sum of a buffer that what is issued next neither reads nor writes.

        Until `emit_join` it runs beside that, if `least_bucket` is finite.

        Parameters
        ----------
        backend : Backend
            The backend, or the recorder of a plan.
        buffer : (P,) array
            As for `allreduce`.
        parts : sequence of slice or None
            None is `allreduce`, else it is `reduce_scatter` of these parts.
        """
        if parts is None:
            self.emit_allreduce(backend, buffer)
        else:
            self.emit_reduce_scatter(backend, buffer, parts)

    def emit_join(self, backend: Backend) -> None:
        """Let what is issued next wait for every `emit_beside` so far.

        Parameters
        ----------
        backend : Backend
            The backend, or the recorder of a plan.
        """
        del backend  # each sum was issued as any other call

    def emit_allgather(self, backend: Backend, buffer: Array, parts: Sequence[slice]) -> None:
        """Issue `allgather` on a backend, or record it there.

        Parameters
        ----------
        backend : Backend
            The backend, or the recorder of a plan.
        buffer : (P,) array
            As for `allgather`.
        parts : sequence of slice
            As for `allgather`.
        """
        backend.call(self.allgather, buffer, parts)

    # -- built on these ---------------------------------------------------------------------------

    def who(self) -> str:
        """Return the name of this rank for messages.

        Returns
        -------
        str
            Rank, machine and process.
        """
        return f"rank {self.rank} of {self.size} ({socket.gethostname()}, pid {os.getpid()})"

    def part(self, count: int) -> slice:
        """Return this rank's part of `count` rows: the parts lie in order and differ by one row.

        Parameters
        ----------
        count : int
            Rows of all ranks; it may be below their number, some parts are then empty.

        Returns
        -------
        slice
            From its first row to behind its last one.

        Examples
        --------
        >>> Alone().part(5)
        slice(0, 5, None)
        """
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank.

        Parameters
        ----------
        flag : bool
            This rank's flag.

        Returns
        -------
        bool
            The same on every rank.
        """
        return any(self.gather(bool(flag)))

    def from_root(self, make: Callable[[], T]) -> T:
        """Return what ``make()`` returns on rank 0, which alone calls it.

        Parameters
        ----------
        make : callable
            Its result can be pickled.

        Returns
        -------
        object
            The result, on every rank.

        Raises
        ------
        Exception
            What ``make()`` raises on rank 0 is raised on every rank.
        """
        value, error = None, None
        if self.rank == 0:
            try:
                value = make()
            except Exception as caught:
                error = _portable(caught)
        value, error = self.gather((value, error))[0]
        if error is not None:
            raise agreed(error)
        return value

    def all_succeed(self, make: Callable[[], T]) -> T:
        """Return what ``make()`` returns on this rank, if it succeeds on all.

        Parameters
        ----------
        make : callable
            Called by every rank. It calls no method of the communicator.

        Returns
        -------
        object
            This rank's own result.

        Raises
        ------
        Exception
            This rank's own error, if all ranks have one.
        DistributedError
            Some ranks failed, which it names, and this is the message on all of them.
        """
        value, error = None, None
        try:
            value = make()
        except Exception as caught:
            error = caught
        said = self.gather(error and f"{type(error).__name__}: {one_line(error)}")
        failed = [rank for rank, text in enumerate(said) if text]
        if error is not None and len(failed) == self.size:
            raise agreed(error)
        if failed:
            text = f"rank {failed[0]} of {self.size} stopped all ranks: {said[failed[0]]}"
            raise agreed(DistributedError(text)) from error
        return value  # type: ignore[return-value]

    def require_same(self, record: dict[str, Any], what: str) -> None:
        """Raise an error, on every rank, if a value differs between them.

        Parameters
        ----------
        record : dict
            Values that can be compared, by their names.
        what : str
            What they belong to, for the message.

        Raises
        ------
        DistributedError
            A value differs; the message names the first such rank, and both values.
        """
        records = self.gather(record)
        for rank, other in enumerate(records):
            for name in [*records[0], *(key for key in other if key not in records[0])]:
                here, there = records[0].get(name), other.get(name)
                if here != there:
                    text = (
                        f"{what}: rank {rank} of {self.size} has {name} = {there} but rank 0 has "
                        f"{here}; start all ranks with the same program, options and data"
                    )
                    raise agreed(DistributedError(text))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank {self.rank} of {self.size})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as the communicator of the process that reads it."""
        return current, ()

    def __deepcopy__(self, memo: Any) -> Communicator:
        return self


class Alone(Communicator):
    """The communicator of one process: every sum is its own.

    Examples
    --------
    >>> ranks = Alone()
    >>> gradient = np.ones(3)
    >>> ranks.allreduce(gradient)
    >>> print(gradient, ranks.part(10))
    [1. 1. 1.] slice(0, 10, None)
    """

    rank, size = 0, 1

    def gather(self, record: Any) -> list[Any]:
        return [record]

    def allreduce(self, buffer: Array) -> None:
        pass

    def reduce_scatter(self, buffer: Array, parts: Sequence[slice]) -> None:
        pass

    def broadcast(self, buffer: Array, root: int = 0) -> None:
        pass

    def __reduce__(self) -> tuple[Any, ...]:
        return Alone, ()


def is_agreed(error: BaseException) -> bool:
    """Return whether all ranks raise this error.

    Parameters
    ----------
    error : BaseException
        An error of this rank.

    Returns
    -------
    bool
        False if the other ranks may go on.
    """
    return bool(getattr(error, "agreed", False))


def agreed(error: E) -> E:
    """Mark an error as one that all ranks raise.

    Parameters
    ----------
    error : BaseException
        The error.

    Returns
    -------
    BaseException
        The same.
    """
    error.agreed = True  # type: ignore[attr-defined]
    return error


def _portable(error: Exception) -> Exception:
    """Return the error, or one of the same words if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return DistributedError(f"rank 0: {type(error).__name__}: {one_line(error)}")
    return error


# This process's, once `gpubackprop.distributed.join` has made it.
JOINED: list[Communicator] = []


def current() -> Communicator:
    """Return the communicator that this process has joined, or one of a process alone.

    Returns
    -------
    Communicator
        What a pickled communicator becomes.
    """
    return JOINED[0] if JOINED else Alone()


def sum_of(buffers: list[np.ndarray], out: np.ndarray) -> None:
    """Set out to the sum of the buffers, added in their order.

    Parameters
    ----------
    buffers : list of (P,) arrays
        One for each rank.
    out : (P,) array
        Receives the sum; it may be the first buffer.
    """
    out[...] = buffers[0]
    for buffer in buffers[1:]:
        np.add(out, buffer, out)
