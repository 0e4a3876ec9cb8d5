"""Runs a case: one process for each contestant, one timed round each in turn.

Thread pools of different libraries disturb one another in one process, and a machine's speed
drifts: rounds are interleaved, one contestant working at a time, and only ratios within a run are
meant to be compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.cases import Case

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
OURS = "gpubackprop"


@dataclass
class Row:
    """One contestant's result.

    Attributes
    ----------
    seconds : median over the rounds; p20, p80 : percentiles. None where it was not timed.
    ratio : our time over its time: median over the rounds of the ratio within a round.
    goal, met : largest ratio wanted, and whether it was reached; None without a goal.
    note : why it was not timed, or "".
    """

    case: str
    contestant: str
    threads: int
    seconds: float | None = None
    p20: float | None = None
    p80: float | None = None
    ratio: float | None = None
    goal: float | None = None
    met: bool | None = None
    note: str = ""
    rounds: list[float] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        return asdict(self)


class _Process:
    """A worker, and the pipe to it."""

    def __init__(self, case: Case, contestant: str, threads: int) -> None:
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
        command = [sys.executable, "-m", "benchmarks.worker", case.name, contestant]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"missing": "its process ended; see above"}

    def round(self, repeats: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{repeats}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        self._process.communicate()


def run_case(case: Case, threads: int, rounds: int, seconds: float) -> list[Row]:
    """Time every contestant of `case` that is installed and right.

    Parameters
    ----------
    threads : of BLAS and of this library, for every contestant.
    rounds : timed rounds; one more, not counted, warms up. seconds : length of a round.
    """
    oracle = _Process(case, "oracle", threads)
    wanted = np.array(oracle.first["check"])
    oracle.close()
    names = [name for name in case.contestants if name != "oracle"]
    rows = {name: Row(case.name, name, threads, goal=case.goals.get(name)) for name in names}
    processes: dict[str, _Process] = {}
    try:
        for name in names:
            process = processes[name] = _Process(case, name, threads)
            rows[name].note = verdict(process.first, wanted, case.tolerance)
        timed = [name for name in names if not rows[name].note]
        repeats = {}
        for name in timed:
            processes[name].round(1)
            repeats[name] = max(1, round(seconds / processes[name].round(1)))
        for _ in range(rounds):
            for name in timed:
                rows[name].rounds.append(processes[name].round(repeats[name]))
    finally:
        for process in processes.values():
            process.close()
    summarise(rows)
    return list(rows.values())


def verdict(first: dict[str, Any], wanted: np.ndarray, tolerance: float) -> str:
    if "missing" in first:
        return f"not measured: {first['missing']}"
    got = np.array(first["check"])
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    return "" if error <= tolerance else f"WRONG: differs from the oracle by {error:.1e}"


def summarise(rows: dict[str, Row]) -> None:
    ours = rows[OURS].rounds
    for row in rows.values():
        if not row.rounds:
            continue
        p20, median, p80 = np.percentile(row.rounds, [20, 50, 80])
        row.seconds, row.p20, row.p80 = float(median), float(p20), float(p80)
        if ours:
            row.ratio = float(np.median(np.array(ours) / np.array(row.rounds)))
            row.met = None if row.goal is None else row.ratio <= row.goal
