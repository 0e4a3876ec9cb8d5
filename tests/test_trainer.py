"""The training loop: what it trains, when it stops, which weights it leaves, what it reports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from gpubackprop.data import Standardizer, split_rows
from gpubackprop.errors import (
    DataError,
    DtypeError,
    NonFiniteLossError,
    OptionError,
    ShapeError,
    TargetRangeError,
)
from gpubackprop.losses import SoftmaxCrossEntropy
from gpubackprop.network import MLP
from gpubackprop.optimizers import SGD, Adam, GradientDescent
from gpubackprop.schedules import Cosine, Exponential, ReduceOnPlateau, Schedule, StepDecay
from gpubackprop.training import Trainer

Array = np.ndarray


def some_data(rows: int = 120, noise: float = 0.5) -> tuple[Array, Array]:
    """Three overlapping classes in four columns."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, rows)
    return rng.normal(size=(rows, 4)) * noise + np.eye(3, 4)[labels], labels


def make_trainer(seed: int = 0, **options: Any) -> Trainer:
    network = MLP([4, 8, 3], "tanh", seed=1, dtype="float64")
    return Trainer(network, seed=seed, **{"batch_size": 32, "optimizer": Adam(0.01), **options})


# -- what it learns -------------------------------------------------------------------------------


def test_xor_is_learned() -> None:
    x, targets = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0, 1, 1, 0])
    network = MLP([2, 8, 2], "tanh", seed=1)
    history = Trainer(network, optimizer=Adam(lr=0.05), batch_size=4).fit(x, targets, epochs=200)
    assert network.predict(x).argmax(1).tolist() == [0, 1, 1, 0]
    assert history["accuracy"][-1] == 1.0
    assert history["loss"][-1] < 0.05 < history["loss"][0]


def test_linear_regression_ends_at_the_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    targets = x @ rng.normal(size=(3, 2)) + 0.7 + 0.1 * rng.normal(size=(200, 2))
    network = MLP([3, 2], output="linear", dtype="float64")
    history = Trainer(network, optimizer=SGD(0.1, momentum=0.9), batch_size=200).fit(
        x, targets, epochs=300
    )
    solution, residual, *_ = np.linalg.lstsq(np.c_[x, np.ones(200)], targets, rcond=None)
    np.testing.assert_allclose(network.W[0].T, solution[:3], rtol=1e-6)
    np.testing.assert_allclose(network.b[0], solution[3], rtol=1e-6)
    assert history["rmse"][-1] == pytest.approx(math.sqrt(residual.sum() / 400), rel=1e-6)


def test_poisson_regression_ends_at_the_mean_count() -> None:
    counts = np.random.default_rng(0).poisson(4.0, size=(500, 1))
    network = MLP([1, 1], output="exp", dtype="float64", initializer="zeros")
    Trainer(network, optimizer=SGD(0.02, momentum=0.9), batch_size=500).fit(
        np.zeros((500, 1)), counts, epochs=200
    )
    assert network.predict([[0.0]])[0, 0] == pytest.approx(counts.mean(), rel=1e-6)


def test_multilabel_targets_are_learned_unit_by_unit() -> None:
    x = np.random.default_rng(0).normal(size=(300, 4))
    targets = (x[:, :3] > 0).astype(float)
    network = MLP([4, 16, 3], output="logistic")
    history = Trainer(network, optimizer=Adam(0.02)).fit(x, targets, epochs=60)
    right = ((network.predict(x) > 0.5) == targets).all(1).mean()
    assert right > 0.95
    assert history["accuracy"][-1] == pytest.approx(right, abs=0.03)


# -- seeds and order ------------------------------------------------------------------------------


def test_the_seed_decides_the_order_of_the_rows_and_nothing_else_does() -> None:
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer = make_trainer(seed)
        trainer.fit(*some_data(), epochs=3)
        found[name] = trainer.network.parameters.tobytes()
    assert found["a"] == found["b"]
    assert found["a"] != found["c"]


def test_every_epoch_takes_every_row_once_in_a_new_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpubackprop.training.step import TrainStep

    seen: list[Array] = []
    update = TrainStep.update
    monkeypatch.setattr(
        TrainStep, "update", lambda self, rows, lr: seen.append(rows.copy()) or update(self, rows, lr)
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
    assert twice.network.parameters.tobytes() == once.network.parameters.tobytes()
    for column in ("epoch", "steps", "lr", "loss"):
        assert twice.history[column] == once.history[column]


# -- validation -----------------------------------------------------------------------------------


def test_a_validation_share_is_stratified_and_held_out() -> None:
    x, labels = some_data()
    kept, held = split_rows(120, 0.25, 0, labels)
    by_share, by_rows = make_trainer(), make_trainer()
    by_share.fit(x, labels, epochs=3, validation=0.25)
    by_rows.fit(x[kept], labels[kept], epochs=3, validation=(x[held], labels[held]))
    assert by_share.history["val_loss"] == by_rows.history["val_loss"]
    assert by_share.network.parameters.tobytes() == by_rows.network.parameters.tobytes()
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
    assert a.network.parameters.tobytes() == b.network.parameters.tobytes()


def test_validation_figures_are_those_of_scikit_learn_weights_included() -> None:
    x, labels = some_data()
    x_val, labels_val = some_data(70)
    weight = np.random.default_rng(1).uniform(size=70)
    trainer = make_trainer(batch_size=16)
    history = trainer.fit(
        x, labels, epochs=1, validation=(x_val, labels_val, weight), restore_best=False
    )
    p = trainer.network.predict(x_val)
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
    p = trainer.network.predict(x)
    assert found["loss"] == pytest.approx(log_loss(labels, p, sample_weight=weight), rel=1e-12)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, p.argmax(1)), rel=1e-12)


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


# -- early stopping -------------------------------------------------------------------------------


def rising_validation(**fit: Any) -> Trainer:
    """One weight that descends to 1 on the training row; the validation row wants 0.5.

    With lr 0.1 and batch 1 the weight is 1 - 0.9^e after epoch e: 0.1, 0.19, ..., so the validation
    loss falls until the weight passes 0.5, in epoch 7 (0.5217; 0.4686 before, which is nearer by
    no more than 0.0314 to 0.0217), and rises from then on.
    """
    network = MLP([1, 1], output="linear", dtype="float64", initializer="zeros")
    trainer = Trainer(network, optimizer=GradientDescent(lr=0.1), batch_size=1)
    network.b[0].flags.writeable = True
    one = np.ones((1, 1))
    trainer.fit(one, one, validation=(one, 0.5 * one), epochs=20, **fit)
    return trainer


def output_after(epochs: int) -> float:
    """w + b, both moved by 0.1 (1 - w - b) in each epoch."""
    return 1.0 - 0.8**epochs


def test_the_best_weights_are_restored_where_validation_is_known_to_rise() -> None:
    trainer = rising_validation()
    nearest = min(range(1, 21), key=lambda epoch: abs(output_after(epoch) - 0.5))
    assert nearest == 3  # 0.488
    assert trainer.history.best_epoch == nearest
    assert trainer.history.stopped == "epochs"
    assert len(trainer.history) == 20
    assert trainer.network.predict([[1.0]])[0, 0] == pytest.approx(output_after(3), rel=1e-12)
    wanted = [(output_after(epoch) - 0.5) ** 2 / 2 for epoch in range(1, 21)]
    np.testing.assert_allclose(trainer.history["val_loss"], wanted, rtol=1e-9)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 4), (4, 7)])
def test_patience_counts_epochs_without_improvement(patience: int, epochs: int) -> None:
    trainer = rising_validation(patience=patience)
    assert trainer.history.stopped == "patience"
    assert trainer.history["epoch"] == list(range(1, epochs + 1))
    assert trainer.network.predict([[1.0]])[0, 0] == pytest.approx(output_after(3), rel=1e-12)


def test_min_delta_makes_small_improvements_not_count() -> None:
    # 0.045, 0.0098, 0.0000702, ...: the third improves by 0.0097 only.
    trainer = rising_validation(patience=2, min_delta=0.02)
    assert trainer.history.best_epoch == 2
    assert len(trainer.history) == 4


@pytest.mark.parametrize(("restore", "epoch"), [(True, 3), (None, 3), (False, 20)])
def test_restore_best_chooses_the_weights_that_stay(restore: bool | None, epoch: int) -> None:
    trainer = rising_validation(restore_best=restore)
    assert trainer.network.predict([[1.0]])[0, 0] == pytest.approx(output_after(epoch), rel=1e-12)


def test_without_validation_the_last_weights_stay_unless_asked() -> None:
    outputs = {}
    for restore in (None, True, False):
        network = MLP([1, 1], output="linear", dtype="float64", initializer="zeros")
        trainer = Trainer(network, optimizer=GradientDescent(lr=1.3), batch_size=1)  # diverges
        trainer.fit(np.ones((1, 1)), np.ones((1, 1)), epochs=4, restore_best=restore)
        outputs[restore] = network.predict([[1.0]])[0, 0]
    # w + b - 1 is multiplied by 1 - 2.6 in each epoch, and the loss is that before the update.
    assert outputs[None] == outputs[False] == pytest.approx(1 - 1.6**4, rel=1e-9)
    assert outputs[True] == pytest.approx(1 + 1.6, rel=1e-9)


# -- callbacks, metrics, history, schedules -------------------------------------------------------


def test_callbacks_run_in_order_after_each_epoch_and_true_stops() -> None:
    calls: list[Any] = []
    trainer = make_trainer(
        callbacks=[
            lambda trainer, row: calls.append(("first", row["epoch"])),
            lambda trainer, row: np.bool_(row["epoch"] == 2),
            lambda trainer, row: calls.append(("last", trainer.history.rows[-1] is row)) or 1,
        ]
    )
    history = trainer.fit(*some_data(), epochs=9)
    assert calls == [("first", 1), ("last", True), ("first", 2), ("last", True)]
    assert history.stopped == "callback"


def test_metrics_are_of_all_rows_and_of_the_validation_rows() -> None:
    x, labels = some_data()
    trainer = make_trainer(metrics={"right": lambda p, y: (p.argmax(1) == y).sum()})
    history = trainer.fit(x, labels, epochs=2, validation=0.25, restore_best=False)
    kept, held = split_rows(120, 0.25, 0, labels)
    right = trainer.network.predict(x).argmax(1) == labels
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


# -- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("standardised", [False, True])
def test_nan_in_x_is_reported_with_its_step_and_the_weights_given_back(standardised: bool) -> None:
    x, labels = some_data()
    fitted = Standardizer.fit(x) if standardised else None
    x[70, 2] = np.nan  # in the third batch of 32
    trainer = make_trainer(shuffle=False)
    before = trainer.network.parameters.copy()
    with pytest.raises(NonFiniteLossError, match=r"at step 2 \(epoch 1, batch 3 of 4\)") as caught:
        trainer.fit(x, labels, epochs=2, standardizer=fitted)
    assert caught.value.step == 2
    assert "from before training" in str(caught.value)
    assert trainer.network.parameters.tobytes() == before.tobytes()
    history = trainer.fit(np.nan_to_num(x), labels, epochs=1)  # nothing of the NaN is left
    assert np.isfinite(history["loss"]).all()


def test_divergence_gives_back_the_best_epoch() -> None:
    network = MLP([1, 1], output="linear", dtype="float32", initializer="zeros")
    trainer = Trainer(network, optimizer=GradientDescent(lr=30.0), batch_size=1, l2=0.0)
    with pytest.raises(NonFiniteLossError, match="weights of epoch 1") as caught:
        trainer.fit(np.ones((1, 1)), np.ones((1, 1)), epochs=100)
    # |w + b - 1| = 59^e; its square passes 3.4e38 / 2 at e = 11 (half the square at the largest).
    assert caught.value.step == 11
    assert network.predict([[1.0]])[0, 0] == pytest.approx(60.0)


def test_a_last_step_that_overflows_the_weights_is_not_kept_silently() -> None:
    network = MLP([1, 1], output="linear", dtype="float32", initializer="zeros")
    trainer = Trainer(network, optimizer=GradientDescent(lr=1e30), batch_size=1)
    with pytest.raises(NonFiniteLossError, match="at step 0"):
        trainer.fit(np.ones((1, 1)), np.full((1, 1), 1e10), epochs=1)
    assert not network.parameters.any()


def test_nan_among_the_validation_rows_is_reported() -> None:
    x, labels = some_data()
    bad = x.copy()
    bad[5, 0] = np.nan
    trainer = make_trainer()
    with pytest.raises(NonFiniteLossError, match="validation loss is NaN after epoch 1"):
        trainer.fit(x, labels, epochs=2, validation=(bad, labels))
    assert np.isfinite(trainer.network.parameters).all()


x0, y0 = some_data(10)
BAD: dict[str, tuple[Any, Any, dict[str, Any], type[Exception], str]] = {
    "columns": (x0[:, :3], y0, {}, ShapeError, r"\(10, 3\).*\(N, 4\)"),
    "one sample": (x0[0], y0[:1], {}, ShapeError, r"x\[None, :\]"),
    "rows": (x0, y0[:9], {}, ShapeError, "10 rows"),
    "no rows": (x0[:0], y0[:0], {}, DataError, "0 rows"),
    "label": (x0, np.where(np.arange(10) == 7, 3, y0), {}, TargetRangeError, r"targets\[7\] is 3"),
    "negative label": (x0, np.where(np.arange(10) == 4, -1, y0), {}, TargetRangeError, r"\[4\] is -1"),
    "float labels": (x0, y0.astype(float), {}, DtypeError, "class indices"),
    "text": (np.full((10, 4), "a"), y0, {}, DtypeError, "real numbers"),
    "ragged x": ([[1, 2], [3]], y0, {}, DtypeError, "x is not an array"),
    "ragged targets": (x0, [[1, 2], [3]], {}, DtypeError, "targets is not an array"),
    "scalar targets": (x0, 3, {}, ShapeError, "one row"),
    "one-hot": (x0, np.eye(3, dtype=int)[y0], {}, ShapeError, "argmax"),
    "weights": (x0, y0, {"sample_weight": np.full(10, -1.0)}, OptionError, r"sample_weight\[0\]"),
    "weight shape": (x0, y0, {"sample_weight": np.ones(9)}, ShapeError, "sample_weight"),
    "epochs": (x0, y0, {"epochs": -1}, OptionError, "epochs"),
    "patience": (x0, y0, {"patience": 0}, OptionError, "patience"),
    "share": (x0, y0, {"validation": 1.5}, OptionError, "between 0 and 1"),
    "validation": (x0, y0, {"validation": (x0,)}, ShapeError, "validation"),
    "validation rows": (x0, y0, {"validation": (x0[:0], y0[:0])}, DataError, "validation set has 0"),
    "validation columns": (x0, y0, {"validation": (x0[:, :2], y0)}, ShapeError, r"\(N, 4\)"),
    "standardizer": (x0, y0, {"standardizer": lambda x: x}, OptionError, "Standardizer"),
    "standardizer columns": (
        x0, y0, {"standardizer": Standardizer(np.zeros(3), np.ones(3))}, ShapeError, "3 columns",
    ),
    "checkpoint_every": (x0, y0, {"checkpoint_every": 5}, OptionError, "checkpoint=path"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_leaves_network_and_trainer_as_they_were(case: str) -> None:
    x, targets, options, kind, message = BAD[case]
    trainer = make_trainer()
    before = trainer.network.parameters.tobytes(), trainer._rng.bit_generator.state
    with pytest.raises(kind, match=message):
        trainer.fit(x, targets, **{"epochs": 1, **options})
    assert (trainer.network.parameters.tobytes(), trainer._rng.bit_generator.state) == before
    assert len(trainer.history) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"), ({"l2": -1}, "l2"), ({"clip_norm": -1}, "clip_norm"),
        ({"optimizer": "adem"}, "adem"), ({"schedule": "cosin"}, "cosin"), ({"seed": -1}, "seed"),
        ({"loss": "squared_error"}, "belongs to output 'linear'"),
        ({"loss": SoftmaxCrossEntropy(reduction="none")}, "one number"),
        ({"loss": SoftmaxCrossEntropy(class_weight=[1, 2])}, "2 entries"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_trainer(**options)


def test_zero_epochs_change_nothing() -> None:
    trainer = make_trainer()
    before = trainer.network.parameters.tobytes()
    assert len(trainer.fit(*some_data(), epochs=0)) == 0
    assert trainer.network.parameters.tobytes() == before
