"""Loss scaling: a step whose gradient overflows is skipped, the scale follows PyTorch's GradScaler, and
nothing else changes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from gpubackprop import MLP, Trainer, losses, optimizers
from gpubackprop.backends import LossScaling, Total, devices
from gpubackprop.backends.updater import SCALE, SINCE, SKIPPED, STEPS
from gpubackprop.errors import ModelFileError, NonFiniteLossError, OptionError
from gpubackprop.training.batches import Batches
from gpubackprop.training.step import Regularization, StepOptions, TrainStep
from tests import emulator
from tests.emulator import cupy_stub

ROWS = 12


def data(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.normal(size=(rows, 6)).astype(np.float32), rng.integers(0, 4, rows)


def make_step(
    device: str, scaling: LossScaling | None, precision: str = "float16", loss: Any = None,
    targets: Any = None, stochastic: bool = False, **regularization: Any,
) -> TrainStep:  # fmt: skip
    loss = loss or losses.SoftmaxCrossEntropy()
    network = MLP([6, 8, 4], "tanh", output=loss.output, device=device, precision=precision)
    x, labels = data()
    batches = Batches.check(network, loss, x, labels if targets is None else targets)
    return TrainStep(
        network, loss, batches, ROWS, optimizers.Adam(0.01), Regularization(**regularization),
        StepOptions(5, scaling, stochastic),
    )  # fmt: skip


def state(step: TrainStep) -> np.ndarray:
    return step.network.backend.to_host(step.updater.state).copy()


def everything(step: TrainStep) -> list[np.ndarray]:
    to_host = step.network.backend.to_host
    arrays = [step.network.parameters, *step.slots, step.half_copy]
    return [to_host(array).copy() for array in arrays]


def update(step: TrainStep, lr: float = 0.01) -> None:
    step.update(step.place(np.arange(ROWS)), lr)


# -- the scale ------------------------------------------------------------------------------------


def test_an_overflow_skips_the_step_halves_the_scale_and_poisons_nothing(device):
    """From 2^26 the deltas, up to 1/12 of it, overflow in float16; at 2^19 they fit."""
    step = make_step(device, LossScaling(2.0**26))
    before, skipped = everything(step), 0
    while True:
        update(step)
        if state(step)[SKIPPED] == skipped:
            break
        skipped += 1
        assert skipped < 12
        for array, old in zip(everything(step), before, strict=True):
            assert np.array_equal(array, old), "a skipped step changed something"
        found = state(step)
        assert found[[STEPS, SKIPPED, SCALE, SINCE]].tolist() == [
            0,
            skipped,
            2.0 ** (26 - skipped),
            0,
        ]
    assert skipped >= 5
    assert state(step)[STEPS] == 1
    for array in everything(step):
        assert np.isfinite(array.astype(float)).all()
    assert not np.array_equal(everything(step)[0], before[0])


def test_the_first_update_after_skipped_ones_is_the_optimizers_first(device):
    """Adam's bias correction counts updates, not batches."""
    late, first = make_step(device, LossScaling(2.0**22)), make_step(device, LossScaling(2.0**8, 0))
    while state(late)[STEPS] == 0:
        update(late)
    update(first)
    assert state(late)[SKIPPED] > 0
    for a, b in zip(everything(late)[:1], everything(first)[:1], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)  # of a step of 0.01


def test_the_scale_follows_pytorchs_grad_scaler(device):
    """Bad gradients come from a huge input whose weights are 0: the loss does not feel it."""
    step = make_step(device, LossScaling(2.0**10, growth_interval=3), precision="bfloat16")
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    backend, W = step.network.backend, step.network.W[0]
    host = backend.to_host(W).copy()
    host[:, 0] = 0
    backend.from_host(host, W)
    step.restored(0)
    healthy = backend.to_host(step.source.x).copy()
    huge = healthy.copy()
    huge[:, 0] = 3e38
    for number in range(14):
        bad = number in (2, 3, 8)
        backend.from_host(huge if bad else healthy, step.source.x)
        update(step, 0.0)
        parameter.grad = theirs.scale(torch.full((1,), float("inf") if bad else 1.0))
        theirs.step(optimizer)
        theirs.update()
        assert state(step)[SCALE] == theirs.get_scale(), number
    assert state(step)[[STEPS, SKIPPED]].tolist() == [11, 3]
    assert step.read_totals()[Total.BAD_STEP] < 0, "the losses are finite"


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("softmax_cross_entropy", {}),
        ("softmax_cross_entropy", {"l2": 0.1, "clip_norm": 0.01}),
        ("squared_error", {"l2": 0.1}),
        ("binary_cross_entropy", {"clip_norm": 0.01}),
    ],
    ids=str,
)
def test_a_scale_changes_no_update_where_nothing_overflows(loss, options, device):
    """In float32 a power of two is exact, whatever is done with it."""
    chosen = losses.loss(loss)
    targets = (
        None if chosen.output == "softmax" else np.random.default_rng(0).random((ROWS, 4)).round()
    )
    found = []
    for scaling in (None, LossScaling(2.0**12, 0), LossScaling(2.0**16)):
        step = make_step(device, scaling, "float32", chosen, targets, **options)
        for _ in range(3):
            update(step)
        found.append(step.network.backend.to_host(step.network.parameters).copy())
    for parameters in found[1:]:
        np.testing.assert_allclose(parameters, found[0], rtol=0, atol=1e-7)


def test_small_gradients_are_lost_in_float16_without_a_scale_and_kept_with_one(device):
    targets = np.zeros((ROWS, 4))
    moved = {}
    for scale in (1.0, 2.0**14):
        step = make_step(device, LossScaling(scale, 0), loss=losses.SquaredError(), targets=targets)
        backend = step.network.backend
        tiny = backend.to_host(step.network.parameters) * 0
        backend.from_host(tiny + np.float32(1e-5), step.network.parameters)
        step.restored(0)
        before = everything(step)[1]
        update(step)
        moved[scale] = np.abs(everything(step)[1] - before)[: 6 * 8].max()  # m of the first layer
    assert moved[1.0] == 0
    assert moved[2.0**14] > 0


# -- training -------------------------------------------------------------------------------------


def trainer(device: str, **options: Any) -> Trainer:
    network = MLP([6, 8, 4], "tanh", device=device, precision=options.pop("precision", "float16"),
                  dropout=0.25)  # fmt: skip
    return Trainer(network, batch_size=ROWS, optimizer=optimizers.Adam(0.01), **options)


def test_a_training_with_overflows_goes_on_and_learns(device, monkeypatch):
    monkeypatch.setattr("gpubackprop.training.trainer.LossScaling", lambda *a: LossScaling(2.0**26))
    t = trainer(device)
    x, targets = data(2 * ROWS)
    history = t.fit(x, targets, epochs=12)
    assert t.state.step is not None
    found = state(t.state.step)
    assert found[SKIPPED] >= 5
    assert found[STEPS] + found[SKIPPED] == t.state.step.steps == 24
    rows = history.rows
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert t.state.step.random is not None
    random = t.network.backend.to_host(t.state.step.random)
    assert random[1] == found[STEPS], "masks are counted with the updates"


def test_resumed_and_second_fits_go_on_bit_for_bit_with_scale_and_counts(
    device, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        "gpubackprop.training.trainer.LossScaling", lambda *a: LossScaling(2.0**24, 4)
    )
    x, targets = data(3 * ROWS)
    once, twice, first, resumed = (trainer(device, stochastic_rounding=True) for _ in range(4))
    once.fit(x, targets, epochs=6)
    twice.fit(x, targets, epochs=1)
    twice.fit(x, targets, epochs=5)
    path = tmp_path / "c.safetensors"
    first.fit(x, targets, epochs=1, checkpoint=path, checkpoint_every=1)
    resumed.fit(x, targets, epochs=6, checkpoint=path)
    assert once.state.step is not None
    assert state(once.state.step)[SKIPPED] > 0
    for other in (twice, resumed):
        assert other.state.step is not None
        assert state(other.state.step).tolist() == state(once.state.step).tolist()
        for a, b in zip(everything(other.state.step), everything(once.state.step), strict=True):
            assert np.array_equal(a, b)
    fixed = trainer(device, stochastic_rounding=True, loss_scale=64)
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match="loss_scale"):
        trainer("cpu", loss_scale=64, stochastic_rounding=True).fit(x, targets, checkpoint=path)
    assert fixed.scaling is not None


def test_a_gradient_that_stays_infinite_ends_the_training_with_what_to_do(device):
    x, targets = data(ROWS)
    x[:, 0] = 60000  # finite in float16, and its products with any scaled delta are not
    t = trainer(device, loss_scale=2.0**40)
    before = t.network.backend.to_host(t.network.parameters).copy()
    with pytest.raises(NonFiniteLossError, match="whatever the loss scale"):
        t.fit(x, targets, epochs=80)
    assert np.array_equal(t.network.backend.to_host(t.network.parameters), before)


@pytest.mark.parametrize(
    ("precision", "spec", "wanted"),
    [
        ("float16", None, LossScaling()), ("bfloat16", None, None), ("float32", None, None),
        ("bfloat16", "dynamic", LossScaling()), ("float16", 128, LossScaling(128.0, 0)),
    ],
)  # fmt: skip
def test_float16_is_scaled_unless_told_otherwise(precision, spec, wanted):
    network = MLP([2, 3], precision=precision)
    assert Trainer(network, loss_scale=spec).scaling == wanted


@pytest.mark.parametrize("spec", ["static", 0, -1, float("inf"), float("nan")])
def test_scales_that_make_no_sense_are_refused(spec):
    with pytest.raises(OptionError, match="loss_scale"):
        Trainer(MLP([2, 3], precision="float16"), loss_scale=spec)


def test_scaling_costs_two_launches_and_no_wait(monkeypatch):
    if emulator.missing_compiler():
        pytest.skip(emulator.missing_compiler())
    monkeypatch.setattr(devices, "choose", lambda name: ("cuda:0", "emulated"))
    counted = {}
    with cupy_stub.installed() as counts:
        for scaling in (None, LossScaling()):
            step = make_step("cuda", scaling)
            rows = step.place(np.arange(ROWS))
            step.update(rows, 0.01)
            counts.clear()
            step.update(rows, 0.01)
            assert (counts.allocations, counts.waits, counts.uploads) == (0, 0, 0)
            counted[scaling] = len(counts.kernels)
    assert counted[LossScaling()] == counted[None] + 2  # the two stages of "is it finite"


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_hundred_scaled_steps_on_the_cpu_allocate_no_array(precision):
    step = make_step("cpu", LossScaling(), precision)
    rows = np.arange(ROWS)
    for _ in range(3):
        step.update(rows, 1e-3)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            step.update(rows, 1e-3)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now - before < 1024
    assert peak - before < 16 << 10
