"""The training loop: what it trains, when it stops, which weights it leaves, what it reports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from gpubackprop.data import Standardizer, split_rows
from gpubackprop.errors import OptionError, StopTraining
from gpubackprop.losses import SoftmaxCrossEntropy
from gpubackprop.optimizers import SGD, Adam
from gpubackprop.schedules import Cosine, Exponential, ReduceOnPlateau, Schedule, StepDecay
from gpubackprop.training import Trainer
from tests.small_training import make_trainer, some_data
from tests.ways import MLP, host

pytestmark = pytest.mark.usefixtures("way")

Array = np.ndarray


# -- what it learns -------------------------------------------------------------------------------


@pytest.mark.ways("numpy", "native", "cuda", reason="hundreds of steps take the emulator too long")
def test_xor_is_learned() -> None:
    x, targets = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0, 1, 1, 0])
    network = MLP([2, 8, 2], "tanh", seed=1)
    history = Trainer(network, optimizer=Adam(lr=0.05), batch_size=4).fit(x, targets, epochs=200)
    assert host(network.predict(x)).argmax(1).tolist() == [0, 1, 1, 0]
    assert history["accuracy"][-1] == 1.0
    assert history["loss"][-1] < 0.05 < history["loss"][0]


@pytest.mark.ways("numpy", "native", "cuda", reason="hundreds of steps take the emulator too long")
def test_linear_regression_ends_at_the_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    targets = x @ rng.normal(size=(3, 2)) + 0.7 + 0.1 * rng.normal(size=(200, 2))
    network = MLP([3, 2], output="linear", dtype="float64")
    history = Trainer(network, optimizer=SGD(0.1, momentum=0.9), batch_size=200).fit(
        x, targets, epochs=300
    )
    solution, residual, *_ = np.linalg.lstsq(np.c_[x, np.ones(200)], targets, rcond=None)
    np.testing.assert_allclose(host(network.W[0]).T, solution[:3], rtol=1e-6)
    np.testing.assert_allclose(host(network.b[0]), solution[3], rtol=1e-6)
    assert history["rmse"][-1] == pytest.approx(math.sqrt(residual.sum() / 400), rel=1e-6)


@pytest.mark.ways("numpy", "native", "cuda", reason="hundreds of steps take the emulator too long")
def test_poisson_regression_ends_at_the_mean_count() -> None:
    counts = np.random.default_rng(0).poisson(4.0, size=(500, 1))
    network = MLP([1, 1], output="exp", dtype="float64", initializer="zeros")
    Trainer(network, optimizer=SGD(0.05, momentum=0.9), batch_size=500).fit(
        np.zeros((500, 1)), counts, epochs=400
    )
    assert host(network.predict([[0.0]]))[0, 0] == pytest.approx(counts.mean(), rel=1e-6)


@pytest.mark.ways("numpy", "native", "cuda", reason="hundreds of steps take the emulator too long")
def test_multilabel_targets_are_learned_unit_by_unit() -> None:
    x = np.random.default_rng(0).normal(size=(300, 4))
    targets = (x[:, :3] > 0).astype(float)
    network = MLP([4, 16, 3], output="logistic")
    history = Trainer(network, optimizer=Adam(0.02)).fit(x, targets, epochs=60)
    right = ((host(network.predict(x)) > 0.5) == targets).all(1).mean()
    assert right > 0.95
    assert history["accuracy"][-1] == pytest.approx(right, abs=0.03)


# -- seeds and order ------------------------------------------------------------------------------


def test_the_seed_decides_the_order_of_the_rows_and_nothing_else_does() -> None:
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer = make_trainer(seed)
        trainer.fit(*some_data(), epochs=3)
        found[name] = host(trainer.network.parameters).tobytes()
    assert found["a"] == found["b"]
    assert found["a"] != found["c"]


def test_every_epoch_takes_every_row_once_in_a_new_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpubackprop.training.step import TrainStep

    seen: list[Array] = []
    update = TrainStep.update
    monkeypatch.setattr(
        TrainStep,
        "update",
        lambda self, rows, lr: seen.append(host(rows).copy()) or update(self, rows, lr),
    )
    make_trainer().fit(*some_data(), epochs=2)
    epochs = [np.concatenate(seen[:4]), np.concatenate(seen[4:])]
    assert [len(rows) for rows in seen] == [32, 32, 32, 24] * 2
    assert all(np.array_equal(np.sort(rows), np.arange(120)) for rows in epochs)
    assert not np.array_equal(*epochs)
    seen.clear()
    make_trainer(shuffle=False).fit(*some_data(), epochs=1)
    assert np.array_equal(np.concatenate(seen), np.arange(120))


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), Adam(0.01)])
def test_a_second_fit_goes_on_as_one_longer_fit(optimizer: Any) -> None:
    twice = make_trainer(optimizer=optimizer, schedule=ReduceOnPlateau(patience=0))
    twice.fit(*some_data(), epochs=3)
    twice.fit(*some_data(), epochs=2)
    once = make_trainer(optimizer=optimizer, schedule=ReduceOnPlateau(patience=0))
    once.fit(*some_data(), epochs=5)
    assert host(twice.network.parameters).tobytes() == host(once.network.parameters).tobytes()
    for column in ("epoch", "steps", "lr", "loss"):
        assert twice.history[column] == once.history[column]


@pytest.mark.parametrize("why", ["sample weight", "class weight", "ignored"])
def test_rows_that_count_for_nothing_are_left_out(why: str) -> None:
    """Batches of one row: a batch of such a row alone has no mean."""
    x, labels = some_data(30)
    keep = labels != 1
    options: dict[str, Any] = {
        "sample weight": ({}, labels, {"sample_weight": keep.astype(float)}),
        "class weight": ({"loss": SoftmaxCrossEntropy(class_weight=[1, 0, 1])}, labels, {}),
        "ignored": ({"loss": SoftmaxCrossEntropy(ignore_index=1)}, labels, {}),
    }[why]
    settings, targets, given = options
    ours, theirs = make_trainer(batch_size=1, **settings), make_trainer(batch_size=1)
    ours.fit(x, targets, epochs=2, **given)
    theirs.fit(x[keep], labels[keep], epochs=2)
    np.testing.assert_allclose(ours.history["loss"], theirs.history["loss"], rtol=1e-12)
    np.testing.assert_allclose(
        host(ours.network.parameters), host(theirs.network.parameters), rtol=1e-12, atol=1e-15
    )


# -- validation -----------------------------------------------------------------------------------


def test_a_validation_share_is_stratified_and_held_out() -> None:
    x, labels = some_data()
    kept, held = split_rows(120, 0.25, 0, labels)
    by_share, by_rows = make_trainer(), make_trainer()
    by_share.fit(x, labels, epochs=3, validation=0.25)
    by_rows.fit(x[kept], labels[kept], epochs=3, validation=(x[held], labels[held]))
    assert by_share.history["val_loss"] == by_rows.history["val_loss"]
    assert host(by_share.network.parameters).tobytes() == host(by_rows.network.parameters).tobytes()
    shares = np.bincount(labels[held]) / np.bincount(labels)
    np.testing.assert_allclose(shares, 0.25, atol=0.02)


def test_validation_by_row_numbers_equals_validation_by_arrays() -> None:
    x, labels = some_data()
    held = np.arange(0, 120, 5)
    rest = np.setdiff1d(np.arange(120), held)
    a, b = make_trainer(), make_trainer()
    a.fit(x, labels, epochs=2, validation=held)
    b.fit(x[rest], labels[rest], epochs=2, validation=(x[held], labels[held]))
    assert a.history["val_loss"] == b.history["val_loss"]
    assert host(a.network.parameters).tobytes() == host(b.network.parameters).tobytes()


def test_validation_figures_are_those_of_scikit_learn_weights_included() -> None:
    x, labels = some_data()
    x_val, labels_val = some_data(70)
    weight = np.random.default_rng(1).uniform(size=70)
    trainer = make_trainer(batch_size=16)
    history = trainer.fit(
        x, labels, epochs=1, validation=(x_val, labels_val, weight), restore_best=False
    )
    p = host(trainer.network.predict(x_val))
    wanted = log_loss(labels_val, p, sample_weight=weight, labels=[0, 1, 2])
    assert history["val_loss"][0] == pytest.approx(wanted, rel=1e-12)
    assert history["val_accuracy"][0] == accuracy_score(labels_val, p.argmax(1))


@pytest.mark.parametrize("weighted", [False, True])
def test_evaluate_equals_scikit_learn(weighted: bool) -> None:
    x, labels = some_data()
    trainer = make_trainer(batch_size=7)
    trainer.fit(x, labels, epochs=3)
    weight = np.random.default_rng(1).uniform(size=120) if weighted else None
    found = trainer.evaluate(x, labels, weight)
    p = host(trainer.network.predict(x))
    assert found["loss"] == pytest.approx(log_loss(labels, p, sample_weight=weight), rel=1e-12)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, p.argmax(1)), rel=1e-12)


def test_held_out_rows_of_weight_0_enter_no_figure() -> None:
    """As in training. The figures are those of the other rows alone, by scikit-learn."""
    x, labels = some_data()
    weight = np.arange(120) % 3 / 2
    kept = weight > 0
    x[~kept] = np.nan  # they are not looked at
    metrics = {"rows": lambda yhat, targets: len(targets)}
    trainer = make_trainer(batch_size=16, metrics=metrics)
    held = (x, labels, weight)
    history = trainer.fit(*some_data(50), epochs=1, validation=held, restore_best=False)
    p = host(trainer.network.predict(x[kept]))
    loss = log_loss(labels[kept], p, sample_weight=weight[kept], labels=[0, 1, 2])
    wanted = {"loss": loss, "accuracy": accuracy_score(labels[kept], p.argmax(1)), "rows": 80}
    found = trainer.evaluate(x, labels, weight)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-12)
        assert history[f"val_{name}"][0] == pytest.approx(value, rel=1e-12)


def test_the_standardizer_is_applied_to_training_validation_and_metrics() -> None:
    x, labels = some_data()
    x = x * 50 + 1000
    fitted = Standardizer.fit(x)
    seen: list[Array] = []
    metrics = {"kept": lambda yhat, targets: seen.append(yhat) or 0.0}
    ours, theirs = make_trainer(metrics=metrics), make_trainer(metrics=metrics)
    ours.fit(x, labels, epochs=2, validation=0.2, standardizer=fitted)
    z = fitted.transform(x, dtype=np.float64)
    theirs.fit(z, labels, epochs=2, validation=0.2)
    assert ours.history["loss"] == theirs.history["loss"]
    assert ours.history["val_loss"] == theirs.history["val_loss"]
    half = len(seen) // 2
    assert all(a.tobytes() == b.tobytes() for a, b in zip(seen[:half], seen[half:], strict=True))
    assert ours.evaluate(x, labels, standardizer=fitted) == theirs.evaluate(z, labels)


# -- callbacks, metrics, history, schedules -------------------------------------------------------


def test_callbacks_run_in_order_after_each_epoch_and_one_that_raises_stop_training_ends_it() -> (
    None
):
    calls: list[Any] = []

    def stop(trainer: Any, row: Any) -> None:
        if row["epoch"] == 2:
            raise StopTraining("enough")

    trainer = make_trainer(
        callbacks=[
            lambda trainer, row: calls.append(("first", row["epoch"])),
            stop,
            lambda trainer, row: calls.append(("last", trainer.history.rows[-1] is row)),
        ]
    )
    history = trainer.fit(*some_data(), epochs=9)
    assert calls == [("first", 1), ("last", True), ("first", 2), ("last", True)]
    assert history.stopped == "callback"
    assert trainer.fit(*some_data(), epochs=1).stopped == "epochs"  # nothing of it is left


@pytest.mark.parametrize("answer", [True, np.True_, 1, "written", [0], np.ones(2)], ids=repr)
def test_what_a_callback_returns_is_ignored(answer: Any) -> None:
    history = make_trainer(callbacks=[lambda trainer, row: answer]).fit(*some_data(), epochs=3)
    assert (len(history), history.stopped) == (3, "epochs")


@pytest.mark.parametrize("option", [{"callbacks": [None]}, {"metrics": {"right": "acc"}}], ids=str)
def test_what_cannot_be_called_is_refused_before_an_epoch_is_trained(option: Any) -> None:
    with pytest.raises(
        OptionError, match=r"(callbacks\[0\] is None|metrics\['right'\] is 'acc'), wh"
    ):
        make_trainer(**option)


def test_stop_training_gives_the_weights_of_the_best_epoch_as_the_last_epoch_does() -> None:
    x, labels = some_data()
    weights: list[np.ndarray] = []

    def stop(trainer: Any, row: Any) -> None:
        weights.append(np.array(host(trainer.network.parameters)))
        if row["epoch"] == 4:
            raise StopTraining

    trainer = make_trainer(callbacks=[stop], optimizer=Adam(0.3))
    history = trainer.fit(x, labels, epochs=9, validation=0.25)
    best = int(np.argmin(history["val_loss"]))
    assert best < 3, "the last epoch is not the best"
    assert history.best_epoch == best + 1
    assert host(trainer.network.parameters).tobytes() == weights[best].tobytes()


def test_metrics_are_of_all_rows_and_of_the_validation_rows() -> None:
    x, labels = some_data()
    trainer = make_trainer(metrics={"right": lambda p, y: (p.argmax(1) == y).sum()})
    history = trainer.fit(x, labels, epochs=2, validation=0.25, restore_best=False)
    kept, held = split_rows(120, 0.25, 0, labels)
    right = host(trainer.network.predict(x)).argmax(1) == labels
    assert history["right"][-1] == right[kept].sum()
    assert history["val_right"][-1] == right[held].sum()
    assert trainer.evaluate(x, labels)["right"] == right.sum()


def lr_by_pytorch(make: Any, epochs: int, losses: list[float] | None = None) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule, found = make(optimizer), []
    for epoch in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(*([] if losses is None else [losses[epoch]]))
    return found


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (StepDecay(2, 0.5), lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5)),
        (Exponential(0.9), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)),
    ],
)
def test_schedules_by_epoch_equal_pytorch(schedule: Schedule, make: Any) -> None:
    history = make_trainer(optimizer=SGD(0.1), schedule=schedule).fit(*some_data(), epochs=6)
    np.testing.assert_allclose(history["lr"], lr_by_pytorch(make, 6), rtol=1e-12)


@pytest.mark.ways("numpy", "native", "cuda", reason="hundreds of steps take the emulator too long")
def test_reduce_on_plateau_follows_the_validation_loss_as_pytorch() -> None:
    network = MLP([1, 1], output="linear", dtype="float64", initializer="zeros")
    one = np.ones((1, 1))
    history = Trainer(
        network, optimizer=SGD(0.1), schedule=ReduceOnPlateau(0.5, patience=1), batch_size=1
    ).fit(one, one, validation=(one, 0.5 * one), epochs=15)
    wanted = lr_by_pytorch(
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
        15, history["val_loss"],
    )  # fmt: skip
    np.testing.assert_allclose(history["lr"], wanted, rtol=1e-12)
    assert wanted[-1] < 0.05


def test_cosine_counts_steps_over_the_whole_training() -> None:
    trainer = make_trainer(optimizer=SGD(0.1), schedule=Cosine(warmup_steps=3))
    history = trainer.fit(*some_data(), epochs=5)  # 4 steps in an epoch
    last = np.array([3, 7, 11, 15, 19])
    wanted = 0.05 * (1 + np.cos(np.pi * (last - 3) / 17))
    np.testing.assert_allclose(history["lr"], wanted, rtol=1e-12)
