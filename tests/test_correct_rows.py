"""Which rows count as right: the label is what argmax predicts, ties and NaN included."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from gpubackprop import Trainer
from tests.ways import MLP, host, put

pytestmark = pytest.mark.usefixtures("way")


@pytest.mark.parametrize("classes", [2, 10, 24, 25, 300])
def test_accuracy_is_that_of_argmax_where_logits_tie(classes):
    rng = np.random.default_rng(classes)
    x = rng.integers(-1, 2, (500, 2)).astype(np.float32)
    network = MLP([2, classes], initializer="zeros")
    few = np.zeros((classes, 2))
    few[:, 0] = rng.integers(0, 2, classes)  # few distinct logits: most rows tie
    put(network.W[0], few)
    y = rng.integers(0, min(classes, 4), 500)
    predicted = host(network.predict(x)).argmax(1)
    assert 0 < accuracy_score(y, predicted) < 1
    assert Trainer(network).evaluate(x, y)["accuracy"] == accuracy_score(y, predicted)


def test_a_row_with_nan_logits_is_never_right():
    x = np.array([[np.nan], [1.0]], np.float32)
    network = MLP([1, 3], initializer="zeros")
    for label in range(3):
        accuracy = Trainer(network).evaluate(x, np.full(2, label))["accuracy"]
        assert accuracy == (0.5 if label == 0 else 0.0)
