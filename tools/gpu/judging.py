"""Judging: a stage's outcome follows from how it ended and which files it left."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpubackprop.bench import record as records
from gpubackprop.bench.providers import NO_PEERS
from gpubackprop.errors import GpubackpropError
from tools.gpu.common import SKIPPED, WORST
from tools.gpu.running import Ended

RECORDS = ("benchmarks", "bench_torch", "bench_sklearn")  # stages that leave a record
UNSUPPORTED = ("device not supported", "not supported on this", "unable to find injection library")


@dataclass
class Outcome:
    """The outcome of one stage.

    Attributes
    ----------
    status : "ok", "failed", "timeout" (it was stopped, and its findings so far count), "crashed"
        (by a signal), "skipped".
    note : a text of one line.
    worst : (badness, text) of its results, for the summary; 1 is just wrong.
    """

    name: str
    status: str
    seconds: float
    note: str = ""
    worst: list[tuple[float, str]] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        return self.status in ("failed", "timeout", "crashed")


def judge(name: str, ended: Ended, log: Path, out: Path) -> Outcome:
    """Return the outcome of a stage that has run."""
    if ended.code is None:
        return Outcome(name, "failed", ended.seconds, ended.problem)
    lines = [
        line
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    last = lines[-1] if lines else ""
    found = _read(out / f"{name}.json")
    worst = [(float(badness), str(text)) for badness, text in found.get("worst", [])]
    worst += _of_benchmarks(_rows(out / f"{name}.json")) if name in RECORDS else []
    note = str(found.get("note", ""))
    if ended.interrupted:
        how = "killed" if ended.killed else "stopped"
        said = f"{how} after {ended.seconds:.0f} s; {note or f'see {log.name}'}"
        return Outcome(name, "timeout", ended.seconds, said, worst)
    if ended.code < 0:
        said = f"ended by {signal.Signals(-ended.code).name}; {note or last}"
        return Outcome(name, "crashed", ended.seconds, said, worst)
    if name in ("memcheck", "racecheck"):
        text = "\n".join(lines).lower()
        reason = next((words for words in UNSUPPORTED if words in text), "")
        if reason:
            said = f"compute-sanitizer says: {reason}"
            return Outcome(name, "skipped", ended.seconds, said)
        if not (out / f"{name}.json").exists() and ended.code == 0:
            return Outcome(name, "failed", ended.seconds, f"the tool ran nothing: {last}")
    if ended.code == SKIPPED or (ended.code and "was asked for but" in last):
        return Outcome(name, "skipped", ended.seconds, note or last)
    if ended.code:
        said = note or f"exit code {ended.code}: {last}"
        return Outcome(name, "failed", ended.seconds, said, worst)
    return Outcome(name, "ok", ended.seconds, note or last, worst)


def _read(path: Path) -> dict[str, Any]:
    """Read a stage's own file; {} if it is missing or incomplete."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a benchmark record; none if the record is missing or incomplete."""
    try:
        rows: list[dict[str, Any]] = records.load(path)["rows"]
    except (OSError, GpubackpropError):
        return []
    return rows


def _of_benchmarks(rows: list[dict[str, Any]]) -> list[tuple[float, str]]:
    """Return wrong results, failed providers, and faster peers with our time over theirs."""
    found = []
    for row in rows:
        what, note = f"{row.get('case')}, {row.get('provider')}", str(row.get("note", ""))
        ratio = row.get("ratio") or 0.0
        if note.startswith("WRONG"):
            found.append((1e4, f"{what}: {note}"))
        elif "failed" in note or "ended" in note or "answer" in note:
            found.append((1e2, f"{what}: {note}"))
        elif ratio > 1 and row.get("provider") not in NO_PEERS:
            found.append((float(ratio), f"{what} is {ratio:.2f} times as fast as ours"))
    return found


def summary(outcomes: list[Outcome], shows: dict[str, str]) -> str:
    """Return summary.md: the worst results first, then a line for each stage."""
    bad = [f"{one.name} ({one.status})" for one in outcomes if one.bad]
    if not any(one.status == "ok" for one in outcomes if one.name != "environment"):
        verdict = "Nothing ran on a GPU: not measured on a GPU."
    elif bad:
        verdict = f"Not well: {', '.join(bad)}."
    else:
        verdict = "All that ran is well."
    text = ["# What this machine showed", "", verdict, ""]
    worst = sorted(
        ((badness, f"{one.name}: {line}") for one in outcomes for badness, line in one.worst),
        key=lambda pair: -pair[0],
    )
    if worst:
        text += [f"The {min(WORST, len(worst))} worst results of {len(worst)}:", ""]
        text += [f"{n}. {line}" for n, (_, line) in enumerate(worst[:WORST], 1)] + [""]
    text += ["| stage | status | seconds | shows | note |", "|---|---|---|---|---|"]
    text += [
        f"| {one.name} | {one.status} | {one.seconds:.0f} | {shows.get(one.name, '')} | "
        f"{one.note.replace('|', '/')} |"
        for one in outcomes
    ]
    return "\n".join(text) + "\n"
