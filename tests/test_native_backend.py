"""The host's backend: it runs the compiled kernels where it can, and NumPy's operations where not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer, backends, ops
from gpubackprop.backends import HOST, LossOptions, NativeBackend, NumpyBackend
from gpubackprop.backends.native import calls, cross_entropy, host_path, library
from gpubackprop.backends.native.arguments import ARGUMENTS
from gpubackprop.backends.numpy import blocks, get_num_threads, set_num_threads
from gpubackprop.bench import parity
from gpubackprop.dtypes import STORAGES
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, UPDATES

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
LABELS = np.arange(60) % 3


@pytest.fixture
def native() -> None:
    if host_path().library is None:
        pytest.skip(host_path().reason)


@pytest.fixture
def called(native: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the host kernels for which a record is made."""
    names: list[str] = []
    made = calls.record
    for module in (calls, cross_entropy):
        monkeypatch.setattr(
            module, "record", lambda name, v: (names.append(name), made(name, v))[1]
        )
    monkeypatch.setattr(cross_entropy, "_KEPT", type(cross_entropy._KEPT)())
    return names


@pytest.fixture
def threads() -> Iterator[None]:
    before = get_num_threads()
    yield
    set_num_threads(before)


# -- which backend --------------------------------------------------------------------------------


def test_cpu_is_the_native_backend_and_cpu_numpy_is_numpys():
    assert type(backends.get("cpu")) is type(HOST) is NativeBackend
    assert type(backends.get("cpu:numpy")) is NumpyBackend
    assert (HOST.device, NumpyBackend().device) == ("cpu", "cpu:numpy")
    assert backends.devices.is_host("cpu")
    assert backends.devices.is_host("cpu:numpy")
    assert not backends.devices.is_host("cuda:0")


@pytest.mark.parametrize("device", ["cpu", "cpu:numpy"])
def test_copies_pickles_and_repr_keep_the_device(device):
    network = MLP([4, 5, 3], device=device, seed=0)
    for twin in (copy.deepcopy(network), network.copy(), pickle.loads(pickle.dumps(network))):
        assert twin.device == device
        assert type(twin.backend) is type(network.backend)
        assert np.array_equal(twin.parameters, network.parameters)
    assert ("cpu:numpy" in repr(network)) == (device == "cpu:numpy")
    assert network.copy("cpu:numpy").device == "cpu:numpy"


def test_a_network_of_cpu_numpy_calls_no_compiled_kernel(called):
    network = MLP([4, 5, 3], device="cpu:numpy", seed=0)
    Trainer(network, batch_size=20, progress=False).fit(X, LABELS, epochs=1)
    network.predict(X)
    assert called == []


def test_an_estimator_of_cpu_numpy_calls_no_compiled_kernel_and_says_where_it_ran(called):
    sklearn = pytest.importorskip("gpubackprop.sklearn")
    model = sklearn.MLPClassifier(5, max_iter=30, device="cpu:numpy", tol=10.0).fit(X, LABELS)
    for _ in range(3):
        model.predict(X[:5])
    assert model.device_ == "cpu:numpy"
    assert called == []


def test_all_of_a_training_step_but_its_products_runs_in_compiled_kernels(called):
    Trainer(MLP([4, 5, 3], "tanh", seed=0), l2=0.1, progress=False).fit(X, LABELS, epochs=1)
    wanted = {"affine_epilogue", "activation_backward", "column_sum", "softmax_cross_entropy",
              "sum_of_squares", "update", "accumulate"}  # fmt: skip
    assert wanted <= set(called)


def test_an_estimator_runs_compiled_kernels(called):
    sklearn = pytest.importorskip("gpubackprop.sklearn")
    sklearn.MLPClassifier(5, max_iter=30, device="cpu", tol=10.0).fit(X, LABELS)
    wanted = {"affine_epilogue", "softmax_cross_entropy", "update"}
    assert wanted <= set(called)


def test_losses_of_cpu_tensors_run_compiled_kernels(called):
    torch = pytest.importorskip("torch")
    gt = pytest.importorskip("gpubackprop.torch")
    z, y = torch.zeros(500, 200, requires_grad=True), torch.zeros(500, dtype=torch.int64)
    gt.cross_entropy(z, y).backward()
    assert "softmax_cross_entropy" in called


# -- which arrays ---------------------------------------------------------------------------------


def loss_of_rows(logits: np.ndarray, labels: np.ndarray) -> tuple[Any, np.ndarray]:
    return ops.softmax_cross_entropy(logits, labels)


def test_arrays_that_the_kernels_do_not_read_are_computed_by_numpy(called):
    z, y = RNG.normal(size=(6, 5)).astype(np.float32), np.arange(6) % 5
    wanted = loss_of_rows(z, y)
    assert called == ["softmax_cross_entropy"]
    raw = np.zeros(z.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(z.shape)
    misaligned[...] = z
    wide = np.zeros((6, 10), np.float32)
    wide[:, ::2] = z
    for other in (np.asfortranarray(z), misaligned, wide[:, ::2]):
        loss, delta = loss_of_rows(other, y)
        assert np.isclose(loss, wanted[0], rtol=1e-6)
        assert np.allclose(delta, wanted[1], atol=1e-7)
    rows = np.zeros((12, 5), np.float32)
    rows[::2] = z
    loss, delta = loss_of_rows(rows[::2], y)  # rows may be apart
    assert loss == wanted[0]
    assert np.array_equal(delta, wanted[1])


def test_a_formula_of_the_programs_own_is_computed_as_it_says(native):
    def double(a: Any, h: Any, work: Any, k: Any) -> None:
        np.multiply(a, 2.0, h)

    own = replace(ACTIVATIONS["relu"], value=double)
    a, h = X.copy(), np.empty_like(X)
    HOST.activation_forward(a, own, h)
    assert np.array_equal(h, 2 * X)

    def loss_of(a: Any, t: Any, value: Any, delta: Any, work: Any, k: Any) -> None:
        value.fill(3.0)
        delta.fill(5.0)

    result = {"loss": np.empty((), np.float32), "delta": np.empty_like(X)}
    result |= {name: np.empty(60, np.float32) for name in ("row_loss", "scale")}
    formula = replace(POINTWISE_LOSSES["squared_error"], value_and_delta=loss_of)
    HOST.pointwise_loss(X, X, formula, LossOptions(reduction="sum"), result)
    assert (result["loss"], result["delta"].max()) == (720.0, 5.0)

    def add(p: Any, g: Any, slots: Any, c: Any, work: Any) -> None:
        np.add(p, g, p)

    p = np.ones(4, np.float32)
    HOST.update(p, p.copy(), (), replace(UPDATES["gradient_descent"], apply=add), {"c": (1.0,)})
    assert p.tolist() == [2.0] * 4


def test_the_library_has_every_function_and_a_number_for_every_formula(native):
    found = library.library()
    assert found is not None
    assert found.activations.keys() == ACTIVATIONS.keys()
    assert found.losses.keys() == POINTWISE_LOSSES.keys()
    assert found.updates.keys() == UPDATES.keys()
    assert found.has == ARGUMENTS.keys()


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_the_compiled_kernels_compute_what_the_oracle_of_every_case_says(dtype, native):
    """Call by call and as a plan; the limit is that of every backend."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    rows = list(parity.results(NativeBackend(), names=(dtype,)))
    if STORAGES[dtype].sixteen_bit:  # the host's flat gradients are never so narrow
        rows = [row for row in rows if row.operation != "sum_of_squares"]
    assert [row for row in rows if not row.passed] == []


LARGE = (3001, 37)  # more than blocks.THREAD_BYTES, and no multiple of any chunk


def results_of(backend: Any, planned: bool) -> dict[str, np.ndarray]:
    """The results of operations on arrays so large that threads share the work."""
    rng = np.random.default_rng(1)
    a, saved = (rng.normal(size=LARGE).astype(np.float32) for _ in range(2))
    a = np.tile(a, (4, 1))
    saved = np.tile(saved, (4, 1))
    b, labels = rng.normal(size=LARGE[1]).astype(np.float32), np.arange(len(a)) % LARGE[1]
    weight = rng.random(len(a)).astype(np.float32)
    flat, gradient = a.reshape(-1).copy(), saved.reshape(-1).copy()
    slots = (np.zeros_like(flat), np.zeros_like(flat))
    made = {"h": np.empty_like(a), "delta": np.empty_like(a), "grad_b": np.empty_like(b)}
    made |= {"sum": np.empty_like(b), "softmax": np.empty_like(a), "narrow": flat.astype("f2")}
    made |= {"square": np.zeros(()), "p": flat, "m": slots[0], "v": slots[1]}
    made |= {"added": gradient.copy(), "wide": np.empty(a.shape, np.float64)}
    for kind in ("entropy", "weighted", "pointwise"):
        made |= {f"{kind}_loss": np.zeros((), np.float32), f"{kind}_delta": np.empty_like(a)}
        made |= {f"{kind}_{name}": np.empty(len(a), np.float32) for name in ("row_loss", "scale")}
    ran = np.array([5, 6], np.uint64)
    codes = np.stack([np.arange(len(a)) % 9, np.arange(len(a)) % 21 + 9], 1).astype(np.int32)
    W = saved[: LARGE[1], :30].copy()
    made |= {"picked": np.empty_like(a), "grad_W": np.empty_like(W)}

    def loss(kind: str) -> dict[str, np.ndarray]:
        return {name: made[f"{kind}_{name}"] for name in ("loss", "delta", "row_loss", "scale")}

    def emit(on: Any) -> None:
        gelu = ACTIVATIONS["gelu"]
        np_c = np.array([0.9, 0.1, 0.999, 0.001, 1e-3, 1e-8, 0, 0], np.float32)
        on.affine_epilogue(made["h"], b, gelu, made["h"])
        on.activation_backward(a, saved, gelu, made["delta"], made["grad_b"])
        on.column_sum(a, made["sum"])
        on.softmax(a, made["softmax"])
        on.softmax_cross_entropy(a, labels, LossOptions(), loss("entropy"))
        options = LossOptions(ignore_index=3, class_weight=abs(b), label_smoothing=0.1)
        on.softmax_cross_entropy(a, labels, options, loss("weighted"), weight)
        formula = POINTWISE_LOSSES["binary_cross_entropy"]
        on.pointwise_loss(a, saved, formula, LossOptions(), loss("pointwise"), weight)
        on.sum_of_squares(gradient, made["square"])
        on.add_scaled(gradient, np.float32(0.5).reshape(()), made["added"])
        c = tuple(np_c[i : i + 1].reshape(()) for i in range(6))
        numbers = {"c": c, "copy": made["narrow"], "random": ran, "clip": np.float32(0.5)}
        on.update(flat, gradient, slots, UPDATES["adam"], numbers)
        on.gather_rows(a, np.arange(len(a))[::-1].copy(), made["wide"])
        on.one_hot_forward(codes, W, made["picked"], add=False)
        on.one_hot_backward(a, codes, ((0, 9), (9, 30)), made["grad_W"])

    made["h"][...] = a
    if planned:
        backend.plan(emit)()
    else:
        emit(backend)
    return {name: array for name, array in made.items() if not name.endswith("scale")}


@pytest.mark.parametrize("planned", [False, True])
def test_results_are_the_same_bit_for_bit_for_any_number_of_threads(
    planned, native, threads, monkeypatch
):
    monkeypatch.setattr(blocks, "PLANNED_THREAD_BYTES", 1 << 18)
    set_num_threads(1)
    wanted = results_of(NativeBackend(), planned)
    for count in (2, 3, 5):
        set_num_threads(count)
        found = results_of(NativeBackend(), planned)
        wrong = [name for name in wanted if found[name].tobytes() != wanted[name].tobytes()]
        assert wrong == [], count


def test_large_operations_give_numpys_numbers(native):
    wanted, found = results_of(NumpyBackend(), False), results_of(NativeBackend(), False)
    for name, array in wanted.items():
        scale = max(1.0, float(np.abs(array).max()))
        error = np.abs(found[name].astype(np.float64) - array.astype(np.float64)).max() / scale
        assert error < (1e-3 if name == "narrow" else 3e-6), (name, error)


@pytest.mark.parametrize(("rows", "compiled"), [(3000, True), (300, False)])
def test_many_rows_of_one_type_are_gathered_by_all_threads(rows, compiled, called, threads):
    set_num_threads(2)
    x, order = RNG.normal(size=(rows, 784)), RNG.permutation(rows)
    out = np.zeros_like(x)
    HOST.gather_rows(x, order, out)
    assert np.array_equal(out, x[order])
    assert ("gather_rows" in called) == compiled


def test_calls_of_kernels_that_follow_one_another_are_one_call_of_a_plan(native):
    a, out = X.copy(), np.empty(4, np.float32)
    h, relu = np.empty_like(a), ACTIVATIONS["relu"]

    def emit(on: Any) -> None:
        on.activation_forward(a, relu, h)
        on.column_sum(h, out)
        on.softmax(h, h)

    run = HOST.plan(emit)
    for scale in (1.0, -2.0):
        a[...] = scale * X
        run()
        assert np.allclose(out, np.maximum(a, 0).sum(0), atol=1e-5)
        assert np.allclose(h.sum(1), 1.0)
    assert len(run.args) == 1


def test_a_plan_keeps_what_its_calls_read(native):
    out = np.empty(4, np.float32)
    run = HOST.plan(lambda on: on.column_sum(np.full((9, 4), 2.0, np.float32), out))
    junk = [np.full((9, 4), 7.0, np.float32) for _ in range(50)]
    run()
    assert out.tolist() == [18.0] * 4
    assert len(junk) == 50


def test_the_fields_of_every_struct_are_in_the_order_of_their_kinds():
    for kinds in ARGUMENTS.values():
        order = [["*", "i64", "f64", "i32"].index(kind) for kind in kinds.values()]
        assert order == sorted(order)


def test_info_says_which_path_runs_and_why(monkeypatch, capsys):
    from gpubackprop.cli import main

    monkeypatch.setattr(library, "_path", library.HostPath(None, "a reason"))
    assert main(["info"]) == 0
    assert "host path     numpy (a reason)" in capsys.readouterr().out
    path = library.HostPath(library.Library.__new__(library.Library), "compiled by g++", "/x.so")
    monkeypatch.setattr(library, "_path", path)
    assert main(["info"]) == 0
    assert "host path     native (compiled by g++, /x.so)" in capsys.readouterr().out
