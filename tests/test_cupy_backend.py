"""Operations of the CUDA backend, by the emulator and on a GPU, against the NumPy backend's: what the
list of cases (`gpubackprop/bench/cases.py`, which `test_gpu_parity` runs) has not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends import LossOptions, NumpyBackend, Total
from gpubackprop.backends.cupy import CupyBackend
from gpubackprop.errors import TargetRangeError
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
    """``emit(backend, **arrays)`` on both backends, at once and as a plan; the outputs must agree."""
    wanted = {name: array.copy() for name, array in outputs.items()}
    emit(CPU, **inputs, **wanted)
    for planned in (False, True):
        arrays = {name: cuda.asarray(array) for name, array in (inputs | outputs).items()}
        if planned:
            cuda.plan(lambda backend, arrays=arrays: emit(backend, **arrays))()
        else:
            emit(cuda, **arrays)
        for name in outputs:
            assert_close(cuda.to_host(arrays[name]), wanted[name])


# -- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["uint8", "float16", "float32", "float64"])
def test_gather_rows_converts_on_the_way(cuda, source):
    x = (np.arange(60).reshape(12, 5) % 7).astype(source)
    rows = np.array([3, 3, 11, 0])
    both(
        cuda,
        lambda backend, x, rows, out: backend.gather_rows(x, rows, out),
        {"x": x, "rows": rows},
        {"out": np.zeros((4, 5), np.float32)},
    )


def test_labels_and_sample_weights_are_gathered_as_vectors(cuda):
    for vector in (np.arange(9), np.arange(9, dtype=np.int32), normal(1, 9)):
        both(
            cuda,
            lambda backend, x, rows, out: backend.gather_rows(x, rows, out),
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


def loss_arrays(rows: int, units: int, dtype: Any) -> dict[str, Array]:
    return {
        "loss": np.zeros((), dtype), "row_loss": np.zeros(rows, dtype),
        "scale": np.zeros(rows, dtype), "delta": np.zeros((rows, units), dtype),
        "correct": np.zeros(rows, np.bool_),
    }  # fmt: skip


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


def test_scaled_sums_match_numpy(cuda):
    both(
        cuda,
        lambda backend, x, scale, out: backend.add_scaled(x, scale, out),
        {"x": normal(1, 50), "scale": np.array(0.3)},
        {"out": normal(2, 50)},
    )


def test_all_finite_sees_one_nan_and_one_infinity(cuda):
    for bad, wanted in ((1.0, True), (np.nan, False), (-np.inf, False)):
        x = normal(1, 3000, dtype=np.float32)
        x[1234] = bad
        assert cuda.all_finite(cuda.asarray(x)) is wanted
