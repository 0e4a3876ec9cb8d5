"""Steps and jobs of resident training for its tests, on the CPU and on the emulated card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from gpubackprop import MLP, Trainer, losses, optimizers
from gpubackprop.backends import devices
from gpubackprop.backends.cupy import resident as launching
from gpubackprop.losses import Loss
from gpubackprop.training.batches import Batches
from gpubackprop.training.resident import ResidentJob, train_together
from gpubackprop.training.step import TrainStep
from tests.emulator import cupy_stub, sanitizers
from tests.emulator.cupy_stub import Launched
from tests.emulator.module import ByValue

Array = np.ndarray


@contextmanager
def emulated() -> Iterator[None]:
    """Have networks of device "cuda" on the emulated card."""

    def choose(device: str) -> tuple[str, str]:
        return ("cpu", "asked for") if device.startswith("cpu") else ("cuda:0", "emulated")

    with patch.object(devices, "choose", choose), cupy_stub.installed():
        yield


def data(loss: Loss, rows: int, inputs: int, units: int, seed: int = 3) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)).astype(np.float32)
    if loss.output == "softmax":
        return x, rng.integers(0, units, rows)
    targets = rng.random((rows, units)).astype(np.float32)
    return x, np.round(targets) if loss.output == "logistic" else targets


def step_of(
    device: str,
    widths: Sequence[int] = (5, 6, 4, 3),
    activation: Any = "tanh",
    loss: Loss | None = None,
    *,
    rows: int = 40,
    batch: int = 16,
    dropout: Any = 0.0,
    weights: Array | None = None,
    inputs: Array | None = None,
    targets: Array | None = None,
    dtype: str = "float32",
    seed: int = 1,
    optimizer: Any = None,
    **options: Any,
) -> TrainStep:
    """Return a step over random rows, with the Trainer's `options`."""
    loss = loss or losses.SoftmaxCrossEntropy()
    network = MLP(
        list(widths), activation, output=loss.output, seed=seed, dtype=dtype, device=device,
        dropout=dropout,
    )  # fmt: skip
    optimizer = optimizer or optimizers.Adam(0.05)
    trainer = Trainer(network, loss, optimizer, batch_size=batch, seed=seed, **options)
    x, t = data(loss, rows, widths[0], widths[-1])
    x, t = (x if inputs is None else inputs), (t if targets is None else targets)
    return trainer.state.new_step(trainer, Batches.check(network, loss, x, t, weights))


def orders(step: TrainStep, epochs: int, seed: int = 0) -> Array:
    """Return row numbers of some epochs, one after another."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(len(step.data)) for _ in range(epochs)])


def rates(step: TrainStep, epochs: int) -> Array:
    return np.linspace(0.05, 0.01, epochs * -(-len(step.data) // step.batch_size))


def job(step: TrainStep, epochs: int = 2, seed: int = 0) -> ResidentJob:
    return ResidentJob(step, orders(step, epochs, seed), rates(step, epochs))


def by_batches(step: TrainStep, order: Array, lr: Array) -> None:
    """Do what a job says batch by batch."""
    rows, number = len(step.data), 0
    for epoch in range(0, len(order), rows):
        placed = step.place(order[epoch : epoch + rows])
        for start in range(0, rows, step.batch_size):
            step.update(placed[start : start + step.batch_size], float(lr[number]))
            number += 1


def numbers(step: TrainStep) -> dict[str, Array]:
    """Return all that a training leaves behind, on the host."""
    to_host = step.network.backend.to_host
    state = {name: np.array(to_host(array)) for name, array in step.state().items()}
    return state | {"parameters": np.array(to_host(step.network.parameters))}


def launch_of(
    jobs: Sequence[ResidentJob],
) -> tuple[sanitizers.Launch, list[tuple[str, Array]]]:
    """Return the launch of the jobs, which is not run, and the arrays that it reaches by name."""
    reached: list[tuple[str, Any]] = []
    kept: list[Launched] = []
    address = launching._address

    def noted(backend: Any, name: str, array: Any) -> int:
        reached.append((name, array._host))
        return address(backend, name, array)

    def keep(launched: Launched) -> None:
        if launched.entry.startswith(launching.KERNEL):
            kept.append(launched)
        else:
            cupy_stub.execute(launched)

    with patch.object(launching, "_address", noted), cupy_stub.launches_go_to(keep):
        train_together(jobs)
        numbers(jobs[0].step)  # waits
    (launched,) = kept
    (record,) = launched.arguments
    table = np.array(record.arrays["table"]).view(sanitizers.PointerTable)
    table.arrays = tuple(array for _, array in reached)
    values = record.values.copy()
    values["table"] = table.ctypes.data
    arguments = [ByValue(values, record.arrays | {"table": table})]
    launch = sanitizers.Launch(
        launched.source, launched.entry, launched.grid, launched.block, arguments,
        launched.shared, dict(launched.defines),
    )  # fmt: skip
    return launch, reached
