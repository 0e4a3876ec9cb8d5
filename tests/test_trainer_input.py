"""What goes wrong in training: bad input, bad settings, losses that are not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpubackprop
from gpubackprop import Ensemble
from gpubackprop.data import Standardizer
from gpubackprop.errors import (
    DataError,
    DtypeError,
    NonFiniteLossError,
    OptionError,
    ShapeError,
    TargetRangeError,
)
from gpubackprop.losses import SoftmaxCrossEntropy
from gpubackprop.optimizers import GradientDescent
from gpubackprop.training import Trainer
from tests.small_training import make_trainer, some_data
from tests.ways import MLP, host

pytestmark = pytest.mark.usefixtures("way")


@pytest.mark.parametrize("standardised", [False, True])
def test_nan_in_x_is_reported_with_its_step_and_the_weights_given_back(standardised: bool) -> None:
    x, labels = some_data()
    fitted = Standardizer.fit(x) if standardised else None
    x[70, 2] = np.nan  # in the third batch of 32
    trainer = make_trainer(shuffle=False)
    before = host(trainer.network.parameters).copy()
    with pytest.raises(NonFiniteLossError, match=r"at step 2 \(epoch 1, batch 3 of 4\)") as caught:
        trainer.fit(x, labels, epochs=2, standardizer=fitted)
    assert caught.value.step == 2
    assert "from before training" in str(caught.value)
    assert host(trainer.network.parameters).tobytes() == before.tobytes()
    history = trainer.fit(np.nan_to_num(x), labels, epochs=1)  # nothing of the NaN is left
    assert np.isfinite(history["loss"]).all()


def test_divergence_gives_back_the_best_epoch() -> None:
    network = MLP([1, 1], output="linear", dtype="float32", initializer="zeros")
    trainer = Trainer(network, optimizer=GradientDescent(lr=30.0), batch_size=1, l2=0.0)
    with pytest.raises(NonFiniteLossError, match="weights of epoch 1") as caught:
        trainer.fit(np.ones((1, 1)), np.ones((1, 1)), epochs=100)
    # |w + b - 1| = 59^e; its square passes 3.4e38 / 2 at e = 11 (half the square at the largest).
    assert caught.value.step == 11
    assert host(network.predict([[1.0]]))[0, 0] == pytest.approx(60.0)


def test_a_last_step_that_overflows_the_weights_is_not_kept_silently() -> None:
    network = MLP([1, 1], output="linear", dtype="float32", initializer="zeros")
    trainer = Trainer(network, optimizer=GradientDescent(lr=1e30), batch_size=1)
    with pytest.raises(NonFiniteLossError, match="at step 0"):
        trainer.fit(np.ones((1, 1)), np.full((1, 1), 1e10), epochs=1)
    assert not host(network.parameters).any()


def test_nan_among_the_validation_rows_is_reported() -> None:
    x, labels = some_data()
    bad = x.copy()
    bad[5, 0] = np.nan
    trainer = make_trainer()
    with pytest.raises(NonFiniteLossError, match="validation loss is NaN after epoch 1"):
        trainer.fit(x, labels, epochs=2, validation=(bad, labels))
    assert np.isfinite(host(trainer.network.parameters)).all()


x0, y0 = some_data(10)
BAD: dict[str, tuple[Any, Any, dict[str, Any], type[Exception], str]] = {
    "columns": (x0[:, :3], y0, {}, ShapeError, r"\(10, 3\).*\(N, 4\)"),
    "one sample": (x0[0], y0[:1], {}, ShapeError, r"x\[None, :\]"),
    "rows": (x0, y0[:9], {}, ShapeError, "10 rows"),
    "no rows": (x0[:0], y0[:0], {}, DataError, "0 rows"),
    "label": (x0, np.where(np.arange(10) == 7, 3, y0), {}, TargetRangeError, r"targets\[7\] is 3"),
    "negative label": (x0, np.where(np.arange(10) == 4, -1, y0), {}, TargetRangeError, "is -1"),
    "float labels": (x0, y0.astype(float), {}, DtypeError, "class indices"),
    "text": (np.full((10, 4), "a"), y0, {}, DtypeError, "real numbers"),
    "ragged x": ([[1, 2], [3]], y0, {}, DtypeError, "x is not an array"),
    "ragged targets": (x0, [[1, 2], [3]], {}, DtypeError, "targets is not an array"),
    "scalar targets": (x0, 3, {}, ShapeError, "one row"),
    "one-hot": (x0, np.eye(3, dtype=int)[y0], {}, ShapeError, "argmax"),
    "weights": (x0, y0, {"sample_weight": np.full(10, -1.0)}, OptionError, r"sample_weight\[0\]"),
    "weight shape": (x0, y0, {"sample_weight": np.ones(9)}, ShapeError, "sample_weight"),
    "no weight": (x0, y0, {"sample_weight": np.zeros(10)}, DataError, "rows of weight 0"),
    "epochs": (x0, y0, {"epochs": -1}, OptionError, "epochs"),
    "half an epoch": (x0, y0, {"epochs": 1.5}, OptionError, "epochs is 1.5 .* whole number"),
    "half a patience": (x0, y0, {"patience": 1.5}, OptionError, "patience is 1.5 .* whole"),
    "half a window": (x0, y0, {"window": 2.5}, OptionError, "window is 2.5 .* whole number"),
    "patience": (x0, y0, {"patience": 0}, OptionError, "patience"),
    "share": (x0, y0, {"validation": 1.5}, OptionError, "between 0 and 1"),
    "validation": (x0, y0, {"validation": (x0,)}, ShapeError, "validation"),
    "validation rows": (x0, y0, {"validation": (x0[:0], y0[:0])}, DataError, "set has 0"),
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
    before = host(trainer.network.parameters).tobytes(), trainer.state.rng.bit_generator.state
    with pytest.raises(kind, match=message):
        trainer.fit(x, targets, **{"epochs": 1, **options})
    assert (
        host(trainer.network.parameters).tobytes(),
        trainer.state.rng.bit_generator.state,
    ) == before
    assert len(trainer.history) == 0


@pytest.mark.ways("numpy", reason="computes nothing on an array")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2.5}, "batch_size is 2.5 .* whole"), ({"seed": 0.5}, "seed is 0.5 .* whole"),
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
    before = host(trainer.network.parameters).tobytes()
    assert len(trainer.fit(*some_data(), epochs=0)) == 0
    assert host(trainer.network.parameters).tobytes() == before


@pytest.mark.ways("numpy", reason="computes nothing")
def test_what_is_no_network_is_refused_by_name() -> None:
    for network in (Ensemble([gpubackprop.MLP([2, 2])]), None, [2, 2]):
        with pytest.raises(OptionError, match=f"^network is a {type(network).__name__} but must"):
            Trainer(network)
