"""The record of a training: columns, CSV."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from gpubackprop.training import History
from tests.small_training import make_trainer, some_data

pytestmark = pytest.mark.usefixtures("way")


def test_columns_of_a_classifier_with_validation_and_metrics() -> None:
    trainer = make_trainer(metrics={"share": lambda yhat, targets: float(yhat[:, 0].mean())})
    history = trainer.fit(*some_data(), epochs=2, validation=0.25)
    assert history.columns == [
        "epoch", "steps", "lr", "loss", "accuracy", "share", "val_loss", "val_accuracy",
        "val_share", "seconds", "samples_per_second",
    ]  # fmt: skip
    assert history["epoch"] == [1, 2]
    assert history["steps"] == [3, 6]
    assert history["lr"] == [0.01, 0.01]
    for row in history.rows:
        assert row["samples_per_second"] == pytest.approx(90 / row["seconds"])
    assert len(history) == 2


def test_a_column_that_came_later_is_nan_before_and_an_unknown_one_is_named() -> None:
    trainer = make_trainer()
    trainer.fit(*some_data(), epochs=1)
    trainer.fit(*some_data(), epochs=1, validation=0.25)
    before, after = trainer.history["val_loss"]
    assert math.isnan(before)
    assert after > 0
    with pytest.raises(KeyError, match="'auc' is not in the history, which has epoch, steps"):
        trainer.history["auc"]


def test_csv_holds_every_row_to_the_last_bit(tmp_path: Path) -> None:
    trainer = make_trainer()
    history = trainer.fit(*some_data(), epochs=3)
    trainer.fit(*some_data(), epochs=1, validation=0.25)
    history.to_csv(tmp_path / "new" / "history.csv")
    with open(tmp_path / "new" / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == history["loss"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0]["val_loss"] == ""
    assert float(rows[3]["val_loss"]) == history["val_loss"][3]


def test_an_empty_history_is_empty(tmp_path: Path) -> None:
    history = History()
    assert (len(history), history.columns, history.stopped) == (0, [], "")
    history.to_csv(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text() == "\n"
