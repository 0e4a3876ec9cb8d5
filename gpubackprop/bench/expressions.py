"""Array expressions of NumPy and CuPy, as one writes them without a library: each is a pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.bench import operations, problems
from gpubackprop.bench.losses import five_lines_two_exps
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.steps import StepData, by_hand
from gpubackprop.bench.timers import CupyTimer, Timer, Work


def timer(device: str, provider: str) -> Timer:
    return Timer() if device == "cpu" else CupyTimer(device)


def setup(case: Case, where: Timer, provider: str) -> Work:
    if case.dtype == "bfloat16":
        raise problems.Unsupported("CuPy and NumPy do not compute in bfloat16")
    if case.op == "training_step":
        return training_step(case, where)
    problem = operations.get(case.op)
    arrays = {name: where.xp.asarray(array) for name, array in problem.inputs(case).items()}
    if "two exps" in provider:
        if case.variant:
            raise problems.Unsupported("the five lines have no options")
        run: Any = lambda: five_lines_two_exps(**arrays)  # noqa: E731
    else:
        run = lambda: problem.expressions(where.xp, case, arrays)  # noqa: E731

    def outputs() -> dict[str, Any]:
        return {name: where.host(array) for name, array in run().items()}

    if case.op.startswith("update"):  # it works in place, and capturing it would step once more
        return Work(run, outputs)
    replay, why = where.capture(run)
    return Work(run, outputs, replay=replay, uncaptured=why)


def training_step(case: Case, where: Timer) -> Work:
    data, xp = StepData(case), where.xp
    step = by_hand(xp, data, np.float32, data.batch)
    batches = [xp.asarray(data.rows(i)) for i in range(data.batches)]

    def losses() -> dict[str, Any]:
        found = [step(batches[i % data.batches]) for i in range(data.steps_checked)]
        return {"losses": [float(loss) for loss in found]}

    def run() -> None:
        for batch in batches:
            step(batch)

    return Work(run, losses, data.batches)
