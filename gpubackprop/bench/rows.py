"""A provider's row: its rounds, and what is computed from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gpubackprop.bench.nvml import enough
from gpubackprop.bench.providers import LIMIT, SAME_SIZE

# Largest ratio of our time to theirs that the project wants on a CPU.
GOALS = {
    ("softmax_cross_entropy/f32/4096x1000", "NumPy by hand"): 0.60,
    ("softmax_cross_entropy/f32/4096x1000", "torch eager"): 1.00,
    ("softmax_cross_entropy/f32/256x50257", "NumPy by hand"): 0.60,
    ("softmax_cross_entropy/f32/256x50257", "torch eager"): 1.00,
    ("training_step/adam/f32/784-512-512-10/batch256", "NumPy by hand"): 1.00,
    ("training_step/adam/f32/784-512-512-10/batch256", "torch eager"): 1.00,
    ("training_step/adam/f32/784-512-512-10/batch256", "scikit-learn"): 0.50,
}


@dataclass
class Row:
    """One provider's result.

    Attributes
    ----------
    seconds : of one piece of work, the median over the rounds; p20, p80 : percentiles. On a GPU by
        CUDA events: of a graph's replay where there is one (`graph`), else of the plain calls.
        None where it was not timed.
    plain : median of the plain calls by events, where `seconds` is a graph's. host : median time
        after which the host was free again.
    ratio : our time over its time: median over the rounds of the ratio within a round, with
        percentiles. goal : largest ratio wanted.
    share : the limit's time over this one's time, with percentiles. limit : what the limit is.
    share_same_size : likewise of the limit of the case's own size, for small cases on a GPU.
    workers : threads of a limit's process, where fewer than `threads` were the fastest.
    bytes, flops : of one piece of work, at least.
    queued : replays were timed with the GPU's queue filled, as the host launches them more slowly.
    joules : energy of the whole card for one piece of work.
    clocks, memory_clocks : MHz in each of `rounds`; memory's where it changed.
    dropped : rounds below 95 % of the highest clock, which count nowhere.
    error : the worst relative difference from the oracle.
    note : why it was not timed; "WRONG: ..." if its result was.
    remark : what was different about it. run : date and commit.
    """

    case: str
    op: str
    provider: str
    device: str
    threads: int
    seconds: float | None = None
    p20: float | None = None
    p80: float | None = None
    graph: bool = False
    plain: float | None = None
    host: float | None = None
    ratio: float | None = None
    ratio_p20: float | None = None
    ratio_p80: float | None = None
    goal: float | None = None
    share: float | None = None
    share_p20: float | None = None
    share_p80: float | None = None
    share_same_size: float | None = None
    limit: str = ""
    workers: int | None = None
    bytes: int = 0
    flops: int = 0
    error: float | None = None
    note: str = ""
    remark: str = ""
    run: str = ""
    queued: bool = False
    joules: float | None = None
    dropped: int = 0
    rounds: list[float] = field(default_factory=list)
    clocks: list[int] = field(default_factory=list)
    memory_clocks: list[int] = field(default_factory=list)

    @property
    def kept(self) -> list[bool]:
        """Which rounds count."""
        if len(self.clocks) != len(self.rounds):
            return [True] * len(self.rounds)
        memory = self.memory_clocks or [0] * len(self.clocks)
        return enough(list(zip(self.clocks, memory, strict=True)))

    @property
    def wrong(self) -> bool:
        return self.note.startswith("WRONG")

    def json(self) -> dict[str, Any]:
        """Without what is not there and what JSON has no number for; floats to four digits."""
        return {
            key: _rounded(value) for key, value in asdict(self).items()
            if value is not None and value != "" and value != [] and value is not False
            and (key, value) != ("dropped", 0)
            and not (isinstance(value, float) and not math.isfinite(value))
        }  # fmt: skip


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return [_rounded(item) for item in value] if isinstance(value, list) else value


@dataclass
class Rounds:
    """What one provider needed in one mode, round by round."""

    repeats: int = 1
    seconds: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    clocks: list[tuple[int, int] | None] = field(default_factory=list)
    queued: bool = False

    def add(self, answer: dict[str, Any]) -> None:
        self.seconds.append(answer["seconds"])
        self.host.append(answer["host"])
        clocks = answer.get("clocks")
        self.clocks.append(tuple(clocks) if clocks else None)
        self.queued |= bool(answer.get("queued"))

    def into(self, row: Row) -> None:
        """Rounds, clocks where all were read, and how it was timed."""
        row.rounds, row.queued = self.seconds, self.queued
        known = [one for one in self.clocks if one is not None]
        if known and len(known) == len(self.seconds):
            row.clocks = [sm for sm, _ in known]
            memory = [mhz for _, mhz in known]
            row.memory_clocks = memory if len(set(memory)) > 1 else []

    def median(self) -> float:
        """Of the rounds that count."""
        row = Row("", "", "", "", 0)
        self.into(row)
        return float(np.median(np.array(row.rounds)[row.kept]))


def summarise(rows: dict[str, Row], ours: str) -> None:
    """Medians and percentiles of the rounds that count, and of the ratios within a round. A limit
    is the best that the machine does, so its fastest round counts: two threads may wait for one
    another."""
    limit = _counted(rows.get(LIMIT))
    same_size = _counted(rows.get(SAME_SIZE))
    for name, row in rows.items():
        if not row.rounds:
            continue
        times = _counted(row)
        row.dropped = len(row.rounds) - len(times)
        row.p20, row.seconds, row.p80 = percentiles(times)
        if ours in rows and rows[ours].rounds:
            row.ratio_p20, row.ratio, row.ratio_p80 = percentiles(_ratios(rows[ours], row))
        if name in (LIMIT, SAME_SIZE):
            continue
        if limit.size:
            fastest, usual = float(limit.min()), float(np.percentile(limit, 20))  # one is a draw
            row.share_p20, row.share = fastest / row.p80, fastest / row.seconds
            row.share_p80 = usual / row.p20
        if same_size.size:
            row.share_same_size = float(same_size.min()) / row.seconds


def _counted(row: Row | None) -> np.ndarray:
    """Times of the rounds that count."""
    return np.array(row.rounds)[row.kept] if row is not None and row.rounds else np.zeros(0)


def _ratios(ours: Row, theirs: Row) -> np.ndarray:
    """Our time over theirs, in each round that counts for both; of all that count for either, where
    there is no such round."""
    if len(ours.rounds) == len(theirs.rounds):
        both = np.array(ours.kept) & np.array(theirs.kept)
        if both.any():
            return np.asarray(np.array(ours.rounds)[both] / np.array(theirs.rounds)[both])
    return np.asarray(np.median(_counted(ours)) / _counted(theirs))


def percentiles(values: np.ndarray | list[float]) -> tuple[float, float, float]:
    """p20, median, p80."""
    p20, median, p80 = np.percentile(values, [20, 50, 80])
    return float(p20), float(median), float(p80)
