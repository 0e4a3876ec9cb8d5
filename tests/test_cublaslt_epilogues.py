"""What cuBLASLt does with a product before it stores it, on the stand-in, which keeps its rules.

ReLU of NaN is 0 on the stand-in, as it was seen on cards, unless a test asks for the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Trainer, backends, losses, optimizers
from gpubackprop.backends import devices
from gpubackprop.backends.cupy import CupyBackend, cublaslt, epilogue_trials, epilogues
from gpubackprop.backends.cupy.products import CublasLtProducts, mask_bytes
from gpubackprop.errors import NonFiniteLossError, OptionError, OutOfMemory
from gpubackprop.formulas import ACTIVATIONS
from gpubackprop.training.batches import Batches
from gpubackprop.training.step import Regularization, TrainStep
from tests import emulator
from tests.emulator import cublaslt as standin
from tests.emulator import cupy_stub
from tests.emulator.cublaslt import KEEPS_NAN, ROUNDS_BGRAD, VARIES
from tests.emulator.cupy_stub import CUDARuntimeError

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(
        bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
    ),
]
RNG = np.random.default_rng(0)
INVALID_VALUE, NOT_SUPPORTED = 7, 15
PRECISIONS: dict[str, dict[str, Any]] = {
    "float64": {"dtype": "float64"}, "float32": {}, "tf32": {"precision": "tf32"},
    "bfloat16": {"precision": "bfloat16"}, "float16": {"precision": "float16"},
}  # fmt: skip


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[cupy_stub.Counts]:
    def choose(device: str) -> tuple[str, str]:
        return ("cpu", "-") if device.startswith("cpu") else ("cuda:0", "emulated")

    monkeypatch.setattr(devices, "choose", choose)
    monkeypatch.setenv("GPUBACKPROP_RESIDENT", "0")  # steps have products; resident training none
    monkeypatch.setenv("GPUBACKPROP_PRODUCT_CHOICES", str(tmp_path / "choices.json"))
    monkeypatch.setenv(epilogues.VARIABLE, "always")
    with cupy_stub.installed() as counted:
        yield counted
    behave(0)


def behave(how: int) -> None:
    standin.library().standin_behave(how)


def make_step(
    widths: list[int],
    activation: Any = "relu",
    device: str = "cuda",
    rows: int = 20,
    dropout: float = 0.0,
    **precision: Any,
) -> TrainStep:
    network = MLP(widths, activation, seed=2, device=device, dropout=dropout, **precision)
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(rows, widths[0])), rng.integers(0, widths[-1], rows)
    loss = losses.SoftmaxCrossEntropy()
    data = Batches.check(network, loss, x, labels)
    return TrainStep(network, loss, data, 12, optimizers.Adam(0.01), Regularization())


def nodes(step: TrainStep, counts: cupy_stub.Counts) -> tuple[int, int]:
    """Return (kernels, products) of a step, which is one graph."""
    rows = step.place(np.arange(2 * step.batch_size) % 20)
    batch = step.update(rows[: step.batch_size], 0.01)
    counts.clear()
    step.update(rows[step.batch_size :], 0.01)
    assert batch.replay.uncaptured == ""  # type: ignore[attr-defined]
    assert (counts.graphs, counts.allocations, counts.waits) == (1, 0, 0)
    return len(counts.kernels), counts.products


# -- the binding and the stand-in -------------------------------------------------------------------


def test_the_numbers_of_the_epilogues_are_those_of_the_header():
    """cublasLtEpilogue_t of cublasLt.h 13.0: RELU 2, BIAS 4, the aux flag 128, DRELU 8, BGRAD 16."""
    assert cublaslt.RELU_MASK_BIAS == 2 | 128 | 4
    assert (cublaslt.DRELU, cublaslt.DRELU_BIAS_GRADIENT) == (8 | 128, 8 | 128 | 16)
    assert (cublaslt.DEFAULT, cublaslt.BIAS, cublaslt.BIAS_GRADIENT_B) == (1, 4, 512)


def product(epilogue: int, m: int = 3, n: int = 4, k: int = 5) -> cublaslt.Product:
    def operand(rows: int, columns: int) -> cublaslt.Operand:
        return cublaslt.Operand(cublaslt.REAL_32F, rows, columns, rows, cublaslt.OP_N, 4)

    problem = cublaslt.Problem(
        operand(m, k), operand(k, n), operand(m, n), cublaslt.COMPUTE_32F, 0, epilogue, 4
    )
    bound = cublaslt.Library(standin.library(), standin.PATH)
    return cublaslt.Product(bound, bound.context(), problem)


@pytest.mark.parametrize(("rows", "bits"), [(1, 128), (128, 128), (129, 256), (512, 512)])
def test_a_column_of_a_mask_is_a_multiple_of_128_bits(rows, bits):
    assert product(cublaslt.RELU_MASK_BIAS, m=rows).problem.mask_stride == bits
    assert mask_bytes(rows) == bits // 8


@pytest.mark.parametrize("bits", [64, 127, 130, 0])
def test_a_mask_of_another_stride_is_refused(counts, bits):
    wrong = product(cublaslt.DRELU, m=120)
    wrong._descriptor.set(cublaslt.MASK_STRIDE, bits)
    wrong.point_to(0, 256)
    with pytest.raises(cublaslt.CublasLtError, match=f"AlgoGetHeuristic .*{INVALID_VALUE} "):
        wrong.candidates(1)


@pytest.mark.parametrize(
    ("epilogue", "addresses", "status"),
    [
        (cublaslt.BIAS, (0, 0), INVALID_VALUE),
        (cublaslt.BIAS_GRADIENT_B, (0, 0), INVALID_VALUE),
        (cublaslt.RELU_MASK_BIAS, (256, 0), INVALID_VALUE),
        (cublaslt.RELU_MASK_BIAS, (0, 256), INVALID_VALUE),
        (cublaslt.DRELU_BIAS_GRADIENT, (0, 256), INVALID_VALUE),
        (3, (256, 256), INVALID_VALUE),
        (32, (256, 256), NOT_SUPPORTED),
    ],
)
def test_an_epilogue_without_its_addresses_or_of_an_unknown_number_is_refused(
    counts, epilogue, addresses, status
):
    wrong = product(epilogue)
    wrong.point_to(*addresses)
    with pytest.raises(cublaslt.CublasLtError, match=f"status {status} "):
        wrong.candidates(1)


def test_an_address_less_aligned_than_it_was_for_the_algorithm_is_refused(counts):
    cuda = CupyBackend(0)
    x, y, out, b = (cuda.zeros(20, np.float32).data.ptr for _ in range(4))
    asked = product(cublaslt.BIAS)
    asked.point_to(b)
    asked.take(asked.candidates(1)[0])
    asked.issue(x, y, out, 0, 0)
    asked.point_to(b + 4)
    with pytest.raises(cublaslt.CublasLtError, match=f"status {INVALID_VALUE} "):
        asked.issue(x, y, out, 0, 0)


def test_the_stand_ins_bias_gradient_faults_at_one_output_column(counts):
    """As cuBLASLt's does (NVIDIA/apex issue 1392)."""
    cuda = CupyBackend(0)
    x, y, out, b = (cuda.zeros(20, np.float32) for _ in range(4))
    asked = product(cublaslt.BIAS_GRADIENT_B, n=1)
    asked.point_to(b.data.ptr)
    asked.take(asked.candidates(1)[0])
    asked.issue(x.data.ptr, y.data.ptr, out.data.ptr, 0, 0)
    with pytest.raises(CUDARuntimeError, match="IllegalAddress"):
        out.get()


# -- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [0, KEEPS_NAN])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_of_a_step_with_epilogues_are_those_of_the_numpy_path(
    counts, precision, activation, how
):
    """With test_precision's bounds: sums in another order, one step of what products take."""
    behave(how)
    options = PRECISIONS[precision]
    found, wanted = (
        make_step([7, 150, 6, 5], activation, device, **options) for device in ("cuda", "cpu:numpy")
    )
    for rows in (np.arange(12), np.arange(12, 20)):  # a short last batch has a plan of its own
        for step in (found, wanted):
            step.update(step.place(rows), 0.0)
        to_host = found.network.backend.to_host
        bound = {"bfloat16": 2.0**-7, "float16": 2.0**-9, "tf32": 2.0**-10, "float32": 2.0**-20}
        for mine, theirs in zip(
            (*found.grad_W, *found.grad_b), (*wanted.grad_W, *wanted.grad_b), strict=True
        ):
            tolerance = bound.get(precision, 2.0**-48) * np.abs(theirs).max()
            np.testing.assert_allclose(to_host(mine), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("how", [0, KEEPS_NAN])
@pytest.mark.parametrize("output", ["linear", "logistic"])
def test_training_of_one_output_and_of_dropout_is_that_of_the_cpu(counts, output, how):
    """One output column is where the library's bias gradient faults."""
    behave(how)
    x, targets = RNG.normal(size=(40, 5)), RNG.integers(0, 2, 40).astype(float)
    trained = []
    for device in ("cpu", "cuda"):
        network = MLP(
            [5, 6, 4, 1], output=output, seed=1, dtype="float64", device=device, dropout=[0.0, 0.3]
        )
        Trainer(network, optimizer="adam", batch_size=16, seed=3).fit(x, targets, epochs=2)
        trained.append(network.backend.to_host(network.parameters))
    np.testing.assert_allclose(*trained, rtol=0, atol=1e-9)


@pytest.mark.parametrize("how", [0, KEEPS_NAN])
def test_a_nan_in_the_inputs_is_reported_whether_the_librarys_relu_keeps_it_or_not(counts, how):
    behave(how)
    x, labels = RNG.normal(size=(32, 5)), np.arange(32) % 3
    x[20, 2] = np.nan
    network = MLP([5, 8, 3], seed=1, device="cuda")
    with pytest.raises(NonFiniteLossError) as caught:
        Trainer(network, batch_size=16, shuffle=False).fit(x, labels, epochs=1)
    assert caught.value.step == 1


@pytest.mark.parametrize("how", [0, KEEPS_NAN])
@pytest.mark.parametrize("name", ["relu", "identity"])
def test_a_nan_reaches_the_units_whether_the_librarys_relu_keeps_it_or_not(counts, name, how):
    behave(how)
    cuda = CupyBackend(0)
    given = RNG.normal(size=(4, 3)).astype(np.float32)
    given[2, 1] = np.nan
    x, W, b = cuda.asarray(given), cuda.zeros((5, 3), np.float32), cuda.zeros(5, np.float32)
    h = cuda.zeros((4, 5), np.float32)
    cuda.plan(lambda recorder: recorder.affine_forward(x, W, b, ACTIVATIONS[name], h, h))()
    assert np.isnan(cuda.to_host(h)).all(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("between", ["gradient", "delta"])
def test_what_is_recorded_between_two_operations_is_done_between_them(counts, between):
    """A sum of the gradient before its slope, or a delta that changes after its sum."""
    behave(KEEPS_NAN)
    arrays = [RNG.normal(size=shape) for shape in ((6, 4), (5, 4), (5,), (6, 3), (3, 5))]
    found = []
    for backend in (CupyBackend(0), backends.get("cpu:numpy")):
        x, W, b, delta, V = (backend.asarray(array) for array in arrays)
        h, grad_h = (backend.zeros((6, 5), np.float64) for _ in range(2))
        grad_V, grad_c, summed, grad_b = (
            backend.zeros(shape, np.float64) for shape in ((3, 5), 3, 5, 5)
        )

        def emit(recorder: Any) -> None:
            relu = ACTIVATIONS["relu"]
            recorder.affine_forward(x, W, b, relu, h, h)  # noqa: B023
            recorder.column_sum(delta, grad_c)  # noqa: B023
            if between == "delta":
                recorder.activation_forward(delta, relu, delta)  # noqa: B023
            recorder.affine_backward(delta, h, V, grad_V, grad_h)  # noqa: B023
            if between == "gradient":
                recorder.column_sum(grad_h, summed)  # noqa: B023
            recorder.activation_backward(grad_h, h, relu, grad_h, grad_b)  # noqa: B023

        backend.plan(emit)()
        results = h, delta, grad_V, grad_h, grad_c, summed, grad_b
        found.append([np.array(backend.to_host(array)) for array in results])
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-13)


# -- the nodes of a step -----------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_with_all_epilogues_has_4_kernels_and_its_products(counts, layers, precision):
    """The gather, the loss, the coefficients with the totals, and the update. Without epilogues
    there are 3 more a layer (test_cupy_training). A step of 784-512-512-10 has 12 nodes and not
    21."""
    behave(KEEPS_NAN)
    step = make_step([6] * layers + [5], **PRECISIONS[precision])
    assert nodes(step, counts) == (4, 3 * layers - 1)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_where_relu_drops_nan_hidden_layers_keep_two_kernels_of_ours(counts, layers):
    """Bias and ReLU, and its slope; sums of bias gradients go into products all the same. A step of
    784-512-512-10 has 16 nodes."""
    step = make_step([6] * layers + [5])
    assert nodes(step, counts) == (4 + 2 * (layers - 1), 3 * layers - 1)


def test_without_epilogues_a_step_is_as_it_was(counts, monkeypatch):
    monkeypatch.setenv(epilogues.VARIABLE, "never")
    assert nodes(make_step([6, 6, 6, 5]), counts) == (13, 8)


def test_a_bias_gradient_of_rounded_terms_is_ruled_out_where_rounding_shows(counts):
    behave(KEEPS_NAN | ROUNDS_BGRAD)
    assert nodes(make_step([6, 7, 5]), counts) == (6, 5)  # the output layer's column sum, in two
    assert nodes(make_step([6, 7, 5], precision="bfloat16"), counts) == (4, 5)


def test_an_epilogue_whose_result_varies_is_ruled_out(counts):
    behave(KEEPS_NAN | VARIES)
    assert nodes(make_step([6, 7, 5]), counts) == (10, 5)


def test_a_layer_with_dropout_keeps_its_kernels_and_loses_the_sums(counts):
    behave(KEEPS_NAN)
    assert nodes(make_step([6, 7, 5], dropout=0.5), counts) == (6, 5)


@pytest.mark.parametrize("error", [cublaslt.CublasLtError, OutOfMemory])
def test_what_the_library_does_not_offer_or_has_no_room_for_stays_with_our_kernels(
    counts, monkeypatch, error
):
    def refused(*args: Any, **options: Any) -> Any:
        raise error("refused")

    monkeypatch.setattr(CublasLtProducts, "finished", refused)
    assert nodes(make_step([6, 7, 5]), counts) == (10, 5)


# -- the choice --------------------------------------------------------------------------------------


def timed(monkeypatch: pytest.MonkeyPatch, slow: Callable[[int], bool]) -> list[int]:
    """Let ways take the time that their number says; return the list of how many were compared."""
    compared: list[int] = []
    elapsed = cupy_stub.elapsed

    def fastest(backend: Any, trial: Any, ways: dict[int, Any]) -> int:
        compared.append(len(ways))
        order = iter(ways)
        times = lambda start, end: (elapsed(start, end), 2.0 if slow(next(order)) else 1.0)[1]  # noqa: E731
        monkeypatch.setattr(cupy_stub.module().cuda, "get_elapsed_time", times)
        try:
            return epilogue_trials.fastest(backend, trial, ways)
        finally:
            monkeypatch.setattr(cupy_stub.module().cuda, "get_elapsed_time", elapsed)

    monkeypatch.setattr(epilogues, "fastest", fastest)
    monkeypatch.setenv(epilogues.VARIABLE, "timed")
    return compared


def test_an_epilogue_that_is_slower_than_product_and_kernels_is_not_taken(counts, monkeypatch):
    behave(KEEPS_NAN)
    compared = timed(monkeypatch, slow=lambda number: number > 0)
    assert nodes(make_step([6, 7, 5]), counts) == (10, 5)
    assert len(compared) == 4, "two forward, the sums of two layers; without a mask no slope"


def test_the_faster_way_is_taken_and_kept_in_the_file_for_the_next_process(
    counts, monkeypatch, tmp_path
):
    behave(KEEPS_NAN)
    compared = timed(monkeypatch, slow=lambda number: number == 0)
    assert nodes(make_step([6, 7, 5]), counts) == (4, 5)
    assert len(compared) == 4
    kept = json.loads((tmp_path / "choices.json").read_text())
    ways = {key: number for key, number in kept.items() if key.startswith("way ")}
    assert sorted(key.split()[1] for key in ways) == ["forward", "forward", "slope", "weights"]
    monkeypatch.setattr(epilogues, "right_ways", None)  # another process: nothing is tried
    assert nodes(make_step([6, 7, 5]), counts) == (4, 5)


@pytest.mark.parametrize("wrong", [7, [], ["x"], [99]])
def test_a_kept_choice_that_makes_no_sense_is_made_anew(counts, monkeypatch, tmp_path, wrong):
    file = tmp_path / "choices.json"
    timed(monkeypatch, slow=lambda number: number == 0)
    make_step([6, 5]).update(np.arange(12), 0.01)
    kept = json.loads(file.read_text())
    (key,) = [key for key in kept if key.startswith("way weights")]
    file.write_text(json.dumps(kept | {key: wrong}))
    assert nodes(make_step([6, 5]), counts) == (4, 2)
    assert json.loads(file.read_text())[key] == [1]


def test_trials_write_into_memory_of_their_own(counts):
    cuda = CupyBackend(0)
    x, W, b, h = (
        cuda.asarray(np.full(shape, 7, np.float32)) for shape in ((4, 3), (5, 3), (5,), (4, 5))
    )
    identity = ACTIVATIONS["identity"]
    plan = cuda.plan(lambda recorder: recorder.affine_forward(x, W, b, identity, h, h))
    assert all((cuda.to_host(array) == 7).all() for array in (x, W, b, h))
    plan()
    assert (cuda.to_host(h) == 3 * 49 + 7).all()


def test_another_word_in_the_environment_is_an_error_that_names_the_words(counts, monkeypatch):
    monkeypatch.setenv(epilogues.VARIABLE, "fast")
    with pytest.raises(OptionError, match="is 'fast' but must be timed, never or always"):
        make_step([6, 5]).update(np.arange(12), 0.01)
