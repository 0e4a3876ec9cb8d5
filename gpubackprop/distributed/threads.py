"""Ranks that are threads of one process: for the devices of one machine, and for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from gpubackprop.distributed.calls import Calls
from gpubackprop.distributed.contract import Communicator, sum_of
from gpubackprop.errors import DistributedError

TIMEOUT = 600.0  # seconds that a rank waits for the others


class Group:
    """What the ranks of one process share.

    Parameters
    ----------
    size : int
        Number of ranks.

    Attributes
    ----------
    size : int
        Number of ranks.
    reason : str
        Why the ranks were ended; "" while they work.
    """

    def __init__(self, size: int) -> None:
        self.size, self.reason = size, ""
        self._barrier = threading.Barrier(size)
        self._records: list[Any] = [None] * size
        self._calls = [Calls() for _ in range(size)]  # here a call is one wait

    def exchange(self, rank: int, record: Any) -> list[Any]:
        """Return the records of all ranks.

        Parameters
        ----------
        rank : int
            The caller.
        record : object
            Its record.

        Returns
        -------
        list
            One record for each rank; the objects themselves, no copies.

        Raises
        ------
        DistributedError
            Another rank has ended.
        """
        self._records[rank] = record
        self.wait(rank)
        records = list(self._records)
        self.wait(rank)  # nobody writes the next record before all have read
        return records

    def wait(self, rank: int) -> None:
        try:
            self._calls[rank].begin()
            self._barrier.wait(TIMEOUT)
        except (DistributedError, threading.BrokenBarrierError) as error:
            # A rank that failed may have left before this one came: its reason says more.
            reason = self.reason or str(error) or f"a rank did not come within {TIMEOUT:g} s"
            raise DistributedError(f"another rank has ended: {reason}") from None

    def leave(self, rank: int) -> None:
        """Note that a rank has returned; one that waits for it is ended."""
        count = self._calls[rank].begun
        for other in {*range(self.size)} - {rank}:
            in_vain = self._calls[other].ended(f"rank {rank} of {self.size}", count)
            if in_vain:
                self.fail(in_vain)

    def fail(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._barrier.abort()


class Threads(Communicator):
    """A rank that is a thread.

    Parameters
    ----------
    group : Group
        What the ranks share.
    rank : int
        Number of this rank.
    """

    kind = "threads"

    def __init__(self, group: Group, rank: int) -> None:
        self.group, self.rank, self.size = group, rank, group.size
        self.local_rank = rank

    def gather(self, record: Any) -> list[Any]:
        return self.group.exchange(self.rank, record)

    def allreduce(self, buffer: np.ndarray) -> None:
        buffers = self.gather(buffer)
        total = np.empty_like(buffer)
        sum_of(buffers, total)
        self.group.wait(self.rank)  # all have read before one writes
        buffer[...] = total

    def reduce_scatter(self, buffer: np.ndarray, parts: Sequence[slice]) -> None:
        buffers, own = self.gather(buffer), parts[self.rank]
        total = np.empty_like(buffer[own])
        sum_of([each[own] for each in buffers], total)
        self.group.wait(self.rank)
        buffer[own] = total

    def broadcast(self, buffer: np.ndarray, root: int = 0) -> None:
        buffers = self.gather(buffer)
        if self.rank != root:
            buffer[...] = buffers[root]
        self.group.wait(self.rank)

    def abort(self, reason: str) -> NoReturn:
        self.group.fail(f"{self.who()}: {reason}")
        raise DistributedError(f"{self.who()}: {reason}")


def in_threads(size: int, work: Callable[[Communicator], Any]) -> list[Any]:
    """Call ``work(communicator)`` in a thread for each rank, of which this one is the first.

    Parameters
    ----------
    size : int
        Number of ranks.
    work : callable
        What a rank does.

    Returns
    -------
    list
        The results, in the order of the ranks.

    Raises
    ------
    Exception
        The first error of a rank that was not ended by another one.

    Examples
    --------
    >>> in_threads(2, lambda ranks: sum(ranks.gather(ranks.rank)))
    [1, 1]
    """
    group = Group(size)
    return run_ranks([Threads(group, rank) for rank in range(size)], work)


def run_ranks(ranks: Sequence[Threads], work: Callable[[Communicator], Any]) -> list[Any]:
    """Call ``work(communicator)`` for each rank: the first in this thread, which has Ctrl-C.

    Parameters
    ----------
    ranks : sequence of Threads
        All ranks of a group.
    work : callable
        What a rank does.

    Returns
    -------
    list
        As `in_threads`.

    Raises
    ------
    Exception
        As `in_threads`.
    """
    results: list[Any] = [None] * len(ranks)
    errors: list[BaseException] = []

    def run(own: Threads) -> None:
        try:
            results[own.rank] = work(own)
            own.group.leave(own.rank)
        except BaseException as error:
            errors.append(error)  # before the others' errors, which follow from it
            own.group.fail(f"rank {own.rank} of {own.size}: {type(error).__name__}: {error}")

    threads = [
        threading.Thread(target=run, args=(own,), name=f"rank {own.rank}", daemon=True)
        for own in ranks[1:]
    ]
    for thread in threads:
        thread.start()
    run(ranks[0])
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
