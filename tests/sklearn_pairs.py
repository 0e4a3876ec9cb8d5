"""The same fit by scikit-learn and by this package, compared."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import sklearn.neural_network as theirs
from sklearn.datasets import load_digits, make_multilabel_classification, make_regression

import gpubackprop.sklearn as ours

LOSS_TOLERANCE = 1e-10  # relative tolerance of every epoch's loss, in float64


def digits(rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return x[:rows] / 16.0, y[:rows]


def regression(targets: int = 1) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_regression(150, 8, n_targets=targets, noise=5.0, random_state=3)
    return x, y / np.abs(y).max()


def multilabel() -> tuple[np.ndarray, np.ndarray]:
    return make_multilabel_classification(150, 10, n_classes=4, random_state=3)


def weights(rows: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.1, 2.0, rows)


def estimators(name: str, **options: Any) -> tuple[Any, Any]:
    """Return (scikit-learn's, ours), with the same parameters and few epochs."""
    settings = {"random_state": 0, "max_iter": 25} | options
    if name == "MLPClassifier" and settings.get("loss"):
        del settings["loss"]
    return getattr(theirs, name)(**settings), getattr(ours, name)(**settings)


def fitted(name: str, x: Any, y: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
    pair = estimators(name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for estimator in pair:
            estimator.fit(x, y, *args)
    return pair


def assert_same_fit(theirs: Any, ours: Any, x: Any, tolerance: float = LOSS_TOLERANCE) -> None:
    """Compare attributes, loss curve, parameters and predictions of two fits."""
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.t_ == theirs.t_
    assert ours.out_activation_ == theirs.out_activation_
    assert ours.n_layers_ == theirs.n_layers_
    np.testing.assert_allclose(ours.loss_, theirs.loss_, rtol=tolerance)
    for name in ("loss_curve_", "validation_scores_", "best_loss_", "best_validation_score_"):
        mine, other = getattr(ours, name, None), getattr(theirs, name, None)
        assert (mine is None) == (other is None), name
        if mine is not None:
            np.testing.assert_allclose(mine, other, rtol=tolerance, err_msg=name)
    for mine, other in zip(
        ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True
    ):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance)
    assert_same_predictions(theirs, ours, x, tolerance)


def assert_same_predictions(theirs: Any, ours: Any, x: Any, tolerance: float) -> None:
    mine, other = ours.predict(x), theirs.predict(x)
    assert mine.dtype == other.dtype
    if not hasattr(theirs, "predict_proba"):
        np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance)
        return
    np.testing.assert_array_equal(mine, other)
    for verb in ("predict_proba", "predict_log_proba"):
        mine, other = getattr(ours, verb)(x), getattr(theirs, verb)(x)
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance)
