"""Results for people: a table, what was left out, and one line to compare machines by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpubackprop import __version__
from gpubackprop.bench.contestants import NO_PEERS, OURS
from gpubackprop.bench.machines import is_smoke, too_busy
from gpubackprop.bench.record import rows_of
from gpubackprop.bench.rows import Row, percentiles

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


SHOWN = {"numpy": "gpubackprop", "cupy_raw": "gpubackprop", "cupy_arrays": "CuPy arrays",
         "cupy_raw, cold L2": "gpubackprop, cold L2"}  # fmt: skip


def shown(contestant: str) -> str:
    """What a reader knows it by: ours are told apart by the device."""
    return SHOWN.get(contestant, contestant)


def place(row: Row) -> str:
    if row.device != "cpu":
        return row.device
    return f"{row.threads} thread" + ("s" if row.threads > 1 else "")


def noise(row: Row) -> str:
    """p20 – p80; "" where they are not known."""
    return "" if row.p20 is None or row.p80 is None else _between(row.p20, row.p80)


def _between(least: float, most: float) -> str:
    low, high = time_text(least), time_text(most)
    (number, unit), (_, other) = low.split(), high.split()
    return f"{number if unit == other else low} – {high}"


def spread(seconds: list[float]) -> str:
    """p20 – p80 of the times of several rounds.

    >>> spread([0.001, 0.002, 0.003, 0.004, 0.005, 0.006])
    '2 – 5 ms'
    """
    low, _, high = percentiles(seconds)
    return _between(low, high)


def time_cell(row: Row | None) -> str:
    """Time and p20 – p80, or why there is none."""
    text = _time(row)
    return f"{text} ({noise(row)})" if row and row.seconds and noise(row) else text


def verdict(row: Row) -> str:
    """Of our time over this one's: "" where it is decided, else "undecided", as 1 lies within p20
    to p80 of the ratio."""
    low, high = row.ratio_p20, row.ratio_p80
    return "undecided" if low is not None and high is not None and low <= 1 <= high else ""


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
    ours = [row for row in rows if row.contestant in OURS.values()]
    wide = max([16, *(len(share_cell(row)) + 2 for row in ours)])
    head += f"{'of limit':>{wide}}"
    if any(noise(row) for row in ours):
        head += f"{'p20 – p80':>20}"
    text = [f"{head}   our time / theirs, who beats us first"]
    for (case, threads), group in groups.items():
        name = case + ("" if threads == most else f", {threads} thread")
        text.append(_line(name, group, (bool(gpu_cases), "p20" in head, wide)))
    return text


def _line(name: str, group: list[Row], columns: tuple[bool, bool, int]) -> str:
    gpu, with_noise, wide = columns
    ours = {row.device.partition(":")[0]: row for row in group
            if row.contestant == OURS[row.device.partition(":")[0]]}  # fmt: skip
    cpu, cuda = ours.get("cpu"), ours.get("cuda")
    text = f"{name:<56}{_time(cpu):>10}"
    if gpu:
        both = cpu and cuda and cpu.seconds and cuda.seconds
        text += f"{_time(cuda):>10}"
        text += f"{cpu.seconds / cuda.seconds:>10.3g}" if both else f"{'-':>10}"  # type: ignore
    best = cuda if cuda and cuda.seconds else cpu
    share = share_cell(best) if best else ""
    text += f"{share or '-':>{wide}}"
    if with_noise:
        text += f"{noise(best) if best else '':>20}"
    peers = [_peers(group, best)]
    if best is cuda and (on_cpu := _peers(group, cpu)):
        peers.append(f"on the CPU {on_cpu}")
    return f"{text}   {'; '.join(filter(None, peers))}".rstrip()


def share_cell(row: Row) -> str:
    """The share of the limit and what that is; in brackets that of the limit of the case's size."""
    if not row.share:
        return ""
    own = f" ({share_text(row.share_same_size)} at its size)" if row.share_same_size else ""
    return f"{share_text(row.share)} {row.limit}{own}"


def remarks(rows: list[Row]) -> list[str]:
    """What was different about a contestant, e.g. why our plan is no CUDA graph; each once."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for remark in filter(None, (row.remark, _timing(row))):
            found.setdefault(f"{shown(row.contestant)}: {remark}", []).append(row.case)
    return [f"{text} ({_some(cases)})" for text, cases in found.items()]


def _timing(row: Row) -> str:
    if row.dropped and row.contestant in OURS.values():
        return f"{row.dropped} rounds below 95 % of the highest clock were dropped"
    return ""


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
              and row.contestant not in (*NO_PEERS, best.contestant)]  # fmt: skip
    timed = sorted((row for row in theirs if row.ratio), key=lambda row: -(row.ratio or 0))
    text = [f"{shown(row.contestant)} {row.ratio:.2f} {verdict(row)}".rstrip() for row in timed]
    return ", ".join([*text, *(f"{shown(row.contestant)} WRONG" for row in theirs if row.wrong)])


def left_out(record: dict[str, Any]) -> list[str]:
    """What the table has no figure for, and why."""
    rows = rows_of(record)
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(f"{row.contestant}: {row.note}", []).append(row.case)
    text = [f"{note} ({_some(cases)})" for note, cases in notes.items()]
    if record["left_out"]:
        text.append(f"no time was left for {_some(record['left_out'])}")
    if record["device"] == "cpu":
        text.append(f"the GPU: {record['settings'].get('device_reason', 'not asked for')}")
    elif record.get("no_clocks"):
        text.append(f"clocks and energy: {record['no_clocks']}")
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
    return " | ".join([*parts, record["date"], *_doubts(record)])


def _doubts(record: dict[str, Any]) -> list[str]:
    """What must not be lost where the line is pasted."""
    found = ["smoke run: times mean nothing"] * is_smoke(record)
    return found + [f"load {load:g} of {cores} cores" for load, cores in too_busy(record)]


def rate(value: float, unit: str) -> str:
    """Three significant digits and a prefix.

    >>> rate(4.25e12, "B/s")
    '4.25 TB/s'
    """
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
