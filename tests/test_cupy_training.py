"""Networks, trainer, checkpoints and files on the emulated CUDA backend: as on the CPU."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Model, Trainer, losses, optimizers
from gpubackprop.backends import Total, devices
from gpubackprop.cli import main
from gpubackprop.data import Standardizer
from gpubackprop.errors import DeviceUnavailable, NonFiniteLossError, TargetRangeError
from gpubackprop.formulas import ACTIVATIONS
from gpubackprop.losses import Loss
from gpubackprop.schedules import StepDecay
from gpubackprop.training.batches import Batches
from gpubackprop.training.step import Regularization, TrainStep
from tests import emulator
from tests.emulator import cupy_stub

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
TOLERANCE = {"float64": 1e-9, "float32": 2e-4}  # after several steps; each sum in another order


@pytest.fixture(autouse=True)
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[cupy_stub.Counts]:
    def choose(device: str) -> tuple[str, str]:
        index = device.partition(":")[2] or "0"
        return ("cpu", "asked for") if device == "cpu" else (f"cuda:{index}", "emulated")

    monkeypatch.setattr(devices, "choose", choose)
    monkeypatch.setenv("GPUBACKPROP_RESIDENT", "0")  # the launches of steps are tested here
    with cupy_stub.installed() as counted:
        yield counted


def data(loss: Loss, rows: int = 40, units: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, 5))
    if loss.output == "softmax":
        return x, rng.integers(0, units, rows)
    targets = rng.random((rows, units))
    return x, (targets > 0.5) * 1.0 if loss.output == "logistic" else targets


def train(device: str, loss: Loss, *, activation: Any = "tanh", dtype: str = "float64",
          epochs: int = 2, fit: dict[str, Any] | None = None, **options: Any) -> Trainer:  # fmt: skip
    network = MLP([5, 6, 4, 3], activation, output=loss.output, seed=1, dtype=dtype, device=device)
    settings: dict[str, Any] = {"batch_size": 16, "optimizer": optimizers.Adam(0.05)}
    trainer = Trainer(network, loss, **(settings | options))
    x, targets = data(loss)
    trainer.fit(x, targets, epochs=epochs, **(fit or {}))
    return trainer


def assert_same_training(cpu: Trainer, cuda: Trainer) -> None:
    assert cuda.network.device == "cuda:0"
    tolerance = TOLERANCE[cpu.network.dtype.name]
    to_host = cuda.network.backend.to_host
    np.testing.assert_allclose(
        to_host(cuda.network.parameters), cpu.network.parameters, rtol=0, atol=tolerance
    )
    assert cpu.state.step is not None
    assert cuda.state.step is not None
    for mine, theirs in zip(cuda.state.step.slots, cpu.state.step.slots, strict=True):
        np.testing.assert_allclose(to_host(mine), theirs, rtol=0, atol=tolerance)
    for mine, theirs in zip(cuda.history.rows, cpu.history.rows, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"seconds", "samples_per_second"}:
            assert isinstance(mine[name], int | float)
            assert mine[name] == pytest.approx(theirs[name], rel=tolerance, abs=tolerance), name


def both(loss: Loss, **options: Any) -> tuple[Trainer, Trainer]:
    cpu, cuda = train("cpu", loss, **options), train("cuda", loss, **options)
    assert_same_training(cpu, cuda)
    return cpu, cuda


# -- the same training ----------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_training_with_every_activation_is_that_of_the_cpu(activation):
    both(losses.SoftmaxCrossEntropy(), activation=activation)


LOSSES: dict[str, Loss] = {
    "smoothed": losses.SoftmaxCrossEntropy(label_smoothing=0.1, z_loss=0.01),
    "weighted": losses.SoftmaxCrossEntropy(class_weight=[0.5, 2.0, 1.0]),
    "ignored": losses.SoftmaxCrossEntropy(ignore_index=1),
    "sum": losses.SoftmaxCrossEntropy(reduction="sum"),
    "squared": losses.SquaredError(),
    "squared, sum": losses.SquaredError(reduction="sum"),
    "binary, by element": losses.BinaryCrossEntropy(reduction="elementwise_mean"),
    "poisson": losses.Poisson(),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", LOSSES)
def test_training_with_every_loss_is_that_of_the_cpu(case, weighted):
    weights = np.random.default_rng(0).random(40) + 0.1 if weighted else None
    fit = {"sample_weight": weights, "validation": np.arange(7)}
    both(LOSSES[case], fit=fit, optimizer=optimizers.SGD(0.01, momentum=0.9))


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gradient descent": (optimizers.GradientDescent(0.1), {}),
    "momentum, nesterov, l2": (optimizers.Momentum(0.05, nesterov=True), {"l2": 0.1}),
    "adam, clipped": (optimizers.Adam(0.05), {"clip_norm": 0.1}),
    "adam, l2 and clipped": (optimizers.Adam(0.05), {"l2": 0.1, "clip_norm": 0.1}),
    "clipped to nothing": (optimizers.SGD(0.05), {"clip_norm": 0.0}),
    "adam of scikit-learn": (optimizers.Adam(0.05, eps_placement="sklearn"), {}),
    "adamw, decayed, schedule": (
        optimizers.AdamW(0.05, weight_decay=0.1), {"schedule": StepDecay(1, 0.3)}
    ),
    "rmsprop, coupled decay": (optimizers.RMSprop(0.01, weight_decay=0.1), {}),
    "adagrad from above 0": (
        optimizers.Adagrad(0.05, lr_decay=0.1, initial_accumulator=0.3), {}
    ),
    "lion": (optimizers.Lion(0.01, weight_decay=0.1), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_training_with_optimizers_and_regularization_is_that_of_the_cpu(case):
    optimizer, options = OPTIMIZERS[case]
    both(losses.SoftmaxCrossEntropy(), optimizer=optimizer, epochs=3, **options)


@pytest.mark.parametrize("source", ["uint8", "int64", "float32", "mapped", "cuda"])
@pytest.mark.parametrize("standardized", [False, True])
def test_inputs_of_every_kind_are_gathered_alike(source, standardized, tmp_path, counts):
    loss = losses.SoftmaxCrossEntropy()
    x = (np.arange(200).reshape(40, 5) * 7 % 11).astype(
        "float32" if source in ("mapped", "cuda") else source
    )
    targets, fitted = data(loss)[1], Standardizer.fit(x)
    if source == "mapped":
        np.save(tmp_path / "x.npy", x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    trainers = []
    for device in ("cpu", "cuda"):
        network = MLP([5, 4, 3], "tanh", seed=1, dtype="float64", device=device)
        trainer = Trainer(network, batch_size=16, metrics={"first": lambda y, t: y[0, 0]})
        moved = network.backend.asarray(x) if (device, source) == ("cuda", "cuda") else x
        trainer.fit(
            moved, targets, epochs=2, validation=0.2, standardizer=fitted if standardized else None
        )
        trainers.append(trainer)
    assert_same_training(*trainers)


def test_gradients_and_predictions_are_device_arrays_of_the_cpus_values(counts):
    loss = losses.BinaryCrossEntropy()
    x, targets = data(loss)
    cpu, cuda = (
        MLP([5, 6, 4, 3], "gelu", output="logistic", seed=1, dtype="float64", device=device)
        for device in ("cpu", "cuda")
    )
    to_host = cuda.backend.to_host
    for inputs in ((x, targets), (cuda.backend.asarray(x), cuda.backend.asarray(targets))):
        mine, theirs = cuda.gradients(*inputs), cpu.gradients(x, targets)
        for name in ("W", "b", "hidden", "pre_activation"):
            for a, b in zip(getattr(mine, name), getattr(theirs, name), strict=True):
                assert isinstance(a, cupy_stub.ndarray)
                np.testing.assert_allclose(to_host(a), b, rtol=0, atol=1e-12)
        assert float(to_host(mine.loss)) == pytest.approx(float(theirs.loss), rel=1e-12)
        yhat = cuda.predict(inputs[0], batch_rows=7)
        np.testing.assert_allclose(to_host(yhat), cpu.predict(x), rtol=0, atol=1e-12)


def test_training_on_the_second_gpu_stays_there():
    loss = losses.SoftmaxCrossEntropy()
    trainer = train("cuda:1", loss, epochs=2, fit={"validation": 0.2})
    cpu = train("cpu", loss, epochs=2, fit={"validation": 0.2})
    network = trainer.network
    assert trainer.state.step is not None
    arrays = [network.parameters, trainer.state.step.totals, *trainer.state.step.slots, *network.W]
    assert {array.device.id for array in arrays} == {1}
    assert cupy_stub.STATE.device == 0
    found = network.backend.to_host(network.parameters)
    np.testing.assert_allclose(found, cpu.network.parameters, rtol=0, atol=1e-9)


# -- launches -------------------------------------------------------------------------------------


def make_step(widths: list[int], loss: Loss, optimizer: Any = "adam", **regularization: Any) -> Any:
    network = MLP(widths, output=loss.output, dtype="float32", device="cuda")
    x, targets = data(loss, units=widths[-1])
    batches = Batches.check(network, loss, x, targets)
    chosen = optimizers.optimizer(optimizer)
    return TrainStep(network, loss, batches, 16, chosen, Regularization(**regularization))


def launches(step: TrainStep, counts: cupy_stub.Counts) -> Counter[str]:
    """Kernels of one step by name without formula and dtype, after its plan was made."""
    rows = step.place(np.arange(32))
    step.update(rows[:16], step.optimizer.lr)
    counts.clear()
    step.update(rows[16:], step.optimizer.lr)
    assert (counts.allocations, counts.waits, counts.uploads, counts.compiled) == (0, 0, 0, [])
    known = sorted(emulated_kernels(), key=len, reverse=True)
    return Counter(
        next(name for name in known if entry.startswith(name)) for entry in counts.kernels
    )


def emulated_kernels() -> list[str]:
    from gpubackprop.backends.cupy_launch import KERNELS

    return [*KERNELS, "gpubackprop", "fill"]


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_a_training_step_has_3_launches_a_layer_and_4_and_no_more(layers, counts):
    """Per layer: bias and activation, and going back activation with bias gradient and its second
    stage (the output layer: a column sum and its second stage). Per step: one gather of inputs and
    labels, the loss with its mean and its correct rows, the update, and its coefficients with the
    totals. Products: 3 a layer, less 1."""
    step = make_step([5] * layers + [3], losses.SoftmaxCrossEntropy())
    found = launches(step, counts)
    assert found == {
        "gather_rows": 1, "affine_epilogue": layers, "softmax_cross_entropy_lanes": 1,
        "column_sum": 1, "column_sum_finish": layers, "prepare_update": 1, "update": 1,
    } | ({"activation_backward": layers - 1} if layers > 1 else {})  # fmt: skip
    assert found.total() == 4 + 3 * layers
    assert counts.products == 3 * layers - 1


@pytest.mark.parametrize(
    ("loss", "regularization", "more"),
    [
        (losses.SquaredError(), {}, {}),
        (losses.SoftmaxCrossEntropy(), {"clip_norm": 1.0}, {"sum_of_squares": 2}),
        (losses.SoftmaxCrossEntropy(), {"l2": 0.1}, {"sum_of_squares": 2}),
        (losses.SoftmaxCrossEntropy(), {"l2": 0.1, "clip_norm": 1.0}, {"sum_of_squares": 4}),
        (losses.SoftmaxCrossEntropy(reduction="sum"), {}, {"gpubackprop": 1, "accumulate": 1}),
        (losses.SoftmaxCrossEntropy(ignore_index=1), {}, {}),
    ],
    ids=["pointwise", "clipping", "l2", "l2 and clipping", "sum", "ignored label"],
)
def test_options_cost_the_launches_that_they_need(loss, regularization, more, counts):
    plain = launches(make_step([5, 5, 3], losses.SoftmaxCrossEntropy()), counts)
    found = launches(make_step([5, 5, 3], loss, **regularization), counts)
    wanted = Counter(more)
    if "sum_of_squares" in wanted:  # its second stage has a longer name
        wanted = Counter({"sum_of_squares": wanted["sum_of_squares"] // 2})
        wanted["sum_of_squares_finish"] = wanted["sum_of_squares"]
    assert found.total() == plain.total() + wanted.total()
    assert {name: found[name] - plain[name] for name in wanted} == wanted


def test_a_new_learning_rate_costs_one_launch_and_takes_effect(counts):
    step = make_step([5, 3], losses.SoftmaxCrossEntropy(), optimizers.GradientDescent(0.1))
    rows = step.place(np.arange(32))
    step.update(rows[:16], 0.1)
    before = step.network.backend.to_host(step.network.parameters)
    counts.clear()
    step.update(rows[16:], 0.0)
    assert counts.kernels[0] == "fill"
    assert counts.kernels.count("fill") == 1
    assert np.array_equal(step.network.backend.to_host(step.network.parameters), before)


def test_an_epoch_waits_for_the_device_at_its_end_alone(counts):
    loss = losses.SoftmaxCrossEntropy()
    waits = {}
    for batch_size in (20, 2):  # 2 and 20 steps
        trainer = train("cuda", loss, epochs=1, batch_size=batch_size)
        counts.clear()
        trainer.fit(*data(loss), epochs=3)
        waits[batch_size] = counts.waits
    assert waits[20] == waits[2] > 0


def test_two_batch_sizes_share_their_memory_and_each_has_a_plan(counts):
    step = make_step([5, 4, 3], losses.SoftmaxCrossEntropy())
    step.update(np.arange(16), 0.1)
    step.update(np.arange(9), 0.1)
    assert len(step._plans) == 2
    assert step.read_totals()[Total.ROWS] == 25


# -- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_loss_that_is_not_finite_is_reported_at_the_end_of_the_epoch(clip_norm):
    loss = losses.SoftmaxCrossEntropy()
    x, targets = data(loss)
    x[20] = np.nan  # in the second batch of 16
    said = {}
    for device in ("cpu", "cuda"):
        network = MLP([5, 4, 3], device=device, dtype="float64")
        before = network.backend.to_host(network.parameters).copy()
        trainer = Trainer(network, batch_size=16, shuffle=False, clip_norm=clip_norm)
        with pytest.raises(NonFiniteLossError) as caught:
            trainer.fit(x, targets, epochs=2)
        said[device] = str(caught.value)
        assert caught.value.step == 1
        assert np.array_equal(network.backend.to_host(network.parameters), before)
    assert said["cpu"].startswith(said["cuda"])  # it names the row too, which lies on the host


def test_labels_out_of_range_name_the_row_at_once_from_the_host_and_at_the_next_wait_from_the_gpu():
    network = MLP([5, 4, 3], device="cuda", dtype="float64")
    x, labels = data(losses.SoftmaxCrossEntropy())
    labels[6] = 3
    with pytest.raises(TargetRangeError, match=r"targets\[6\] is 3"):
        network.gradients(x, labels)
    with pytest.raises(TargetRangeError, match=r"targets\[6\] is 3"):
        Trainer(network).fit(x, network.backend.asarray(labels))
    found = network.gradients(x, network.backend.asarray(labels))
    with pytest.raises(TargetRangeError, match=r"targets\[6\] of a batch was 3"):
        network.backend.to_host(found.W[0])


def test_a_device_that_is_not_there_is_one_line(counts):
    with pytest.raises(DeviceUnavailable, match="there are 2 CUDA devices"):
        MLP([5, 3], device="cuda:7")


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_a_checkpoint_of_one_device_goes_on_on_the_other(first, second, clip_norm, tmp_path: Path):
    loss = losses.SoftmaxCrossEntropy()
    options: dict[str, Any] = {"clip_norm": clip_norm, "schedule": StepDecay(2, 0.5)}
    whole = train("cpu", loss, epochs=5, **options)
    fit = {"checkpoint": tmp_path / "c.safetensors"}
    train(first, loss, epochs=3, fit=fit, **options)
    resumed = train(second, loss, epochs=5, fit=fit, **options)
    assert len(resumed.history) == 5
    if second == "cuda":
        assert_same_training(whole, resumed)
    else:
        np.testing.assert_allclose(
            resumed.network.parameters, whole.network.parameters, rtol=0, atol=1e-9
        )


def test_models_are_saved_from_and_loaded_to_either_device(tmp_path: Path):
    network = MLP([5, 4, 3], "tanh", seed=2, dtype="float64", device="cuda:1")
    assert network.device == "cuda:1"
    assert repr(network).endswith("device='cuda:1')")
    x = data(losses.SoftmaxCrossEntropy())[0]
    path = tmp_path / "m.safetensors"
    fitted = Standardizer.fit(x)
    Model(network, fitted, classes=np.array(["a", "b", "c"])).save(path)
    cpu, cuda = Model.load(path), Model.load(path, "cuda")
    assert (cpu.network.device, cuda.network.device) == ("cpu", "cuda:0")
    np.testing.assert_allclose(cuda.predict(x), cpu.predict(x), rtol=0, atol=1e-12)
    assert np.array_equal(cuda.predict_labels(x), cpu.predict_labels(x))
    assert isinstance(cuda.predict(x), np.ndarray)
    assert np.array_equal(cuda.predict(cuda.network.backend.asarray(x)), cuda.predict(x))


def test_data_frames_train_on_the_gpu_as_their_numbers_do():
    pd = pytest.importorskip("pandas")
    x, labels = data(losses.SoftmaxCrossEntropy())
    frame = pd.DataFrame(x, columns=list("abcde")).assign(a=pd.array(x[:, 0] > 0, "boolean"))
    values = np.column_stack([x[:, 0] > 0, x[:, 1:]])
    results = []
    for given, y in ((frame, pd.Series(labels, dtype="Int64")), (values, labels)):
        fitted = Standardizer.fit(given)
        trainer = Trainer(MLP([5, 4, 3], seed=2, device="cuda"), batch_size=16)
        held = (given[list("edcba")], y) if given is frame else (values, labels)
        history = trainer.fit(given, y, epochs=2, standardizer=fitted, validation=held)
        model = Model(trainer.network, fitted, classes=["a", "b", "c"])
        results.append([history["val_loss"], model.predict(given).tolist()])
    assert results[0] == results[1]


def test_networks_are_copied_between_devices_and_start_from_the_same_weights():
    cpu, cuda = (MLP([5, 4, 3], seed=9, device=device) for device in ("cpu", "cuda"))
    assert np.array_equal(cuda.backend.to_host(cuda.parameters), cpu.parameters)
    assert np.array_equal(cuda.copy("cpu").parameters, cpu.parameters)
    assert cuda.copy().device == "cuda:0"
    assert cpu.copy("cuda").device == "cuda:0"
    assert "device" not in cuda.config()


# -- what is built on networks --------------------------------------------------------------------


def test_the_command_line_trains_and_predicts_on_the_gpu(tmp_path: Path, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    rows = [[*map(str, row), "ab"[int(row[0] > 0)]] for row in x]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(",".join(row) for row in [["p", "q", "r", "kind"], *rows]) + "\n")
    common = ["--device", "cuda", "--json"]
    said = {}
    for device in ("cpu", "cuda"):
        common[1], output = device, str(tmp_path / device)
        code = main(
            ["train", str(table), "--target", "kind", "--epochs", "3", "--output", output, *common]
        )
        assert code == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary["device"] == ("cpu" if device == "cpu" else "cuda:0")
        said[device] = summary["test_loss"]
        assert main(["predict", output, str(table), *common]) == 0
        assert json.loads(capsys.readouterr().out)["device"] == summary["device"]
    assert said["cuda"] == pytest.approx(said["cpu"], rel=1e-4)
