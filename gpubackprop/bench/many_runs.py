"""Many small networks: trained by `fit_many`, by its processes, and one after another."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop import MLP, Trainer, fit_many
from gpubackprop.backends.host import available_cores
from gpubackprop.bench.many import CHECKED, ManyData
from gpubackprop.bench.providers import IN_TURN, PROCESSES
from gpubackprop.bench.shapes import Case
from gpubackprop.bench.steps import EPS, LEARNING_RATE
from gpubackprop.bench.timers import Timer, Work
from gpubackprop.optimizers import Adam


def timer(device: str, provider: str) -> Timer:
    """Return the timer of our own calls: a training waits for its results."""
    where = Timer()
    where.device = device
    return where


def setup(case: Case, where: Timer, provider: str) -> Work:
    data = ManyData(case)
    x, labels = data.data()
    jobs = available_cores() if provider == PROCESSES else None

    def run(epochs: int = data.epochs) -> list[Any]:
        trainers = [_trainer(data, network, where.device) for network in range(data.networks)]
        if provider == IN_TURN:
            return [trainer.fit(x, labels, epochs=epochs) for trainer in trainers]
        return fit_many(trainers, x, labels, epochs=epochs, n_jobs=jobs)

    def losses() -> dict[str, Any]:
        histories = run(min(CHECKED, data.epochs))
        return {"losses": np.concatenate([histories[place]["loss"] for place in (0, -1)])}

    said = f"{jobs} processes" if jobs else ""
    return Work(run, losses, remark=lambda: said)


def _trainer(data: ManyData, network: int, device: str) -> Trainer:
    model = MLP(data.widths, "relu", initializer="zeros", device=device)
    model.W, model.b = data.weights(network)
    optimizer = Adam(lr=LEARNING_RATE, eps=EPS)
    return Trainer(model, optimizer=optimizer, batch_size=data.batch, shuffle=False, progress=False)
