"""Products in TF32, `precision="auto"`, and the training curves of every precision beside float32."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest

from benchmarks import precision_curves
from gpubackprop import MLP, Model, Trainer, backends
from gpubackprop.backends import precision as precisions
from gpubackprop.backends.cupy import CupyBackend, CupyProducts
from gpubackprop.errors import DeviceUnavailable, DtypeError
from tests import ways
from tests.cli_runs import houses, ok, write_table
from tests.emulator import cupy_stub

RNG = np.random.default_rng(0)
COARSE = np.float32(1 + 2.0**-12)  # 12 bits of fraction; TF32 has 10


def rounded(x: np.ndarray) -> np.ndarray:
    """Return x rounded to 10 bits of fraction by integers: Python's round is to even too."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.round(np.ldexp(fraction, 11)), exponent - 11)


def test_tf32_is_the_nearest_number_of_ten_bits_ties_to_even_and_keeps_nan_and_infinities():
    x = (RNG.normal(size=4000) * 10.0 ** RNG.integers(-30, 30, 4000)).astype(np.float32)
    x[:64] = 1 + np.arange(64) * np.float32(2.0**-12)  # every fourth is a number, every other a tie
    out = np.empty_like(x)
    precisions.round_to_tf32(x, out)
    np.testing.assert_array_equal(out, rounded(x))
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3.4028235e38], np.float32)
    special = np.append(special, np.uint32(0x7FFFFFFF).view(np.float32))
    out = np.empty_like(special)
    precisions.round_to_tf32(special, out)
    np.testing.assert_array_equal(out, [np.nan, np.inf, -np.inf, 0.0, -0.0, np.inf, np.nan])
    assert np.signbit(out[4])


@pytest.mark.ways("numpy", "native", "cuda-emulated", reason="a card rounds in its own way")
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("planned", [False, True], ids=["at once", "planned"])
@pytest.mark.parametrize("orders", ["CC", "FC", "CF"])
def test_a_product_in_tf32_is_that_of_the_rounded_operands(orders, planned):
    backend = backends.get(ways.CURRENT[-1].device).with_tf32()
    given = [RNG.normal(size=(6, 6)).astype(np.float32) for _ in range(2)]
    x, y = (
        backend.asarray(m) if order == "C" else backend.asarray(m.T).T
        for m, order in zip(given, orders, strict=True)
    )
    out = backend.zeros((6, 6), np.float32)
    if planned:
        backend.plan(lambda recorder: recorder.matmul(x, y, out))()
    else:
        backend.matmul(x, y, out)
    exact = rounded(given[0]) @ rounded(given[1])
    np.testing.assert_allclose(backend.to_host(out), exact, atol=2e-6)
    assert abs(given[0].astype(float) @ given[1] - exact).max() > 1e-4


def test_cupys_products_have_tf32_too_and_other_dtypes_are_as_before():
    with cupy_stub.installed():
        cuda = CupyBackend(0, CupyProducts(cupy_stub.module()))
        for kind, wanted in ((np.float32, 64.0), (np.float64, 64 * float(COARSE) ** 2)):
            x = cuda.asarray(np.full((4, 64), COARSE, kind))
            out = cuda.empty((4, 4), kind)
            cuda.with_tf32().matmul(x, x.T, out)
            np.testing.assert_allclose(cuda.to_host(out), wanted, rtol=1e-6)
            cuda.matmul(x, x.T, out)
            np.testing.assert_allclose(cuda.to_host(out), 64 * float(COARSE) ** 2, rtol=1e-6)


@pytest.mark.ways("numpy", "native", "cuda-emulated", reason="a card rounds in its own way")
@pytest.mark.usefixtures("way")
def test_copies_pickles_and_configurations_of_a_network_stay_in_tf32():
    network = ways.MLP([4, 6, 3], precision="tf32", seed=1)
    x = RNG.normal(size=(5, 4)).astype(np.float32)
    full = ways.MLP([4, 6, 3], seed=1)
    to_host = network.backend.to_host
    wanted = to_host(network.logits(x))
    error = np.abs(wanted - to_host(full.logits(x))).max()
    assert 1e-5 < error < 1e-2
    assert repr(network).startswith(
        "MLP([4, 6, 3], activation='relu', output='softmax', dtype='float32', pre"
    )
    again = MLP(**network.config(), device=network.device, seed=1)
    for twin in (
        network.copy(),
        copy.deepcopy(network),
        pickle.loads(pickle.dumps(network)),
        again,
    ):
        assert (twin.products, twin.precision) == ("tf32", np.float32)
        np.testing.assert_array_equal(to_host(twin.logits(x)), wanted)
    assert full.products == "float32"


@pytest.mark.parametrize(("capability", "wanted"), [(90, "tf32"), (80, "tf32"), (75, "float32")])
def test_auto_is_tf32_on_a_card_that_has_it_for_parameters_of_float32(
    capability, wanted, monkeypatch
):
    monkeypatch.setattr(cupy_stub.Device, "compute_capability", str(capability))
    with ways.taken("cuda-emulated", monkeypatch):
        assert MLP([2, 3], precision="auto", device="cuda:0").products == wanted
        double = MLP([2, 3], precision="auto", device="cuda:0", dtype="float64")
    assert double.products == "float64"


def test_tf32_on_a_card_without_it_is_refused_with_what_there_is(monkeypatch):
    monkeypatch.setattr(cupy_stub.Device, "compute_capability", "75")
    with (
        ways.taken("cuda-emulated", monkeypatch),
        pytest.raises(
            DeviceUnavailable, match=r"no TF32: its .* is 7\.5, .* Take precision='auto'"
        ),
    ):
        MLP([2, 3], precision="tf32", device="cuda:0")


@pytest.mark.parametrize("name", precision_curves.PRECISIONS)
def test_gradients_on_the_card_are_those_of_the_numpy_path_in_every_precision(name, monkeypatch):
    options: dict[str, Any] = {"seed": 2, **precision_curves.PRECISIONS[name]}
    x, labels = RNG.normal(size=(12, 20)), np.arange(12) % 5
    here = MLP([20, 16, 5], device="cpu:numpy", **options)
    wanted = here.gradients(x, labels)
    with ways.taken("cuda-emulated", monkeypatch):
        there = MLP([20, 16, 5], device="cuda:0", **options)
        found = there.gradients(x, labels)
        to_host = there.backend.to_host
        pairs = [(to_host(a), b) for a, b in zip(found.W, wanted.W, strict=True)]
        pairs += [(to_host(a), b) for a, b in zip(found.b, wanted.b, strict=True)]
    # Sums in another order: one step of what products take, at each of the two layers.
    step = {"bfloat16": 2.0**-7, "float16": 2.0**-9, "tf32": 2.0**-10, "float32": 2.0**-20}
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=0, atol=step.get(name, 2.0**-48) * np.abs(b).max())


@pytest.mark.ways("numpy", "native", reason="files know no device")
@pytest.mark.usefixtures("way")
def test_a_model_file_keeps_tf32(tmp_path):
    network = ways.MLP([4, 6, 3], precision="tf32", seed=1)
    Model(network).save(tmp_path / "m.npz")
    again = Model.load(tmp_path / "m.npz", device=network.device).network
    x = RNG.normal(size=(5, 4)).astype(np.float32)
    assert again.products == "tf32"
    np.testing.assert_array_equal(again.logits(x), network.logits(x))


def test_the_memory_estimate_on_a_cpu_counts_the_rounded_operands():
    def working(precision: str | None) -> int:
        network = MLP([64, 32, 10], precision=precision, device="cpu")
        return Trainer(network, batch_size=16).memory_estimate(100).working

    assert working("tf32") - working(None) == 4 * (16 * 64 + 16 * 32 + 64 * 32)


def test_auto_on_a_cpu_is_the_dtype_of_the_parameters():
    assert MLP([2, 3], precision="auto", device="cpu").products == "float32"
    assert MLP([2, 3], precision="auto", device="cpu", dtype="float64").products == "float64"


def test_wrong_precisions_are_refused_with_those_there_are():
    with pytest.raises(
        DtypeError, match="precision is 'float8' but must be bfloat16, float16, tf32"
    ):
        MLP([2, 3], precision="float8")
    with pytest.raises(
        DtypeError, match="tf32 goes with float32 parameters, not with dtype float64"
    ):
        MLP([2, 3], precision="tf32", dtype="float64")


def test_the_command_line_trains_in_tf32_and_says_so(tmp_path):
    table = write_table(tmp_path / "t.csv", houses())
    ok(
        "train", table, "--target", "price", "--task", "regression", "--hidden", "8", "--epochs",
        "1", "--device", "cpu", "--precision", "tf32", "--output", tmp_path / "o",
    )  # fmt: skip
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["precision"] == "tf32"


# -- training curves -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("task", precision_curves.TASKS)
def test_every_precision_learns_as_float32_does(task):
    """Measured by the spread of float32 itself over seeds: another precision is another draw."""
    runs = {
        name: np.array([precision_curves.losses(task, name, seed) for seed in range(3)])
        for name in precision_curves.PRECISIONS
    }
    ends = {name: curves[:, -3:].mean(1) for name, curves in runs.items()}
    own = ends["float32"]
    if task == "digits":  # measured: 0.0008
        assert all(abs(end.mean() / own.mean() - 1) < 0.01 for end in ends.values())
    spread = max(own.max() - own.min(), 0.1 * own.mean())
    for name, end in ends.items():
        assert abs(end.mean() - own.mean()) <= spread, name
        assert end.mean() < 0.5 * runs[name][:, 0].mean(), name
    np.testing.assert_allclose(runs["float64"][:, 0], runs["float32"][:, 0], rtol=1e-4)


def test_sixteen_bits_and_tf32_leave_float32_from_the_first_epochs_on():
    """So that the curves above are of five precisions, and not of one."""
    first = {
        name: precision_curves.losses("digits", name, 0, epochs=2)[-1]
        for name in precision_curves.PRECISIONS
    }
    gap = {name: abs(loss / first["float32"] - 1) for name, loss in first.items()}
    assert gap["float64"] < 1e-5 < gap["tf32"] < 1e-2
    assert gap["tf32"] < gap["bfloat16"] < 5e-2
    assert 1e-5 < gap["float16"] < 1e-2
