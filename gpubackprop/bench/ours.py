"""This library as a provider: operations of the host's backend, or of the CUDA backend."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import numpy as np

from gpubackprop import backends, ops, optimizers
from gpubackprop.backends import Total
from gpubackprop.backends.cupy import Replay
from gpubackprop.bench import operations
from gpubackprop.bench.losses import entropy_options
from gpubackprop.bench.providers import NUMPY_ALONE
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.steps import EPS, LEARNING_RATE, StepData
from gpubackprop.bench.timers import CupyTimer, Timer, Work
from gpubackprop.network import MLP
from gpubackprop.training.batches import Batches
from gpubackprop.training.step import Regularization, TrainStep


def timer(device: str, provider: str) -> Timer:
    if provider == NUMPY_ALONE:  # in a process of its own, before it looks for a library
        os.environ["GPUBACKPROP_NATIVE"] = "0"
    return Timer() if device == "cpu" else CupyTimer(device)


def setup(case: Case, where: Timer, provider: str) -> Work:
    """Set up the case on the device of `where`; a GPU runs its operations singly and as a plan."""
    if case.op == "training_step":
        return training_step(case, where)
    if case.op == "transfer":
        return transfer(case, where)
    if case.op == "softmax_cross_entropy" and where.device == "cpu":
        return public_cross_entropy(case)
    problem, backend = operations.get(case.op), backends.get(where.device)
    arrays = {name: backend.asarray(array) for name, array in problem.inputs(case).items()}
    for name, (shape, dtype) in problem.results(case).items():
        arrays[name] = backend.zeros(shape, dtype)
    emit = problem.emitter(backend, case, arrays)
    plan = backend.plan(emit)

    def outputs() -> dict[str, Any]:
        plan()
        return {name: backend.to_host(array) for name, array in arrays.items()}

    if where.device == "cpu":
        return Work(plan, outputs)
    uncaptured = plan.uncaptured if isinstance(plan, Replay) else ""  # then calls go one by one
    return Work(lambda: emit(backend), outputs, replay=plan, uncaptured=uncaptured)


def public_cross_entropy(case: Case) -> Work:
    """Set up the operation as its users call it, with all checks."""
    arrays, options = operations.get(case.op).inputs(case), entropy_options(case)
    options["class_weight"] = arrays.get("class_weight")
    options["sample_weight"] = arrays.get("sample_weight")
    options.pop("probabilities", None)
    logits, targets = arrays["logits"], arrays.get("labels", arrays.get("probabilities"))
    out = np.empty_like(logits)
    names = ("row_loss" if options["reduction"] == "none" else "loss", "delta")

    def run() -> Any:
        return ops.softmax_cross_entropy(logits, targets, out=out, **options)

    return Work(run, lambda: dict(zip(names, run(), strict=True)))


def training_step(case: Case, where: Timer) -> Work:
    data = StepData(case)
    network = MLP(data.widths, "relu", device=where.device)
    W, b = data.weights()
    for mine, theirs in zip([*network.W, *network.b], [*W, *b], strict=True):
        network.backend.from_host(theirs, mine)
    loss = network.default_loss()
    # A batch of `TrainStep` cannot have more rows than the data.
    x, y = (np.resize(a, (max(len(a), data.batch), *a.shape[1:])) for a in data.data())
    rows = Batches.check(network, loss, x, y)
    adam = optimizers.Adam(LEARNING_RATE, eps=EPS)
    step = TrainStep(network, loss, rows, data.batch, adam, Regularization())
    numbers = [data.rows(i) for i in range(data.batches)]
    order, ends = step.place(np.concatenate(numbers)), np.cumsum([0, *map(len, numbers)])
    batches = [order[start:stop] for start, stop in pairwise(ends.tolist())]

    def losses() -> dict[str, Any]:
        found, before = [], 0.0
        for number in range(data.steps_checked):
            step.update(batches[number % data.batches], LEARNING_RATE)
            total = float(step.read_totals()[Total.LOSS])
            found.append((total - before) / data.batch)
            before = total
        return {"losses": found}

    def run() -> None:
        for batch in batches:
            step.update(batch, LEARNING_RATE)

    single = lambda: step.update(batches[0], LEARNING_RATE)  # noqa: E731
    return Work(run, losses, len(batches), single=single)


def transfer(case: Case, where: Timer) -> Work:
    backend = backends.get(where.device)
    host = operations.get(case.op).inputs(case)["x"]
    there = backend.asarray(host)
    if case.variant == "to_host":
        return Work(lambda: backend.to_host(there), lambda: {"out": backend.to_host(there)})
    return Work(lambda: backend.from_host(host, there), lambda: {"out": backend.to_host(there)})
