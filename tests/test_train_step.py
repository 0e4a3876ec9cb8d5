"""The planned training step against PyTorch, a plain NumPy computation and itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpubackprop.backends import NumpyBackend, Total
from gpubackprop.backends.numpy import blocks
from gpubackprop.backends.numpy.recorded_calls import get_num_threads, set_num_threads
from gpubackprop.data import Standardizer
from gpubackprop.losses import Loss, SoftmaxCrossEntropy, SquaredError, loss
from gpubackprop.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    GradientDescent,
    Lion,
    Momentum,
    Optimizer,
    RMSprop,
)
from gpubackprop.training.batches import Batches
from gpubackprop.training.evaluation import EvaluationStep
from gpubackprop.training.step import Regularization, TrainStep
from tests import references, ways
from tests.ways import MLP, host

pytestmark = pytest.mark.usefixtures("way")

Array = np.ndarray
ROWS, STEPS, BATCH = 600, 50, 64


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = get_num_threads()
    set_num_threads(1)
    yield
    set_num_threads(before)


def some_data(rows: int = ROWS, columns: int = 12, classes: int = 5) -> tuple[Array, Array]:
    rng = np.random.default_rng(7)
    return rng.normal(size=(rows, columns)), rng.integers(0, classes, rows)


def make_step(
    x: Array, targets: Array, *, widths: Any = (12, 16, 9, 5), batch: int = BATCH,
    dtype: str = "float64", chosen: Loss | None = None, optimizer: Optimizer | None = None,
    weight: Array | None = None, standardizer: Standardizer | None = None, output: str = "softmax",
    activation: str = "tanh", **regularization: Any,
) -> TrainStep:  # fmt: skip
    network = MLP(widths, activation, seed=3, dtype=dtype, output=output)
    chosen = network.check_loss(chosen)
    data = Batches.check(network, chosen, x, targets, weight, standardizer)
    options = Regularization(**regularization)
    return TrainStep(network, chosen, data, batch, optimizer or SGD(lr=0.1), options)


def batches(rows: int = ROWS, steps: int = STEPS, batch: int = BATCH) -> list[Array]:
    """Row numbers of each step, with a short batch at the end of every epoch; emulated, a few."""
    steps = min(steps, 12) if ways.is_emulated() else steps
    rng, found = np.random.default_rng(11), []
    while len(found) < steps:
        order = rng.permutation(rows)
        found += [order[start : start + batch] for start in range(0, rows, batch)]
    return found[:steps]


def train(step: TrainStep, rows: list[Array], lr: float | None = None) -> Array:
    """The loss of each step, penalty included."""
    losses = []
    for batch in rows:
        step.reset_totals()
        step.update(batch, step.optimizer.lr if lr is None else lr)
        losses.append(step.summary()["loss"])
    return np.array(losses)


def torch_train(
    network: MLP, x: Array, targets: Array, rows: list[Array], make: Callable[..., Any],
    l2: float = 0.0, clip_norm: float | None = None,
) -> tuple[list[torch.Tensor], Array]:  # fmt: skip
    """The same training by PyTorch's autograd and its optimizer: parameters W..., b..., losses."""
    kind = references.TORCH_DTYPE[network.dtype.name]
    W = [references.tensor(w, kind).requires_grad_() for w in host(network.W)]
    b = [references.tensor(v, kind).requires_grad_() for v in host(network.b)]
    optimizer, losses = make([*W, *b]), []
    inputs, labels = references.tensor(x, kind), references.tensor(targets)
    for batch in rows:
        h = inputs[batch]
        for layer in range(len(W) - 1):
            h = torch.tanh(torch.nn.functional.linear(h, W[layer], b[layer]))
        logits = torch.nn.functional.linear(h, W[-1], b[-1])
        value = torch.nn.functional.cross_entropy(logits, labels[batch])
        value = value + l2 / 2 * sum((w**2).sum() for w in W)
        optimizer.zero_grad()
        value.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([*W, *b], clip_norm)
        optimizer.step()
        losses.append(value.item())
    return [*W, *b], np.array(losses)


O = torch.optim  # noqa: E741
CASES: dict[str, tuple[Optimizer, Callable[..., Any], dict[str, Any]]] = {
    "descent": (GradientDescent(lr=0.3), lambda p: O.SGD(p, lr=0.3), {}),
    "sgd": (SGD(0.1, momentum=0.9), lambda p: O.SGD(p, lr=0.1, momentum=0.9), {}),
    "nesterov": (
        SGD(0.1, momentum=0.8, nesterov=True, weight_decay=0.01),
        lambda p: O.SGD(p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01), {},
    ),
    "adam": (Adam(lr=0.01), lambda p: O.Adam(p, lr=0.01), {}),
    "adam_l2": (Adam(lr=0.01), lambda p: O.Adam(p, lr=0.01), {"l2": 0.05}),
    "adam_clip": (Adam(lr=0.01), lambda p: O.Adam(p, lr=0.01), {"clip_norm": 0.2}),
    "adamw": (
        AdamW(lr=0.01, weight_decay=0.1), lambda p: O.AdamW(p, lr=0.01, weight_decay=0.1), {},
    ),
    "l2_clip_decay": (
        SGD(0.3, weight_decay=0.02), lambda p: O.SGD(p, lr=0.3, weight_decay=0.02),
        {"l2": 0.1, "clip_norm": 0.3},
    ),
    "rmsprop": (RMSprop(lr=0.01), lambda p: O.RMSprop(p, lr=0.01), {}),
    "adagrad": (
        Adagrad(lr=0.05, initial_accumulator=0.1),
        lambda p: O.Adagrad(p, lr=0.05, initial_accumulator_value=0.1), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_equal_pytorch(case: str, dtype: str) -> None:
    x, labels = some_data()
    optimizer, make, options = CASES[case]
    step = make_step(x, labels, dtype=dtype, optimizer=optimizer, **options)
    before = host(step.network.parameters).copy()
    theirs, their_losses = torch_train(step.network, x, labels, batches(), make, **options)
    losses = train(step, batches())
    moved = float(np.abs(host(step.network.parameters) - before).max())
    assert moved > 0.02  # else equality would say nothing
    scale = 1e-10 if dtype == "float64" else 2e-4
    np.testing.assert_allclose(losses, their_losses, rtol=1e-10 if dtype == "float64" else 2e-5)
    for ours, reference in zip(host([*step.network.W, *step.network.b]), theirs, strict=True):
        np.testing.assert_allclose(
            ours, references.numpy(reference), rtol=scale, atol=scale * moved
        )


def plain_training(step: TrainStep, x: Array, labels: Array, rows: list[Array], lr: float) -> Array:
    """Gradient descent in textbook NumPy, without plans, blocks or buffers; losses of the steps."""
    W, b = host(step.network.W), host(step.network.b)
    W, b = [w.copy() for w in W], [v.copy() for v in b]
    losses = []
    for batch in rows:
        h = [x[batch]]
        for w, v in zip(W, b, strict=True):
            h.append(h[-1] @ w.T + v if w is W[-1] else np.tanh(h[-1] @ w.T + v))
        p = np.exp(h[-1]) / np.exp(h[-1]).sum(1, keepdims=True)
        losses.append(-np.log(p[np.arange(len(batch)), labels[batch]]).mean())
        delta = (p - np.eye(p.shape[1])[labels[batch]]) / len(batch)
        for layer in reversed(range(len(W))):
            below = delta @ W[layer]
            W[layer] -= lr * delta.T @ h[layer]
            b[layer] -= lr * delta.sum(0)
            delta = below * (1 - h[layer] ** 2)
    return np.array(losses)


@pytest.mark.ways("numpy", "native", "cuda", reason="fifty steps take the emulator too long")
def test_losses_equal_a_plain_numpy_computation() -> None:
    x, _ = some_data()
    labels = x[:, :5].argmax(1)
    step = make_step(x, labels, optimizer=GradientDescent(lr=0.5))
    wanted = plain_training(step, x, labels, batches(), 0.5)
    losses = train(step, batches())
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_allclose(losses, wanted, rtol=1e-12)


@pytest.mark.ways("numpy", "native", reason="threads of the host")
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_results_do_not_depend_on_the_number_of_threads(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "PLANNED_THREAD_BYTES", 1 << 18)  # so that this small step is split
    x, labels = some_data(2048, 64, 40)
    found = []
    for threads in (1, 2, 3):
        set_num_threads(threads)
        step = make_step(
            x, labels, widths=(64, 512, 40), batch=1000, dtype="float32", optimizer=Adam(lr=0.01),
            chosen=SoftmaxCrossEntropy(label_smoothing=0.1), activation=activation,
        )  # fmt: skip
        losses = train(step, batches(2048, 9, 1000))
        split = [f for f, _ in step._plans[1000].replay.__self__.calls if "Workers" in str(f)]
        assert bool(split) == (threads > 1)  # the work is large enough to be split
        found.append((host(step.network.parameters).tobytes(), losses.tobytes()))
    assert found[0] == found[1] == found[2]


@pytest.mark.ways(
    "numpy", reason="counts the plans of the NumPy backend; test_cupy_training the others"
)
def test_a_plan_is_recorded_once_for_each_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []
    plan = NumpyBackend.plan
    monkeypatch.setattr(
        NumpyBackend, "plan", lambda self, emit: recorded.append(1) or plan(self, emit)
    )
    step = make_step(*some_data())
    train(step, batches())
    assert {len(rows) for rows in batches()} == {64, 600 % 64}
    assert len(recorded) == 2


def test_short_last_batch_equals_a_step_planned_for_its_size() -> None:
    x, labels = some_data()
    short = np.arange(17)
    step, reference = make_step(x, labels), make_step(x, labels, batch=17)
    step.update(np.arange(100, 100 + BATCH), 0.0)  # leaves numbers in the buffers' other rows
    for other in (step, reference):
        other.reset_totals()
        other.update(short, 0.1)
    assert host(step.totals).tobytes() == host(reference.totals).tobytes()
    assert host(step.network.parameters).tobytes() == host(reference.network.parameters).tobytes()


def test_batch_larger_than_the_data_takes_all_rows() -> None:
    x, labels = some_data(10)
    step = make_step(x, labels, batch=1000)
    assert step.batch_size == 10
    step.update(np.arange(10), 0.1)
    assert host(step.totals)[Total.ROWS] == 10


def test_integer_sample_weights_equal_repeated_rows() -> None:
    x, labels = some_data(40)
    weight = np.random.default_rng(0).integers(0, 4, 40)
    repeated = np.repeat(np.arange(40), weight)
    ours = make_step(x, labels, weight=weight, batch=40)
    theirs = make_step(x[repeated], labels[repeated], batch=len(repeated))
    losses = train(ours, [np.arange(40)] * 10)
    wanted = train(theirs, [np.arange(len(repeated))] * 10)
    np.testing.assert_allclose(losses, wanted, rtol=1e-12)
    np.testing.assert_allclose(
        host(ours.network.parameters), host(theirs.network.parameters), rtol=1e-10
    )


@pytest.mark.ways(
    "numpy",
    reason="memory maps and layouts of the host; test_cupy_training has the inputs of a GPU",
)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", ">f4", "bool"])
@pytest.mark.parametrize("layout", ["C", "F", "strided", "memmap", "fortran_memmap"])
def test_any_dtype_and_layout_of_x_trains_as_its_copy(
    dtype: str, layout: str, tmp_path: Path
) -> None:
    x, labels = some_data()
    x = (x > 0) if dtype == "bool" else (np.abs(x) * 20).astype(dtype)
    plain = make_step(x.astype(np.float32), labels, dtype="float32")
    held: Any = {"C": x, "F": np.asfortranarray(x), "strided": np.repeat(x, 2, axis=1)[:, ::2]}.get(
        layout
    )
    if held is None:
        np.save(tmp_path / "x.npy", np.asfortranarray(x) if layout == "fortran_memmap" else x)
        held = np.load(tmp_path / "x.npy", mmap_mode="r")
    step = make_step(held, labels, dtype="float32")
    if "memmap" in layout:
        assert np.shares_memory(step.data.x, held)  # a file larger than memory is not copied
    assert train(step, batches()[:12]).tobytes() == train(plain, batches()[:12]).tobytes()
    assert host(step.network.parameters).tobytes() == host(plain.network.parameters).tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_standardizer_per_batch_equals_standardising_first(dtype: str) -> None:
    x, labels = some_data()
    x = (np.abs(x) * 30 + 100).astype(dtype)
    fitted = Standardizer.fit(x)
    first = make_step(fitted.transform(x), labels, dtype="float32")
    step = make_step(x, labels, dtype="float32", standardizer=fitted)
    assert train(step, batches()[:12]).tobytes() == train(first, batches()[:12]).tobytes()
    assert host(step.network.parameters).tobytes() == host(first.network.parameters).tobytes()


@pytest.mark.parametrize("reduction", ["mean", "elementwise_mean", "sum"])
def test_evaluation_does_not_depend_on_the_batch_size(reduction: str) -> None:
    rng = np.random.default_rng(0)
    x, targets, weight = rng.normal(size=(100, 4)), rng.normal(size=(100, 3)), rng.uniform(size=100)
    network = MLP([4, 6, 3], "tanh", output="linear", dtype="float64")
    chosen = SquaredError(reduction=reduction)
    data = Batches.check(network, chosen, x, targets, weight)
    found = [EvaluationStep(network, chosen, data, size).measure() for size in (1, 7, 64, 100)]
    square = ((host(network.predict(x)) - targets) ** 2).sum(1) / 2
    divisor = {"mean": weight.sum(), "elementwise_mean": 3 * weight.sum(), "sum": 100}[reduction]
    for figures in found:
        assert figures["loss"] == pytest.approx((square * weight).sum() / divisor, rel=1e-12)
    if reduction != "sum":
        mean_square = 2 * (square * weight).sum() / weight.sum() / 3
        assert found[0]["rmse"] == pytest.approx(math.sqrt(mean_square), rel=1e-12)


def test_ignored_rows_count_neither_in_loss_nor_in_accuracy() -> None:
    x, labels = some_data(100)
    labels[::3] = -1
    network = MLP([12, 5], dtype="float64")
    chosen = SoftmaxCrossEntropy(ignore_index=-1, class_weight=np.arange(1.0, 6.0))
    data = Batches.check(network, chosen, x, labels)
    figures = EvaluationStep(network, chosen, data, 16).measure()
    kept = labels >= 0
    p = host(network.predict(x[kept]))
    weight = labels[kept] + 1.0
    picked = -np.log(p[np.arange(kept.sum()), labels[kept]])
    assert figures["loss"] == pytest.approx((picked * weight).sum() / weight.sum(), rel=1e-12)
    assert figures["accuracy"] == pytest.approx((p.argmax(1) == labels[kept]).mean(), rel=1e-12)


def test_sum_reduction_trains_on_the_sum_and_reports_the_mean_per_row() -> None:
    x, labels = some_data(64)
    mean = make_step(x, labels, optimizer=GradientDescent(lr=0.064), l2=0.02)
    summed = make_step(
        x, labels, chosen=loss("softmax_cross_entropy", reduction="sum"),
        optimizer=GradientDescent(lr=0.001), l2=0.02 * 64,
    )  # fmt: skip
    rows = [np.arange(64)] * 20
    np.testing.assert_allclose(train(summed, rows), train(mean, rows), rtol=1e-12)
    np.testing.assert_allclose(
        host(summed.network.parameters), host(mean.network.parameters), rtol=1e-10
    )


@pytest.mark.ways("numpy", "native", "cuda", reason="two hundred steps take the emulator too long")
@pytest.mark.parametrize("make", [Momentum, Lion])
def test_optimizers_without_a_twin_in_pytorch_lower_the_loss(
    make: Callable[..., Optimizer],
) -> None:
    x, _ = some_data()
    step = make_step(x, x[:, :5].argmax(1), optimizer=make(lr=0.003))
    losses = train(step, batches() * 4)
    assert losses[-10:].mean() < 0.8 * losses[:10].mean()
