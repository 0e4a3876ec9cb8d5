"""A whole run: which cases on which devices, the limits of the machine, and the record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpubackprop.backends.host import probe_cpu
from gpubackprop.bench import record as records
from gpubackprop.bench.harness import Harness, Plan, Row, run_all
from gpubackprop.bench.shapes import Case, cases
from gpubackprop.errors import OptionError

Record = dict[str, Any]
ROUNDS = {"smoke": (2, 0.001), "quick": (5, 0.05), "full": (7, 0.08)}


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes
    ----------
    size : "smoke", "quick" or "full". device : "cpu" or "cuda:N"; with a GPU the CPU is measured
        on the cases of both. device_reason : why that one.
    op : only cases whose name contains it. peers : groups of them.
    threads : numbers for the CPU, the last for all cases, the others for the key cases.
    budget : seconds after which no further case is started.
    """

    size: str = "quick"
    device: str = "cpu"
    device_reason: str = ""
    op: str = ""
    peers: frozenset[str] = frozenset()
    threads: tuple[int, ...] = ()
    budget: float = float("inf")

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


def work(settings: Settings) -> list[tuple[Case, str, int]]:
    """(case, device, threads) in the order of their worth; the GPU before the CPU.

    Raises
    ------
    OptionError : no case has that in its name.
    """
    found: list[tuple[Case, str, int]] = []
    kind = settings.device.partition(":")[0]
    *fewer, most = settings.all_threads
    for case in cases(settings.size, kind):
        if settings.op not in case.name:
            continue
        if kind == "cuda":
            found.append((case, settings.device, most))
        if "cpu" in case.devices:
            found.append((case, "cpu", most))
            found += [(case, "cpu", count) for count in fewer if case.key]
    if not found:
        names = sorted({case.op for case in cases(settings.size, kind)})
        raise OptionError(f"no case contains {settings.op!r}; operations are {', '.join(names)}")
    return found


def measure(
    settings: Settings,
    progress: Callable[[str], None] = lambda text: None,
    save: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Run it; ``save(record)`` after each case, so that an interrupted run leaves what it has."""
    todo = work(settings)
    most = settings.all_threads[-1]
    rounds, seconds = ROUNDS[settings.size]
    plan = Plan(rounds, seconds, settings.peers, most, settings.size == "smoke")
    record = records.new(settings.device, settings.json())
    with Harness(plan) as harness:
        for device in dict.fromkeys(["cpu", settings.device]):
            progress(f"limits of {device}: copy, read, product")
            record["limits"][device] = {
                key: float(f"{value:.5g}") if isinstance(value, float) else value
                for key, value in harness.machine(device, most).items()
            }

        def done(rows: list[Row]) -> None:
            record["rows"] += [row.json() | {"run": records.run_name(record)} for row in rows]
            save(record)

        record["left_out"] = run_all(harness, todo, settings.budget, progress, done)
    save(record)
    return record
