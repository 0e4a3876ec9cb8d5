"""A whole run: its cases and devices, the limits of the machine, and the record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpubackprop.backends.host import probe_cpu
from gpubackprop.bench import record as records
from gpubackprop.bench.cases import cases
from gpubackprop.bench.harness import Harness, Plan
from gpubackprop.bench.providers import PROVIDERS
from gpubackprop.bench.rows import Row
from gpubackprop.bench.shapes import Case
from gpubackprop.errors import OptionError

Record = dict[str, Any]
QUICK_PEERS = frozenset({"torch"})  # quick to set up; all GPU goals name it
ROUNDS = {"smoke": (2, 0.001), "quick": (5, 0.05), "full": (7, 0.08)}


@dataclass(frozen=True)
class Job:
    """A case on a device ("cpu" with so many threads, or "cuda:N") beside these groups of peers."""

    case: Case
    device: str
    threads: int
    peers: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.case.name} on {self.device}"


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes
    ----------
    size : "smoke", "quick" or "full".
    device : "cpu" or "cuda:N"; beside a GPU, the CPU is measured on the cases of both.
    device_reason : why this device was chosen.
    op : a text that the names of the cases contain.
    peers : groups of peers.
    threads : numbers of CPU threads; all cases run with the last, key cases with the others too.
    budget : seconds after which no further case starts.
    cpu : whether the CPU is measured beside a GPU.
    """

    size: str = "quick"
    device: str = "cpu"
    device_reason: str = ""
    op: str = ""
    peers: frozenset[str] = frozenset()
    threads: tuple[int, ...] = ()
    budget: float = float("inf")
    cpu: bool = True

    def json(self) -> Record:
        rounds, seconds = ROUNDS[self.size]
        return {
            "size": self.size, "device_reason": self.device_reason, "op": self.op,
            "peers": sorted(self.peers), "threads": list(self.all_threads), "rounds": rounds,
            "seconds_of_a_round": seconds,
        }  # fmt: skip

    @property
    def all_threads(self) -> tuple[int, ...]:
        return self.threads or (probe_cpu().cores,)


def work(settings: Settings) -> list[Job]:
    """Return the jobs, the most important first, and the GPU before the CPU.

    On a GPU all cases run first beside PyTorch eager, then again with the peers that compile for
    long.

    Raises
    ------
    OptionError : no case's name contains `op`.
    """
    found: list[Job] = []
    kind = settings.device.partition(":")[0]
    *fewer, most = settings.all_threads
    chosen = [case for case in cases(settings.size, kind) if settings.op in case.name]
    first = settings.peers & QUICK_PEERS
    if kind == "cuda":
        found += [Job(case, settings.device, most, first) for case in chosen]
        found += [
            Job(case, settings.device, most, settings.peers) for case in chosen
            if _takers(case, settings, settings.peers) > _takers(case, settings, first)
        ]  # fmt: skip
    for case in chosen:
        if "cpu" in case.devices and (kind == "cpu" or settings.cpu):
            found.append(Job(case, "cpu", most, settings.peers))
            found += [Job(case, "cpu", count, settings.peers) for count in fewer if case.key]
    if not found:
        names = sorted({case.op for case in cases(settings.size, kind)})
        raise OptionError(f"no case contains {settings.op!r}; operations are {', '.join(names)}")
    return found


def _takers(case: Case, settings: Settings, peers: frozenset[str]) -> int:
    return sum(one.takes_part(case, settings.device, peers) for one in PROVIDERS)


def run_all(
    harness: Harness, work: list[Job], budget: float, progress: Callable[[str], None],
    done: Callable[[list[Row]], None],
) -> list[str]:  # fmt: skip
    """Run every job in order, and call `done(rows)` after each.

    Returns the names of the cases that were skipped because `budget` seconds had passed.
    """
    end = time.monotonic() + budget
    for number, job in enumerate(work):
        if time.monotonic() > end:
            begun = {earlier.name for earlier in work[:number]}
            return [
                left.name + ", with its other peers" * (left.name in begun)
                for left in work[number:]
            ]
        plural = "s" if job.threads > 1 else ""
        at = f"{job.threads} thread{plural}" if job.device == "cpu" else job.device
        progress(f"[{number + 1}/{len(work)}] {job.case.name}, {at}")
        done(harness.run_case(job.case, job.device, job.threads, job.peers))
    return []


def measure(
    settings: Settings,
    progress: Callable[[str], None] = lambda text: None,
    save: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Run the jobs; ``save(record)`` after each case keeps the results of an interrupted run."""
    todo = work(settings)
    most = settings.all_threads[-1]
    rounds, seconds = ROUNDS[settings.size]
    record = records.new(settings.device, settings.json())
    card = records.bus_id(settings.device)
    plan = Plan(rounds, seconds, settings.peers, most, settings.size == "smoke", card)
    with Harness(plan) as harness:
        devices = ["cpu", settings.device] if settings.cpu else [settings.device]
        for device in dict.fromkeys(devices):
            progress(f"limits of {device}: copy, read, product")
            record["limits"][device] = {
                key: float(f"{value:.5g}") if isinstance(value, float) else value
                for key, value in harness.machine(device, most).items()
            }

        def done(rows: list[Row]) -> None:
            new = [row.json() | {"run": records.run_name(record)} for row in rows]
            again = {_who(row) for row in new}
            record["rows"] = [row for row in record["rows"] if _who(row) not in again] + new
            save(record)

        record["left_out"] = run_all(harness, todo, settings.budget, progress, done)
    save(record)
    return record


def _who(row: Record) -> tuple[Any, ...]:
    """Return a row's key: a later row with the same key replaces it."""
    return row["case"], row["provider"], row["device"], row["threads"]
