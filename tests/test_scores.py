"""Figures of predictions are those of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.scores import class_scores, column_rmse, label_scores, number_scores

metrics = pytest.importorskip("sklearn.metrics")


def probabilities(rng: np.random.Generator, rows: int, classes: int) -> np.ndarray:
    p = rng.dirichlet(np.ones(classes), rows).round(2) + 0.01  # rounded: some are equal
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_figures_of_classes_are_those_of_scikit_learn(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, y = probabilities(rng, 80, classes), rng.integers(0, classes, 80)
    predicted = p.argmax(1)
    wanted = {
        "log_loss": metrics.log_loss(y, p),
        "accuracy": metrics.accuracy_score(y, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, predicted),
        "f1": metrics.f1_score(y, predicted, average="macro"),
        "auc": metrics.roc_auc_score(y, p[:, 1] if classes == 2 else p, multi_class="ovr"),
    }
    assert class_scores(p, y) == pytest.approx(wanted, rel=1e-12)


def test_figures_that_the_rows_do_not_define_are_left_out() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    scores = class_scores(p, np.array([0, 0]))
    assert "auc" not in scores
    assert scores["balanced_accuracy"] == 0.5
    assert "r2" not in number_scores(np.ones((2, 1)), np.ones((2, 1)))
    assert "auc" not in label_scores(p, np.zeros((2, 2)))


def test_a_class_that_training_knows_but_the_rows_lack_does_not_count() -> None:
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]])
    y = np.array([0, 1, 1])
    scores, predicted = class_scores(p, y), p.argmax(1)
    assert scores["f1"] == pytest.approx(metrics.f1_score(y, predicted, average="macro"))
    assert scores["balanced_accuracy"] == metrics.balanced_accuracy_score(y, predicted)


def test_a_probability_of_zero_gives_the_finite_log_loss_of_scikit_learn() -> None:
    p, y = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([1, 0])
    assert class_scores(p, y)["log_loss"] == pytest.approx(metrics.log_loss(y, p))


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_of_several_labels_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, y = rng.random((60, 3)), rng.integers(0, 2, (60, 3))
    said = p > 0.5
    wanted = {
        "accuracy": metrics.accuracy_score(y, said),
        "label_accuracy": 1 - metrics.hamming_loss(y, said),
        "f1": metrics.f1_score(y, said, average="macro"),
        "auc": metrics.roc_auc_score(y, p),
    }
    assert label_scores(p, y) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("columns", [1, 3])
def test_the_figures_of_numbers_are_those_of_scikit_learn(columns: int) -> None:
    rng = np.random.default_rng(columns)
    y = rng.normal(size=(50, columns)) * [1, 10, 100][:columns]
    yhat = y + rng.normal(size=y.shape)
    wanted = {
        "rmse": np.sqrt(metrics.mean_squared_error(y, yhat)),
        "mae": metrics.mean_absolute_error(y, yhat),
        "r2": metrics.r2_score(y, yhat),
    }
    assert number_scores(yhat, y) == pytest.approx(wanted, rel=1e-12)
    each = metrics.root_mean_squared_error(y, yhat, multioutput="raw_values")
    assert column_rmse(yhat, y) == pytest.approx(each.tolist(), rel=1e-12)
