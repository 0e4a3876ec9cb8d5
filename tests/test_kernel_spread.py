"""Batches whose rows are spread over the card, emulated: each step as the NumPy path does it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer, losses, optimizers
from gpubackprop.backends import Total
from gpubackprop.backends.resident_cost import cycles_of_tile
from gpubackprop.backends.spread_plan import ALL_WAVEFRONTS
from gpubackprop.data import Standardizer
from gpubackprop.formulas import ACTIVATIONS
from gpubackprop.training.batches import Batches
from gpubackprop.training.resident import obstacle, plan_of, spread_of
from gpubackprop.training.step import StepOptions, TrainStep
from tests import emulator
from tests.emulator import Module, count_traffic
from tests.emulator.arrays import ulps
from tests.emulator.module import KERNELS
from tests.emulator.traffic import conflicts, shared_accesses
from tests.resident_jobs import (
    LOSS_CASES,
    OPTIMIZERS,
    SHAPES,
    assert_same_in_orders,
    assert_same_training,
    by_batches,
    emulated,
    multiprocessors,
    numbers,
    orders,
    rates,
    spread,
    spread_launches_of,
    step_of,
)
from tests.tolerances import Draws

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)


@pytest.fixture(autouse=True)
def card() -> Iterator[None]:
    with emulated():
        yield


def both(epochs: int = 2, share_rows: int = 4, **options: Any) -> TrainStep:
    """Train the same network on the CPU and with its rows spread; they must be alike."""
    cpu = step_of("cpu:numpy", **options)
    order, lr = orders(cpu, epochs), rates(cpu, epochs)
    by_batches(cpu, order, lr)
    with spread(share_rows):
        card = step_of("cuda", **options)
        assert card._batch.spread is not None
        by_batches(card, order, lr)
        assert_same_training(numbers(card), numbers(cpu))
    return card


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_step_with_every_activation_is_that_of_the_cpu(activation, dropout):
    both(activation=activation, dropout=dropout)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", LOSS_CASES)
def test_a_step_with_every_loss_is_that_of_the_cpu(case, weighted):
    weights = np.random.default_rng(0).random(40) + 0.1 if weighted else None
    both(loss=LOSS_CASES[case], weights=weights, optimizer=optimizers.SGD(0.01, momentum=0.9))


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_a_step_with_optimizers_and_regularization_is_that_of_the_cpu(case):
    optimizer, options = OPTIMIZERS[case]
    both(optimizer=optimizer, epochs=3, **options)


@pytest.mark.parametrize("share_rows", [1, 8, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_of_any_shape_is_that_of_the_cpu(shape, share_rows):
    optimizer = optimizers.SGD(0.05, momentum=0.9)
    both(epochs=1, share_rows=share_rows, optimizer=optimizer, **SHAPES[shape])


def test_each_batch_may_have_rows_weights_and_a_penalty_of_its_own():
    weights = np.random.default_rng(2).random(40).astype(np.float32) + 0.5
    steps = []
    for device in ("cpu:numpy", "cuda"):
        made = step_of(device, l2=0.1)
        with spread():
            step = TrainStep(
                made.network, made.loss, made.data, 16, made.optimizer, made.regularization,
                StepOptions(weighted=True),
            )  # fmt: skip
            placed = step.network.backend.asarray(weights)
            order = step.place(orders(step, 1))
            for number, start in enumerate((0, 16, 32)):
                rows = slice(start, start + 16)
                step.update(order[rows], 0.05, placed[rows], l2=0.1 * (number + 1))
        steps.append(step)
    cpu, card = steps
    assert card._batch.spread is not None
    got, wanted = numbers(card), numbers(cpu)
    got["totals"][Total.PENALTY] = wanted["totals"][Total.PENALTY]  # there it is the rule's l2
    assert_same_training(got, wanted)


@pytest.mark.parametrize("kind", ["uint8", "float16", "float64", "standardized"])
def test_inputs_are_converted_as_batches_are_also_those_that_are_loaded_later(kind):
    raw = np.random.default_rng(5).integers(0, 200, (80, 5))
    x = raw.astype("float64" if kind == "standardized" else kind)
    standardizer = Standardizer.fit(x[:40]) if kind == "standardized" else None
    steps = []
    for device in ("cpu:numpy", "cuda"):
        made = step_of(device, activation="relu", inputs=x[:40])
        sets = [
            Batches.check(made.network, made.loss, part, made.data.targets, None, standardizer)
            for part in (x[:40], x[40:])
        ]
        with spread():
            step = TrainStep(
                made.network, made.loss, sets[0], 16, made.optimizer, made.regularization
            )
            by_batches(step, orders(step, 1), rates(step, 1))
            step.load(sets[1])
            by_batches(step, orders(step, 1), rates(step, 1))
        steps.append(step)
    cpu, card = steps
    assert card._batch.spread is not None
    assert_same_training(numbers(card), numbers(cpu))


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_mean_over_no_row_is_nan_or_zero_as_on_the_cpu(ignored, empty):
    options: dict[str, Any] = {"targets": np.ones(40, int), "batch": 40}
    loss = losses.SoftmaxCrossEntropy(ignore_index=1 if ignored else None, empty=empty)
    if not ignored:
        options["weights"] = np.zeros(40)
    found = []
    for device in ("cpu:numpy", "cuda"):
        with spread():
            step = step_of(device, loss=loss, **options)
            batch = step.run(step.place(np.arange(40)))
        to_host = step.network.backend.to_host
        W, _ = step.network.layout.views(to_host(step.gradient))
        found.append((float(to_host(batch.result["loss"])), np.array(W[0])))
    np.testing.assert_array_equal(found[1][0], found[0][0])
    np.testing.assert_array_equal(np.isnan(found[1][1]), np.isnan(found[0][1]))


def test_a_loss_that_is_not_finite_is_counted_and_its_update_skipped_under_clipping():
    x = np.ones((40, 5))
    x[20] = np.inf  # of the second batch, in one share
    with spread():
        step = step_of("cuda", inputs=x, activation="relu", clip_norm=1.0)
        order = step.place(np.arange(40))
        step.update(order[:16], 0.1)
        before = numbers(step)["parameters"]
        step.update(order[16:32], 0.1)
    assert np.array_equal(numbers(step)["parameters"], before)
    assert step.updater.skipped() == 1


# -- the same bits --------------------------------------------------------------------------------


def test_the_gradient_is_the_sum_of_the_shares_in_their_order():
    """Each share's partial is the gradient of its rows alone; fsum adds them without rounding."""
    with spread(8):
        step = step_of("cuda", widths=(7, 9, 3), rows=64, batch=64)
        step.run(step.place(np.arange(64)))
    batch: Any = step._batch
    partial = np.array(step.network.backend.to_host(batch.shared["partial"]))
    assert partial.shape == (8, step.network.layout.size)
    gradient = np.array(step.network.backend.to_host(step.gradient))
    exact = np.array([math.fsum(map(float, column)) for column in partial.T])
    assert ulps(gradient, exact / 64, np.float32, "elements") <= 1.0
    for share in range(8):
        alone = step_of("cpu:numpy", widths=(7, 9, 3), rows=64, batch=8)
        alone.run(np.arange(8 * share, 8 * share + 8))
        np.testing.assert_allclose(partial[share], 8 * alone.gradient, rtol=0, atol=2e-6)


def test_the_gradient_of_many_shares_is_as_accurate_as_numpys():
    draws = Draws()
    for seed in range(4):
        gradients = []
        for device, dtype in (("cuda", "float32"), ("cpu:numpy", "float32"), ("cpu", "float64")):
            options: dict[str, Any] = {"widths": (16, 24, 5), "rows": 700, "batch": 700}
            with spread(4):
                step = step_of(device, dtype=dtype, seed=seed, **options)
            same = step_of("cpu:numpy", seed=seed, **options).network
            step.network.W, step.network.b = same.W, same.b
            step.run(step.place(np.arange(700)))
            flat = step.network.backend.to_host(step.gradient)
            gradients.append(np.array(step.network.layout.views(flat)[0][0]))
        draws.add(*gradients)
    draws.check()


@pytest.mark.parametrize("number", [1, 7, 264])
def test_the_bits_are_those_of_any_card_whatever_its_multiprocessors(number):
    found = []
    for count in (132, number):
        with spread(), multiprocessors(count):
            step = step_of("cuda", dropout=0.2, l2=0.1, clip_norm=0.5, seed=3)
            assert step._batch.spread is not None
            by_batches(step, orders(step, 1), rates(step, 1))
        found.append(numbers(step))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_the_order_in_which_threads_run_changes_nothing():
    with spread(8):
        step = step_of("cuda", widths=(9, 20, 3), dropout=0.3, rows=37, batch=37)
        launches, reached = spread_launches_of(step)
    for launch in launches:
        module = Module(launch.source, "values", launch.defines)
        arrays = [(name, one) for name, one in launch.arguments[0].arrays.items()]
        assert_same_in_orders(module, launch, reached + arrays, (0, 1, 63))


# -- who uses it ----------------------------------------------------------------------------------


def test_a_trainer_spreads_its_batches_where_the_planner_says_so_and_profiles_it():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(100, 6)).astype(np.float32), rng.integers(0, 3, 100)
    histories = []
    for device in ("cpu", "cuda"):
        with spread():
            network = MLP([6, 8, 8, 3], "relu", seed=1, device=device)
            trainer = Trainer(
                network, optimizer=optimizers.Adam(0.01), batch_size=64, seed=1, progress=False
            )
            histories.append(trainer.fit(x, labels, epochs=3).rows)
    for one, other in zip(*histories, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["accuracy"] == other["accuracy"]
    with spread():
        profile = trainer.profile(x, labels, repeats=1)
    assert "spread_gradients" in [row.operation for row in profile.rows]
    assert "affine_forward" not in [row.operation for row in profile.rows]
    assert profile.epochs.startswith("no resident training: rows are spread over the card: 16")


def test_the_planner_of_a_card_spreads_a_batch_that_fills_it():
    """The constants are the planner's: 8,192 rows of a narrow network."""
    for rows, way in ((8192, "spread"), (8191, "")):
        with multiprocessors(132):
            step = step_of("cuda", widths=(3, 8, 8, 8, 2), rows=rows, batch=rows)
        assert spread_of(step).way == way
        assert (step._batch.spread is not None) == (way == "spread")
        assert (obstacle(step) == "") == (way == "")


def test_a_batch_that_products_do_sooner_is_no_cluster_s():
    """A cluster of eight blocks would take 20 times as long as the whole card."""
    with multiprocessors(132):
        step = step_of("cuda", widths=(256, 64, 10), rows=16384, batch=16384)
    assert plan_of(step).fits
    assert obstacle(step).endswith("products of matrices are predicted to be quicker")
    assert step._batch.spread is None


def test_the_environment_has_a_step_pass_layer_by_layer(monkeypatch):
    monkeypatch.setenv("GPUBACKPROP_RESIDENT", "0")
    with spread():
        assert step_of("cuda")._batch.spread is None


@pytest.mark.parametrize(
    "options", [{"dtype": "float64"}, {"loss_scale": "dynamic"}, {"widths": (784, 512, 10)}]
)
def test_what_the_kernel_does_not_know_goes_layer_by_layer(options):
    with spread():
        assert step_of("cuda", **options)._batch.spread is None


# -- traffic --------------------------------------------------------------------------------------


def counted(launch: Any, reached: Any) -> tuple[Module, dict[str, Any]]:
    module = Module(launch.source, "traffic", launch.defines)
    reached = [*reached, *launch.arguments[0].arrays.items()]
    counts = count_traffic(
        module, launch.entry, launch.grid, launch.block, launch.arguments,
        [array for _, array in reached], shared=launch.shared,
    )[1:]  # fmt: skip
    named = {name: one for (name, _), one in zip(reached, counts, strict=True) if one is not None}
    return module, named


def test_units_never_reach_the_cards_memory():
    """Each row is read once, the parameters once a share; a share's gradient is written once."""
    with spread(16):
        step = step_of("cuda", widths=(8, 16, 3), rows=64, batch=64)
        (gradient, total), reached = spread_launches_of(step)
    size = 4 * (8 * 16 + 16 + 16 * 3 + 3)
    _, moved = counted(gradient, reached)
    assert moved["x"].read == 64 * 8 * 4
    assert moved["x"].sectors_per_minimum == 1.0
    assert moved["targets"].read == 64 * 8
    assert moved["parameters"].read == 4 * size
    assert moved["partial"].written == 4 * size
    assert moved["partial"].read == 0
    written = {name for name, one in moved.items() if one.written}
    assert written == {"partial", "figures"}
    _, moved = counted(total, [])
    flat = 4 * step.network.layout.size
    assert (moved["partial"].read, moved["gradient"].written) == (4 * flat, flat)
    assert {name for name, one in moved.items() if one.written} == {
        "gradient", "loss", "correct_rows"
    }  # fmt: skip


def test_accesses_to_shared_memory_are_almost_without_bank_conflicts():
    options: dict[str, Any] = {"widths": (64, 64, 64, 10), "activation": "relu"}
    with spread(80):
        step = step_of("cuda", rows=80, batch=80, **options)
        launches, reached = spread_launches_of(step)
    module, _ = counted(launches[0], reached)
    assert conflicts(shared_accesses(module)) < 1.04


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "words"),
    [("float32", "wavefronts for a tile of 80 rows"), ("tf32", "wavefronts in TF32")],
)
def test_a_tile_takes_the_wavefronts_that_the_kernels_readme_says(precision, words):
    options = {"widths": (64, 64, 64, 64, 10), "activation": "relu", "precision": precision}
    found = []
    for rows in (80, 160):  # one tile and two of a share
        with spread(rows):
            step = step_of("cuda", rows=rows, batch=rows, **options)
            launches, reached = spread_launches_of(step)
        module, _ = counted(launches[0], reached)
        found.append(sum(access.wavefronts for access in shared_accesses(module)))
    text = (KERNELS / "README.md").read_text(encoding="utf-8")
    (said,) = re.findall(rf"([\d,]+) {words}", text)
    assert found[1] - found[0] == int(said.replace(",", ""))
    tf32 = precision == "tf32"
    products = cycles_of_tile((64, 64, 64, 64, 10), 80, tf32)
    assert (found[1] - found[0]) / products == pytest.approx(ALL_WAVEFRONTS[tf32], abs=0.01)
