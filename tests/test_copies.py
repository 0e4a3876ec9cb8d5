"""Copies, pickles and assignments: a state is held once, and all that reads it reads that."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pytest
import torch

import gpubackprop
from gpubackprop import StopTraining, ops
from gpubackprop.backends import LossScaling, devices
from gpubackprop.data import Standardizer
from gpubackprop.errors import DeviceUnavailable, DtypeError, OptionError, ReadOnlyError, ShapeError
from gpubackprop.formulas import ACTIVATIONS, UPDATES
from gpubackprop.layout.fixed import assignable
from gpubackprop.losses import LOSSES, SoftmaxCrossEntropy, loss
from gpubackprop.model import Model
from gpubackprop.optimizers import OPTIMIZERS, SGD, Adam, Optimizer, optimizer
from gpubackprop.schedules import SCHEDULES, ReduceOnPlateau, schedule
from gpubackprop.training import History, Trainer
from gpubackprop.training.step import TrainStep
from tests.small_training import make_trainer, some_data
from tests.ways import MLP, host, put

pytestmark = pytest.mark.usefixtures("way")


def joblib_copy(value: Any) -> Any:
    file = io.BytesIO()
    joblib.dump(value, file)
    file.seek(0)
    return joblib.load(file)


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle 2": lambda value: pickle.loads(pickle.dumps(value, 2)),
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "joblib": joblib_copy,
    "cloudpickle": lambda value: pickle.loads(cloudpickle.dumps(value)),
}
DEEP = {name: how for name, how in COPIES.items() if name in ("deepcopy", "pickle")}
EACH_COPY = pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)
EACH_DEEP_COPY = pytest.mark.parametrize("how", DEEP.values(), ids=DEEP)


def bits(network: Any) -> bytes:
    return bytes(host(network.parameters).tobytes())


def by_hand(network: Any, x: np.ndarray) -> np.ndarray:
    """Probabilities of a network of one layer of tanh, from what W and b show."""
    (W1, W2), (b1, b2) = host(network.W), host(network.b)
    logits = np.tanh(x @ W1.T + b1) @ W2.T + b2
    return np.asarray(torch.softmax(torch.from_numpy(logits), 1))


# -- networks -------------------------------------------------------------------------------------


@EACH_COPY
def test_a_copied_network_learns_what_the_original_would_and_leaves_it_alone(how) -> None:
    x, labels = some_data(60)
    network = MLP([4, 5, 3], "tanh", seed=3, dtype="float64")
    before, twin = bits(network), how(network)
    assert (repr(twin), twin.config(), bits(twin)) == (repr(network), network.config(), before)
    Trainer(twin, batch_size=20).fit(x, labels, epochs=2)
    assert bits(network) == before
    np.testing.assert_allclose(host(twin.predict(x)), by_hand(twin, x), rtol=1e-12)
    assert not np.allclose(host(twin.predict(x)), by_hand(network, x))
    Trainer(network, batch_size=20).fit(x, labels, epochs=2)
    assert bits(twin) == bits(network)


@EACH_COPY
@pytest.mark.parametrize(
    "options",
    [{"precision": "bfloat16"}, {"dropout": 0.5}, {"activation": "leaky_relu(0.3)"}],
    ids=str,
)
def test_a_copied_network_keeps_its_options_and_views_of_its_own_buffer(how, options) -> None:
    network = how(MLP([4, 5, 6, 3], **{"activation": "relu", **options}))
    assert repr(network) == repr(MLP([4, 5, 6, 3], **{"activation": "relu", **options}))
    for view in (*network.W, *network.b):
        put(view, 1)
    flat = host(network.parameters)
    assert flat.sum() == network.layout.count  # the views show the buffer, and the gaps hold zeros
    assert network.layout.size == len(flat)


@pytest.mark.ways("numpy", reason="alignment is that of the host's memory")
@EACH_COPY
def test_a_copied_network_has_aligned_memory(how) -> None:
    network = how(gpubackprop.MLP([3, 5, 2]))
    assert network.parameters.ctypes.data % 128 == 0
    assert all(np.shares_memory(view, network.parameters) for view in (*network.W, *network.b))


@pytest.mark.ways("numpy", reason="files of the host")
def test_a_network_loaded_by_joblib_from_a_read_only_map_learns(tmp_path: Path) -> None:
    network = gpubackprop.MLP([4, 5, 3], "tanh")
    joblib.dump(network, tmp_path / "n")
    twin = joblib.load(tmp_path / "n", mmap_mode="r")
    for each in (network, twin):
        Trainer(each).fit(*some_data(32), epochs=1)
    assert bits(twin) == bits(network)


@pytest.mark.parametrize(
    "how",
    [*COPIES.values(), lambda network: network.copy(), lambda n: n.copy(n.device)],
    ids=[*COPIES, "its copy", "its copy on a device"],
)
def test_a_subclass_of_the_network_keeps_its_class_and_its_own_attributes(how) -> None:
    network = Named([4, 5, 3], device=MLP([1, 1]).device)
    network.title = "iris"
    twin = how(network)
    assert (type(twin), twin.title, bits(twin)) == (Named, "iris", bits(network))


class Named(gpubackprop.MLP):
    title = ""


@EACH_DEEP_COPY
def test_a_copied_model_is_trained_used_and_saved_as_one(how, tmp_path: Path) -> None:
    x, labels = some_data(60)
    model = Model(
        MLP([4, 5, 3], "tanh", dtype="float64"), Standardizer.fit(x), list("abcd"),
        classes=np.array(["u", "v", "w"]),
    )  # fmt: skip
    before, twin = model.predict(x), how(model)
    Trainer(twin.network).fit(x, labels, standardizer=twin.standardizer, epochs=2)
    np.testing.assert_array_equal(model.predict(x), before)
    predicted = twin.predict(x)
    assert not np.allclose(predicted, before)
    twin.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    np.testing.assert_allclose(loaded.predict(x), predicted, rtol=1e-12)
    assert twin.predict_labels(x).tolist() == loaded.predict_labels(x).tolist()


@pytest.mark.ways("cuda-emulated", reason="it is about a GPU that is not there")
def test_a_network_pickled_on_a_gpu_names_it_where_there_is_none(monkeypatch) -> None:
    data = pickle.dumps(MLP([2, 3, 2]))

    def none(device: str) -> None:
        raise DeviceUnavailable("no CUDA device is visible.")

    monkeypatch.setattr(devices, "choose", none)
    with pytest.raises(DeviceUnavailable, match=r"pickled on cuda:0.*network.copy\(\"cpu\"\)"):
        pickle.loads(data)


@pytest.mark.ways("cuda-emulated", reason="a backend of a GPU has a function in its pickle")
def test_a_pickle_is_read_that_has_the_function_where_it_was_before() -> None:
    network = MLP([2, 3, 2])
    data = pickle.dumps(network, 0)
    now, before = b"cgpubackprop.backends.cupy\nunpickled\n", b"cgpubackprop.backends\nunpickled\n"
    assert data.count(now) == 1
    twin = pickle.loads(data.replace(now, before))
    assert twin.device == network.device == "cuda:0"
    wanted = network.backend.to_host(network.parameters)
    assert np.array_equal(twin.backend.to_host(twin.parameters), wanted)


# -- assignments ----------------------------------------------------------------------------------


def assign(network: Any, how: str, W: list[np.ndarray], b: list[np.ndarray]) -> None:
    if how == "item":
        for layer in range(2):
            network.W[layer], network.b[layer] = W[layer], b[layer]
    elif how == "last":
        network.W[-1], network.b[-1], network.W[-2], network.b[-2] = W[1], b[1], W[0], b[0]
    elif how == "whole":
        network.W, network.b = W, tuple(b)
    elif how == "slice":
        network.W[:], network.b[...] = W, b
    elif how == "tensors":
        network.W = [torch.from_numpy(array) for array in W]
        network.b = [array.tolist() for array in b]
    else:
        other = MLP([4, 5, 3], "tanh", dtype="float64")
        other.W, other.b = W, b
        if how == "views":
            network.W, network.b = other.W, other.b
        else:
            network.parameters = other.parameters if how == "buffer" else host(other.parameters)


@pytest.mark.parametrize(
    "how", ["item", "last", "whole", "slice", "tensors", "views", "buffer", "host buffer"]
)
def test_what_is_assigned_is_predicted_with_trained_and_saved(how, tmp_path: Path) -> None:
    x, labels = some_data(40)
    rng = np.random.default_rng(0)
    W = [rng.normal(size=(5, 4)), rng.normal(size=(3, 5))]
    b = [rng.normal(size=5), rng.normal(size=3)]
    network = MLP([4, 5, 3], "tanh", dtype="float64")
    trainer = Trainer(network, optimizer=SGD(0.1), batch_size=40)
    trainer.fit(x, labels, epochs=1)  # planned, before the weights are replaced
    held = network.W[0]
    assign(network, how, W, b)
    np.testing.assert_array_equal(host(held), W[0])
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    model = model.double()
    for i, layer in enumerate((0, 2)):
        model[layer].weight.data, model[layer].bias.data = torch.tensor(W[i]), torch.tensor(b[i])
    logits = model(torch.tensor(x))
    want = torch.softmax(logits, 1).detach().numpy()
    np.testing.assert_allclose(host(network.predict(x)), want, rtol=1e-10)
    Model(network).save(tmp_path / "m")
    np.testing.assert_allclose(Model.load(tmp_path / "m").predict(x), want, rtol=1e-10)
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
    trainer.fit(x, labels, epochs=1)
    want = W[0] - 0.1 * model[0].weight.grad.numpy()
    np.testing.assert_allclose(host(network.W[0]), want, rtol=1e-9, atol=1e-14)


def test_augmented_assignments_and_swapped_layers_are_done_once() -> None:
    network = MLP([3, 3, 3], "tanh", dtype="float64", seed=1)
    first, second = (np.array(host(W)) for W in network.W)
    network.W = [network.W[1], network.W[0]]
    np.testing.assert_array_equal(host(network.W[0]), second)
    np.testing.assert_array_equal(host(network.W[1]), first)
    network.W[0] = network.W[0].T
    np.testing.assert_array_equal(host(network.W[0]), second.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_parameters_of_a_pytorch_layer_are_assigned_and_stay_as_they_are(dtype) -> None:
    layer = torch.nn.Linear(4, 3, dtype=dtype)
    network = MLP([4, 3], dtype="float64")
    network.W[0], network.b[0] = layer.weight, layer.bias
    np.testing.assert_array_equal(host(network.W[0]), layer.weight.detach().double().numpy())
    fresh = torch.zeros(3)
    network.b[0] = fresh
    ops.softmax(fresh.reshape(1, 3))
    fresh.resize_(20)  # an array that NumPy had taken by `numpy()` would forbid it


@pytest.mark.ways("numpy", reason="NumPy's operators")
def test_the_buffer_may_be_written_whole_and_its_gaps_stay_without_effect() -> None:
    x, labels = some_data(40)
    norms = []
    for write in ("whole", "views"):
        network = gpubackprop.MLP([4, 5, 3], "tanh", dtype="float64")
        if write == "whole":
            network.parameters[...] = 0.5
            network.parameters *= 2
        else:
            for view in (*network.W, *network.b):
                view[...] = 1.0
        network.W[0] *= 3
        network.b[0] += 1
        trainer = Trainer(network, l2=0.1, clip_norm=0.2)
        trainer.fit(x, labels, epochs=1)
        norms.append(trainer.history["loss"] + [bits(network)])
    assert norms[0] == norms[1]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda n: n.W.__setitem__(0, np.ones((4, 5))), ShapeError, r"W\[0\].*transpose"),
        (lambda n: n.W.__setitem__(1, 0.5), ShapeError, r"W\[1\]\[...\] = value"),
        (lambda n: n.b.__setitem__(0, "abcde"), DtypeError, r"b\[0\] was assigned"),
        (lambda n: n.b.__setitem__(0, np.ones(5) * 1j), DtypeError, "complex128"),
        (lambda n: n.b.__setitem__(0, np.ma.masked_less(range(5), 1)), DtypeError, "filled"),
        (lambda n: setattr(n, "W", [np.ones((5, 4))]), ShapeError, "1 arrays but has 2"),
        (lambda n: setattr(n, "W", 1.0), ShapeError, "W was assigned float"),
        (lambda n: setattr(n, "b", [np.zeros(5), np.zeros(4)]), ShapeError, r"b\[1\]"),
        (lambda n: setattr(n, "parameters", np.ones(23)), ShapeError, "parameters has shape"),
        (lambda n: setattr(n, "activations", "tanhh"), OptionError, "tanhh"),
        (lambda n: setattr(n, "dropout", 1.5), OptionError, "dropout"),
        (lambda n: setattr(n, "device", "cuda:1"), ReadOnlyError, r"network.copy\('cuda:1'\)"),
        *[
            (lambda n, name=name: setattr(n, name, None), ReadOnlyError, f"MLP.{name}.*another")
            for name in ("widths", "output", "dtype", "precision", "layout")
        ],
        (lambda n: setattr(n, "activation", "relu"), ReadOnlyError, "assign activations"),
        (lambda n: setattr(n, "initializer", "zeros"), ReadOnlyError, r"call initialize\("),
        (lambda n: setattr(n, "seed", 3), ReadOnlyError, r"call initialize\("),
    ],
)
def test_an_assignment_that_cannot_be_meant_is_an_error_and_changes_nothing(
    change, error, match
) -> None:
    network = MLP([4, 5, 3], "tanh", seed=2)
    before = bits(network), repr(network)
    with pytest.raises(error, match=match):
        change(network)
    assert (bits(network), repr(network)) == before


# -- trainers -------------------------------------------------------------------------------------

MID_TRAINING = [
    {},
    {"optimizer": Adam(0.05), "schedule": "cosine"},
    {"optimizer": SGD(0.05, momentum=0.9), "schedule": ReduceOnPlateau(patience=0), "l2": 0.01},
    {"clip_norm": 0.5},
]


@EACH_DEEP_COPY
@pytest.mark.parametrize("options", MID_TRAINING, ids=str)
def test_a_copy_of_a_trainer_made_by_a_callback_goes_on_bit_for_bit(how, options) -> None:
    x, labels = some_data(70)
    made: list[Any] = []

    def keep(trainer: Trainer, row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            callbacks, trainer.callbacks = trainer.callbacks, []  # a local function has no pickle
            made.append(how((trainer.network, trainer)))
            trainer.callbacks = callbacks

    network = MLP([4, 6, 3], "tanh", seed=1, dropout=0.2)
    trainer = Trainer(network, batch_size=32, callbacks=[keep], **options)
    history = trainer.fit(x, labels, epochs=4, restore_best=False)
    twin_network, twin = made[0]
    assert twin.network is twin_network
    assert len(twin.history) == twin.epochs == 2
    twin.fit(x, labels, epochs=2, restore_best=False)
    assert bits(twin_network) == bits(network)
    for name in ("epoch", "steps", "lr", "loss"):
        assert twin.history[name] == history[name]


@EACH_DEEP_COPY
def test_a_copied_trainer_of_scaled_16_bits_goes_on_bit_for_bit(how) -> None:
    x, labels = some_data(70)
    network = MLP([4, 6, 3], "tanh", seed=1, precision="float16")
    trainer = Trainer(network, batch_size=32, stochastic_rounding=True)
    trainer.fit(x, labels, epochs=1)
    twin = how(trainer)
    for each in (trainer, twin):
        each.fit(x, labels, epochs=1)
    assert bits(twin.network) == bits(network)


def test_a_shallow_copy_of_a_trainer_trains_the_same_network_with_a_state_of_its_own() -> None:
    x, labels = some_data(70)
    trainer = make_trainer(schedule=ReduceOnPlateau(patience=0))
    trainer.fit(x, labels, epochs=1)
    twin = copy.copy(trainer)
    assert twin.network is trainer.network
    start = bits(trainer.network)
    twin.fit(x, labels, epochs=1)
    assert (len(twin.history), len(trainer.history)) == (2, 1)
    after = bits(trainer.network)
    assert after != start
    trainer.network.parameters = np.frombuffer(start)
    trainer.fit(x, labels, epochs=1)
    assert bits(trainer.network) == after  # moments, order and rate were as when the copy was made


@EACH_DEEP_COPY
def test_a_copied_step_updates_its_own_network(how) -> None:
    x, labels = some_data(32)
    trainer = make_trainer()
    trainer.fit(x, labels, epochs=1)
    step = trainer.state.step
    assert isinstance(step, TrainStep)
    network, twin = how((trainer.network, step))
    assert twin.network is network
    before = bits(trainer.network)
    rows = np.arange(32)
    twin.update(twin.place(rows), 0.1)
    assert bits(trainer.network) == before != bits(network)
    step.update(step.place(rows), 0.1)
    assert bits(trainer.network) == bits(network)
    np.testing.assert_array_equal(host(step.gradient), host(twin.gradient))


def test_two_trainers_of_one_network_and_one_schedule_do_not_disturb_each_other() -> None:
    x, labels = some_data(60)
    plateau = ReduceOnPlateau(patience=0, gamma=0.1)
    for _ in range(2):
        network = MLP([4, 5, 3], "tanh", seed=1, precision="bfloat16")
        trainer = Trainer(network, optimizer=SGD(0.0), schedule=plateau, batch_size=60)
        assert trainer.fit(x, labels, epochs=3)["lr"][0] == 0.0
        assert trainer.schedule.factor(None) < 1.0  # type: ignore[arg-type]
    assert plateau.factor(None) == 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_weights_that_a_callback_writes_are_those_of_the_next_step(precision) -> None:
    x, labels = some_data(60)
    network = MLP([4, 5, 3], "tanh", seed=1, precision=precision)
    other = MLP([4, 5, 3], "tanh", seed=2, precision=precision)
    values = np.array(host(other.parameters))
    trainer = Trainer(
        network, optimizer=SGD(0.0), batch_size=60, shuffle=False,
        callbacks=[lambda trainer, row: setattr(trainer.network, "parameters", values)],
    )  # fmt: skip
    history = trainer.fit(x, labels, epochs=2, restore_best=False)
    alone = Trainer(other, optimizer=SGD(0.0), batch_size=60, shuffle=False)
    assert history["loss"][1] == alone.fit(x, labels, epochs=1)["loss"][0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"network": None}, "Trainer.network cannot be changed; build another"),
        ({"seed": 1}, "Trainer.seed cannot"),
        ({"stochastic_rounding": True}, "Trainer.stochastic_rounding cannot"),
        ({"scaling": LossScaling()}, "Trainer.scaling cannot"),
        ({"loss_scale": "dynamic"}, "Trainer.loss_scale cannot be changed; build another"),
        ({"devices": ["cpu", "cpu"]}, "Trainer.devices cannot"),
        ({"distributed": "auto"}, "Trainer.distributed cannot"),
        ({"batch_size": 0}, "batch_size"),
        ({"loss": "poisson"}, "belongs to output"),
        ({"loss": SoftmaxCrossEntropy(reduction="none")}, "must be one number"),
        ({"l2": -1}, "l2"),
        ({"schedule": "cosin"}, "cosine"),
        ({"optimizer": "sgd"}, "has a state of 'adam'"),
        ({"callbacks": [print, None]}, r"callbacks\[1\] is None, which cannot be called"),
        ({"metrics": {"right": 0.5}}, r"metrics\['right'\] is 0.5, which cannot be called"),
    ],
    ids=str,
)
def test_a_trainer_refuses_what_its_constructor_would_or_cannot_go_on_with(change, match) -> None:
    trainer = make_trainer()
    trainer.fit(*some_data(32), epochs=1)
    ((name, value),) = change.items()
    with pytest.raises((OptionError, ReadOnlyError), match=match):
        setattr(trainer, name, value)
    trainer.fit(*some_data(32), epochs=1)


@pytest.mark.parametrize(
    "change",
    [{"optimizer": Adam(0.2)}, {"l2": 0.5}, {"clip_norm": 0.01}, {"batch_size": 7},
     {"loss": SoftmaxCrossEntropy(label_smoothing=0.5)}],
    ids=str,
)  # fmt: skip
def test_settings_that_a_callback_changes_hold_from_the_next_epoch_on(change) -> None:
    x, labels = some_data(60)

    def set_them(trainer: Trainer, row: Any = None) -> None:
        for name, value in change.items():
            setattr(trainer, name, value)

    inside, between = make_trainer(callbacks=[set_them]), make_trainer()
    inside.fit(x, labels, epochs=2, validation=(x, labels), restore_best=False)
    between.fit(x, labels, epochs=1, validation=(x, labels), restore_best=False)
    set_them(between)
    between.fit(x, labels, epochs=1, validation=(x, labels), restore_best=False)
    assert bits(inside.network) == bits(between.network)
    for name in ("steps", "lr", "loss", "val_loss"):
        assert inside.history[name] == between.history[name]


def test_activations_and_dropout_that_a_callback_changes_hold_from_the_next_epoch_on() -> None:
    x, labels = some_data(60)

    def change(trainer: Trainer, row: Any = None) -> None:
        trainer.network.activations, trainer.network.dropout = "relu", 0.5

    inside, between = make_trainer(callbacks=[change]), make_trainer()
    inside.fit(x, labels, epochs=2)
    between.fit(x, labels, epochs=1)
    change(between)
    between.fit(x, labels, epochs=1)
    assert bits(inside.network) == bits(between.network)
    assert inside.network.config()["activation"] == ["relu"]


# -- what a training is described by ---------------------------------------------------------------


@pytest.mark.ways("numpy", reason="nothing here computes")
@EACH_COPY
def test_descriptions_are_equal_to_their_copies(how) -> None:
    for name in OPTIMIZERS:
        assert how(optimizer(name)) == optimizer(name)
    for name in SCHEDULES:
        assert how(schedule(name)) == schedule(name)
    for name, activation in ACTIVATIONS.items():
        assert how(activation) == activation, name
    for name in LOSSES:
        assert how(loss(name)).config() == loss(name).config()
    weighted = how(SoftmaxCrossEntropy(class_weight=[1.0, 2.0], label_smoothing=0.1))
    assert (
        weighted.config()
        == SoftmaxCrossEntropy(class_weight=[1.0, 2.0], label_smoothing=0.1).config()
    )
    fitted = Standardizer.fit(np.arange(6.0).reshape(3, 2))
    assert how(fitted).scale.tolist() == fitted.scale.tolist()


@pytest.mark.ways("numpy", reason="nothing here computes")
@EACH_COPY
def test_copies_of_a_history_and_of_a_schedule_go_on_for_themselves(how) -> None:
    history = History([{"epoch": 1, "loss": 2.0}])
    history.best_epoch, history.stopped = 1, "epochs"
    twin = how(history)
    assert (twin.rows, twin.best_epoch, twin.stopped) == (history.rows, 1, "epochs")
    twin.rows.append({"epoch": 2})
    assert len(history) == 1
    plateau = ReduceOnPlateau(patience=0)
    plateau.observe(1.0)
    other = how(plateau)
    assert other.state() == plateau.state()
    other.observe(2.0)
    assert (plateau.factor(None), other.factor(None)) == (1.0, 0.1)  # type: ignore[arg-type]


@pytest.mark.ways("numpy", reason="nothing here computes")
@EACH_COPY
def test_an_optimizer_cannot_be_changed_behind_a_planned_step(how) -> None:
    given = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    made = how(Optimizer(UPDATES["adam"], 0.1, given))
    given["beta1"] = 0.5
    assert made.hyperparameters["beta1"] == 0.9
    for change in (
        lambda h: h.__setitem__("beta1", 0.5), lambda h: h.update(beta1=0.5), lambda h: h.clear(),
        lambda h: h.pop("beta1"), lambda h: h.__ior__({"beta1": 0.5}),
    ):  # fmt: skip
        with pytest.raises(ReadOnlyError, match="make another one"):
            change(made.hyperparameters)
    with pytest.raises(AttributeError):
        made.lr = 0.2


@pytest.mark.ways("numpy", reason="pickles of functions")
def test_a_trainer_with_callbacks_of_a_module_is_pickled_with_them() -> None:
    trainer = make_trainer(callbacks=[stop_at_once], metrics={"mean": mean_output})
    twin = pickle.loads(pickle.dumps(trainer))
    history = twin.fit(*some_data(32), epochs=5)
    assert (len(history), history.stopped) == (1, "callback")
    assert history["mean"][0] == pytest.approx(1 / 3)


def stop_at_once(trainer: Trainer, row: dict[str, Any]) -> None:
    raise StopTraining


def mean_output(yhat: np.ndarray, targets: np.ndarray) -> float:
    return float(yhat.mean())


@pytest.mark.ways("numpy", reason="computes nothing on an array")
def test_an_assignable_attribute_holds_what_its_method_returns_and_a_read_calls_nothing():
    calls = []

    class Rate:
        @assignable
        def value(self, given):
            """The rate."""
            calls.append(given)
            return float(given)

    rate = Rate()
    with pytest.raises(AttributeError):
        _ = rate.value
    rate.value = "0.5"
    assert rate.value == 0.5
    assert calls == ["0.5"]
    with pytest.raises(ValueError, match="could not convert"):
        rate.value = "fast"
    assert rate.value == 0.5
    assert Rate.value.__doc__ == "The rate."


@pytest.mark.ways("numpy", "cuda-emulated", reason="the refusal comes before anything is computed")
def test_a_fit_within_a_fit_of_the_same_trainer_is_refused_and_changes_nothing() -> None:
    x, labels = some_data(64)
    plain, trainer = make_trainer(), make_trainer()
    plain.fit(x, labels, epochs=5)
    refused = []

    def meddle(trainer: Trainer, row: dict[str, Any]) -> None:
        for change in (
            lambda: trainer.fit(x, labels, epochs=1),
            lambda: setattr(trainer, "state", copy.copy(trainer.state)),
        ):
            with pytest.raises(OptionError, match=r"fit is running.*copy.deepcopy\(trainer\)"):
                change()
            refused.append(row["epoch"])
        twin = copy.deepcopy(trainer)
        twin.callbacks = []
        twin.fit(x, labels, epochs=1)

    trainer.callbacks = [meddle]
    history = trainer.fit(x, labels, epochs=3)
    assert (len(history), history.stopped, refused) == (3, "epochs", [1, 1, 2, 2, 3, 3])
    trainer.callbacks = []
    trainer.fit(x, labels, epochs=2)
    assert np.array_equal(host(trainer.network.parameters), host(plain.network.parameters))


def test_a_kept_state_may_be_assigned_between_two_fits() -> None:
    x, labels = some_data(64)
    trainer = make_trainer()
    trainer.fit(x, labels, epochs=2)
    state, parameters = copy.copy(trainer.state), trainer.network.parameters.copy()
    trainer.fit(x, labels, epochs=2)
    once = host(trainer.network.parameters).copy()
    trainer.state, trainer.network.parameters = state, parameters
    assert trainer.epochs == 2
    trainer.fit(x, labels, epochs=2)
    assert np.array_equal(host(trainer.network.parameters), once)
