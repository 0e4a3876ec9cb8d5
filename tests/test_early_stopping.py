"""Early stopping and the weights that stay, on hand-worked trainings of two parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.errors import OptionError
from gpubackprop.optimizers import GradientDescent
from gpubackprop.training import Trainer
from tests.ways import MLP, host

pytestmark = pytest.mark.usefixtures("way")


def rising_validation(**fit: Any) -> Trainer:
    """w + b descends to 1 on the training row; the validation row wants 0.5.

    With lr 0.1 and batch 1, w + b = 1 - 0.8^e after epoch e: 0.2, 0.36, 0.488, 0.59, ..., so the
    validation loss falls until epoch 3 and rises from then on.
    """
    network = MLP([1, 1], output="linear", dtype="float64", initializer="zeros")
    trainer = Trainer(network, optimizer=GradientDescent(lr=0.1), batch_size=1)
    one = np.ones((1, 1))
    trainer.fit(one, one, validation=(one, 0.5 * one), **{"epochs": 20, **fit})
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
    assert host(trainer.network.predict([[1.0]]))[0, 0] == pytest.approx(output_after(3), rel=1e-12)
    wanted = [(output_after(epoch) - 0.5) ** 2 / 2 for epoch in range(1, 21)]
    np.testing.assert_allclose(trainer.history["val_loss"], wanted, rtol=1e-9)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 4), (4, 7)])
def test_patience_counts_epochs_without_improvement(patience: int, epochs: int) -> None:
    trainer = rising_validation(patience=patience)
    assert trainer.history.stopped == "patience"
    assert trainer.history["epoch"] == list(range(1, epochs + 1))
    assert host(trainer.network.predict([[1.0]]))[0, 0] == pytest.approx(output_after(3), rel=1e-12)


def test_a_window_of_epochs_decides_by_the_mean_of_its_losses() -> None:
    # 0.045, 0.0098, 0.00007, 0.0041, 0.0149, ...: the means of three end with 0.0183, 0.0047, 0.0064.
    trainer = rising_validation(window=3)
    assert trainer.history.best_epoch == 4
    assert host(trainer.network.predict([[1.0]]))[0, 0] == pytest.approx(output_after(4), rel=1e-12)
    assert len(rising_validation(window=3, patience=1).history) == 5
    assert rising_validation(window=1).history.best_epoch == 3
    with pytest.raises(OptionError, match="window"):
        rising_validation(window=0)


def test_a_window_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole = rising_validation(window=3)
    rising_validation(window=3, checkpoint=tmp_path / "c", epochs=3)
    resumed = rising_validation(window=3, checkpoint=tmp_path / "c")
    assert resumed.history["epoch"] == list(range(1, 21))
    assert resumed.history.best_epoch == whole.history.best_epoch
    np.testing.assert_array_equal(host(resumed.network.parameters), host(whole.network.parameters))


def test_min_delta_makes_small_improvements_not_count() -> None:
    # 0.045, 0.0098, 0.0000702, ...: the third improves by 0.0097 only.
    trainer = rising_validation(patience=2, min_delta=0.02)
    assert trainer.history.best_epoch == 2
    assert len(trainer.history) == 4


@pytest.mark.parametrize(("restore", "epoch"), [(True, 3), (None, 3), (False, 20)])
def test_restore_best_chooses_the_weights_that_stay(restore: bool | None, epoch: int) -> None:
    trainer = rising_validation(restore_best=restore)
    assert host(trainer.network.predict([[1.0]]))[0, 0] == pytest.approx(
        output_after(epoch), rel=1e-12
    )


def test_without_validation_the_last_weights_stay_unless_asked() -> None:
    outputs = {}
    for restore in (None, True, False):
        network = MLP([1, 1], output="linear", dtype="float64", initializer="zeros")
        trainer = Trainer(network, optimizer=GradientDescent(lr=1.3), batch_size=1)  # diverges
        trainer.fit(np.ones((1, 1)), np.ones((1, 1)), epochs=4, restore_best=restore)
        outputs[restore] = host(network.predict([[1.0]]))[0, 0]
    # w + b - 1 is multiplied by 1 - 2.6 in each epoch, and the loss is that before the update.
    assert outputs[None] == outputs[False] == pytest.approx(1 - 1.6**4, rel=1e-9)
    assert outputs[True] == pytest.approx(1 + 1.6, rel=1e-9)
