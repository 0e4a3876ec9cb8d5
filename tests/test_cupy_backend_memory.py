"""The CUDA backend's memory, plans, checks and errors, on the stand-in for CuPy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from gpubackprop import backends, ops
from gpubackprop.backends import LossOptions, NumpyBackend
from gpubackprop.backends.cupy import CupyBackend, CupyProducts, Products, compiling
from gpubackprop.errors import (
    DeviceUnavailable,
    DtypeError,
    GpubackpropError,
    OptionError,
    ShapeError,
)
from gpubackprop.formulas import ACTIVATIONS
from tests import emulator
from tests.emulator import cupy_stub

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
RELU = ACTIVATIONS["relu"]


@pytest.fixture(autouse=True)
def counts() -> Iterator[cupy_stub.Counts]:
    with cupy_stub.installed() as counted:
        yield counted


@pytest.fixture
def cuda(counts: cupy_stub.Counts) -> CupyBackend:
    return CupyBackend(0)


# -- bringing arrays ------------------------------------------------------------------------------


class OfferedByInterface:
    """CUDA memory of another library, as __cuda_array_interface__ shows it."""

    def __init__(self, host: np.ndarray) -> None:
        self._host = host
        self.__cuda_array_interface__ = {"version": 3, "shape": host.shape}


class OfferedByDlpack:
    def __init__(self, host: np.ndarray, device: int = 0) -> None:
        self._host, self._device = host, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("CuPy's from_dlpack takes the object itself")


X = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    ("source", "uploads"),
    [
        (X, 1),
        (X.tolist(), 1),
        (np.asfortranarray(X), 1),
        (X[::-1], 1),
        (X.astype(">f8"), 1),
        (np.broadcast_to(X[0], (3, 4)), 1),
        (OfferedByInterface(X), 0),
        (OfferedByDlpack(X), 0),
    ],
    ids=["numpy", "list", "fortran", "reversed", "big endian", "read-only", "interface", "dlpack"],
)
def test_asarray_takes_numpy_cupy_interface_and_dlpack(cuda, counts, source, uploads):
    array = cuda.asarray(source)
    assert counts.uploads == uploads
    assert array.flags.c_contiguous
    wanted = np.asarray(source if uploads else X, np.float64)
    assert np.array_equal(cuda.to_host(array), wanted)
    assert cuda.asarray(array) is array


def test_asarray_takes_a_torch_tensor_of_the_host(cuda):
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert np.array_equal(cuda.to_host(cuda.asarray(tensor)), tensor.numpy())


def test_asarray_converts_and_keeps_the_shape(cuda):
    assert cuda.asarray(np.float64(3), np.float32).shape == ()
    assert cuda.asarray(cuda.asarray(X), np.float32).dtype == np.float32
    assert cuda.to_host(cuda.asarray(X[:0])).shape == (0, 4)
    with pytest.raises(DtypeError, match="dtype <U1 cannot be moved"):
        cuda.asarray(np.array(["a"]))


def test_an_array_on_another_gpu_is_a_clear_error(cuda):
    other = CupyBackend(1).asarray(X)
    for array in (other, OfferedByDlpack(X, 1)):
        with pytest.raises(
            DeviceUnavailable, match="lies on cuda:1 but the work is done on cuda:0"
        ):
            cuda.asarray(array)
    a = cuda.zeros((3, 4), float)
    with pytest.raises(DeviceUnavailable, match="product lies on cuda:1"):
        cuda.activation_forward(other, RELU, a)


def test_work_on_the_second_gpu_runs_there(counts):
    second = CupyBackend(1)
    a = second.asarray(-X)
    second.activation_forward(a, RELU, a)
    assert a.device.id == 1
    assert not second.to_host(a).any()
    assert cupy_stub.STATE.device == 0  # the caller's device is his again


@pytest.mark.parametrize("columns", [16_384, 20_000])
def test_a_row_in_shared_memory_on_the_second_gpu(columns):
    """16,384 floats leave 48 KiB for shared memory, and the entry has some of its own besides: more
    than CUDA gives without being asked. It is asked for on the GPU where the work is done."""
    second = CupyBackend(1)
    z = np.random.default_rng(0).standard_normal((2, columns)).astype(np.float32)
    labels = np.array([3, columns - 1])
    loss, delta = ops.softmax_cross_entropy(second.asarray(z), second.asarray(labels))
    wanted_loss, wanted = ops.softmax_cross_entropy(z, labels)
    assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-6)
    np.testing.assert_allclose(second.to_host(delta), wanted, rtol=1e-5, atol=1e-9)


def test_a_long_row_in_parts_has_its_statistics_in_one_place_for_both_launches(cuda, counts):
    """Working memory that is asked for twice is a new block each time, with anything in it."""
    z = np.random.default_rng(0).standard_normal((1, 20_000)).astype(np.float32)
    logits, labels = cuda.asarray(z), cuda.asarray(np.array([19_999]))
    counts.clear()
    loss, delta = ops.softmax_cross_entropy(logits, labels)
    entries = [f"softmax_cross_entropy_{form}_labels_f32" for form in ("parts", "finish")]
    assert [name for name in counts.kernels if name.startswith("softmax")] == entries
    wanted_loss, wanted = ops.softmax_cross_entropy(z, np.array([19_999]))
    assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-6)
    np.testing.assert_allclose(cuda.to_host(delta), wanted, rtol=1e-5, atol=1e-9)


def test_arrays_are_aligned_and_copies_stay_on_the_device(cuda, counts):
    source = cuda.asarray(X)
    out = cuda.empty(X.shape, float)
    counts.clear()
    cuda.copy(source, out)
    assert (counts.waits, counts.uploads, counts.allocations) == (0, 0, 0)
    assert out.data.ptr % 128 == 0
    assert np.array_equal(cuda.to_host(out), X)
    with pytest.raises(ShapeError):
        cuda.copy(source, cuda.empty((4, 3), float))


def test_device_arrays_do_not_turn_into_numpy_by_themselves(cuda):
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(cuda.asarray(X))


# -- what a launch checks -------------------------------------------------------------------------


def test_a_launch_that_does_not_fit_is_an_error_before_it_runs(cuda, counts):
    good = cuda.zeros((4, 4), np.float32)
    cases: list[tuple[Any, type[GpubackpropError], str]] = [
        (X, DtypeError, "wants a device array as product but got a ndarray"),
        (cuda.zeros((4, 4), float), DtypeError, "wants f32 as product but got float64"),
        (cuda.zeros((5, 4), np.float32), ShapeError, "matrices of one shape"),
        (good.T, ShapeError, "neighbours"),
        (cuda.zeros((4, 8), np.float32)[:, ::2], ShapeError, "neighbours"),
        (good[::-1], ShapeError, "overlap or run backwards"),
        (_shifted_by_a_byte(), OptionError, "no multiple of 4 bytes"),
    ]
    counts.clear()
    for bad, error, said in cases:
        if isinstance(bad, np.ndarray):
            bad = bad[:, :4].repeat(2, 0)[:4]
        with pytest.raises(error, match=said):
            cuda.activation_forward(bad, RELU, good)
    assert counts.kernels == []


def _shifted_by_a_byte() -> Any:
    raw = np.zeros(4 * 16 + 1, np.uint8)[1:]
    return cupy_stub.ndarray(np.ndarray((4, 4), np.float32, raw.data), 0)


def test_rows_with_gaps_and_a_start_off_16_bytes_are_right(cuda):
    wide = cuda.asarray(np.arange(40.0).reshape(4, 10) - 20)
    view, out = wide[:, 1:8], cuda.zeros((4, 7), float)
    cuda.activation_forward(view, RELU, out)
    wanted = np.maximum(cuda.to_host(wide)[:, 1:8], 0)
    assert np.array_equal(cuda.to_host(out), wanted)


def test_shapes_that_would_read_beyond_an_array_are_refused(cuda):
    result = {
        "loss": cuda.zeros((), float), "row_loss": cuda.zeros(4, float),
        "scale": cuda.zeros(4, float),
    }  # fmt: skip
    logits, labels = cuda.zeros((4, 3), float), cuda.zeros(4, np.int64)
    with pytest.raises(ShapeError, match=r"targets has shape \(3,\)"):
        cuda.softmax_cross_entropy(logits, labels[:3], LossOptions(), result)
    short = result | {"row_loss": cuda.zeros(2, float)}
    with pytest.raises(ShapeError, match=r"row_loss has shape \(2,\)"):
        cuda.softmax_cross_entropy(logits, labels, LossOptions(), short)
    with pytest.raises(ShapeError, match="no gather"):
        cuda.gather_rows(logits, labels, cuda.zeros((3, 3), float))
    with pytest.raises(ShapeError, match="no product"):
        cuda.matmul(logits, logits, cuda.zeros((4, 4), float))


# -- plans ----------------------------------------------------------------------------------------


def layer(verbs: Any, x: Any, W: Any, b: Any, a: Any, total: Any) -> None:
    verbs.affine_forward(x, W, b, RELU, a, a)
    verbs.column_sum(a, total)


def layer_arrays(cuda: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    shapes = [(6, 4), (3, 4), (3,), (6, 3), (3,)]
    return [cuda.asarray(rng.normal(size=shape)) for shape in shapes]


def test_a_plan_replays_without_allocating_waiting_or_compiling(cuda, counts):
    arrays = layer_arrays(cuda)
    step = cuda.plan(lambda verbs: layer(verbs, *arrays))
    assert not [name for name in counts.kernels if name != "fill"]  # recording issues nothing
    for seed in (1, 2):
        x = np.random.default_rng(seed).normal(size=(6, 4))
        cuda.from_host(x, arrays[0])
        counts.clear()
        step()
        assert (counts.allocations, counts.waits, counts.uploads, counts.compiled) == (0, 0, 0, [])
        assert (counts.graphs, counts.products) == (1, 1)
        assert counts.kernels == [
            "affine_epilogue_relu_f64",
            "column_sum_f64",
            "column_sum_finish_f64",
        ]
        wanted = [x, *(cuda.to_host(array) for array in arrays[1:])]
        layer(NumpyBackend(), *wanted)
        np.testing.assert_allclose(cuda.to_host(arrays[4]), wanted[4], rtol=1e-12)


class CapturableProducts(Products):
    """What a binding of cuBLASLt is to the backend: one launch on the current stream."""

    obstacle = ""

    def __call__(self, x: Any, y: Any, out: Any) -> None:
        cupy_stub.STATE.queue(partial(np.matmul, x._host, y._host, out._host))


def test_products_that_can_be_captured_make_the_plan_a_cuda_graph(counts):
    cuda = CupyBackend(0, CapturableProducts())
    arrays = layer_arrays(cuda)
    step = cuda.plan(lambda verbs: layer(verbs, *arrays))
    cuda.from_host(np.ones((6, 4)), arrays[0])
    counts.clear()
    step()
    assert counts.graphs == 1
    wanted = [cuda.to_host(array) for array in arrays]
    layer(NumpyBackend(), *wanted)
    np.testing.assert_allclose(cuda.to_host(arrays[4]), wanted[4], rtol=1e-12)


def test_capturing_cupys_own_products_fails_as_in_cupy():
    cuda = CupyBackend(0, CupyProducts(cupy_stub.module()))
    arrays = layer_arrays(cuda)
    stream = cuda.cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(NotImplementedError, match="cuBLAS API during stream capture"):
            layer(cuda, *arrays)
        stream.end_capture()


def test_a_host_function_in_a_plan_keeps_it_from_becoming_a_graph(counts):
    cuda = CupyBackend(0, CapturableProducts())
    a, seen = cuda.zeros((2, 2), float), []

    def emit(verbs: Any) -> None:
        verbs.activation_forward(a, RELU, a)
        verbs.call(seen.append, 1)

    step = cuda.plan(emit)
    step()
    step()
    assert seen == [1, 1]
    assert counts.graphs == 0


def test_entries_are_compiled_at_their_first_use_and_once(cuda, counts):
    compiling._loaded.clear()
    a = cuda.zeros((2, 2), float)
    for shape in ((2, 2), (9, 5)):
        a = cuda.zeros(shape, float)
        cuda.activation_forward(a, RELU, a)
    assert counts.compiled == ["affine_epilogue_relu_f64"]


# -- errors ---------------------------------------------------------------------------------------


def test_out_of_memory_says_how_much_was_wanted(cuda):
    with pytest.raises(DeviceUnavailable) as caught:
        cuda.empty((1 << 20, 1 << 20), np.float32)
    message = str(caught.value)
    assert "4.1e+03 GiB were wanted and 8 of 16 GiB are free" in message
    assert "batch_size" in message
    assert "\n" not in message


def test_a_missing_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceUnavailable, match=r'pip install "gpubackprop\[cuda13\]"'):
        CupyBackend(0)


def test_no_device_and_a_number_too_high_are_one_line_errors(counts):
    with pytest.raises(DeviceUnavailable, match="there are 2 CUDA devices, cuda:0 to cuda:1"):
        CupyBackend(2)
    cupy_stub.STATE.devices = 0
    with pytest.raises(DeviceUnavailable, match="no CUDA-capable device is detected"):
        CupyBackend(0)


class CUBLASError(RuntimeError):
    """Has the name of CuPy's."""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (cupy_stub.CompileException("a.cu(1): error: bad\nmore"), "NVRTC refused the source (a.cu"),
        (RuntimeError("libnvrtc.so.13: cannot open"), "a CUDA library does not load (libnvrtc.so"),
        (CUBLASError("CUBLAS_STATUS_NOT_INITIALIZED"), "cuBLAS failed (CUBLAS_STATUS_NOT_INITIA"),
        (cupy_stub.CUDARuntimeError("cudaErrorIllegalAddress"), "the process must be restarted"),
    ],
)
def test_errors_of_cuda_become_one_line(cuda, monkeypatch, tmp_path, raised, said):
    def refuse(source: str, options: tuple[str, ...], **more: Any) -> Any:
        raise raised

    compiling._loaded.clear()
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "0")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cuda.cupy.cuda.compiler, "compile_using_nvrtc", refuse)
    a = cuda.zeros((2, 2), float)
    with pytest.raises(DeviceUnavailable) as caught:
        cuda.activation_forward(a, RELU, a)
    assert said in str(caught.value)
    assert "compiling affine_epilogue_relu_f64" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "gpubackprop").iterdir())


def test_get_gives_the_backend_of_a_device(monkeypatch):
    assert isinstance(backends.get("cpu"), NumpyBackend)
    monkeypatch.setattr(backends.devices, "choose", lambda device: ("cuda:1", "the stand-in"))
    assert backends.get("auto").device == "cuda:1"
    assert backends.get("auto").reason == "the stand-in"


def test_cupy_is_not_imported_with_the_package():
    import subprocess

    code = "import sys, gpubackprop.backends.cupy; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
