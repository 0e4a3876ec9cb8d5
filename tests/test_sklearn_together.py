"""`together`: unchanged scikit-learn programs, whose fits of several threads train together."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
import pytest
from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.ensemble import BaggingClassifier, StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier

from gpubackprop import StopTraining
from gpubackprop.sklearn import MLPClassifier, together
from gpubackprop.training.rounds import SHARED

X, y = load_iris(return_X_y=True)
NET = MLPClassifier(
    6, max_iter=8, random_state=3, device="cpu", learning_rate_init=0.01, tol=0.0,
    early_stopping=True,
)  # fmt: skip
GRID = {"alpha": [1e-4, 0.1], "dropout": [0.0, 0.3], "batch_size": [10, 60]}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def grid(n_jobs: int) -> Any:
    found = GridSearchCV(NET, GRID, cv=3, n_jobs=n_jobs).fit(X, y)
    return np.append(found.cv_results_["mean_test_score"], found.predict_proba(X))


def randomized(n_jobs: int) -> Any:
    search = RandomizedSearchCV(
        NET, {"alpha": loguniform(1e-4, 1)}, n_iter=5, cv=2, n_jobs=n_jobs, random_state=0
    )
    return search.fit(X, y).cv_results_["mean_test_score"]


def folds(n_jobs: int) -> Any:
    return cross_val_score(NET, X, y, cv=5, n_jobs=n_jobs)


def bagging(n_jobs: int) -> Any:
    fitted = BaggingClassifier(NET, 6, n_jobs=n_jobs, random_state=0).fit(X, y)
    return fitted.predict_proba(X)


def one_vs_rest(n_jobs: int) -> Any:
    return OneVsRestClassifier(NET, n_jobs=n_jobs).fit(X, y).predict_proba(X)


def stacking(n_jobs: int) -> Any:
    nets = [(str(seed), clone(NET).set_params(random_state=seed)) for seed in range(2)]
    fitted = StackingClassifier(nets, LogisticRegression(), cv=3, n_jobs=n_jobs).fit(X, y)
    return fitted.predict_proba(X)


@pytest.mark.parametrize("program", [grid, randomized, folds, bagging, one_vs_rest, stacking])
def test_meta_estimators_get_the_results_of_one_fit_after_another(
    program: Callable[[int], Any],
) -> None:
    alone = program(1)
    with together():
        found = program(64)
    np.testing.assert_array_equal(found, alone)


def test_the_fits_run_in_threads_of_this_process_at_the_same_time() -> None:
    here: list[int] = []
    lock, several = threading.Lock(), threading.Event()

    def count(estimator: Any, row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            with lock:
                here.append(threading.get_ident())
                if len(set(here)) >= 3:
                    several.set()
            several.wait(20)  # no fit goes on before three have begun

    with together():
        assert SHARED.rounds is not None
        net = clone(NET).set_params(callbacks=(count,))
        GridSearchCV(net, {"alpha": [0.0, 0.1, 1.0]}, cv=2, n_jobs=6, refit=False).fit(X, y)
    assert several.is_set()
    assert SHARED.rounds is None


def test_meta_estimators_that_name_no_jobs_take_those_of_the_context() -> None:
    with together(n_jobs=7):
        assert joblib.effective_n_jobs(None) == 7
        assert joblib.effective_n_jobs(64) == 64
    assert joblib.effective_n_jobs(None) == 1


def test_a_context_may_be_entered_again_and_within_itself() -> None:
    context = together(n_jobs=7)
    for _ in range(2):
        with context:
            with context:
                assert joblib.effective_n_jobs(None) == 7
            assert joblib.effective_n_jobs(None) == 7
            assert SHARED.rounds is not None
        assert joblib.effective_n_jobs(None) == 1
        assert SHARED.rounds is None
    assert context(joblib.effective_n_jobs)(None) == 7


def test_a_fit_that_fails_or_is_stopped_or_interrupted_hurts_no_other() -> None:
    def fail(estimator: Any, row: dict[str, Any]) -> None:
        if estimator.alpha == 0.5:
            raise ValueError("planted")
        if estimator.alpha == 0.6:
            raise StopTraining
        if estimator.alpha == 0.7:
            raise KeyboardInterrupt

    net = clone(NET).set_params(callbacks=(fail,))
    alphas = {"alpha": [0.1, 0.5, 0.6, 0.7, 0.2]}

    def search(n_jobs: int) -> Any:
        found = GridSearchCV(net, alphas, cv=2, n_jobs=n_jobs, refit=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return found.fit(X, y).cv_results_["mean_test_score"]

    alone = search(1)
    with together():
        scores = search(10)
    np.testing.assert_array_equal(scores, alone)
    assert np.isnan(scores[1])
    assert np.isfinite(scores[[0, 2, 3, 4]]).all()


def test_fits_that_a_program_starts_in_threads_train_together_in_any_order() -> None:
    nets = [clone(NET).set_params(random_state=seed, max_iter=3 + seed) for seed in range(6)]
    alone = [clone(net).fit(X, y) for net in nets]
    with together():
        threads = [threading.Thread(target=net.fit, args=(X, y)) for net in reversed(nets)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    for one, other in zip(alone, nets, strict=True):
        assert one.loss_curve_ == other.loss_curve_
        assert one.n_iter_ == other.n_iter_
        np.testing.assert_array_equal(one.coefs_[0], other.coefs_[0])
