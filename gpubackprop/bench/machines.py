"""The machine of a record, how several machines differ, and what makes their times doubtful."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Record = dict[str, Any]
SMOKE = "a smoke run: its times mean nothing"


def machine(record: Record) -> str:
    """Name the card, or the processor and its cores. Records of one machine have one name."""
    gpu, cpu = record["gpu"], record["cpu"]
    if record["device"] != "cpu":
        return str((gpu or {}).get("name", "unknown card"))
    return f"{cpu.get('model', '?')}, {cpu.get('cores', '?')} cores"


def letter(number: int) -> str:
    """Return the letter of a record: A, B, ..., Z, AA.

    >>> letter(0), letter(27)
    ('A', 'AB')
    """
    return (letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _gpu(*keys: str) -> Callable[[Record], str]:
    def text(record: Record) -> str:
        found = [str((record["gpu"] or {}).get(key, "")) for key in keys]
        return " / ".join(value or "?" for value in found) if any(found) else ""

    return text


def _cpu(record: Record) -> str:
    cpu = record["cpu"]
    return f"{cpu.get('model', '?')}, {cpu.get('cores', '?')} cores"


def _load(record: Record) -> str:
    load = record.get("load_before")
    return " ".join(f"{value:g}" for value in load) if load else ""


def _busy(record: Record) -> str:
    busy = record.get("busy_before")
    return "" if busy is None else f"{busy:g}"


def _setting(key: str) -> Callable[[Record], str]:
    return lambda record: str(record["settings"].get(key, ""))


def _threads(record: Record) -> str:
    return ", ".join(map(str, record["settings"].get("threads", [])))


def _clocks(record: Record) -> str:
    """Return the clocks of the rounds themselves, if they were read."""
    read = [mhz for row in record["rows"] for mhz in row.get("clocks", [])]
    if not read:
        return str(record.get("no_clocks", "")) and f"not read: {record['no_clocks']}"
    dropped = sum(int(row.get("dropped", 0)) for row in record["rows"])
    return f"{min(read)} to {max(read)} MHz" + f", {dropped} rounds dropped" * bool(dropped)


# The facts above a comparison. If one of `_COMPARED` differs, a warning says so.
_FACTS: dict[str, Callable[[Record], str]] = {
    "measured": lambda record: f"{record['date']} {record.get('time', '')}".strip(),
    "commit": lambda record: str(record["commit"] or "installed"),
    "device": lambda record: str(record["device"]),
    "card": _gpu("name"),
    "driver": _gpu("driver_version"),
    "clocks as found, SM / memory": _gpu("clocks.sm", "clocks.mem"),
    "highest clocks, SM / memory": _gpu("clocks.max.sm", "clocks.max.mem"),
    "clocks while timed": _clocks,
    "power limit": _gpu("power.limit"),
    "temperature as found": _gpu("temperature.gpu"),
    "ECC": _gpu("ecc.mode.current"),
    "CPU": _cpu,
    "BLAS": lambda record: str(record["cpu"].get("blas", "")),
    "CPU's clock as found, MHz": lambda record: str(record["cpu"].get("mhz_as_found") or ""),
    "load before (1, 5, 15 minutes)": _load,
    "busy cores before": _busy,
    "platform": lambda record: str(record.get("platform", "")),
    "Python": lambda record: str(record.get("python", "")),
    "size": _setting("size"),
    "rounds": _setting("rounds"),
    "threads": _threads,
}
_COMPARED = (
    "card", "driver", "highest clocks, SM / memory", "power limit", "ECC", "CPU", "BLAS", "Python",
    "platform", "size", "rounds", "threads",
)  # fmt: skip


def facts(records: list[Record]) -> list[tuple[str, list[str]]]:
    """Return (fact, its value in each record), without facts that no record has."""
    named = {name: [get(record) for record in records] for name, get in _FACTS.items()}
    for package in _packages(records):
        named[package] = [str(record["versions"].get(package, "")) for record in records]
    return [(name, values) for name, values in named.items() if any(values)]


def _packages(records: list[Record]) -> list[str]:
    return sorted({name for record in records for name in record["versions"]})


def warnings(records: list[Record]) -> list[str]:
    """Say what differs between the records, and what makes the times of one doubtful."""
    names = [letter(number) for number in range(len(records))]
    found = []
    kinds = {record["device"].partition(":")[0] for record in records}
    if len(kinds) > 1:
        found.append("some were measured on a GPU and some on a CPU; each one's own is compared")
    compared = {*_COMPARED, *_packages(records)}
    for what, values in facts(records):
        if what in compared and len(set(values)) > 1:
            each = "; ".join(
                f"{name}: {value or 'not there'}" for name, value in zip(names, values, strict=True)
            )
            found.append(f"{what} differs ({each})")
    for name, record in zip(names, records, strict=True):
        found += [f"{name}: {doubt}" for doubt in doubts(record)]
    return found


def is_smoke(record: Record) -> bool:
    return bool(record["settings"].get("size") == "smoke")


def too_busy(record: Record) -> list[tuple[str, str]]:
    """Say in few words and in a sentence that others worked before the run; [] if they did not.

    Records since 2026-11-29 have the cores that were busy in the second before; older ones and
    systems without /proc have the load of the minute before.
    """
    cores = record["cpu"].get("cores")
    busy, load = record.get("busy_before"), record.get("load_before")
    if busy is not None and cores:
        if busy <= cores / 4:
            return []
        few = f"{busy:g} of {cores} cores busy"
        return [(few, f"{busy:g} of its {cores} cores were busy before the run")]
    if not load or not cores or load[0] <= cores / 2:
        return []
    sentence = f"the load was {load[0]:g} before the run, above half of its {cores} cores"
    return [(f"load {load[0]:g} of {cores} cores", sentence)]


def doubts(record: Record) -> list[str]:
    """Say why the times of this record are not reliable."""
    found = [SMOKE] * is_smoke(record)
    found += [f"{says}: its times are not to be relied on" for _, says in too_busy(record)]
    if record["device"] != "cpu" and record.get("no_clocks"):
        found.append(f"no clocks and no energy were read ({record['no_clocks']})")
    return found
