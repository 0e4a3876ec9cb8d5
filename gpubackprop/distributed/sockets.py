"""Ranks that torchrun has started: records go through rank 0, over a connection with each rank.

A GPU's gradients go by NCCL. On CPUs they go this way too, which is right but slow: every sum
passes through rank 0. `mpirun` is made for that. Records are pickles, so the network between the
machines must be one that only trusted programs can reach, as for torchrun itself.
"""

from __future__ import annotations

import pickle
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpubackprop.distributed.contract import Communicator, sum_of
from gpubackprop.errors import DistributedError

CONNECT_SECONDS = 60.0  # for all ranks to start
LENGTH = struct.Struct("!Q")


class Sockets(Communicator):
    """The ranks that connect with rank 0 at one address.

    Parameters
    ----------
    rank : int
        Number of this rank.
    size : int
        Number of ranks.
    address : (str, int)
        Host and port of rank 0.
    local_rank : int
        Number of this rank on its machine.

    Raises
    ------
    DistributedError
        Rank 0 cannot be reached, or a rank did not come.
    """

    kind = "sockets"

    def __init__(self, rank: int, size: int, address: tuple[str, int], local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._peers: dict[int, socket.socket] = {}
        if rank:
            self._peers[0] = _connect(address, rank)
        else:
            self._peers = _accept(address, size)

    @classmethod
    def of_torchrun(cls, environment: Mapping[str, str]) -> Sockets:
        """Return the ranks of torchrun's variables.

        Rank 0 listens at the port after MASTER_PORT, which torchrun itself uses, or at
        GPUBACKPROP_PORT.

        Parameters
        ----------
        environment : mapping
            RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.

        Returns
        -------
        Sockets
            Connected.

        Raises
        ------
        DistributedError
            As for the class.
        """
        port = int(environment.get("GPUBACKPROP_PORT", int(environment["MASTER_PORT"]) + 1))
        return cls(
            int(environment["RANK"]), int(environment["WORLD_SIZE"]),
            (environment["MASTER_ADDR"], port), int(environment["LOCAL_RANK"]),
        )  # fmt: skip

    def gather(self, record: Any) -> list[Any]:
        if self.rank:
            self._send(0, pickle.dumps(record))
            return list(pickle.loads(self._receive(0)))
        records = [record, *(pickle.loads(self._receive(peer)) for peer in range(1, self.size))]
        together = pickle.dumps(records)
        for peer in range(1, self.size):
            self._send(peer, together)
        return records

    def allreduce(self, buffer: np.ndarray) -> None:
        if self.rank:
            self._send(0, buffer.tobytes())
            buffer[...] = np.frombuffer(self._receive(0), buffer.dtype)
            return
        received = (self._receive(peer) for peer in range(1, self.size))
        sum_of([buffer, *(np.frombuffer(data, buffer.dtype) for data in received)], buffer)
        together = buffer.tobytes()
        for peer in range(1, self.size):
            self._send(peer, together)

    def reduce_scatter(self, buffer: np.ndarray, parts: Sequence[slice]) -> None:
        if self.rank:
            self._send(0, buffer.tobytes())
            buffer[parts[self.rank]] = np.frombuffer(self._receive(0), buffer.dtype)
            return
        received = (self._receive(peer) for peer in range(1, self.size))
        total = np.empty_like(buffer)
        sum_of([buffer, *(np.frombuffer(data, buffer.dtype) for data in received)], total)
        buffer[parts[0]] = total[parts[0]]
        for peer in range(1, self.size):
            self._send(peer, total[parts[peer]].tobytes())

    def broadcast(self, buffer: np.ndarray, root: int = 0) -> None:
        sent = self.gather(buffer.tobytes() if self.rank == root else None)[root]
        buffer[...] = np.frombuffer(sent, buffer.dtype).reshape(buffer.shape)

    def _send(self, peer: int, data: bytes) -> None:
        try:
            self._peers[peer].sendall(LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise self._lost(peer) from error

    def _receive(self, peer: int) -> bytes:
        return self._read(peer, LENGTH.unpack(self._read(peer, LENGTH.size))[0])

    def _read(self, peer: int, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = self._peers[peer].recv(min(size - len(data), 1 << 20))
            except OSError as error:
                raise self._lost(peer) from error
            if not piece:
                raise self._lost(peer)
            data += piece
        return bytes(data)

    def _lost(self, peer: int) -> DistributedError:
        return DistributedError(
            f"rank {peer} of {self.size} has ended: its connection is closed; all ranks must make "
            f"the same calls, such as fit and evaluate"
        )


def _connect(address: tuple[str, int], rank: int) -> socket.socket:
    until = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            connection = socket.create_connection(address, 5.0)
        except OSError as error:
            if time.monotonic() > until:
                raise DistributedError(
                    f"rank {rank} cannot reach rank 0 at {address[0]}:{address[1]} ({error}); "
                    f"set GPUBACKPROP_PORT to a port that is free and open between the machines"
                ) from error
            time.sleep(0.05)
            continue
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(LENGTH.pack(rank))
        return connection


def _accept(address: tuple[str, int], size: int) -> dict[int, socket.socket]:
    peers: dict[int, socket.socket] = {}
    try:
        server = _listen(address, size)
    except OSError as error:
        raise DistributedError(
            f"rank 0 cannot listen at port {address[1]} ({error}); set GPUBACKPROP_PORT to a free "
            f"one on all ranks"
        ) from error
    server.settimeout(CONNECT_SECONDS)
    with server:
        while len(peers) < size - 1:
            try:
                connection, _ = server.accept()
            except TimeoutError as error:
                missing = sorted({*range(1, size)} - {*peers})
                raise DistributedError(
                    f"rank {missing[0]} of {size} did not come within {CONNECT_SECONDS:g} s"
                ) from error
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(CONNECT_SECONDS)
            rank = LENGTH.unpack(connection.recv(LENGTH.size, socket.MSG_WAITALL))[0]
            connection.settimeout(None)
            peers[rank] = connection
    return peers


def _listen(address: tuple[str, int], size: int) -> socket.socket:
    """Listen where the others connect; at all addresses if that name is not one of this machine."""
    try:
        return socket.create_server(address, backlog=size)
    except OSError:
        return socket.create_server(("", address[1]), backlog=size)
