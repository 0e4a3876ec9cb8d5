"""`gpubackprop train --folds`: scores on rows that were not seen, and a model of all rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import PredefinedSplit, StratifiedKFold, cross_val_score
from sklearn.preprocessing import StandardScaler

from gpubackprop import MLP, Model, Trainer, losses
from gpubackprop.data.folds import fold_numbers
from gpubackprop.errors import DataError
from tests.cli_runs import flowers, houses, ok, run_cli, write_table

SETTINGS = ("--hidden", "6", "--epochs", "3", "--batch-size", "8", "--seed", "4", "--device", "cpu")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if matplotlib were not installed: drawing takes longer than these trainings."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "flowers.csv", noisy())


def noisy() -> dict[str, Any]:
    columns = flowers()
    rng = np.random.default_rng(3)
    columns["length"] = columns["length"] + rng.normal(size=90) * 8
    return columns


def train(table: Path, output: Path, *options: Any, target: str = "kind") -> Any:
    ok("train", table, "--target", target, "--output", output, *SETTINGS, *options)
    return json.loads((output / "summary.json").read_text())


class Net(ClassifierMixin, BaseEstimator):
    """The command's network for scikit-learn: its scaler, then this package's trainer."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Net:
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.scaler = StandardScaler().fit(x)
        self.network = MLP([2, 6, 3], "relu", initializer="glorot_uniform", seed=4)
        loss = losses.SoftmaxCrossEntropy(label_smoothing=0.05)
        trainer = Trainer(
            self.network, loss, schedule="cosine", batch_size=8, seed=4, progress=False
        )
        trainer.fit(self.scaler.transform(x).astype(np.float32), codes, epochs=3)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        scaled = self.scaler.transform(x).astype(np.float32)
        labels: np.ndarray = self.classes_[self.network.predict(scaled).argmax(1)]
        return labels


def test_scores_of_folds_are_those_of_scikit_learns_cross_validation(
    table: Path, tmp_path: Path
) -> None:
    folds = train(table, tmp_path / "run", "--folds", "4")["folds"]
    columns = noisy()
    x, y = np.stack([columns["length"], columns["width"]], 1), columns["kind"]
    numbers = fold_numbers(90, 4, 4, np.unique(y, return_inverse=True)[1])
    expected = cross_val_score(Net(), x, y, cv=PredefinedSplit(numbers))
    np.testing.assert_allclose(folds["scores"]["accuracy"], expected)
    assert folds["mean"]["accuracy"] == pytest.approx(expected.mean())
    assert folds["std"]["accuracy"] == pytest.approx(expected.std())
    assert expected.std() > 0
    assert folds["rows"] == np.bincount(numbers).tolist()


def test_the_model_of_folds_is_trained_on_all_rows(table: Path, tmp_path: Path) -> None:
    summary = train(table, tmp_path / "folds", "--folds", "3")
    assert summary["data"]["train_rows"] == 90
    train(table, tmp_path / "all", "--test", "0", "--validation", "0")
    one, two = (Model.load(tmp_path / name / "model.safetensors") for name in ("folds", "all"))
    assert one.network.parameters.tobytes() == two.network.parameters.tobytes()


def test_the_score_of_folds_is_the_last_line_and_in_the_report(table: Path, tmp_path: Path) -> None:
    result = ok(
        "train", table, "--target", "kind", "--output", tmp_path / "run", "--folds", "3", *SETTINGS
    )
    folds = json.loads((tmp_path / "run/summary.json").read_text())["folds"]
    says = f"{folds['mean']['accuracy']:.4f} ± {folds['std']['accuracy']:.4f}"
    assert result.out.splitlines()[-1] == f"accuracy of 3 folds: {says}"
    report = (tmp_path / "run/report.html").read_text()
    assert "accuracy of 3 folds" in report


def test_numbers_are_scored_in_their_own_unit_and_another_table_after_the_folds(
    tmp_path: Path,
) -> None:
    table = write_table(tmp_path / "houses.csv", houses())
    later = write_table(tmp_path / "later.csv", houses(30, seed=1))
    summary = train(
        table, tmp_path / "run", "--folds", "3", "--epochs", "60", "--test", later, target="price"
    )
    assert summary["folds"]["metric"] == "rmse"
    assert 100 < summary["folds"]["mean"]["rmse"] < 200_000
    assert summary["data"]["test_rows"] == 30
    assert summary["test_rmse"] < 200_000


@pytest.mark.slow
def test_processes_change_no_score(table: Path, tmp_path: Path) -> None:
    alone = train(table, tmp_path / "one", "--folds", "3", "--validation", "0.2")
    found = train(table, tmp_path / "two", "--folds", "3", "--validation", "0.2", "--jobs", "2")
    assert found["folds"] == alone["folds"]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--folds", "1"], 2, "at least 2"),
        (["--folds", "5", "--test", "0.3"], 2, "--test FILE"),
        (["--folds", "5", "--validation-last", "0.3"], 2, "choose one"),
        (["--folds", "91"], 1, "90 rows are fewer than 91 folds"),
        (["--folds", "3", "--lr", "1e30", "--activation", "identity"], 1, "fold 1 of 3: the loss"),
    ],
)
def test_folds_that_cannot_be_are_refused(
    table: Path, tmp_path: Path, options: list[str], code: int, says: str
) -> None:
    result = run_cli(
        "train", table, "--target", "kind", "--output", tmp_path / "run", *SETTINGS, *options
    )
    assert (result.code, says in result.err) == (code, True), result.err
    assert not (tmp_path / "run" / "model.safetensors").exists()


# -- the rows of a fold ---------------------------------------------------------------------------


def test_folds_have_the_sizes_of_scikit_learns_and_classes_evenly() -> None:
    classes = np.random.default_rng(0).choice(4, 101, p=[0.5, 0.3, 0.15, 0.05])
    numbers = fold_numbers(101, 7, seed=1, classes=classes)
    parts = [test for _, test in StratifiedKFold(7).split(classes, classes)]
    assert sorted(np.bincount(numbers)) == sorted(map(len, parts))
    for label in range(4):
        counts = np.bincount(numbers[classes == label], minlength=7)
        assert counts.max() - counts.min() <= 1
    assert not np.array_equal(numbers, fold_numbers(101, 7, seed=2, classes=classes))


def test_the_rows_of_a_group_are_in_one_fold() -> None:
    groups = np.random.default_rng(0).integers(0, 23, 200)
    numbers = fold_numbers(200, 5, seed=0, groups=groups)
    assert all(len(set(numbers[groups == group])) == 1 for group in range(23))
    assert np.bincount(numbers).min() >= 30
    with pytest.raises(DataError, match="fewer than 5 folds"):
        fold_numbers(4, 5, seed=0, groups=np.arange(4))
