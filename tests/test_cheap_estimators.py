"""Predictions of a few rows and `partial_fit` of changing sizes: what is kept changes nothing."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.neural_network import MLPClassifier as Reference
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils._param_validation import InvalidParameterError

from gpubackprop.backends import cuda_driver, devices
from gpubackprop.sklearn import MLPClassifier, MLPRegressor
from gpubackprop.sklearn.classifier import fitted_binarizer
from tests.threads import run_in_threads

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 5)), RNG.integers(0, 3, 60)


@pytest.fixture
def fitted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MLPClassifier((7,), max_iter=3, random_state=0).fit(X, Y)


def rows_of(model: Any, x: np.ndarray) -> np.ndarray:
    """Probabilities by scikit-learn's own estimator with these parameters."""
    return model.to_sklearn().predict_proba(x)


def test_predictions_follow_parameters_written_replaced_and_reshaped(fitted: Any) -> None:
    def holds() -> None:
        for x in (X[:1], X[:3], X[:1].astype(np.float32), X, X[:1]):
            for _ in range(3):
                assert np.allclose(fitted.predict_proba(x), rows_of(fitted, x), rtol=1e-6)

    holds()
    fitted.coefs_[0] *= 2.0
    holds()
    fitted.coefs_[1] = fitted.coefs_[1] + 1.0
    holds()
    fitted.intercepts_ = [b - 1.0 for b in fitted.intercepts_]
    holds()
    fitted.coefs_ = [RNG.normal(size=(5, 4)), RNG.normal(size=(4, 3))]
    fitted.intercepts_ = [np.zeros(4), np.ones(3)]
    holds()
    fitted.activation = "tanh"
    holds()


def test_a_prediction_may_be_written_to_and_the_next_one_is_its_own(fitted: Any) -> None:
    first = [fitted.predict_proba(X[:1]) for _ in range(4)]
    wanted = first[0].copy()
    fitted.predict_proba(X[1:2])
    assert all(np.array_equal(result, wanted) for result in first)
    for result in first:
        result.fill(7.0)
    assert np.array_equal(fitted.predict_proba(X[:1]), wanted)


def test_threads_that_predict_at_once_each_get_their_own_rows(fitted: Any) -> None:
    wanted = [fitted.predict_proba(X[i : i + 1]) for i in range(4)]
    wrong, begin = list[int](), threading.Barrier(4)

    def work(number: int) -> None:
        begin.wait()
        for _ in range(150):
            if not np.array_equal(fitted.predict_proba(X[number : number + 1]), wanted[number]):
                wrong.append(number)

    run_in_threads(work)
    assert wrong == []


def test_predicting_leaves_the_estimator_as_it_was(fitted: Any) -> None:
    before = {name: id(value) for name, value in vars(fitted).items()}
    for _ in range(3):
        fitted.predict(X[:1])
    assert {name: id(value) for name, value in vars(fitted).items()} == before
    for twin in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert np.array_equal(twin.predict_proba(X[:1]), fitted.predict_proba(X[:1]))


def test_parameters_are_freed_with_the_estimator_that_predicted() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MLPClassifier((7,), max_iter=2, random_state=0).fit(X, Y)
    for _ in range(3):
        model.predict(X[:1])
    gone = weakref.ref(model.coefs_[0])
    del model
    gc.collect()
    assert gone() is None


def test_what_scikit_learn_refuses_is_refused_between_predictions_that_go_well(
    fitted: Any,
) -> None:
    reference = fitted.to_sklearn()
    bad: list[Any] = [
        np.full((1, 5), np.nan), np.full((1, 5), np.inf), np.zeros((1, 4)), np.zeros(5),
        np.zeros((0, 5)), np.array([["a"] * 5]), np.zeros((1, 5), complex),
    ]  # fmt: skip
    bad[0][0, 1:] = 0.0
    for x in bad:
        fitted.predict(X[:1])
        with pytest.raises((ValueError, TypeError)) as theirs:
            reference.predict(x)
        with pytest.raises(type(theirs.value)) as ours:
            fitted.predict(x)
        assert str(ours.value) == str(theirs.value)
    huge = np.full((1, 5), 1e308)  # the sum overflows, no element does
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.predict(np.array([[1e308, 1e308, -1e308, 0.0, 0.0]]))
        assert fitted.predict(huge).shape == (1,)
    with pytest.raises(NotFittedError):
        MLPClassifier().predict(X[:1])


@pytest.mark.parametrize("labels", [Y, Y.astype(str), Y + 10, (Y > 0).astype(int)])
def test_partial_fit_with_batches_of_changing_size_is_scikit_learns(labels: np.ndarray) -> None:
    settings: dict[str, Any] = {"hidden_layer_sizes": (6,), "random_state": 0}
    ours, theirs = MLPClassifier(**settings), Reference(**settings)
    sizes = [40, 10, 33, 10, 5, 60, 7, 40, *range(20, 40)]
    for size in sizes:
        for model in (ours, theirs):
            model.partial_fit(X[:size], labels[:size], classes=np.unique(labels))
    for mine, its in zip(ours.coefs_, theirs.coefs_, strict=True):
        assert np.allclose(mine, its, rtol=1e-9, atol=1e-12)
    assert len(ours._kept_session.step._plans) <= 16
    unknown = labels[:40].astype(object)
    unknown[7] = "?" if labels.dtype.kind == "U" else 99
    unknown = unknown.astype(labels.dtype)
    for _ in range(2):
        with pytest.raises(ValueError, match="has classes not in") as mine:
            ours.partial_fit(X[:40], unknown)
        with pytest.raises(ValueError, match="has classes not in") as its:
            theirs.partial_fit(X[:40], unknown)
        assert str(mine.value) == str(its.value)


def test_partial_fit_of_a_regressor_with_batches_of_changing_size_keeps_one_session() -> None:
    model, sessions = MLPRegressor(hidden_layer_sizes=(6,), random_state=0), set()
    for size in (40, 10, 33, 1, 40):
        model.partial_fit(X[:size], X[:size, 0])
        sessions.add(id(model._kept_session))
    assert len(sessions) == 1


@pytest.mark.filterwarnings("ignore:The number of unique classes")
@pytest.mark.parametrize(
    "labels",
    [
        Y, Y + 10, Y - 5, Y.astype(np.int8), Y.astype(np.uint64), Y.astype(">i4"), Y > 0, Y[:1],
        (Y > 0).astype(int), np.zeros(9, int), np.arange(40), Y.astype(str), Y.astype(float),
        np.eye(3, dtype=int)[Y],
    ],
    ids=lambda y: f"{y.dtype.str}{y.shape}",
)  # fmt: skip
def test_the_label_binarizer_of_a_fit_is_the_one_that_scikit_learn_fits(labels: np.ndarray) -> None:
    mine, its = vars(fitted_binarizer(labels)), vars(LabelBinarizer().fit(labels))
    assert mine.keys() == its.keys()
    for name, value in its.items():
        assert np.array_equal(mine[name], value), name
    assert mine["classes_"].dtype == its["classes_"].dtype


def test_a_first_fit_refuses_what_scikit_learn_refuses_and_forgets_earlier_columns() -> None:
    settings: dict[str, Any] = {"hidden_layer_sizes": (3,), "max_iter": 1, "random_state": 0}
    hole = X.copy()
    hole[3, 2] = np.nan
    bad: list[tuple[Any, Any]] = [
        (hole, Y), (np.where(np.isnan(hole), -np.inf, hole), Y), (X, Y[:-1]), (X[:, 0], Y),
        (X[:0], Y[:0]), (X[:, :0], Y), (X.astype(complex), Y),
    ]  # fmt: skip
    for x, y in bad:
        with pytest.raises(ValueError) as theirs:  # noqa: PT011
            Reference(**settings).fit(x, y)
        with pytest.raises(type(theirs.value)) as ours:
            MLPClassifier(**settings).fit(x, y)
        assert str(ours.value) == str(theirs.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MLPClassifier(**settings).fit(X, Y).fit(X[:, :4], Y)
    assert model.n_features_in_ == 4
    with pytest.raises(ValueError, match="X has 5 features"):
        model.predict(X)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_parameter_that_only_equals_a_valid_one_is_refused_every_time() -> None:
    for good, bad in (
        ({"max_iter": 1}, {"max_iter": 1.0}),
        ({"shuffle": True}, {"shuffle": 1.0}),
        ({"solver": "adam"}, {"solver": "adma"}),
        ({"callbacks": ()}, {"callbacks": {}}),
    ):
        settings: dict[str, Any] = {"hidden_layer_sizes": (3,), "max_iter": 1}
        for _ in range(2):
            MLPClassifier(**settings | good).fit(X, Y)
            with pytest.raises(InvalidParameterError, match=f"The '{next(iter(bad))}' parameter"):
                MLPClassifier(**settings | bad).fit(X, Y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_small_fits_ask_the_driver_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def absent(name: str) -> Any:
        asked.append(name)
        raise OSError

    monkeypatch.setattr(cuda_driver, "load_library", absent)
    monkeypatch.setattr(devices, "_CHOSEN", {})
    for _ in range(3):
        assert MLPClassifier((3,), max_iter=1).fit(X, Y).device_ == "cpu"
    assert len(asked) == 1
