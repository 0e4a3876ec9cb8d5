"""scikit-learn's callbacks (`set_callbacks`) on the estimators: its own, its tests', and a third party's."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier as Original
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpubackprop import StopTraining
from gpubackprop.sklearn import MLPClassifier, MLPRegressor, fit_tasks

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks from 1.9 on")
hooks = pytest.importorskip("sklearn.callback.tests._utils")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.default_rng(0).normal(size=(60, 3))
Y = np.arange(60) % 3
X[:, 0] += Y
SOLVERS = ("adam", "sgd", "lbfgs")


def classifier(**options: Any) -> MLPClassifier:
    return MLPClassifier(**{"hidden_layer_sizes": (8,), "max_iter": 5, "random_state": 0} | options)


def calls(recording: Any) -> list[tuple[str, str]]:
    """(hook, name of the task) of every call, in order."""
    return [(entry["name"], entry["context"].task_name) for entry in recording.record]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_every_epoch_is_a_task_within_the_task_of_the_fit(kind, solver):
    recording = hooks.RecordingCallback()
    estimator = kind(hidden_layer_sizes=8, solver=solver, max_iter=4, random_state=0)
    estimator.set_callbacks(recording).fit(X, Y)
    name = "iteration" if solver == "lbfgs" else "epoch"
    epochs = [(hook, name) for hook in ("on_fit_task_begin", "on_fit_task_end")] * 4
    fit = [(hook, "fit") for hook in ("setup", "on_fit_task_begin", "on_fit_task_end", "teardown")]
    assert calls(recording) == [*fit[:2], *epochs, *fit[2:]]
    contexts = [entry["context"] for entry in recording.record]
    assert [context.task_id for context in contexts[2:-2]] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert contexts[0].max_subtasks == 4
    assert all(entry["kwargs"]["X"] is X for entry in recording.record if "kwargs" in entry)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "scikit-learn's"])
def test_the_fitted_estimator_of_an_epoch_is_one_that_stopped_there(solver, ours):
    recording = hooks.RecordingCallback()
    classifier(solver=solver).set_callbacks(recording).fit(X, Y)
    ends = [entry for entry in recording.record if entry["name"] == "on_fit_task_end"]
    for number, entry in enumerate(ends[:-1], 1):
        kind = classifier if ours else lambda **options: Original((8,), random_state=0, **options)
        wanted = kind(solver=solver, max_iter=number).fit(X, Y)
        found = entry["kwargs"]["fitted_estimator"]
        np.testing.assert_allclose(found.predict_proba(X), wanted.predict_proba(X), atol=1e-9)
        assert found.n_iter_ == number


@pytest.mark.parametrize(
    "options", [{}, {"early_stopping": True}, {"solver": "lbfgs"}, {"dropout": 0.2}]
)
def test_callbacks_change_no_number(options):
    plain = classifier(**options).fit(X, Y)
    watched = classifier(**options).set_callbacks(hooks.RecordingCallback()).fit(X, Y)
    for one, other in zip(plain.coefs_, watched.coefs_, strict=True):
        np.testing.assert_array_equal(one, other)
    assert plain.loss_ == watched.loss_


def test_scikit_learns_scoring_monitor_scores_every_epoch_with_its_weights():
    weights = np.linspace(0.1, 2, 60)
    monitor = callback.ScoringMonitor(scoring="accuracy")
    fitted = classifier().set_callbacks(monitor).fit(X, Y, sample_weight=weights)
    found = [row["accuracy"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    wanted = [
        accuracy_score(
            Y, classifier(max_iter=n).fit(X, Y, weights).predict(X), sample_weight=weights
        )
        for n in range(1, 6)
    ]
    assert found == wanted
    assert len(fitted.loss_curve_) == 5


def test_scikit_learns_progress_bar_shows_the_epochs_of_a_fit_and_of_a_pipeline():
    pytest.importorskip("rich", reason="scikit-learn's ProgressBar needs rich")
    for model, shown in [
        (classifier(), "MLPClassifier - fit"),
        (make_pipeline(StandardScaler(), classifier()), "MLPClassifier - fit"),
    ]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            model.set_callbacks(callback.ProgressBar()).fit(X, Y)
        assert shown in out.getvalue()
        assert "100%" in out.getvalue()


class OnlyStops:
    """A third party's callback, with no more than the protocol asks for."""

    def __init__(self, after: int) -> None:
        self.after, self.seen = after, 0

    def setup(self, estimator: Any, context: Any) -> None: ...

    def teardown(self, estimator: Any, context: Any) -> None: ...

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None: ...

    def on_fit_task_end(self, estimator: Any, context: Any) -> bool:
        self.seen += context.task_name != "fit"
        return self.seen == self.after


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_third_partys_callback_ends_the_fit_without_a_warning(solver):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        fitted = classifier(solver=solver, max_iter=50).set_callbacks(OnlyStops(3)).fit(X, Y)
    assert fitted.n_iter_ == 3
    wanted = classifier(solver=solver, max_iter=3).fit(X, Y)
    np.testing.assert_allclose(fitted.predict_proba(X), wanted.predict_proba(X), atol=1e-12)


@pytest.mark.parametrize("fail_at", ["setup", "on_fit_task_begin", "on_fit_task_end"])
def test_a_callback_that_fails_is_torn_down_and_its_error_leaves_fit(fail_at):
    failing = hooks.FailingCallback(fail_at)
    estimator = classifier().set_callbacks(failing)
    with pytest.raises(ValueError, match=f"failed at {fail_at}"):
        estimator.fit(X, Y)
    assert failing.count_hooks("teardown") == 1
    assert estimator.set_callbacks().fit(X, Y).n_iter_ == 5


def test_pipelines_and_grid_searches_hand_their_callbacks_down():
    for model, fits in [
        (make_pipeline(StandardScaler(), classifier()), 1),
        (GridSearchCV(classifier(), {"alpha": [0.1, 1.0]}, cv=2), 5),
    ]:
        recording = hooks.RecordingAutoPropagatedCallback()
        model.set_callbacks(recording).fit(X, Y)
        assert calls(recording).count(("on_fit_task_end", "epoch")) == 5 * fits
        assert recording.count_hooks("setup") == recording.count_hooks("teardown") == 1


def test_partial_fit_has_no_tasks():
    recording = hooks.RecordingCallback()
    estimator = classifier().set_callbacks(recording)
    estimator.partial_fit(X, Y, classes=[0, 1, 2]).partial_fit(X, Y)
    assert recording.record == []


def test_clones_keep_the_callbacks_and_what_is_none_is_refused():
    recording = hooks.RecordingCallback()
    clone(classifier().set_callbacks(recording)).fit(X, Y)
    assert recording.count_hooks("setup") == 1
    with pytest.raises(TypeError, match="FitCallback"):
        classifier().set_callbacks(lambda estimator, row: None)


def test_they_work_beside_the_parameter_callbacks_and_a_checkpoint(tmp_path):
    recording, rows = hooks.RecordingCallback(), []

    def own(estimator: Any, row: dict[str, Any]) -> None:
        rows.append(row["epoch"])
        if row["epoch"] == 4:
            raise StopTraining

    estimator = classifier(callbacks=[own], checkpoint=tmp_path / "fit.safetensors", max_iter=9)
    estimator.set_callbacks(recording).fit(X, Y)
    assert rows == [1, 2, 3, 4]
    assert calls(recording).count(("on_fit_task_end", "epoch")) == 4


def test_before_scikit_learn_19_the_estimators_have_no_set_callbacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.callback", None)
    mixin = runpy.run_path(fit_tasks.__file__)["CallbackSupportMixin"]
    assert not hasattr(mixin, "set_callbacks")
    assert issubclass(MLPClassifier, fit_tasks.CallbackSupportMixin)
