"""Figures that tell how good predictions are, as people and scikit-learn define them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Scores = dict[str, float]


def class_scores(probabilities: Array, indices: Array) -> Scores:
    """Return the figures of a classification.

    Parameters
    ----------
    probabilities : (N, C) array
        Probability of each class.
    indices : (N,) int array
        The true classes.

    Returns
    -------
    dict
        "log_loss", without label smoothing; "accuracy"; "balanced_accuracy", the mean over the
        classes of the share of their rows that are right; "f1", the mean over the classes of the
        harmonic mean of precision and recall; "auc", the area under the ROC curve (of more than two
        classes: the mean of each against the rest). Figures that the rows do not define are left
        out.

    Examples
    --------
    >>> scores = class_scores(np.array([[0.8, 0.2], [0.4, 0.6], [0.9, 0.1]]), np.array([0, 1, 1]))
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'log_loss': 1.012, 'accuracy': 0.667, 'balanced_accuracy': 0.75, 'f1': 0.667, 'auc': 0.5}
    """
    p = np.asarray(probabilities, np.float64)
    tiny = np.finfo(np.asarray(probabilities).dtype).eps
    picked = np.clip(p[np.arange(len(p)), indices] / p.sum(1), tiny, 1)
    predicted, classes = p.argmax(1), p.shape[1]
    right = np.bincount(indices[predicted == indices], minlength=classes)
    true, said = (np.bincount(part, minlength=classes) for part in (indices, predicted))
    with np.errstate(invalid="ignore"):
        recall, f1 = right / true, 2 * right / (true + said)
    scores = {
        "log_loss": float(-np.log(picked).mean()),
        "accuracy": float(right.sum() / len(p)),
        "balanced_accuracy": float(recall[true > 0].mean()),
        "f1": float(f1[true + said > 0].mean()),
    }
    columns = [1] if classes == 2 else range(classes)
    areas = [_auc(p[:, k], indices == k) for k in columns if 0 < true[k] < len(p)]
    return scores | ({"auc": float(np.mean(areas))} if areas else {})


def label_scores(probabilities: Array, targets: Array) -> Scores:
    """Return the figures of several labels at once.

    Parameters
    ----------
    probabilities : (N, K) array
        Probability of each label.
    targets : (N, K) array
        1 where a label applies, else 0.

    Returns
    -------
    dict
        "accuracy", the share of rows with every label right; "label_accuracy", the share of labels;
        "f1" and "auc", means over the labels that occur (and do not occur) in some row.
    """
    p, true = np.asarray(probabilities, np.float64), np.asarray(targets) > 0.5
    said = p > 0.5
    both, any_ = (said & true).sum(0), said.sum(0) + true.sum(0)
    scores = {
        "accuracy": float((said == true).all(1).mean()),
        "label_accuracy": float((said == true).mean()),
    }
    if any_.any():
        scores["f1"] = float((2 * both[any_ > 0] / any_[any_ > 0]).mean())
    there = true.sum(0)
    areas = [_auc(p[:, k], true[:, k]) for k in range(p.shape[1]) if 0 < there[k] < len(p)]
    return scores | ({"auc": float(np.mean(areas))} if areas else {})


def number_scores(yhat: Array, targets: Array) -> Scores:
    """Return the figures of a regression.

    Parameters
    ----------
    yhat : (N, K) array
        Predictions.
    targets : (N, K) array
        What they should be.

    Returns
    -------
    dict
        "rmse", the root of the mean squared error over all columns; "mae", the mean absolute error;
        "r2", the share of the variance that is explained, a mean over the columns that vary.
    """
    y = np.asarray(targets, np.float64)
    error = np.asarray(yhat, np.float64) - y
    spread = ((y - y.mean(0)) ** 2).sum(0)
    scores = {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "mae": float(np.mean(np.abs(error))),
    }
    varies = spread > 0
    if varies.any():
        scores["r2"] = float(np.mean(1 - (error**2).sum(0)[varies] / spread[varies]))
    return scores


def column_rmse(yhat: Array, targets: Array) -> list[float]:
    """Return the root mean squared error of each of K columns."""
    error = np.asarray(yhat, np.float64) - np.asarray(targets, np.float64)
    return [float(value) for value in np.sqrt(np.mean(error**2, axis=0))]


def _auc(score: Array, positive: Array) -> float:
    """Return the probability that a positive row scores above a negative one; ties count half."""
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # the mean of the ranks of equal scores, from 1
    above = rank[place][positive].sum()
    n = int(positive.sum())
    return float((above - n * (n + 1) / 2) / (n * (len(score) - n)))
