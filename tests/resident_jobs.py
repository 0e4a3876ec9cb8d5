"""Steps and jobs of resident training for its tests, on the CPU and on the emulated card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np

from gpubackprop import MLP, Trainer, losses, optimizers
from gpubackprop.backends import devices, spread_plan
from gpubackprop.backends.cupy import resident as launching
from gpubackprop.backends.resident_plan import plan_resident
from gpubackprop.formulas import POINTWISE_LOSSES
from gpubackprop.losses import Loss
from gpubackprop.training import resident
from gpubackprop.training.batches import Batches
from gpubackprop.training.resident import ResidentJob, obstacle, train_together
from gpubackprop.training.step import TrainStep
from tests.emulator import cupy_stub, sanitizers
from tests.emulator.cupy_stub import Launched
from tests.emulator.module import ByValue, Module

Array = np.ndarray


@contextmanager
def emulated() -> Iterator[None]:
    """Have networks of device "cuda" on the emulated card."""

    def choose(device: str) -> tuple[str, str]:
        return ("cpu", "asked for") if device.startswith("cpu") else ("cuda:0", "emulated")

    with patch.object(devices, "choose", choose), cupy_stub.installed():
        yield


@contextmanager
def planned(blocks: int | None) -> Iterator[None]:
    """Have every network in so many blocks, unless None, also where one block would be quicker."""
    if blocks is None:
        yield
        return
    with (
        patch.object(resident, "plan_resident", partial(plan_resident, blocks=blocks)),
        patch.object(launching, "in_company", lambda plans, *_: list(plans)),
    ):
        yield


@contextmanager
def spread(share_rows: int = 4, most: int = 512) -> Iterator[None]:
    """Have every batch spread over the card, in shares of so many rows and more."""
    with (
        patch.multiple(spread_plan, SHARE_ROWS=share_rows, LEAST_SHARES=1, MOST_SHARES=most),
        patch.object(spread_plan, "WORTH_IT", 0.0),
        patch.object(spread_plan, "_graph_cycles", lambda *_: 1 << 60),
    ):
        yield


@contextmanager
def multiprocessors(number: int) -> Iterator[None]:
    """Have the spread of rows planned for a card of so many; the emulated one has 2."""

    def plan(widths: Any, activations: Any, batch: int, card: Any, **options: Any) -> Any:
        card = replace(card, multiprocessors=number)
        return spread_plan.plan_spread(widths, activations, batch, card, **options)

    with patch.object(resident, "plan_spread", plan):
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
    precision: str | None = None,
    **options: Any,
) -> TrainStep:
    """Return a step over random rows, with the Trainer's `options`."""
    loss = loss or losses.SoftmaxCrossEntropy()
    network = MLP(
        list(widths), activation, output=loss.output, seed=seed, dtype=dtype, device=device,
        dropout=dropout, precision=precision,
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


Reached = list[tuple[str, Array]]


def launch_of(jobs: Sequence[ResidentJob]) -> tuple[sanitizers.Launch, Reached]:
    """Return the launch of the jobs, which is not run, and the arrays that it reaches by name."""

    def train() -> None:
        train_together(jobs)
        numbers(jobs[0].step)  # waits

    (launch,), reached = _kept(launching.KERNEL, train)
    return launch, reached


def spread_launches_of(step: TrainStep) -> tuple[list[sanitizers.Launch], Reached]:
    """Return the two launches of a step's largest batch, its first rows, likewise.

    The second adds up what the first would have left, and here finds 0.
    """

    def issue() -> None:
        backend, batch = step.network.backend, step._batch
        step.source.put_rows(np.arange(step.batch_size), batch)
        assert batch.spread is not None
        batch.spread(backend)
        numbers(step)

    return _kept("spread", issue)


def _kept(prefix: str, act: Callable[[], None]) -> tuple[list[sanitizers.Launch], Reached]:
    """Return the launches of entries of that prefix, which are not run, and what they reach."""
    reached: list[tuple[str, Any]] = []
    kept: list[Launched] = []
    address = launching._address

    def noted(backend: Any, name: str, array: Any) -> int:
        reached.append((name, array._host))
        return address(backend, name, array)

    def keep(launched: Launched) -> None:
        if launched.entry.startswith(prefix):
            kept.append(launched)
        else:
            cupy_stub.execute(launched)

    with patch.object(launching, "_address", noted), cupy_stub.launches_go_to(keep):
        act()
    return [_launch(launched, reached) for launched in kept], reached


def _launch(launched: Launched, reached: Reached) -> sanitizers.Launch:
    (record,) = launched.arguments
    values, arrays = record.values.copy(), record.arrays
    if "table" in arrays:
        table = np.array(arrays["table"]).view(sanitizers.PointerTable)
        table.arrays = tuple(array for _, array in reached)
        values["table"] = table.ctypes.data
        arrays = arrays | {"table": table}
    return sanitizers.Launch(
        launched.source, launched.entry, launched.grid, launched.block, [ByValue(values, arrays)],
        launched.shared, dict(launched.defines),
    )  # fmt: skip


# -- both sides ---------------------------------------------------------------------------------

TOLERANCE = 2e-5  # after several steps; each sum in another order


def assert_same_training(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        size = max(1.0, float(np.abs(array).max(initial=0.0)))
        np.testing.assert_allclose(got[name], array, rtol=0, atol=TOLERANCE * size, err_msg=name)


def both(epochs: int = 2, blocks: int | None = None, **options: Any) -> tuple[TrainStep, TrainStep]:
    """Train the same network on the CPU batch by batch and in one launch; they must be alike."""
    cpu, card = step_of("cpu:numpy", **options), step_of("cuda", **options)
    by_batches(cpu, orders(cpu, epochs), rates(cpu, epochs))
    with planned(blocks):
        assert obstacle(card) == ""
        train_together([job(card, epochs)])
    assert_same_training(numbers(card), numbers(cpu))
    assert card.steps == cpu.steps
    return cpu, card


# -- awkward cases ------------------------------------------------------------------------------

LOSS_CASES: dict[str, Loss] = {
    "plain": losses.SoftmaxCrossEntropy(),
    "smoothed": losses.SoftmaxCrossEntropy(label_smoothing=0.1, z_loss=0.01),
    "weighted": losses.SoftmaxCrossEntropy(class_weight=[0.5, 2.0, 1.0]),
    "weighted, smoothed": losses.SoftmaxCrossEntropy(
        class_weight=[0.5, 2.0, 1.0], label_smoothing=0.1
    ),
    "ignored": losses.SoftmaxCrossEntropy(ignore_index=1),
    "capped": losses.SoftmaxCrossEntropy(soft_cap=2.0),
    "sum": losses.SoftmaxCrossEntropy(reduction="sum"),
    "squared, sum": losses.SquaredError(reduction="sum"),
    "binary, by element": losses.BinaryCrossEntropy(reduction="elementwise_mean"),
    **{name: losses.LOSSES[name]() for name in POINTWISE_LOSSES},
}

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gradient descent": (optimizers.GradientDescent(0.1), {}),
    "sgd, nesterov": (optimizers.SGD(0.05, momentum=0.9, nesterov=True), {}),
    "momentum": (optimizers.Momentum(0.05), {}),
    "momentum, nesterov, l2": (optimizers.Momentum(0.05, nesterov=True), {"l2": 0.1}),
    "adam, l2 and clipped": (optimizers.Adam(0.05), {"l2": 0.1, "clip_norm": 0.1}),
    "clipped to nothing": (optimizers.SGD(0.05), {"clip_norm": 0.0}),
    "adam of scikit-learn": (optimizers.Adam(0.05, eps_placement="sklearn"), {}),
    "adamw, decayed": (optimizers.AdamW(0.05, weight_decay=0.1), {}),
    "amsgrad": (optimizers.Adam(0.05, amsgrad=True), {}),
    "rmsprop, coupled decay": (optimizers.RMSprop(0.01, weight_decay=0.1), {}),
    "adagrad from above 0": (
        optimizers.Adagrad(0.05, lr_decay=0.1, initial_accumulator=0.3), {}
    ),
    "lion": (optimizers.Lion(0.01, weight_decay=0.1), {}),
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "one unit": {"widths": (1, 1, 2), "rows": 9, "batch": 4},
    "one row": {"widths": (5, 6, 3), "rows": 1, "batch": 1},
    "batches of one row": {"widths": (3, 4, 2), "rows": 7, "batch": 1},
    "33 rows": {"widths": (5, 6, 3), "rows": 33, "batch": 33},
    "a batch larger than the set": {"widths": (5, 6, 3), "rows": 20, "batch": 100},
    "a short last batch": {"widths": (5, 6, 3), "rows": 21, "batch": 10},
    "no hidden layer": {"widths": (7, 3)},
    "30 layers of one unit": {"widths": (2, *[1] * 30, 2), "activation": "leaky_relu"},
    "odd widths": {"widths": (33, 17, 65, 5), "rows": 50, "batch": 33},
    "more than 32 outputs": {"widths": (4, 9, 100), "rows": 30, "batch": 12},
    "several tiles": {"widths": (64, 128, 10), "activation": "relu", "rows": 260, "batch": 200},
    "wide inputs": {"widths": (300, 8, 3), "rows": 40, "batch": 40},
}

# For one launch.
MANY: tuple[dict[str, Any], ...] = (
    {"seed": 2},
    {"widths": (5, 9, 3), "activation": "gelu", "dropout": 0.3, "optimizer": optimizers.SGD(0.1)},
    {"widths": (4, 1), "loss": losses.Poisson(), "rows": 11, "batch": 4},
    {"widths": (64, 128, 10), "activation": "relu", "rows": 90, "batch": 70, "clip_norm": 0.5},
    {"widths": (5, 3, 3, 3), "optimizer": optimizers.Adam(0.1, amsgrad=True), "l2": 0.2},
)


def assert_same_in_orders(
    module: Module,
    launch: sanitizers.Launch,
    reached: Sequence[tuple[str, Array]],
    rotations: Sequence[int],
) -> None:
    """Assert that a launch gives the same bits in whatever order a block's threads run."""
    before = [array.copy() for _, array in reached]
    results = []
    for rotation in rotations:
        for (_, array), old in zip(reached, before, strict=True):
            array[...] = old
        module(
            launch.entry, launch.grid, launch.block, launch.arguments, shared=launch.shared,
            rotation=rotation,
        )  # fmt: skip
        results.append([array.copy() for _, array in reached])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
