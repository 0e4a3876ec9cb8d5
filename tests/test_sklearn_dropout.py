"""Dropout of the scikit-learn estimators: its masks, and where they are drawn and where not."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
import sklearn.neural_network
from scipy import sparse

from gpubackprop import ops
from gpubackprop.errors import OptionError, ShapeError
from gpubackprop.sklearn import MLPClassifier, MLPRegressor
from tests.sklearn_pairs import digits, regression

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
UNITS, RATES, LEARNING_RATE = [8, 6, 5, 1], [0.5, 0.25], 0.05


def small(cls=MLPClassifier, **options):
    return cls(**({"hidden_layer_sizes": 8, "max_iter": 4, "random_state": 0} | options))


def same(a, b):
    assert a.loss_curve_ == b.loss_curve_
    for mine, other in zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True):
        np.testing.assert_array_equal(mine, other)


def by_hand(x, y, epochs, batch_rows):
    """(loss curve, W of each layer) of gradient descent with masks from `ops.dropout_mask`."""
    draws = np.random.RandomState(0)
    W, b = [], []
    for fan_in, fan_out in pairwise(UNITS):
        bound = np.sqrt(6.0 / (fan_in + fan_out))
        W.append(draws.uniform(-bound, bound, (fan_in, fan_out)))
        b.append(draws.uniform(-bound, bound, fan_out))
    seed, step, curve = int(draws.randint(2**64, dtype=np.uint64)), 0, []
    for _ in range(epochs):
        total = 0.0
        for start in range(0, len(x), batch_rows):
            rows = slice(start, start + batch_rows)
            h, factors = [x[rows]], []
            for layer, p in enumerate(RATES):
                a = h[-1] @ W[layer] + b[layer]
                kept = ops.dropout_mask(a.shape, p, seed=seed, step=step, layer=layer)
                factors.append((a > 0) * kept / (1 - p))
                h.append(a * factors[-1])
            error = h[-1] @ W[-1] + b[-1] - y[rows, None]
            total += 0.5 * (error**2).sum()
            delta = error / len(error)
            for layer in reversed(range(len(W))):
                below = delta @ W[layer].T * factors[layer - 1] if layer else None
                W[layer] = W[layer] - LEARNING_RATE * h[layer].T @ delta
                b[layer] = b[layer] - LEARNING_RATE * delta.sum(0)
                delta = below
            step += 1
        curve.append(total / len(x))
    return curve, W


def test_training_is_gradient_descent_with_the_masks_of_the_drawn_seed(way):
    x, y = regression()
    model = small(
        MLPRegressor, hidden_layer_sizes=(6, 5), dropout=RATES, solver="sgd", momentum=0.0,
        alpha=0.0, shuffle=False, batch_size=64, learning_rate_init=LEARNING_RATE, max_iter=3,
        device=way.device,
    ).fit(x, y)  # fmt: skip
    curve, W = by_hand(x, y, 3, 64)  # batches of 64, 64 and 22
    np.testing.assert_allclose(model.loss_curve_, curve, rtol=1e-12)
    for mine, other in zip(model.coefs_, W, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("cls", [MLPClassifier, MLPRegressor])
def test_without_it_nothing_changes_and_with_it_every_loss_does(cls):
    x, y = digits(150) if cls is MLPClassifier else regression()
    plain, theirs = small(cls).fit(x, y), small(getattr(sklearn.neural_network, cls.__name__))
    np.testing.assert_allclose(plain.loss_curve_, theirs.fit(x, y).loss_curve_, rtol=1e-10)
    same(small(cls, dropout=[0.0]).fit(x, y), plain)
    assert plain._optimizer.random is None, "nothing is drawn for it"
    dropped = small(cls, dropout=0.3).fit(x, y)
    assert not set(dropped.loss_curve_) & set(plain.loss_curve_)
    same(small(cls, dropout=[0.3]).fit(x, y), dropped)
    assert small(cls, dropout=0.3, random_state=1).fit(x, y).loss_curve_ != dropped.loss_curve_


def test_predictions_and_validation_are_without_it():
    x, y = digits(150)
    model = small(dropout=0.5, early_stopping=True).fit(x, y, validation_data=(x, y))
    h = np.maximum(x @ model.coefs_[0] + model.intercepts_[0], 0)
    logits = h @ model.coefs_[1] + model.intercepts_[1]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(x), p, rtol=1e-12)
    best = int(np.argmax(model.validation_scores_))
    loss = -np.log(p[np.arange(150), y]).mean()
    assert model.validation_loss_curve_[best] == pytest.approx(loss, rel=1e-12)
    with pytest.warns(UserWarning, match="has no dropout"):
        converted = model.to_sklearn()
    np.testing.assert_array_equal(converted.predict(x), model.predict(x))


def test_sparse_rows_have_the_same_masks():
    x, y = digits(100)
    dense = small(dropout=0.3).fit(x, y)
    rows = small(dropout=0.3).fit(sparse.csr_array(x), y)
    np.testing.assert_allclose(rows.loss_curve_, dense.loss_curve_, rtol=1e-12)


@pytest.mark.parametrize("seed", [0, None])
def test_a_fit_goes_on_from_its_checkpoint_bit_for_bit(tmp_path, seed):
    x, y = digits(250)
    settings = {"dropout": 0.4, "max_iter": 6, "random_state": seed}
    watched = small(**settings, checkpoint=tmp_path / "whole", checkpoint_every=3)

    def keep(estimator, row):  # the checkpoint of epoch 3, as if the fit had ended here
        if row["epoch"] == 4:
            (tmp_path / "copy").write_bytes((tmp_path / "whole").read_bytes())

    whole = watched.set_params(callbacks=[keep]).fit(x, y)
    resumed = small(**settings, checkpoint=tmp_path / "copy").fit(x, y)
    same(resumed, whole)
    for model in (resumed, whole):
        model.set_params(shuffle=False, callbacks=()).partial_fit(x, y)
    same(resumed, whole)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_partial_fit_goes_on_with_the_masks_of_fit_also_in_a_copy(copied, way):
    x, y = digits(40)
    settings = {"dropout": 0.4, "shuffle": False, "batch_size": 16, "device": way.device}
    model = small(max_iter=2, **settings).fit(x, y)
    twin = copied(model)
    same(twin.partial_fit(x, y).partial_fit(x, y), model.partial_fit(x, y).partial_fit(x, y))
    same(model, small(max_iter=4, **settings).fit(x, y))


def test_a_warm_start_draws_other_masks_than_the_fit_before():
    """With a rate that is too small to move a weight, the loss differs by its masks alone."""
    x, y = digits(100)
    still = {"dropout": 0.4, "solver": "sgd", "learning_rate_init": 1e-300, "shuffle": False}
    model = small(warm_start=True, max_iter=2, **still).fit(x, y)
    model.fit(x, y)
    same(model, small(max_iter=4, **still).fit(x, y))
    assert len(set(model.loss_curve_)) == 4
    np.testing.assert_array_equal(model._optimizer.random[1], 4)


def test_dropout_may_begin_or_change_between_calls_of_partial_fit():
    x, y = digits(100)
    model = small(shuffle=False).partial_fit(x, y, classes=range(10))
    twin = copy.deepcopy(model)
    model.set_params(dropout=0.4).partial_fit(x, y).set_params(dropout=0.0).partial_fit(x, y)
    twin.partial_fit(x, y).partial_fit(x, y)
    assert model.loss_curve_[0] == twin.loss_curve_[0]
    assert not set(model.loss_curve_[1:]) & set(twin.loss_curve_[1:])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [({"solver": "lbfgs", "dropout": 0.2}, OptionError, 'use solver="adam" or another, or dropout'),
     ({"dropout": [0.1, 0.2]}, ShapeError, "2 entries but the network has 1 hidden layers"),
     ({"dropout": [1.0]}, OptionError, "must be below 1"),
     ({"dropout": 1.0}, ValueError, "The 'dropout' parameter of MLPClassifier must be"),
     ({"dropout": -0.1}, ValueError, "The 'dropout' parameter of MLPClassifier must be"),
     ({"dropout": "half"}, ValueError, "The 'dropout' parameter of MLPClassifier must be")],
)  # fmt: skip
def test_what_cannot_be_is_refused(options, error, message):
    x, y = digits(50)
    with pytest.raises(error, match=message):
        small(**options).fit(x, y)
    small(solver="lbfgs").fit(x, y)
