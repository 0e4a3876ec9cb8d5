"""For the tests of the benchmarks: workers in this process, and records that are made up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gpubackprop.bench import limits, operations, worker
from gpubackprop.bench.cases import cases
from gpubackprop.bench.providers import GROUPS, LIMIT, OURS, PROVIDERS, SAME_SIZE
from gpubackprop.bench.rows import GOALS, Row, summarise
from gpubackprop.bench.shapes import Case


class InProcess:
    """Stands in for `harness.Process`: the worker's session, in this process."""

    ended = False

    def __init__(self, provider: str, device: str, threads: int, *, small: bool = False) -> None:
        self.session = worker.Session(provider, device)

    def tell(self, what: str, **values: Any) -> None:
        self.answered = self.session.do({"do": what, **json.loads(json.dumps(values))})

    def answer(self) -> Any:
        return json.loads(json.dumps(self.answered))

    def ask(self, what: str, **values: Any) -> Any:
        self.tell(what, **values)
        return self.answer()

    def close(self) -> None:
        self.ended = True


ROUNDS = 7
RATES = {"cpu": (4e10, 1e11), "cuda": (4.2e12, 5e13)}  # copy, product
SPEED = {LIMIT: 1.0, SAME_SIZE: 0.95, "numpy": 0.5, "cupy_raw": 0.9, "cupy_arrays": 0.2, "torch eager": 0.4,
         "NumPy by hand": 0.3, "NumPy by hand, two exps": 0.2}  # fmt: skip


def made_up(*, gpu: bool, factor: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """A record, nothing of which was measured, with a row for everybody who would take part; ours takes `factor` as long."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for device in ["cpu", *["cuda:0"] * gpu]:
        for case in cases("full", device.partition(":")[0]):
            if case.op != "cold_start" and (device != "cpu" or "cpu" in case.devices):
                rows += _rows(case, device, factor, rng)
    limits = {device: {"copy": RATES[device[:4].rstrip(":")][0], "read": 1e11,
                       "product": RATES[device[:4].rstrip(":")][1]}
              for device in ["cpu", *["cuda:0"] * gpu]}  # fmt: skip
    return {
        "format": 2, "date": "2000-01-01", "time": "00:00:00Z", "commit": "made-up",
        "device": "cuda:0" if gpu else "cpu",
        "gpu": {"name": "Made-up GPU", "driver_version": "0"} if gpu else None,
        "cpu": {"model": "Made-up CPU", "cores": 2, "blas": "none"}, "load_before": [0.0],
        "platform": "none", "python": "3", "versions": {"numpy": "0"},
        "settings": {"threads": [2]}, "limits": limits, "left_out": [],
        "rows": [row.json() for row in rows],
    }  # fmt: skip


def _rows(case: Case, device: str, factor: float, rng: np.random.Generator) -> list[Row]:
    kind = device.partition(":")[0]
    problem = operations.get(case.op)
    if not problem.limit:
        return []
    copy, product = RATES[kind]
    least = problem.flops(case) / product if problem.limit == "products" else 0.0
    least = max(least, problem.bytes(case) / copy)
    launches = 2e-6 if kind == "cpu" else 2e-5
    rows = {}
    for number, one in enumerate(PROVIDERS):
        if not one.takes_part(case, device, frozenset(GROUPS)):
            continue
        if one.name == SAME_SIZE and not limits.same_size(case):
            continue
        seconds = least / SPEED.get(one.name, 0.15 + 0.05 * number)
        seconds += 0.0 if one.name == LIMIT else launches
        seconds *= factor if one.name == OURS[kind] else 1.0
        row = rows[one.name] = Row(
            case.name, case.op, one.name, device, 2, goal=GOALS.get((case.name, one.name)),
            limit=problem.limit, bytes=problem.bytes(case), flops=problem.flops(case),
            rounds=list(seconds * rng.uniform(0.97, 1.03, ROUNDS)),
        )  # fmt: skip
        if one.name == "thinc":
            row.rounds, row.note = [], "not measured: No module named 'thinc'"
    summarise(rows, OURS[kind])
    return list(rows.values())
