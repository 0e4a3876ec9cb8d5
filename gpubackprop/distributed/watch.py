"""A rank that dies is named, and the others end; so is one that ended while another waits for it.

Each rank keeps a connection with rank 0, on which nothing is sent until it ends with a goodbye, in
which it says how many calls it has made: see `calls`. Those who are not rank 0 hear only of rank 0:
where one of them waits for another, rank 0 comes to the same call, or ends without it. The
kernel closes the connection of a process that is killed, and finds a machine that has vanished by
keep-alive packets within 20 s. Rank 0, or rank 1 if it was rank 0, then says who it was. The
launcher may be faster: MPICH's mpiexec kills the others within milliseconds and names the process.
"""

from __future__ import annotations

import atexit
import os
import secrets
import select
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from gpubackprop.distributed.contract import Communicator

IDLE, INTERVAL, PROBES = 5, 5, 3  # seconds, seconds, number: 20 s until a machine counts as gone
CONNECT_SECONDS = 10.0
GOODBYE, DIED = b"b", b"d"
NUMBER = struct.Struct("!Q")  # of calls, after GOODBYE


def start(ranks: Communicator) -> None:
    """Watch these ranks from a thread, until the process ends.

    Parameters
    ----------
    ranks : Communicator
        Ranks that are processes; all of them call this.
    """
    server, own = None, {"host": socket.gethostname(), "pid": os.getpid(), "who": ranks.who()}
    if ranks.rank == 0:
        server = socket.create_server(("", 0), backlog=ranks.size)
        own |= {"port": server.getsockname()[1], "token": secrets.token_bytes(16)}
    records = ranks.gather(own)
    connections: dict[int, socket.socket] = {}
    if ranks.rank:
        connections = _connect(ranks, records)
    connected = ranks.gather(bool(connections))
    if server is not None:
        connections = _accept(server, records[0]["token"], connected[1:].count(True))
    Watch(ranks, [record["who"] for record in records], connections)


def _connect(ranks: Communicator, records: list[dict[str, Any]]) -> dict[int, socket.socket]:
    """Return the connection with rank 0; none if it cannot be reached: see the module."""
    root, own = records[0], records[ranks.rank]
    host = "127.0.0.1" if root["host"] == own["host"] else root["host"]
    with suppress(OSError):
        connection = socket.create_connection((host, root["port"]), CONNECT_SECONDS)
        connection.sendall(root["token"] + ranks.rank.to_bytes(4, "big"))
        return {0: connection}
    return {}


def _accept(server: socket.socket, token: bytes, count: int) -> dict[int, socket.socket]:
    connections: dict[int, socket.socket] = {}
    server.settimeout(CONNECT_SECONDS)
    with server, suppress(OSError):
        while len(connections) < count:
            connection, _ = server.accept()
            connection.settimeout(CONNECT_SECONDS)
            said = connection.recv(len(token) + 4, socket.MSG_WAITALL)
            if said[: len(token)] == token:  # nobody else's
                connections[int.from_bytes(said[len(token) :], "big")] = connection
            else:
                connection.close()
    return connections


class Watch:
    """The thread that waits for the end of a connection.

    Parameters
    ----------
    ranks : Communicator
        The ranks.
    names : list of str
        What each rank is called in messages.
    connections : dict
        From a rank's number to the socket.
    """

    def __init__(
        self, ranks: Communicator, names: list[str], connections: dict[int, socket.socket]
    ) -> None:
        self.ranks, self.rank = ranks, ranks.rank
        self.names, self.connections = names, connections
        for connection in connections.values():
            connection.settimeout(None)
            _keep_alive(connection)
        atexit.register(self.say_goodbye)
        if hasattr(os, "register_at_fork"):  # a child's copy would keep the connection open
            os.register_at_fork(after_in_child=self.forget)
        threading.Thread(target=self.run, name="gpubackprop-watch", daemon=True).start()

    def run(self) -> None:
        open_ones = dict(self.connections)
        while open_ones:
            ready, _, _ = select.select(list(open_ones.values()), [], [])
            for rank in [rank for rank, socket_ in open_ones.items() if socket_ in ready]:
                self.hear(rank, open_ones.pop(rank))

    def hear(self, rank: int, connection: socket.socket) -> None:
        """Read how a rank has ended, and end this one if it cannot go on."""
        said = number = b""
        with suppress(OSError):
            said = connection.recv(1)
            if said == DIED:
                os._exit(1)
            number = connection.recv(NUMBER.size, socket.MSG_WAITALL)
        if said != GOODBYE or len(number) < NUMBER.size:
            self.report(rank)
        calls = self.ranks.calls
        in_vain = calls.ended(self.names[rank], *NUMBER.unpack(number)) if calls else ""
        if in_vain:
            self.ranks.abort(in_vain)

    def report(self, rank: int) -> None:
        """Say which rank has died, and end this process and the others."""
        if self.rank <= 1:
            text = f"{self.names[rank]} has died; all ranks end\n"
            with suppress(OSError):
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
        for connection in self.connections.values():
            with suppress(OSError):
                connection.sendall(DIED)
        time.sleep(1.0)  # what was written gets out before the launcher sees this process end
        os._exit(1)

    def say_goodbye(self) -> None:
        calls = self.ranks.calls
        number = NUMBER.pack(calls.begun if calls else 0)
        for connection in self.connections.values():
            with suppress(OSError):
                connection.sendall(GOODBYE + number)

    def forget(self) -> None:
        atexit.unregister(self.say_goodbye)
        for connection in self.connections.values():
            with suppress(OSError):
                connection.close()


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", IDLE), ("TCP_KEEPINTVL", INTERVAL), ("TCP_KEEPCNT", PROBES)
    ):  # fmt: skip
        if hasattr(socket, name):  # not all systems have them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
