"""Networks in bfloat16 and float16 with float32 parameters, against PyTorch's run in the same dtype,
both judged by float64, and on the CUDA backend (emulated)."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gpubackprop import MLP, Model, Trainer, optimizers
from gpubackprop.backends import devices
from gpubackprop.backends.cupy.updates import COEFFICIENTS, PROCEED, UNSCALE
from gpubackprop.data import Standardizer, split_rows
from gpubackprop.errors import DtypeError, MissingDependencyError, OptionError
from gpubackprop.formulas.dropout import Philox, random_state
from gpubackprop.formulas.rounding import round_stochastic
from gpubackprop.training.step import TrainStep
from tests import emulator, references
from tests.cli_runs import ok
from tests.emulator import cupy_stub
from tests.emulator.operations import Operations
from tests.tolerances import Draws

PRECISIONS = ("bfloat16", "float16")
KINDS = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
needs_emulator = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The CUDA backend alone."""
    if emulator.missing_compiler():
        pytest.skip(emulator.missing_compiler())
    monkeypatch.setattr(devices, "choose", lambda name: ("cuda:0", "emulated"))
    with cupy_stub.installed():
        yield "cuda"


def some_data(output: str, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 12))
    if output == "softmax":
        return x, rng.integers(0, 5, rows)
    targets = rng.random((rows, 5))
    return x, (targets > 0.5) * 1.0 if output == "logistic" else targets


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("output", ["softmax", "linear", "logistic", "exp"])
def test_gradients_are_no_worse_than_pytorchs_in_the_same_dtype(output, precision, device):
    """Both round the same quantities once, to 16 bits, and which comes out nearer to float64 in one
    draw is chance. So the difference of their errors over the draws must not be above 0, by what two
    standard errors of its mean tell, or the error not above the rule's one unit."""
    if device == "cuda" and (output, precision) not in (
        ("softmax", "bfloat16"),
        ("linear", "float16"),
    ):
        pytest.skip("two of the emulated cases are enough: the losses have tests of their own")
    draws: dict[str, Draws] = {}
    for seed in range(16 if device == "cpu" else 8):
        network = MLP([12, 20, 16, 5], ["tanh", "gelu"], output=output, seed=seed, device=device,
                      precision=precision)  # fmt: skip
        to_host, host = network.backend.to_host, network.copy("cpu")
        x, targets = some_data(output, 37, seed)
        g = network.gradients(x, targets)
        theirs, oracle = (
            references.network_gradients(host, x, targets, dtype=dtype)
            for dtype in (precision, "float64")
        )
        logits = to_host(network.logits(x)).astype(KINDS[precision])  # exact
        mine = {"output": to_host(g.output), "loss": to_host(g.loss), "logits": logits}
        for name in ("W", "b", "hidden", "pre_activation"):
            for layer, array in enumerate(getattr(g, name)):
                draws.setdefault(f"{name}[{layer}]", Draws()).add(
                    to_host(array), theirs[name][layer], oracle[name][layer]
                )
        for name, array in mine.items():
            draws.setdefault(name, Draws()).add(array, theirs[name], oracle[name])
        assert {a.dtype for a in [*g.W, *g.b, g.loss]} == {np.dtype(np.float32)}
        assert {a.dtype for a in [g.output, *g.hidden]} == {KINDS[precision]}
    for name, draw in draws.items():
        ours, theirs = np.array(draw.ours), np.array(draw.theirs)
        chance = 2 * np.std(ours - theirs, ddof=1) / np.sqrt(len(ours))
        assert ours.mean() <= max(theirs.mean() + chance, 1.0), name


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("activation", "precision"), [("tanh", "bfloat16"), ("gelu", "bfloat16"), ("gelu", "float16")]
)
def test_both_backends_store_the_same_numbers_but_for_the_last_place(activation, precision, cuda):
    x, targets = some_data("softmax", 9)
    cuda = MLP([12, 7, 5], activation, device=cuda, precision=precision)
    cpu, to_host = cuda.copy("cpu"), cuda.backend.to_host
    mine, theirs = cuda.gradients(x, targets), cpu.gradients(x, targets)
    unit = float(ml_dtypes.finfo(KINDS[precision]).eps)
    for name in ("W", "b", "hidden", "pre_activation"):
        for a, b in zip(getattr(mine, name), getattr(theirs, name), strict=True):
            a, b = to_host(a).astype(float), np.asarray(b, float)
            assert np.abs(a - b).max() <= 2 * unit * np.abs(b).max(), name
    yhat = to_host(cuda.predict(x))
    assert yhat.dtype == np.float32
    np.testing.assert_allclose(yhat, cpu.predict(x), atol=2 * unit)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_product_of_16_bits_is_summed_in_float32_and_may_stay_there(precision, device):
    network = MLP([2, 2], device=device, precision=precision)
    backend, kind = network.backend, KINDS[precision]
    rng = np.random.default_rng(0)
    x, y = (rng.random(shape).astype(kind) for shape in ((3000, 4), (3000, 6)))
    exact = x.astype(float).T @ y.astype(float)
    for dtype, unit in ((np.float32, 1e-5), (kind, float(ml_dtypes.finfo(kind).eps))):
        out = backend.zeros((4, 6), dtype)
        backend.matmul(backend.asarray(x).T, backend.asarray(y), out)
        found = backend.to_host(out).astype(float)
        assert np.abs(found / exact - 1).max() <= unit
    back = backend.zeros((3000, 4), kind)
    backend.matmul(backend.asarray(y), backend.asarray(exact.T.astype(kind)), back)
    wanted = y.astype(float) @ exact.T.astype(kind).astype(float)
    assert np.abs(backend.to_host(back).astype(float) / wanted - 1).max() <= unit


# -- training -------------------------------------------------------------------------------------


def digits() -> tuple[Any, ...]:
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    train, test = split_rows(len(x), 0.2, 0, y)
    return Standardizer.fit(x, train).transform(x).astype(np.float32), y, train, test


@pytest.mark.slow
def test_training_in_16_bits_reaches_the_accuracy_of_float32():
    x, y, train, test = digits()
    accuracy = {}
    for precision in (None, *PRECISIONS):
        network = MLP([64, 64, 10], initializer="he_uniform", precision=precision)
        trainer = Trainer(network, batch_size=64)
        trainer.fit(x[train], y[train], epochs=12)
        accuracy[precision] = trainer.evaluate(x[test], y[test])["accuracy"]
        predicted = network.predict(x[test]).argmax(1)
        assert (predicted == y[test]).mean() == pytest.approx(accuracy[precision])
    assert accuracy[None] > 0.95
    for precision in PRECISIONS:  # 359 rows: two of them are 0.006
        assert accuracy[precision] >= accuracy[None] - 0.006


def make(device: str, precision: str, **options: Any) -> Trainer:
    network = MLP([12, 9, 8, 5], ["tanh", "gelu"], device=device, precision=precision,
                  dropout=options.pop("dropout", 0.0))  # fmt: skip
    settings = {"batch_size": 16, "optimizer": optimizers.Adam(0.01), "seed": 3}
    return Trainer(network, **(settings | options))


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("bfloat16", {}),
        ("bfloat16", {"stochastic_rounding": True}),
        ("float16", {"l2": 0.1, "clip_norm": 0.5, "dropout": 0.3}),
    ],
    ids=["plain", "stochastic", "l2, clipped, dropout"],
)
def test_training_on_the_gpu_is_near_that_of_the_cpu(precision, options, cuda):
    x, targets = some_data("softmax", 40)
    found = []
    for where in ("cpu", cuda):
        trainer = make(where, precision, **options)
        trainer.fit(x, targets, epochs=3, validation=np.arange(6), restore_best=False)
        step, to_host = trainer.state.step, trainer.network.backend.to_host
        assert isinstance(step, TrainStep)
        parameters, copy = to_host(trainer.network.parameters), to_host(step.half_copy)
        if "stochastic_rounding" not in options:
            assert np.array_equal(copy, parameters.astype(KINDS[precision]))
        found.append((parameters, trainer.history.rows[-1]["val_loss"]))
    (a, loss_a), (b, loss_b) = found
    # Adam's first steps have the size of the learning rate whatever the gradient: 9 steps of 0.01.
    assert np.abs(a - b).mean() < 0.01
    assert loss_a == pytest.approx(loss_b, rel=0.05)


@pytest.mark.parametrize(("precision", "stochastic"), [("bfloat16", True), ("float16", False)])
def test_a_second_fit_and_a_resumed_one_go_on_bit_for_bit(precision, stochastic, device, tmp_path):
    x, targets = some_data("softmax", 40)
    once, twice, first, resumed = (
        make(device, precision, stochastic_rounding=stochastic, dropout=0.2) for _ in range(4)
    )
    once.fit(x, targets, epochs=3, validation=np.arange(6), restore_best=False)
    for epochs in (1, 2):
        twice.fit(x, targets, epochs=epochs, validation=np.arange(6), restore_best=False)
    path = tmp_path / "c.safetensors"
    for trainer, epochs in ((first, 1), (resumed, 3)):
        trainer.fit(x, targets, epochs=epochs, validation=np.arange(6), restore_best=False,
                    checkpoint=path)  # fmt: skip
    wanted = once.network.backend.to_host(once.network.parameters)
    for trainer in (twice, resumed):
        found = trainer.network.backend.to_host(trainer.network.parameters)
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_written_by_the_caller_take_effect_at_the_next_call(precision):
    network = MLP([12, 5], precision=precision)
    x, targets = some_data("softmax", 40)
    trainer = Trainer(network, batch_size=40, optimizer=optimizers.GradientDescent(0.0))
    trainer.fit(x, targets, epochs=1)
    before = trainer.history.rows[-1]["loss"]
    network.W[0][...] = 0
    network.b[0][...] = 0
    assert np.array_equal(network.predict(x), np.full((40, 5), 0.2, np.float32))
    trainer.fit(x, targets, epochs=1)
    assert trainer.history.rows[-1]["loss"] == pytest.approx(np.log(5), rel=1e-6)
    assert before != pytest.approx(np.log(5), rel=1e-6)


def test_a_step_in_16_bits_costs_no_launch_and_no_wait_more(monkeypatch):
    if emulator.missing_compiler():
        pytest.skip(emulator.missing_compiler())
    monkeypatch.setattr(devices, "choose", lambda name: ("cuda:0", "emulated"))
    counted = {}
    with cupy_stub.installed() as counts:
        for precision in ("float32", "bfloat16"):
            trainer = make("cuda", precision)
            x, targets = some_data("softmax", 16)
            trainer.fit(x, targets, epochs=1)
            step = trainer.state.step
            rows = step.place(np.arange(16))
            step.update(rows, 0.01)
            counts.clear()
            step.update(rows, 0.01)
            assert (counts.allocations, counts.waits, counts.uploads) == (0, 0, 0)
            counted[precision] = len(counts.kernels), counts.products
    assert counted["bfloat16"] == counted["float32"]


# -- files and errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_precision_is_part_of_network_copy_file_and_repr(precision, tmp_path: Path):
    network = MLP([3, 4, 2], precision=precision)
    assert f"precision='{precision}'" in repr(network)
    assert network.copy().precision == KINDS[precision]
    assert network.parameters.dtype == np.float32
    Model(network).save(tmp_path / "m.safetensors")
    loaded = Model.load(tmp_path / "m.safetensors")
    x = np.ones((2, 3))
    assert loaded.network.precision == KINDS[precision]
    assert np.array_equal(loaded.predict(x), network.predict(x))
    assert "precision" not in MLP([3, 2], precision="float32").config()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_batch_of_no_rows_has_gradients_of_zero(precision, device):
    network = MLP([12, 7, 5], precision=precision, device=device)
    gradients = network.gradients(np.zeros((0, 12)), np.zeros(0, int))
    for W, shape in zip(gradients.W, [(7, 12), (5, 7)], strict=True):
        assert np.array_equal(network.backend.to_host(W), np.zeros(shape))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "float8"}, "bfloat16, float16, tf32, auto, or float32"),
        ({"precision": "float16", "dtype": "float64"}, "float32 parameters"),
        ({"precision": "float32", "dtype": "float64"}, "or float64"),
    ],
)
def test_precisions_that_do_not_fit_are_refused(options, says):
    with pytest.raises(DtypeError, match=says):
        MLP([2, 3], **options)


def test_without_ml_dtypes_bfloat16_is_an_error_that_names_it(monkeypatch):
    real = importlib.import_module

    def absent(name: str, *args: Any) -> Any:
        if name == "ml_dtypes":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match="pip install ml_dtypes"):
        MLP([2, 3], precision="bfloat16")
    MLP([2, 3], precision="float16")


def test_stochastic_rounding_wants_16_bits():
    with pytest.raises(OptionError, match="precision"):
        Trainer(MLP([2, 3]), stochastic_rounding=True)


@pytest.mark.parametrize("precision", ["bfloat16", None])
def test_the_command_line_trains_with_precision_and_dropout(precision, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # pictures take longer than this training
    options = () if precision is None else ("--precision", precision)
    ok("train", "--output", tmp_path, "--dropout", "0.2", "--hidden", "32", "--epochs", "9",
       "--device", "cpu", *options)  # fmt: skip
    network = Model.load(tmp_path / "model.safetensors").network
    assert network.dropout == (0.2,)
    assert network.precision.name == precision or precision is None
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["precision"] == (precision or "float32")
    assert summary["test_accuracy"] > 0.8


# -- stochastic rounding --------------------------------------------------------------------------


@needs_emulator
@pytest.mark.parametrize("precision", PRECISIONS)
def test_stochastic_rounding_is_the_kernels_bit_for_bit(precision):
    kind, rng = KINDS[precision], np.random.default_rng(0)
    x = np.concatenate([
        rng.normal(size=500), rng.normal(size=500) * 1e-5, rng.normal(size=300) * 3e-8,
        [0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519, -65503.9, 2**-14, 2**-24, 1e-45, 3e38],
        rng.normal(size=201) * 30000,
    ]).astype(np.float32)  # fmt: skip
    random = random_state(11, 12)
    words = Philox(random, 0xFFFF, 0, x.size, lambda i, shape, dtype: np.empty(shape, dtype))
    mine, theirs = np.empty(x.size, kind), np.empty(x.size, kind)
    with np.errstate(all="ignore"):
        round_stochastic(x, mine, words)
    c = np.zeros(COEFFICIENTS, np.float32)
    c[[PROCEED, UNSCALE]] = 1
    Operations().update("gradient_descent", x.copy(), np.zeros_like(x), (), c, theirs, random)
    for rounded in (mine, theirs):
        assert np.array_equal(np.isnan(rounded.astype(np.float64)), np.isnan(x))
    number = ~np.isnan(x)
    assert np.array_equal(mine[number].view(np.uint16), theirs[number].view(np.uint16))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_stochastic_rounding_is_right_on_average(precision):
    kind, count = KINDS[precision], 40_000
    lower = np.float32(1.0)
    gap = float(ml_dtypes.finfo(kind).eps)
    x = np.full(count, lower + np.float32(0.3 * gap), np.float32)
    out = np.empty(count, kind)
    take = {}
    words = Philox(
        random_state(1), 0xFFFF, 0, count,
        lambda i, shape, dtype: take.setdefault(i, np.empty(shape, dtype)),
    )  # fmt: skip
    round_stochastic(x, out, words)
    up = out.astype(np.float64) > 1
    assert set(np.unique(out.astype(np.float64))) == {1.0, 1.0 + gap}
    assert abs(up.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / count)
