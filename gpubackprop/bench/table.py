"""Results for people: a table, what was left out, and one line to compare machines by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpubackprop import __version__
from gpubackprop.bench.contestants import LIMIT, OURS
from gpubackprop.bench.rows import Row

HEADLINES = (
    ("training_step/adam/f32/784-512-512-10/batch256", "step 784-512-512-10, batch 256"),
    ("softmax_cross_entropy/f32/4096x1000", "softmax cross entropy 4096x1000"),
)


def time_text(seconds: float) -> str:
    """Three significant digits and a unit.

    >>> time_text(0.00123456), time_text(2.5), time_text(1.5e-05)
    ('1.23 ms', '2.5 s', '15 us')
    """
    unit, size = ("us", 1e-6) if seconds < 1e-3 else ("ms", 1e-3) if seconds < 1 else ("s", 1.0)
    return f"{seconds / size:.3g} {unit}"


def lines(rows: list[Row]) -> list[str]:
    """The table: one line for each case and number of threads."""
    groups: dict[tuple[str, int], list[Row]] = {}
    gpu_cases = {row.case for row in rows if row.device != "cpu"}
    most = max((row.threads for row in rows if row.device == "cpu"), default=1)
    for row in rows:
        threads = row.threads if row.device == "cpu" else most
        groups.setdefault((row.case, threads), []).append(row)
    head = f"{'':<56}{'CPU':>10}"
    if gpu_cases:
        head += f"{'GPU':>10}{'speed-up':>10}"
    text = [head + f"{'of limit':>16}   our time / theirs, who beats us first"]
    for (case, threads), group in groups.items():
        name = case + ("" if threads == most else f", {threads} thread")
        text.append(_line(name, group, bool(gpu_cases)))
    return text


def _line(name: str, group: list[Row], gpu: bool) -> str:
    ours = {row.device.partition(":")[0]: row for row in group
            if row.contestant == OURS[row.device.partition(":")[0]]}  # fmt: skip
    cpu, cuda = ours.get("cpu"), ours.get("cuda")
    text = f"{name:<56}{_time(cpu):>10}"
    if gpu:
        both = cpu and cuda and cpu.seconds and cuda.seconds
        text += f"{_time(cuda):>10}"
        text += f"{cpu.seconds / cuda.seconds:>10.3g}" if both else f"{'-':>10}"  # type: ignore
    best = cuda if cuda and cuda.seconds else cpu
    share = f"{share_text(best.share)} {best.limit}" if best and best.share else "-"
    peers = [_peers(group, best)]
    if best is cuda and (on_cpu := _peers(group, cpu)):
        peers.append(f"on the CPU {on_cpu}")
    return f"{text}{share:>16}   {'; '.join(filter(None, peers))}".rstrip()


def share_text(share: float) -> str:
    """The share of a limit; "!" where it was none.

    >>> share_text(0.98), share_text(1.02)
    ('0.98', '1.02 !')
    """
    return f"{share:.2f}" + " !" * (round(share, 2) > 1)


def _time(row: Row | None) -> str:
    if row is None:
        return "-"
    return time_text(row.seconds) if row.seconds else ("WRONG" if row.wrong else "failed")


def _peers(group: list[Row], best: Row | None) -> str:
    if best is None:
        return ""
    theirs = [row for row in group if row.device == best.device
              and row.contestant not in (LIMIT, best.contestant)]  # fmt: skip
    timed = sorted((row for row in theirs if row.ratio), key=lambda row: -(row.ratio or 0))
    text = [f"{row.contestant} {row.ratio:.2f}" for row in timed]
    return ", ".join([*text, *(f"{row.contestant} WRONG" for row in theirs if row.wrong)])


def left_out(record: dict[str, Any]) -> list[str]:
    """What the table has no figure for, and why."""
    rows = [Row(**row) for row in record["rows"]]
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(f"{row.contestant}: {row.note}", []).append(row.case)
    text = [f"{note} ({_some(cases)})" for note, cases in notes.items()]
    if record["left_out"]:
        text.append(f"no time was left for {_some(record['left_out'])}")
    if record["device"] == "cpu":
        text.append(f"the GPU: {record['settings'].get('device_reason', 'not asked for')}")
    return text


def _some(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def summary(record: dict[str, Any]) -> str:
    """One line that people can paste to compare machines."""
    device = record["device"]
    kind = device.partition(":")[0]
    if kind == "cuda":
        gpu = record["gpu"] or {}
        machine = f"{gpu.get('name', 'GPU')}, driver {gpu.get('driver_version', '?')}"
    else:
        threads = record["settings"]["threads"][-1]
        machine = f"{record['cpu']['model']}, {threads} thread{'s' if threads > 1 else ''}"
    parts = [f"gpubackprop {__version__} {record['commit']}".strip(), machine]
    limits = record["limits"].get(device, {})
    if "copy" in limits:
        parts.append(f"copy {rate(limits['copy'], 'B/s')}")
    if "product" in limits:
        parts.append(f"f32 product {rate(limits['product'], 'FLOP/s')}")
    rows = {(row["case"], row["contestant"], row["device"]): row for row in record["rows"]
            if row["threads"] == record["settings"]["threads"][-1] or kind == "cuda"}  # fmt: skip
    for case, name in HEADLINES:
        row = rows.get((case, OURS[kind], device), {})
        if "seconds" in row:
            share = f" ({share_text(row['share'])} of {row['limit']})" if "share" in row else ""
            parts.append(f"{name}: {time_text(row['seconds'])}{share}")
    return " | ".join([*parts, record["date"]])


def rate(value: float, unit: str) -> str:
    """Three significant digits and a prefix.

    >>> rate(4.25e12, "B/s")
    '4.25 TB/s'
    """
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
