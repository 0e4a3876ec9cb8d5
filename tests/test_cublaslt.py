"""Products by cuBLASLt: the binding, its stand-in held to the library itself, and whole steps in a graph."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer
from gpubackprop.backends import devices
from gpubackprop.backends.cupy import CublasLtProducts, CupyBackend, CupyProducts, cublaslt
from gpubackprop.backends.cupy import product_choice as choice
from gpubackprop.errors import DeviceUnavailable
from tests import emulator
from tests.emulator import cublaslt as standin
from tests.emulator import cupy_stub
from tests.emulator.cupy_stub import STATE

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(
        bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
    ),
]
RNG = np.random.default_rng(0)
INVALID_VALUE = 7


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[cupy_stub.Counts]:
    monkeypatch.setattr(devices, "choose", lambda device: ("cuda:0", "emulated"))
    monkeypatch.setenv("GPUBACKPROP_RESIDENT", "0")  # steps have products; resident training none
    with cupy_stub.installed() as counted:
        yield counted


@pytest.fixture
def cuda(counts: cupy_stub.Counts) -> CupyBackend:
    return CupyBackend(0)


# -- the binding, and the stand-in beside the library itself ---------------------------------------


@pytest.fixture(params=["stand-in", "library"])
def library(request: pytest.FixtureRequest) -> cublaslt.Library:
    if request.param == "stand-in":
        return cublaslt.Library(standin.library(), standin.PATH)
    loaded = devices.load_cuda_library("cublasLt", None)
    if loaded is None:
        pytest.skip("libcublasLt is not installed: pip install nvidia-cublas brings it")
    return cublaslt.Library(*loaded)


ATTRIBUTES = {
    "MatmulDesc": (
        cublaslt.TRANSPOSE_A, cublaslt.TRANSPOSE_B, cublaslt.EPILOGUE, cublaslt.BIAS_ADDRESS,
        cublaslt.MASK_ADDRESS, cublaslt.MASK_STRIDE,
    ),
    "MatmulPreference": (
        cublaslt.MAX_WORKSPACE, cublaslt.REDUCTION_SCHEMES, cublaslt.ALIGNMENT_A,
        cublaslt.ALIGNMENT_B, cublaslt.ALIGNMENT_C, cublaslt.ALIGNMENT_D,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_each_attribute_has_the_size_that_the_library_wants_and_no_other(library, kind):
    arguments = (cublaslt.COMPUTE_32F, cublaslt.REAL_32F) if kind == "MatmulDesc" else ()
    descriptor = library.made(kind, *arguments)
    for number, held in ATTRIBUTES[kind]:
        descriptor.set((number, held), 1)
        others = {ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64}
        for other in others:
            if ctypes.sizeof(other) != ctypes.sizeof(held):
                with pytest.raises(cublaslt.CublasLtError, match=f"status {INVALID_VALUE} "):
                    descriptor.set((number, other), 1)


def test_the_sizes_of_the_structures_are_those_of_the_header():
    """sizeof and offsetof, as g++ gives them for cublasLt.h of CUDA 13.0."""
    result = cublaslt.HeuristicResult
    assert ctypes.sizeof(cublaslt.Algorithm) == 64
    assert ctypes.sizeof(result) == 96
    assert (result.workspace.offset, result.state.offset, result.waves.offset) == (64, 72, 76)


def test_a_status_that_is_no_success_is_an_error_that_names_the_function(library):
    with pytest.raises(cublaslt.CublasLtError, match="cublasLtMatmulDescSetAttribute returned"):
        library.made("MatmulDesc", cublaslt.COMPUTE_32F, cublaslt.REAL_32F).set(
            (99, ctypes.c_int), 0
        )


@pytest.mark.parametrize(
    ("address", "aligned"), [(0x1000, 256), (0x1040, 64), (0x1044, 4), (0x1002, 2), (1, 1)]
)
def test_alignment_is_the_largest_power_of_two_that_divides_an_address(address, aligned):
    assert cublaslt.alignment(address) == aligned


# -- what the stand-in refuses ---------------------------------------------------------------------


def problem(m: int = 3, n: int = 4, k: int = 5, workspace: int = 1 << 20) -> cublaslt.Problem:
    def operand(rows: int, columns: int) -> cublaslt.Operand:
        return cublaslt.Operand(cublaslt.REAL_32F, rows, columns, rows, cublaslt.OP_N, 4)

    return cublaslt.Problem(
        operand(m, k), operand(k, n), operand(m, n), cublaslt.COMPUTE_32F, workspace
    )


def product(**sizes: int) -> cublaslt.Product:
    bound = cublaslt.Library(standin.library(), standin.PATH)
    return cublaslt.Product(bound, bound.context(), problem(**sizes))


def test_proposals_are_those_that_succeed_fit_the_workspace_and_add_in_a_fixed_order(counts):
    assert [result.workspace for result in product().candidates(8)] == [0, 1024]
    assert [result.workspace for result in product(workspace=512).candidates(8)] == [0]


def test_an_algorithm_of_other_sizes_is_not_taken(counts):
    kept = product().candidates(1)[0].algorithm
    assert product().takes(kept)
    assert not product(m=6).takes(kept)


def test_asking_for_algorithms_during_a_capture_fails(counts):
    asked = product()
    with cupy_stub.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        with pytest.raises(cublaslt.CublasLtError, match="AlgoGetHeuristic returned status 14"):
            asked.candidates(1)
        stream.end_capture()


def test_a_workspace_that_is_missing_or_not_aligned_is_refused(cuda):
    wants = product()
    wants.take(wants.candidates(8)[1])
    x, y, out = (cuda.zeros(20, np.float32).data.ptr for _ in range(3))
    room = cuda.empty(2048, np.uint8).data.ptr
    for wrong in (0, room + 16):
        with pytest.raises(cublaslt.CublasLtError, match=f"status {INVALID_VALUE} "):
            wants.issue(x, y, out, wrong, 0)
    wants.issue(x, y, out, room, 0)


# -- products --------------------------------------------------------------------------------------

DTYPES = {np.float64: 1e-14, np.float32: 1e-6, np.float16: 2e-3}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (1, 9, 4), (6, 1, 5), (33, 17, 1)])
def test_a_product_is_that_of_its_operands_in_float64_whatever_their_order(
    cuda, dtype, orders, shape
):
    rows, inner, columns = shape
    x, y = RNG.normal(size=(rows, inner)), RNG.normal(size=(inner, columns))
    given = [
        cuda.asarray(m.astype(dtype)) if order == "C" else cuda.asarray(m.T.astype(dtype)).T
        for m, order in zip((x, y), orders, strict=True)
    ]
    exact = given[0].get().astype(float) @ given[1].get().astype(float)
    planned, eager = (cuda.empty((rows, columns), dtype) for _ in range(2))
    cuda.matmul(*given, eager)
    cuda.plan(lambda recorder: recorder.matmul(*given, planned))()
    size = np.abs(given[0].get().astype(float)) @ np.abs(given[1].get().astype(float))
    for out in (planned, eager):
        error = np.abs(cuda.to_host(out).astype(float) - exact)
        assert (error <= DTYPES[dtype] * size).all()


def test_sixteen_bit_operands_give_float32_if_that_is_wanted(cuda):
    x, y = (cuda.asarray(RNG.normal(size=(8, 8)).astype(np.float16)) for _ in range(2))
    out = cuda.empty((8, 8), np.float32)
    cuda.matmul(x, y, out)
    exact = x.get().astype(float) @ y.get().astype(float)
    np.testing.assert_allclose(cuda.to_host(out), exact, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["cublaslt", "cupy"])
def test_a_product_is_added_to_what_is_there_if_that_is_asked(counts, kind, dtype):
    cuda = (
        CupyBackend(0) if kind == "cublaslt" else CupyBackend(0, CupyProducts(cupy_stub.module()))
    )
    x, y = (cuda.asarray(RNG.normal(size=(8, 8)).astype(dtype)) for _ in range(2))
    wide = np.float64 if dtype is np.float64 else np.float32
    exact = 1 + 2 * (x.get().astype(float) @ y.get().astype(float))
    out = cuda.asarray(np.ones((8, 8), wide))
    cuda.matmul(x, y, out, accumulate=True)
    cuda.plan(lambda recorder: recorder.matmul(x, y, out, accumulate=True))()
    np.testing.assert_allclose(cuda.to_host(out), exact, atol=1e-13 if wide is np.float64 else 2e-5)
    before = cuda.to_host(out)
    nothing = cuda.zeros((8, 0), dtype)
    cuda.matmul(nothing, nothing.T, out, accumulate=True)
    cuda.plan(lambda recorder: recorder.matmul(nothing, nothing.T, out, accumulate=True))()
    np.testing.assert_array_equal(cuda.to_host(out), before)


def test_tf32_is_used_if_cupys_variable_asks_for_it(cuda, monkeypatch):
    x = np.full((4, 64), 1 + 2.0**-12, np.float32)  # 12 bits of fraction; TF32 has 10
    out = cuda.empty((4, 4), np.float32)
    for asked, wanted in (("0", 64 * (1 + 2.0**-12) ** 2), ("1", 64.0)):
        monkeypatch.setenv("CUPY_TF32", asked)
        cuda.matmul(cuda.asarray(x), cuda.asarray(x).T, out)
        np.testing.assert_allclose(cuda.to_host(out), wanted, rtol=1e-6)


def test_a_sum_over_nothing_is_zero_and_a_result_without_elements_is_left_alone(cuda):
    out = cuda.asarray(np.ones((2, 3), np.float32))
    x, y = cuda.zeros((2, 0), np.float32), cuda.zeros((0, 3), np.float32)
    cuda.matmul(x, y, out)
    assert not cuda.to_host(out).any()
    cuda.fill(out, 1)
    cuda.plan(lambda recorder: recorder.matmul(x, y, out))()
    assert not cuda.to_host(out).any()
    cuda.matmul(cuda.zeros((0, 4), np.float32), cuda.zeros((4, 3), np.float32), out[:0])


def test_a_view_that_is_less_aligned_has_a_product_of_its_own(cuda):
    """The library may read 16 bytes at once where the first address allows it."""
    W = cuda.asarray(RNG.normal(size=40).astype(np.float32))
    x, out = cuda.asarray(np.eye(4, dtype=np.float32)), cuda.empty((4, 4), np.float32)
    for start in (0, 1, 2):
        view = W[start : start + 16].reshape(4, 4)
        cuda.matmul(x, view, out)
        np.testing.assert_array_equal(cuda.to_host(out), view.get())


def test_a_new_product_during_a_capture_of_the_caller_says_what_to_do(cuda):
    x, out = cuda.zeros((3, 3), np.float32), cuda.empty((3, 3), np.float32)
    with cupy_stub.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        with pytest.raises(DeviceUnavailable, match="call the operation once before the capture"):
            cuda.matmul(x, x, out)
        stream.end_capture()


def test_what_the_library_refuses_goes_to_cupy_and_the_plan_says_so(cuda, monkeypatch):
    monkeypatch.setattr(cublaslt.Product, "candidates", lambda self, most: [])
    x = cuda.asarray(RNG.normal(size=(3, 3)))
    out = cuda.empty((3, 3), np.float64)
    plan = cuda.plan(lambda recorder: recorder.matmul(x, x, out))
    plan()
    assert "matrix products through CuPy" in plan.uncaptured
    np.testing.assert_allclose(cuda.to_host(out), x.get() @ x.get(), rtol=1e-14)
    cuda.fill(out, 0)
    cuda.matmul(x, x, out)
    np.testing.assert_allclose(cuda.to_host(out), x.get() @ x.get(), rtol=1e-14)


def test_cupy_multiplies_where_the_library_is_missing_or_is_not_wanted(counts, monkeypatch):
    assert isinstance(CupyBackend(0).products, CublasLtProducts)
    monkeypatch.setenv("GPUBACKPROP_PRODUCTS", "cupy")
    assert isinstance(CupyBackend(0).products, CupyProducts)
    monkeypatch.delenv("GPUBACKPROP_PRODUCTS")
    with monkeypatch.context() as patched:  # undone before the stand-in puts its own back
        patched.setattr(devices, "load_cuda_library", lambda name, major: None)
        assert isinstance(CupyBackend(0).products, CupyProducts)


# -- the choice of an algorithm --------------------------------------------------------------------


def plan_of(cuda: CupyBackend) -> Any:
    x, out = cuda.zeros((4, 4), np.float32), cuda.empty((4, 4), np.float32)
    return cuda.plan(lambda recorder: recorder.matmul(x, x, out))


def test_the_algorithm_that_took_least_time_is_chosen_once_and_kept_in_the_file(
    counts, monkeypatch, tmp_path
):
    file = tmp_path / "choices.json"
    monkeypatch.setenv("GPUBACKPROP_PRODUCT_CHOICES", str(file))
    times = iter([3.0, 2.0])  # of the two proposals that remain
    monkeypatch.setattr(cupy_stub.module().cuda, "get_elapsed_time", lambda start, end: next(times))
    plan_of(CupyBackend(0))
    (kept,) = json.loads(file.read_text()).values()
    assert kept[0] == 4, "the number of the second of the stand-in's proposals"
    plan_of(CupyBackend(0))  # another process: nothing is timed, or `times` would be exhausted


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_a_file_of_choices_that_cannot_be_read_is_replaced(counts, monkeypatch, tmp_path, content):
    file = tmp_path / "choices.json"
    file.write_text(content)
    monkeypatch.setenv("GPUBACKPROP_PRODUCT_CHOICES", str(file))
    plan_of(CupyBackend(0))
    assert any(len(kept) == 8 for kept in json.loads(file.read_text()).values() if kept != 1)


def test_a_choice_that_the_library_does_not_take_any_more_is_made_anew(
    counts, monkeypatch, tmp_path
):
    file = tmp_path / "choices.json"
    monkeypatch.setenv("GPUBACKPROP_PRODUCT_CHOICES", str(file))
    plan_of(CupyBackend(0))
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: [9] * 8}))
    plan_of(CupyBackend(0))
    assert json.loads(file.read_text())[key][0] in (1, 4)


def test_a_folder_that_cannot_be_written_to_costs_a_choice_in_each_process(
    counts, monkeypatch, tmp_path
):
    monkeypatch.setenv("GPUBACKPROP_PRODUCT_CHOICES", str(tmp_path / "missing" / "choices.json"))
    plan_of(CupyBackend(0))()


def test_the_timed_runs_write_into_memory_of_their_own(cuda):
    x = cuda.asarray(np.ones((4, 4), np.float32))
    out = cuda.asarray(np.full((4, 4), 7, np.float32))
    cuda.plan(lambda recorder: recorder.matmul(x, x, out))
    assert (cuda.to_host(out) == 7).all()
    assert choice.RUNS > 1


# -- a step ----------------------------------------------------------------------------------------


def test_a_training_step_is_one_graph_and_an_epoch_is_its_replays(counts):
    """5 products, one launch of the graph a step, and nothing beside it but the rows of the batch."""
    x, y = RNG.normal(size=(24, 4)).astype(np.float32), np.arange(24) % 3
    trainer = Trainer(MLP([4, 8, 3], seed=0, device="cuda"), batch_size=8, progress=False)
    trainer.fit(x, y, epochs=1)
    step = trainer.state.step
    assert step is not None
    rows = step.place(np.arange(24))
    counts.clear()
    for start in (0, 8, 16):
        step.update(rows[start : start + 8], 0.01)
    assert (counts.graphs, counts.products) == (3, 15)
    assert (counts.allocations, counts.waits, counts.uploads, counts.compiled) == (0, 0, 0, [])


def test_a_graph_and_recorded_calls_train_to_the_same_parameters(counts, monkeypatch):
    x, y = RNG.normal(size=(40, 4)), np.arange(40) % 3
    trained = []
    for products in ("cublaslt", "cupy"):
        monkeypatch.setenv("GPUBACKPROP_PRODUCTS", products)
        network = MLP([4, 8, 3], seed=0, dtype="float64", device="cuda")
        Trainer(network, batch_size=16, progress=False, seed=0).fit(x, y, epochs=3)
        trained.append(network.backend.to_host(network.parameters))
    assert STATE.counts.graphs == 9
    np.testing.assert_allclose(*trained, rtol=1e-12, atol=1e-14)
