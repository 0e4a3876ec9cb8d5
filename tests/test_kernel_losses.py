"""Pointwise losses, softmax cross entropy and the weights of rows: emulated kernels against
PyTorch in float64 and against the NumPy backend."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends import LossOptions, NumpyBackend
from gpubackprop.backends.cupy import losses
from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.dtypes import compute_dtype
from gpubackprop.formulas import POINTWISE_LOSSES
from tests import emulator, references
from tests.emulator.arrays import Guarded, ulps, wide
from tests.emulator.operations import DTYPES, Operations, run_now
from tests.tolerances import assert_same_pattern

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
FLOATS = ("f64", "f32", "f16", "bf16")
UNITS = {"f64": 8.0, "f32": 4.0, "f16": 0.51, "bf16": 0.51}


def one(value: float, dtype: np.dtype) -> np.ndarray:
    return np.array([value], compute_dtype(dtype))


def buffers(
    memory: Guarded, shape: tuple[int, int], dtype: np.dtype, **where: int
) -> dict[str, np.ndarray]:
    compute = compute_dtype(dtype)
    return {
        "row_loss": memory.empty(shape[:1], compute, shift=1),
        "lse": memory.empty(shape[:1], compute, shift=1),
        "correct": memory.empty(shape[:1], np.uint8, shift=1),
        "bad_label": memory.put(np.array([-1, -1])),
        "delta": memory.empty(shape, dtype, **where),
    }


# -- pointwise losses -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (300, 1), (17, 10), (5, 33), (3, 1500)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", references.POINTWISE_SPECS)
def test_every_pointwise_entry_matches_pytorch_in_float64(name, dtype, shape):
    memory, kind = Guarded(1), DTYPES[dtype]
    compute = compute_dtype(kind)
    a = memory.normal(shape, kind, shift=1, gap=2)
    targets = memory.put(references.targets(name, memory.rng, shape).astype(compute), gap=1)
    weight = memory.put(memory.rng.random(shape[0]).astype(compute))
    result = buffers(memory, shape, kind, shift=1, gap=3)
    result["loss"] = memory.empty((1,), compute)[:1].reshape(())
    result["correct_rows"] = memory.empty((1,), np.int64)[:1].reshape(())
    total = np.array([weight.sum()], compute)
    Operations().pointwise_loss(a, targets, name, result, weight, divisor=total.reshape(()))
    memory.check()
    if shape[0] == 0:
        assert np.isnan(result["loss"])
        assert result["correct_rows"] == 0
        return
    rows, _ = references.pointwise(
        name, wide(a), wide(targets), sample_weight=wide(weight), reduction="none"
    )
    mean, delta = references.pointwise(name, wide(a), wide(targets), sample_weight=wide(weight))
    assert ulps(result["row_loss"], rows, compute) <= UNITS["f64" if dtype == "f64" else "f32"]
    assert ulps(result["delta"], delta, kind) <= UNITS[dtype]
    right = ((wide(a) > 0) == (wide(targets) > 0.5)).all(1)
    assert np.array_equal(result["correct"], right)
    assert result["correct_rows"] == right.sum()
    assert ulps(result["loss"], mean, compute) <= UNITS["f64" if dtype == "f64" else "f32"]


@pytest.mark.parametrize("multiprocessors", [1, 2, 132])
def test_a_pointwise_loss_is_one_launch_with_its_mean_and_its_correct_rows(multiprocessors):
    """Twice, so that a counter that does not return to 0 shows; and the same bits both times."""
    memory, entries = Guarded(5), []

    def run(launched):
        entries.append(launched.entry)
        run_now(launched)

    verbs = Operations(run, DeviceProperties(multiprocessors))
    a, targets = memory.normal((1500, 12), np.float32), memory.normal((1500, 12), np.float32)
    targets[:300] = a[:300] > 0
    made = []
    for _ in range(2):
        result = {"loss": np.full((), 7, np.float32), "correct_rows": np.full((), 7)}
        verbs.pointwise_loss(a, targets, "squared_error", result, divisor=1500.0)
        made.append(result)
    assert entries == ["pointwise_loss_squared_error_f32"] * 2
    assert made[0] == made[1]
    exact = ((wide(a) - wide(targets)) ** 2).sum() / 2 / 1500
    assert ulps(made[0]["loss"], exact, np.float32) <= 1
    assert made[0]["correct_rows"] == ((a > 0) == (targets > 0.5)).all(1).sum() >= 300


@pytest.mark.parametrize(("empty", "mean"), [("nan", np.nan), ("zero", 0.0)])
def test_a_mean_over_rows_without_weight_is_nan_or_zero_with_its_gradient(empty, mean):
    a, delta = np.ones((3, 2), np.float32), np.full((3, 2), 7, np.float32)
    result = {"loss": np.full((), 7, np.float32), "delta": delta}
    weight, divisor = np.zeros(3, np.float32), np.zeros((), np.float32)
    Operations().pointwise_loss(a, -a, "squared_error", result, weight, 1.0, divisor, empty=empty)
    assert np.array_equal(result["loss"], mean, equal_nan=True)
    assert np.array_equal(delta, np.full((3, 2), mean), equal_nan=True)


@pytest.mark.parametrize("numbers", [1, 20])
def test_pointwise_loss_in_place_with_an_upstream_gradient_for_all_rows_or_each(numbers):
    memory = Guarded(2)
    a, targets = memory.normal((20, 7), np.float32), memory.normal((20, 7), np.float32)
    upstream = memory.rng.standard_normal(numbers).astype(np.float32)
    wanted = (wide(a) - wide(targets)) * wide(upstream)[:, None]
    result = {"row_loss": np.empty(20, np.float32), "delta": a}
    Operations().pointwise_loss(a, targets, "squared_error", result, upstream=upstream)
    assert ulps(a, wanted, np.float32) <= 2


@pytest.mark.parametrize("wanted", [(), ("delta",), ("correct",)], ids=str)
def test_pointwise_loss_gives_what_is_wanted_and_no_more(wanted):
    memory, shape = Guarded(3), (9, 40)
    a, targets = memory.normal(shape, np.float32), memory.normal(shape, np.float32)
    both = buffers(memory, shape, a.dtype)
    Operations().pointwise_loss(a, targets, "squared_error", both)
    result = {"row_loss": memory.empty(shape[:1], np.float32)}
    result |= {key: np.zeros_like(both[key]) for key in wanted}
    Operations().pointwise_loss(a, targets, "squared_error", result)
    memory.check()
    for key, array in result.items():
        assert np.array_equal(array, both[key])


def test_a_unit_at_zero_is_on_the_side_of_targets_up_to_one_half():
    a = np.array([[0.0], [0.0], [1.0], [1.0], [-1.0]], np.float32)
    targets = np.array([[0.5], [0.6], [0.5], [0.6], [0.5]], np.float32)
    result = {"row_loss": np.empty(5, np.float32), "correct": np.empty(5, np.uint8)}
    Operations().pointwise_loss(a, targets, "binary_cross_entropy", result)
    assert result["correct"].tolist() == [1, 0, 0, 1, 1]


@pytest.mark.parametrize("name", POINTWISE_LOSSES)
def test_pointwise_special_values_follow_the_numpy_backend(name):
    special = [0.0, -0.0, 104.0, -104.0, 1e30, -1e30, np.inf, -np.inf, np.nan]
    a = np.array([special], np.float32).T.copy()
    targets = np.full_like(a, 0.5)
    ours = {"row_loss": np.empty(9, np.float32), "delta": np.empty_like(a)}
    Operations().pointwise_loss(a, targets, name, ours)
    theirs = {key: np.empty_like(array) for key, array in ours.items()}
    theirs |= {"scale": np.empty(9, np.float32), "loss": np.empty((), np.float32)}
    NumpyBackend().pointwise_loss(
        a, targets, POINTWISE_LOSSES[name], LossOptions(reduction="none"), theirs
    )
    for key in ours:
        assert_same_pattern(ours[key], theirs[key])
        assert ulps(ours[key], theirs[key], np.float32, scale="elements") <= 4


def labels_for(rng: np.random.Generator, rows: int, classes: int, ignore: int | None) -> np.ndarray:
    labels = rng.integers(0, classes, rows)
    if ignore is not None:
        labels[::3] = ignore
    return labels


# -- weights of rows, mean ------------------------------------------------------------------------


@pytest.mark.parametrize("compute", ["f32", "f64"])
@pytest.mark.parametrize("label", ["i32", "i64"])
def test_row_weights_give_the_numpy_backends_mean(label, compute):
    memory, kind = Guarded(7), DTYPES[compute]
    labels = labels_for(memory.rng, 1000, 6, -1).astype(DTYPES[label])
    sample, per_class = memory.rng.random(1000).astype(kind), memory.rng.random(6).astype(kind)
    divisor = memory.empty((1,), kind)
    verbs = Operations()
    verbs.row_weights(labels, divisor, 1000, sample, per_class, -1, 1.0, 6)
    logits = memory.normal((1000, 6), kind)
    ours = {
        "row_loss": np.empty(1000, kind), "delta": np.empty_like(logits),
        "loss": np.empty((), kind), "weight_sum": np.empty((), kind),
    }  # fmt: skip
    verbs.softmax_cross_entropy(
        logits,
        labels,
        ours,
        sample_weight=sample,
        class_weight=per_class,
        ignore_index=-1,
        divisor=divisor,
    )
    memory.check()
    theirs = {key: np.empty_like(array) for key, array in ours.items()}
    theirs |= {"scale": np.empty(1000, kind)}
    options = LossOptions(class_weight=per_class, ignore_index=-1)
    NumpyBackend().softmax_cross_entropy(logits, labels, options, theirs, sample)
    for name in ("loss", "weight_sum", "delta"):
        assert ulps(ours[name], theirs[name], kind) <= 4, name


def test_blocks_take_rows_in_turn_where_the_grid_is_smaller_than_the_batch():
    memory, verbs = Guarded(9), Operations(device=DeviceProperties(multiprocessors=1))
    logits, labels = memory.normal((700, 33), np.float32), memory.rng.integers(0, 33, 700)
    result = {
        "row_loss": memory.empty((700,), np.float32),
        "delta": memory.empty((700, 33), np.float32),
    }
    verbs.softmax_cross_entropy(logits, labels, result)
    loss, delta = references.cross_entropy(wide(logits), labels, reduction="none")
    assert ulps(result["row_loss"], loss, np.float32) <= 4
    assert ulps(result["delta"], delta, np.float32) <= 4
    targets = memory.normal((700, 33), np.float32)
    verbs.pointwise_loss(logits, targets, "squared_error", result)
    assert np.array_equal(result["delta"], logits - targets)
    total, counts = memory.empty((1,), np.float32), np.arange(20_000) % 7
    per_class = np.arange(7, dtype=np.float32)
    verbs.row_weights(counts, total, 20_000, class_weight=per_class, classes=7)
    assert total[0] == counts.sum()
    memory.check()


@pytest.mark.parametrize("weigh", [losses.KNOWN, losses.WITH_ROWS])
def test_the_mean_over_no_row_is_nan_or_zero(weigh):
    labels, z = np.full(5, -1), np.zeros((5, 3), np.float32)
    divisor, loss, verbs = np.empty(1, np.float32), np.empty((), np.float32), Operations()
    verbs.row_weights(labels, divisor, 5, ignore_index=-1, classes=3)
    assert divisor[0] == 0
    for empty in ("nan", "zero"):
        verbs.softmax_cross_entropy(
            z, labels, {"loss": loss}, ignore_index=-1, weigh=weigh, empty=empty, divisor=divisor
        )
        assert loss == 0 if empty == "zero" else np.isnan(loss)


@pytest.mark.parametrize("rows", [1, 2, 255, 256, 257, 1025, 2049])
def test_every_row_is_weighed_the_first_and_the_last_too(rows):
    total = np.empty(1, np.float32)
    Operations().row_weights(None, total, rows, np.ones(rows, np.float32))
    assert total[0] == rows


def test_row_weights_without_labels_and_with_a_bad_one():
    total, rows = np.empty(1, np.float32), 300
    Operations().row_weights(None, total, rows, factor=4.0)
    assert total[0] == 4 * rows
    sample = np.arange(rows, dtype=np.float32)
    Operations().row_weights(None, total, rows, sample, factor=4.0)
    assert total[0] == 4 * sample.sum()
    labels = np.zeros(rows, int)
    labels[77] = 9
    Operations().row_weights(labels, total, rows, classes=9)
    assert np.isnan(total[0])
