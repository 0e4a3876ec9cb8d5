"""``mpirun -n 4 gpubackprop train``: what rank 0 does alone, and what all ranks do."""

from __future__ import annotations

import argparse
import dataclasses
import socket
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from gpubackprop.backends import devices
from gpubackprop.backends.host import available_cores
from gpubackprop.cli.common import Device, Say, count, set_threads
from gpubackprop.distributed import Communicator, join
from gpubackprop.distributed.contract import is_agreed

T = TypeVar("T")


def add_option(group: Any) -> None:
    group.add_argument(
        "--distributed",
        choices=["auto", "none"],
        default="auto",
        help="auto: the processes that mpirun, srun or torchrun has started train together, each "
        "its part of every batch, or of --folds and --members its share of the networks; none: "
        "each trains alone",
    )


def join_ranks(args: argparse.Namespace) -> Communicator:
    return join("auto" if args.distributed == "auto" else None)


class Silent(Say):
    """What the other ranks print: nothing."""

    def line(self, text: str = "") -> None:
        pass

    def result(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def object(self, values: Any) -> None:
        pass


def say_of(args: argparse.Namespace, ranks: Communicator) -> Say:
    return (Say if ranks.rank == 0 else Silent)(args.json, args.quiet)


def own_device(args: argparse.Namespace, ranks: Communicator, device: Device) -> Device:
    """Return this rank's GPU, or the CPU with its share of the machine's cores."""
    if ranks.size == 1:
        return device
    if not devices.is_host(device.name):
        if args.device in ("auto", "cuda"):
            return dataclasses.replace(device, name=f"cuda:{ranks.local_rank}")
        return device
    neighbours = ranks.gather(socket.gethostname()).count(socket.gethostname())
    threads = max(1, available_cores() // neighbours)
    if args.threads is None and set_threads(threads):
        return dataclasses.replace(device, threads=threads)
    return device


def on_rank_0(ranks: Communicator, make: Callable[[], T]) -> T:
    """Return what ``make()`` returns on rank 0; wrong usage that it finds there ends all ranks."""

    def caught() -> tuple[T | None, Any]:
        try:
            return make(), None
        except SystemExit as stop:  # argparse's
            return None, stop.code

    value, code = ranks.from_root(caught)
    if code is not None:
        raise SystemExit(code)
    return value  # type: ignore[return-value]


def print_ranks(say: Say, ranks: Communicator) -> None:
    """Print who trains together; a launcher that reports a death names the process alone."""
    if ranks.size == 1:
        return
    names = ranks.gather(ranks.who())
    say.line(f"ranks      {count(ranks.size, 'rank')} by {ranks.kind}")
    for rank, name in enumerate(names):
        say.line(f"           {rank}: {name[name.index('(') + 1 : -1]}")


def end_all(ranks: Communicator, error: BaseException) -> NoReturn:
    """End all ranks where this one was interrupted alone, or else raise the error."""
    if ranks.size > 1 and not is_agreed(error):
        ranks.abort("interrupted")
    raise error
