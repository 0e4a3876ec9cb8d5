"""A provider's row: its rounds, and the figures that are computed from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gpubackprop.bench.nvml import enough
from gpubackprop.bench.providers import LIMIT, SAME_SIZE

# The project's goals on a CPU: our time over theirs is at most so much.
_LOSSES = [f"softmax_cross_entropy/f32/{shape}" for shape in ("4096x1000", "256x50257", "4096x10")]
_LECTURE = "training_step/adam/f32/784-512-512-10/batch256"
_STEPS = [
    "training_step/adam/f32/64-128-10/batch200",
    *(f"training_step/adam/f32/30-128-128-2/batch{rows}" for rows in (1, 8, 64, 512, 4096)),
    _LECTURE,
    *(f"training_step/adam/f32/784-512-512-10/batch{rows}" for rows in (64, 1024, 4096)),
]
GOALS = {
    **{(loss, "NumPy by hand"): 0.60 for loss in _LOSSES[:2]},
    **{(loss, "torch eager"): 0.50 for loss in _LOSSES},
    **{(loss, "JAX jit"): 0.90 for loss in _LOSSES},
    (_LECTURE, "NumPy by hand"): 1.00,
    (_LECTURE, "torch eager"): 1.00,
    (_LECTURE, "scikit-learn"): 0.50,
    **{(step, peer): 1.00 for step in _STEPS for peer in ("torch fused", "JAX jit")},
    **{(step, "torch.compile"): 1.00 for step in (_STEPS[0], _LECTURE)},
}


@dataclass
class Row:
    """One provider's result.

    Attributes
    ----------
    seconds : time of one piece of work, median over the rounds; None if it was not timed. On a
        GPU, CUDA events time a graph's replay if there is one (`graph`), else the plain calls.
    p20, p80 : percentiles of `seconds`.
    plain : median of the plain calls by events, if `seconds` is a graph's.
    host : median time after which the host was free again.
    ratio : our time over its time: the median over the rounds of the ratio within a round, with
        percentiles.
    goal : the largest ratio that the project wants.
    share : the limit's time over this provider's time, with percentiles.
    limit : what the limit is.
    share_same_size : the same for the limit of the case's own size; small cases on a GPU only.
    workers : threads of a limit's process, if fewer than `threads` were the fastest.
    bytes, flops : the least that one piece of work takes.
    queued : whether replays were timed with a filled queue, as their launch takes longer.
    joules : energy of the whole card for one piece of work.
    clocks : MHz in each of `rounds`.
    memory_clocks : the memory's MHz in each round, if it changed.
    dropped : number of rounds below 95 % of the highest clock; they do not count.
    error : the worst relative difference from the oracle.
    note : why it was not timed; "WRONG: ..." if its result was.
    remark : what was different about it.
    run : date and commit of the run.
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
        """Say which rounds count."""
        if len(self.clocks) != len(self.rounds):
            return [True] * len(self.rounds)
        memory = self.memory_clocks or [0] * len(self.clocks)
        return enough(list(zip(self.clocks, memory, strict=True)))

    @property
    def wrong(self) -> bool:
        return self.note.startswith("WRONG")

    def json(self) -> dict[str, Any]:
        """Return the row for JSON: floats have four digits; empty and infinite fields are
        omitted."""
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
    """The times of one provider in one mode, round by round."""

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
        """Fill a row with rounds, clocks (if all were read), and how it was timed."""
        row.rounds, row.queued = self.seconds, self.queued
        known = [one for one in self.clocks if one is not None]
        if known and len(known) == len(self.seconds):
            row.clocks = [sm for sm, _ in known]
            memory = [mhz for _, mhz in known]
            row.memory_clocks = memory if len(set(memory)) > 1 else []

    def median(self) -> float:
        """Return the median of the rounds that count."""
        row = Row("", "", "", "", 0)
        self.into(row)
        return float(np.median(np.array(row.rounds)[row.kept]))


def summarise(rows: dict[str, Row], ours: str) -> None:
    """Set medians and percentiles of the rounds that count, and of the ratios within a round.

    A limit is the best that the machine does, so its fastest round counts: in others, two threads
    may have waited for one another.
    """
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
            fastest, usual = float(limit.min()), float(np.percentile(limit, 20))  # one is luck
            row.share_p20, row.share = fastest / row.p80, fastest / row.seconds
            row.share_p80 = usual / row.p20
        if same_size.size:
            row.share_same_size = float(same_size.min()) / row.seconds


def _counted(row: Row | None) -> np.ndarray:
    """Return the times of the rounds that count."""
    return np.array(row.rounds)[row.kept] if row is not None and row.rounds else np.zeros(0)


def _ratios(ours: Row, theirs: Row) -> np.ndarray:
    """Return our time over theirs in each round that counts for both.

    If there is no such round, take all rounds that count for either.
    """
    if len(ours.rounds) == len(theirs.rounds):
        both = np.array(ours.kept) & np.array(theirs.kept)
        if both.any():
            return np.asarray(np.array(ours.rounds)[both] / np.array(theirs.rounds)[both])
    return np.asarray(np.median(_counted(ours)) / _counted(theirs))


def percentiles(values: np.ndarray | list[float]) -> tuple[float, float, float]:
    """Return p20, median, p80."""
    p20, median, p80 = np.percentile(values, [20, 50, 80])
    return float(p20), float(median), float(p80)
