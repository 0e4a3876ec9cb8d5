"""The harness runs cases: each provider has its own process, and they take turns round by round.

Thread pools of different libraries disturb one another in one process, and a machine's speed
drifts. So rounds are interleaved, one provider works at a time, and only ratios within a run may be
compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gpubackprop.bench import limits, operations
from gpubackprop.bench.process import Process, cold_start
from gpubackprop.bench.providers import (
    BY_NAME,
    COLD_CACHE,
    LIMIT,
    NO_PEERS,
    PROVIDERS,
    SAME_SIZE,
    reference,
    why_missing,
)
from gpubackprop.bench.rows import GOALS, Rounds, Row, summarise
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.steps import HeldToLosses

COLD_ROUNDS = 3
MODES = ("plain", "replay", "cold")  # the calls, their CUDA graph, and calls with an empty cache
GPU_ROUND = 0.5  # share of a round: a card is warm by then, and its events are exact
LONG_CALL = 0.5  # seconds: a longer call is made once a round, in few rounds


@dataclass(frozen=True)
class Plan:
    """The settings of the harness.

    Attributes
    ----------
    rounds : timed rounds, after one that warms up.
    seconds : length of a provider's round.
    peers : groups of peers that take part.
    threads : the largest number of threads; slow peers do not take part with fewer.
    small : whether limits have small sizes, for trying out.
    card : PCI address of the GPU, to read its clocks.
    only : names of the providers that take part; empty for all.
    few : at most so many rounds of a long call.
    """

    rounds: int = 7
    seconds: float = 0.08
    peers: frozenset[str] = frozenset()
    threads: int = 1
    small: bool = False
    card: str = ""
    only: frozenset[str] = frozenset()
    few: int = 5


class Harness:
    """Measure cases; `with Harness(plan) as harness` ends its processes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._repeated: dict[str, int] = {}  # calls in a round, by provider
        self._processes: dict[tuple[str, str, int], Process] = {}

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    def process(self, provider: str, device: str, threads: int) -> Process:
        key = (provider, device, threads)
        if key in self._processes and self._processes[key].ended:
            self._processes.pop(key).close()
        if key not in self._processes:
            self._processes[key] = Process(provider, device, threads, small=self.plan.small)
        return self._processes[key]

    def machine(self, device: str, threads: int) -> dict[str, float]:
        """Return the best rates of copy, read (bytes/s) and product (flops/s); see
        `limits.machine`."""
        return self.process(LIMIT, device, threads).ask("machine")

    def run_case(
        self, case: Case, device: str, threads: int, peers: frozenset[str] | None = None
    ) -> list[Row]:
        """Time every provider of `case` that is installed and right; the others get a note.

        `peers` are groups of peers; None stands for the plan's.
        """
        peers = self.plan.peers if peers is None else peers
        names = [
            one.name for one in PROVIDERS
            if one.takes_part(case, device, peers, self.plan.only)
            and (one.name != SAME_SIZE or limits.same_size(case))
            and not (one.slow and device == "cpu" and threads < self.plan.threads)
        ]  # fmt: skip
        if case.op == "cold_start":
            rows = {name: _row(case, name, device, threads) for name in names}
            return [row for row in rows.values() for row in self._cold(case, row)]
        problem = operations.get(case.op)
        rows = {name: _row(case, name, device, threads) for name in names}
        for row in rows.values():
            row.bytes, row.flops, row.limit = (
                problem.bytes(case),
                problem.flops(case),
                problem.limit,
            )
        measured = dict(rows)
        try:
            self._rounds(self._prepare(case, rows), measured)
            if case.key and case.op == "training_step" and device != "cpu":
                self._energy(rows)
        finally:
            for row in rows.values():
                self._worker(row).ask("drop")
        summarise(measured, reference(measured, device))
        return list(measured.values())

    def _worker(self, row: Row) -> Process:
        return self.process(row.provider, row.device, row.workers or row.threads)

    def _fewer_threads(self, row: Row, message: dict[str, Any]) -> int | None:
        """Set the number of threads with which a limit's products are fastest, if not all."""
        counts = [
            1 << power for power in range(row.threads.bit_length()) if 1 << power < row.threads
        ]
        found: dict[int, float] = {}
        for count in (*counts, row.threads):
            process = self.process(row.provider, row.device, count)
            if "missing" in process.ask("prepare", **message):
                return None
            once = [process.ask("round", repeats=1).get("raw", 0.0) for _ in range(2)][-1]
            repeats = self._repeats(once)
            times = [process.ask("round", repeats=repeats).get("seconds") for _ in range(3)]
            process.ask("drop")
            found[count] = min((t for t in times if t), default=math.inf)
        best = min(found, key=lambda count: found[count])
        return best if best < row.threads else None

    def _repeats(self, seconds: float, device: str = "cpu") -> int:
        length = self.plan.seconds * (1.0 if device == "cpu" else GPU_ROUND)
        return max(1, min(1000, round(length / max(seconds, 1e-7))))

    def _prepare(self, case: Case, rows: dict[str, Row]) -> dict[str, list[str]]:
        """Set up and check every provider; return those that can be timed, and in which of `MODES`.

        Providers are prepared in parallel, except those that run timings while they are prepared
        (compilers, the limit).
        """
        alone = [name for name in rows if BY_NAME[name].slow or name == LIMIT]
        together = [name for name in rows if name not in alone]
        timed: dict[str, list[str]] = {}
        message: dict[str, Any] = {"case": asdict(case), "card": self.plan.card}
        if isinstance(operations.get(case.op), HeldToLosses):
            one = next(iter(rows.values()))
            message |= self.process(LIMIT, one.device, one.threads).ask("oracle", **message)
        limit = rows.get(LIMIT)
        if limit is not None and limit.device == "cpu" and limit.limit == "products":
            limit.workers = self._fewer_threads(limit, message)
        for group in (together, *([name] for name in alone)):
            processes = [self._worker(rows[name]) for name in group]
            for process in processes:
                process.tell("prepare", **message)
            for name, process in zip(group, processes, strict=True):
                answer, row = process.answer(), rows[name]
                row.error = answer.get("error")
                if "missing" in answer:
                    row.note = f"not measured: {why_missing(name, answer['missing'])}"
                row.note = answer.get("wrong", row.note)
                row.remark = answer.get("remark", "")
                if answer.get("uncaptured"):
                    row.remark = f"{row.remark}; " * bool(row.remark) + (
                        f"no CUDA graph: {answer['uncaptured']}"
                    )
                if not row.note:
                    timed[name] = [mode for mode in MODES if mode == "plain" or answer.get(mode)]
        return {name: timed[name] for name in rows if name in timed}

    def _rounds(self, timed: dict[str, list[str]], rows: dict[str, Row]) -> None:
        """Time all providers in turn; one that fails gets a note, and the others go on without it.

        Adds the row of our work with an empty cache, if it was timed.
        """
        longest = 0.0
        modes = [(name, mode) for name, several in timed.items() for mode in several]
        found = {mode: Rounds() for mode in modes}
        for name, several in timed.items():
            rows[name].graph = "replay" in several
        for name, mode in modes:
            raw = self._time(rows[name], mode, 1, warm=True)["raw"]
            if raw < LONG_CALL:  # the first call may have warmed something up
                raw = self._time(rows[name], mode, 1)["raw"]
            longest = max(longest, raw)
            found[name, mode].repeats = self._repeats(raw, rows[name].device)
        few = min(self.plan.rounds, self.plan.few)
        for _ in range(few if longest > LONG_CALL else self.plan.rounds):
            for name, mode in modes:
                one = found[name, mode]
                one.add(self._time(rows[name], mode, one.repeats, warm=True))
        for name, several in timed.items():
            row = rows[name]
            if row.note:
                row.graph = False
                continue
            found[name, "replay" if row.graph else "plain"].into(row)
            self._repeated[name] = found[name, "replay" if row.graph else "plain"].repeats
            if row.graph:
                row.plain = found[name, "plain"].median()
            if row.device != "cpu":
                row.host = float(np.median(found[name, "plain"].host))
            if "cold" in several:
                cold = rows[COLD_CACHE] = replace(
                    row, provider=COLD_CACHE, plain=None, host=None, error=None, remark=""
                )
                found[name, "cold"].into(cold)

    def _time(self, row: Row, mode: str, repeats: int, *, warm: bool = False) -> dict[str, Any]:
        if not row.note:
            replay = mode == "replay" or (mode == "cold" and row.graph)
            how = {"replay": replay, "cold": mode == "cold", "warm": warm}
            answer = self._worker(row).ask("round", repeats=repeats, **how)
            if "missing" not in answer:
                return answer
            row.note = f"not measured: failed while it was timed: {answer['missing']}"
        return dict.fromkeys(("seconds", "host", "raw"), 0.0)

    def _energy(self, rows: dict[str, Row]) -> None:
        """Measure the joules of a step, for each provider in turn."""
        for name, row in rows.items():
            if row.rounds and name not in NO_PEERS:
                repeats = max(1, self._repeated[name] // 4)  # about ten milliseconds
                answer = self._worker(row).ask("joules", replay=row.graph, repeats=repeats)
                row.joules = answer.get("joules")

    def _cold(self, case: Case, row: Row) -> Iterator[Row]:
        """Time the import and the first steps with their preparation, each time in a new
        process."""
        found: dict[str, list[float]] = {"import": [], "first": []}
        once = self.plan.small or BY_NAME[row.provider].slow
        for _ in range(1 if once else COLD_ROUNDS):
            answer = cold_start(case, row.provider, row.device, row.threads)
            row.note = answer.get("wrong", "")
            row.error = answer.get("error")
            if "missing" in answer:
                row.note = f"not measured: {why_missing(row.provider, answer['missing'])}"
            if row.note:
                yield row
                return
            for key, times in found.items():
                times.append(answer[key])
        for key, times in found.items():
            part = Row(**asdict(row) | {"case": f"{case.name}/{key}", "rounds": times})
            summarise({row.provider: part}, "")
            yield part


def _row(case: Case, provider: str, device: str, threads: int) -> Row:
    return Row(
        case.name, case.op, provider, device, threads,
        goal=GOALS.get((case.name, provider)) if device == "cpu" else None,
    )  # fmt: skip
