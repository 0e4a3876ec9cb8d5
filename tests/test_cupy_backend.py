"""The verbs of the CUDA backend, by the emulator and on a GPU, against the NumPy backend's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends import LossOptions, NumpyBackend, Total
from gpubackprop.backends.cupy import CupyBackend
from gpubackprop.errors import TargetRangeError
from gpubackprop.formulas import ACTIVATIONS, OUTPUTS, POINTWISE_LOSSES
from tests import emulator
from tests.emulator import cupy_stub

EMULATED = pytest.param(
    "emulated",
    marks=pytest.mark.skipif(
        bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
    ),
)
Array = np.ndarray
RTOL = {"float64": 1e-12, "float32": 2e-5}  # of the largest value: sums in another order
CPU = NumpyBackend()


@pytest.fixture(params=[EMULATED, pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Iterator[CupyBackend]:
    if request.param == "gpu":
        yield CupyBackend(0)
        return
    with cupy_stub.installed():
        yield CupyBackend(0)


def normal(seed: int, *shape: int, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def assert_close(found: Any, wanted: Any) -> None:
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    finite = np.abs(wanted[np.isfinite(wanted)])
    atol = RTOL.get(wanted.dtype.name, 0) * max(finite.max(initial=0), 1e-30)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=atol)


def both(cuda: CupyBackend, emit: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """``emit(verbs, **arrays)`` on both backends, at once and as a plan; the outputs must agree."""
    wanted = {name: array.copy() for name, array in outputs.items()}
    emit(CPU, **inputs, **wanted)
    for planned in (False, True):
        arrays = {name: cuda.asarray(array) for name, array in (inputs | outputs).items()}
        if planned:
            cuda.plan(lambda verbs, arrays=arrays: emit(verbs, **arrays))()
        else:
            emit(cuda, **arrays)
        for name in outputs:
            assert_close(cuda.to_host(arrays[name]), wanted[name])


# -- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_affine_forward_and_activation_backward_match_numpy(cuda, name):
    act = ACTIVATIONS[name]
    in_place = act.saved == "h"

    def emit(verbs, x, W, b, a, h, grad_h, delta, grad_b):
        verbs.affine_forward(x, W, b, act, a, a if in_place else h)
        saved = a if in_place or act.saved == "a" else h
        verbs.activation_backward(grad_h, saved, act, delta, grad_b)

    inputs = {
        "x": normal(1, 9, 5),
        "W": normal(2, 7, 5),
        "b": normal(3, 7),
        "grad_h": normal(4, 9, 7),
    }
    zeros = {key: np.zeros((9, 7)) for key in ("a", "h", "delta")} | {"grad_b": np.zeros(7)}
    both(cuda, emit, inputs, zeros)


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (300, 2), (5, 400)])
def test_layer_verbs_match_numpy_in_float32_for_awkward_shapes(cuda, shape):
    rows, columns = shape
    act = ACTIVATIONS["relu"]

    def emit(verbs, h, W, a, grad_W, grad_h, total):
        verbs.activation_forward(a, act, a)
        verbs.affine_backward(a, h, W, grad_W, grad_h)
        verbs.column_sum(a, total)

    f32 = np.float32
    inputs = {"h": normal(1, rows, 4, dtype=f32), "W": normal(2, columns, 4, dtype=f32)}
    outputs = {
        "a": normal(3, rows, columns, dtype=f32), "grad_W": np.zeros((columns, 4), f32),
        "grad_h": np.zeros((rows, 4), f32), "total": np.zeros(columns, f32),
    }  # fmt: skip
    both(cuda, emit, inputs, outputs)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_output_functions_match_numpy(cuda, kind):
    both(
        cuda,
        lambda verbs, a, out: verbs.output(a, kind, out),
        {"a": normal(1, 6, 5) * 3 + (1e4 if kind == "softmax" else 0)},
        {"out": np.zeros((6, 5))},
    )


@pytest.mark.parametrize("source", ["uint8", "float16", "float32", "float64"])
def test_gather_rows_converts_on_the_way(cuda, source):
    x = (np.arange(60).reshape(12, 5) % 7).astype(source)
    rows = np.array([3, 3, 11, 0])
    both(
        cuda,
        lambda verbs, x, rows, out: verbs.gather_rows(x, rows, out),
        {"x": x, "rows": rows},
        {"out": np.zeros((4, 5), np.float32)},
    )


def test_labels_and_sample_weights_are_gathered_as_vectors(cuda):
    for vector in (np.arange(9), np.arange(9, dtype=np.int32), normal(1, 9)):
        both(
            cuda,
            lambda verbs, x, rows, out: verbs.gather_rows(x, rows, out),
            {"x": vector, "rows": np.array([8, 0])},
            {"out": np.zeros(2, vector.dtype)},
        )


def test_standardize_rounds_once_from_float64(cuda):
    raw = normal(1, 5, 3, dtype=np.float32) + np.float32(1e6)
    mean, scale = raw.mean(0, dtype=np.float64), np.array([1.0, 1e-3, 7.0])
    out = cuda.empty((5, 3), np.float32)
    cuda.standardize(*(cuda.asarray(array) for array in (raw, mean, scale)), out)
    assert np.array_equal(cuda.to_host(out), ((raw - mean) / scale).astype(np.float32))


# -- losses ---------------------------------------------------------------------------------------

WEIGHTS = np.array([0.5, 2.0, 0.0, 1.5])
CROSS_ENTROPY: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "class weights": {"class_weight": WEIGHTS},
    "ignored label": {"ignore_index": 1},
    "ignored label outside": {"ignore_index": -100},
    "smoothing": {"label_smoothing": 0.2},
    "z loss": {"z_loss": 0.1},
    "all": {"class_weight": WEIGHTS, "ignore_index": 1, "label_smoothing": 0.2, "z_loss": 0.1},
}


def loss_arrays(rows: int, units: int, dtype: Any) -> dict[str, Array]:
    return {
        "loss": np.zeros((), dtype), "row_loss": np.zeros(rows, dtype),
        "scale": np.zeros(rows, dtype), "delta": np.zeros((rows, units), dtype),
        "correct": np.zeros(rows, np.bool_),
    }  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", CROSS_ENTROPY)
def test_softmax_cross_entropy_of_labels_matches_numpy(cuda, case, weighted):
    options = LossOptions(**CROSS_ENTROPY[case])
    labels = np.array([0, 1, 3, 3, 2, 1, 0])
    labels[4] = -100 if options.ignore_index == -100 else labels[4]
    check_loss(
        cuda,
        lambda verbs, z, t, result, w: verbs.softmax_cross_entropy(z, t, options, result, w),
        normal(1, 7, 4), labels, np.arange(7.0) if weighted else None,
        skip=() if options.reduction != "none" else ("loss",),
    )  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "elementwise_mean", "sum", "none"])
@pytest.mark.parametrize("name", POINTWISE_LOSSES)
def test_pointwise_losses_match_numpy(cuda, name, reduction, weighted):
    options = LossOptions(reduction=reduction)
    targets = (np.arange(28).reshape(7, 4) % 2).astype(np.float64)
    check_loss(
        cuda,
        lambda verbs, a, t, result, w: verbs.pointwise_loss(
            a, t, POINTWISE_LOSSES[name], options, result, w
        ),
        normal(1, 7, 4), targets, np.arange(7.0) if weighted else None,
        skip=() if reduction != "none" else ("loss",),
    )  # fmt: skip


def check_loss(
    cuda: CupyBackend, emit: Any, a: Array, t: Array, weight: Array | None, skip: tuple[str, ...]
) -> None:
    for dtype in (np.float64, np.float32):
        wanted = loss_arrays(*a.shape, dtype)
        if t.ndim == 2 and "correct" in skip:
            del wanted["correct"]
        logits = a.astype(dtype)
        targets = t if t.dtype.kind == "i" else t.astype(dtype)
        found = {name: cuda.asarray(array) for name, array in wanted.items()}
        w = None if weight is None else weight.astype(dtype)
        emit(CPU, logits, targets, wanted, w)
        emit(
            cuda, cuda.asarray(logits), cuda.asarray(targets), found,
            None if weight is None else cuda.asarray(weight),
        )  # fmt: skip
        for name in wanted.keys() - {"scale", *skip}:
            assert_close(cuda.to_host(found[name]), wanted[name])


def test_a_label_out_of_range_raises_at_the_next_wait_and_no_sooner(cuda):
    result = {name: cuda.asarray(array) for name, array in loss_arrays(4, 3, float).items()}
    logits, labels = cuda.asarray(normal(1, 4, 3)), cuda.asarray(np.array([0, 1, 7, 2]))
    step = cuda.plan(lambda v: v.softmax_cross_entropy(logits, labels, LossOptions(), result))
    step()
    step()
    with pytest.raises(TargetRangeError, match=r"targets\[2\] of a batch was 7"):
        cuda.to_host(result["loss"])
    delta = cuda.to_host(result["delta"])  # said once
    assert np.isnan(delta[2]).all()
    assert np.isfinite(delta[[0, 1, 3]]).all()


# -- totals and updates ---------------------------------------------------------------------------


def test_accumulate_matches_numpy(cuda):
    totals = np.array([0, 0, 0, 0, 0, -1.0])
    found = cuda.asarray(totals)
    for loss in (1.5, np.inf, np.nan):
        correct = np.array([True, False, True])
        pair = np.array([2.0]), np.array([0.5])
        CPU.accumulate(np.array(loss), 3, correct, (pair[0][0], pair[1][0]), totals)
        device = [cuda.asarray(array) for array in (np.array(loss), correct, *pair)]
        cuda.accumulate(device[0], 3, device[1], tuple(device[2:]), found)
    assert_close(cuda.to_host(found), totals)
    assert totals[Total.BAD_STEP] == 1


def test_sums_of_squares_and_scaled_sums_match_numpy(cuda):
    both(
        cuda,
        lambda v, x, out: v.sum_of_squares(x, out),
        {"x": normal(1, 5000)},
        {"out": np.zeros(())},
    )
    both(
        cuda,
        lambda v, x, scale, out: v.add_scaled(x, scale, out),
        {"x": normal(1, 50), "scale": np.array(0.3)},
        {"out": normal(2, 50)},
    )


def test_all_finite_sees_one_nan_and_one_infinity(cuda):
    for bad, wanted in ((1.0, True), (np.nan, False), (-np.inf, False)):
        x = normal(1, 3000, dtype=np.float32)
        x[1234] = bad
        assert cuda.all_finite(cuda.asarray(x)) is wanted
