"""Ranks that MPI has started: mpi4py on NumPy's buffers."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from gpubackprop._optional import require
from gpubackprop.distributed.calls import Calls
from gpubackprop.distributed.contract import Communicator


class Mpi(Communicator):
    """The ranks of MPI's world.

    A sum has the same bits on all ranks and in every run with as many ranks, as the standard
    recommends (MPI 4.1, section 6.9.1, "Advice to implementors"); `Trainer` compares the ranks'
    weights after each epoch.

    Parameters
    ----------
    world : mpi4py.MPI.Comm or None
        Its ranks; None is COMM_WORLD.
    """

    kind = "MPI"
    calls: Calls

    def __init__(self, world: Any = None) -> None:
        self._mpi = require("mpi4py.MPI", "mpi", "train on several ranks that MPI has started")
        self._world = (self._mpi.COMM_WORLD if world is None else world).Dup()
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()
        self.calls, self._sum = Calls(), np.empty(0)  # a part's sum, see `reduce_scatter`
        host = socket.gethostname()
        self.local_rank = self._world.allgather(host)[: self.rank].count(host)

    def gather(self, record: Any) -> list[Any]:
        self.calls.begin()
        return list(self._world.allgather(record))

    def allreduce(self, buffer: np.ndarray) -> None:
        self.calls.begin()
        self._world.Allreduce(self._mpi.IN_PLACE, buffer)

    def reduce_scatter(self, buffer: np.ndarray, parts: Sequence[slice]) -> None:
        own, counts = buffer[parts[self.rank]], [part.stop - part.start for part in parts]
        if self._sum.shape != own.shape or self._sum.dtype != own.dtype:
            self._sum = np.empty_like(own)
        self.calls.begin()
        # Not IN_PLACE: MPICH 5.0.2 then copies between parts that overlap, and aborts.
        self._world.Reduce_scatter(buffer, self._sum, counts)
        own[...] = self._sum

    def broadcast(self, buffer: np.ndarray, root: int = 0) -> None:
        self.calls.begin()
        self._world.Bcast(buffer.view(np.uint8), root)

    def allgather(self, buffer: np.ndarray, parts: Sequence[slice]) -> None:
        counts = [part.stop - part.start for part in parts]
        starts = [part.start for part in parts]
        self.calls.begin()
        self._world.Allgatherv(self._mpi.IN_PLACE, [buffer, (counts, starts)])

    def barrier(self) -> None:
        self.calls.begin()
        self._world.Barrier()

    def abort(self, reason: str) -> NoReturn:
        sys.stdout.flush()
        print(f"{self.who()}: {reason}; all ranks end", file=sys.stderr, flush=True)
        if threading.current_thread() is not threading.main_thread() and (
            self._mpi.Query_thread() < self._mpi.THREAD_MULTIPLE
        ):
            os._exit(1)  # MPI must not be called here; the launcher or the watch ends the others
        self._world.Abort(1)
        raise SystemExit(1)  # not reached
