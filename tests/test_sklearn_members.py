"""`n_members`: an ensemble is the average of its members, fitted, exported and saved."""

from __future__ import annotations

import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import VotingClassifier, VotingRegressor
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpubackprop import StopTraining
from gpubackprop.errors import OptionError
from gpubackprop.sklearn import MLPClassifier, MLPRegressor, members, together

X, Y = load_iris(return_X_y=True)
DIABETES, NUMBERS = load_diabetes(return_X_y=True)
KINDS = ["binary", "multiclass", "multilabel", "numbers"]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def ensemble(kind: str = "multiclass", **options: Any) -> Any:
    cls = MLPRegressor if kind == "numbers" else MLPClassifier
    return cls(
        **{"hidden_layer_sizes": 7, "max_iter": 12, "random_state": 5, "n_members": 3,
           "learning_rate_init": 0.01, "device": "cpu"} | options
    )  # fmt: skip


def data(kind: str) -> tuple[np.ndarray, np.ndarray]:
    if kind == "numbers":
        return DIABETES, NUMBERS / 100
    if kind == "multilabel":
        return X, np.stack([Y == 0, Y > 0, X[:, 0] > 5.8], 1).astype(int)
    if kind == "binary":
        return X[Y > 0], np.array(["no", "maybe", "yes"])[Y[Y > 0]]
    return X, Y


def seeds(random_state: int, count: int) -> list[int]:
    """Draw the seeds of members as scikit-learn's bagging does."""
    drawn = np.random.RandomState(random_state)
    return [int(seed) for seed in drawn.randint(np.iinfo(np.int32).max, size=count)]


def by_hand(kind: str, **options: Any) -> list[Any]:
    """Fit the networks of the ensemble one by one."""
    return [
        ensemble(kind, n_members=None, random_state=seed, **options).fit(*data(kind))
        for seed in seeds(5, 3)
    ]


# -- the average ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_the_fits_of_their_seeds_and_predictions_their_average(kind: str) -> None:
    x, y = data(kind)
    own, nets = ensemble(kind).fit(x, y), by_hand(kind)
    for member, net in zip(own.members_, nets, strict=True):
        assert member.loss_curve_ == net.loss_curve_
        np.testing.assert_array_equal(member.coefs_[0], net.coefs_[0])
    if kind == "numbers":
        np.testing.assert_allclose(own.predict(x), np.mean([net.predict(x) for net in nets], 0))
        return
    mean = np.mean([net.predict_proba(x) for net in nets], 0)
    np.testing.assert_allclose(own.predict_proba(x), mean, rtol=1e-12)
    np.testing.assert_allclose(own.predict_log_proba(x), np.log(mean), rtol=1e-9)
    expected = (mean > 0.5).astype(int) if kind == "multilabel" else own.classes_[mean.argmax(1)]
    np.testing.assert_array_equal(own.predict(x), expected)
    assert own.score(x, y) == np.mean((own.predict(x) == y).reshape(len(y), -1).all(1))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "numbers"])
def test_the_ensemble_agrees_with_scikit_learns_voting_of_the_same_networks(kind: str) -> None:
    x, y = data(kind)
    nets = [(str(seed), ensemble(kind, n_members=None, random_state=seed)) for seed in seeds(5, 3)]
    own = ensemble(kind).fit(x, y)
    if kind == "numbers":
        np.testing.assert_allclose(own.predict(x), VotingRegressor(nets).fit(x, y).predict(x))
        return
    vote = VotingClassifier(nets, voting="soft").fit(x, y)
    np.testing.assert_allclose(own.predict_proba(x), vote.predict_proba(x), rtol=1e-12)
    np.testing.assert_array_equal(own.predict(x), vote.predict(x))


@pytest.mark.parametrize("n_members", [None, 1])
def test_one_member_is_an_ordinary_network(n_members: int | None) -> None:
    own, plain = ensemble(n_members=n_members).fit(X, Y), MLPClassifier(
        7, max_iter=12, random_state=5, learning_rate_init=0.01, device="cpu"
    ).fit(X, Y)  # fmt: skip
    assert not hasattr(own, "members_")
    assert own.loss_curve_ == plain.loss_curve_
    np.testing.assert_array_equal(own.predict_proba(X), plain.predict_proba(X))


def test_the_figures_of_an_ensemble_come_from_its_members() -> None:
    own = ensemble(max_iter=200, tol=0.01, n_iter_no_change=2).fit(X, Y)
    found = own.members_
    assert own.n_iter_ == max(member.n_iter_ for member in found)
    assert len({member.n_iter_ for member in found}) > 1, "each stops early on its own"
    assert own.loss_ == pytest.approx(np.mean([member.loss_ for member in found]))
    assert (own.n_outputs_, own.n_layers_, own.out_activation_) == (3, 3, "softmax")
    assert own.n_features_in_ == 4
    assert not hasattr(own, "coefs_")


@pytest.mark.parametrize("name", ["coefs_", "intercepts_", "t_"])
def test_what_an_ensemble_lacks_is_an_error_that_names_its_members(name: str) -> None:
    own = ensemble(max_iter=1).fit(X, Y)
    assert not hasattr(own, name)
    with pytest.raises(AttributeError, match=rf"'{name}'.* ensemble.*members_\[0\].{name}"):
        getattr(own, name)
    with pytest.raises(AttributeError, match=rf"'{name}'$"):
        getattr(ensemble(), name)
    with pytest.raises(AttributeError, match=r"'nothing_'$"):
        _ = own.nothing_


# -- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["multiclass", "numbers"])
def test_partial_fit_goes_on_with_each_member(kind: str) -> None:
    x, y = data(kind)
    known = {"classes": np.unique(y)} if kind == "multiclass" else {}
    own = ensemble(kind)
    nets = [ensemble(kind, n_members=None, random_state=seed) for seed in seeds(5, 3)]
    for _ in range(3):
        own.partial_fit(x, y, **known)
        for net in nets:
            net.partial_fit(x, y, **known)
    for member, net in zip(own.members_, nets, strict=True):
        np.testing.assert_array_equal(member.coefs_[0], net.coefs_[0])


def test_a_warm_start_goes_on_with_new_parameters_and_refuses_another_number() -> None:
    own = ensemble(warm_start=True).fit(X, Y)
    own.set_params(alpha=1.0).fit(X, Y)
    net = ensemble(n_members=None, warm_start=True, random_state=seeds(5, 3)[1]).fit(X, Y)
    net.set_params(alpha=1.0).fit(X, Y)
    np.testing.assert_array_equal(own.members_[1].coefs_[0], net.coefs_[0])
    with pytest.raises(OptionError, match="warm_start=False"):
        own.set_params(n_members=4).fit(X, Y)


@pytest.mark.parametrize("how", ["partial_fit", "warm_start"])
@pytest.mark.parametrize("kind", ["multiclass", "numbers"])
@pytest.mark.parametrize(
    ("before", "after", "trained"),
    [(None, 3, "one network"), (1, 2, "one network"), (3, None, "3 members"), (3, 1, "3 members"),
     (3, 2, "3 members")],
)  # fmt: skip
def test_training_does_not_go_on_with_another_number_of_networks(
    before: int | None, after: int | None, trained: str, kind: str, how: str
) -> None:
    x, y = data(kind)
    own = ensemble(kind, n_members=before, max_iter=2, warm_start=how == "warm_start").fit(x, y)
    predicted = own.predict(x)
    go_on = own.partial_fit if how == "partial_fit" else own.fit
    own.set_params(n_members=after)
    with pytest.raises(OptionError, match=f"n_members was set to {after} .* with {trained}"):
        go_on(x, y)
    np.testing.assert_array_equal(own.predict(x), predicted)
    own.set_params(n_members=before)
    go_on(x, y)
    own.set_params(n_members=after, warm_start=False).fit(x, y)
    assert len(getattr(own, "members_", [own])) == (after or 1)


def test_one_network_and_one_member_are_the_same_to_training_that_goes_on() -> None:
    own = ensemble(n_members=None).fit(X, Y)
    own.set_params(n_members=1).partial_fit(X, Y)
    assert own.t_ == 13 * len(X)


def test_a_fit_with_another_number_leaves_nothing_of_the_one_before() -> None:
    own = ensemble().fit(X, Y)
    own.set_params(n_members=None).fit(X, Y)
    assert not hasattr(own, "members_")
    own.set_params(n_members=2).fit(X, Y)
    assert not hasattr(own, "coefs_")
    assert len(own.members_) == 2


def test_validation_data_and_weights_reach_each_member(tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    weights = np.random.default_rng(0).random(len(X))
    own = ensemble(checkpoint=tmp_path / "fit.npz", early_stopping=True)
    own.fit(frame, Y, weights, validation_data=(frame[:50], Y[:50]))
    assert list(own.feature_names_in_) == list("abcd")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "fit-1.npz", "fit-2.npz", "fit-3.npz",
    ]  # fmt: skip
    net = ensemble(n_members=None, random_state=seeds(5, 3)[2], early_stopping=True)
    net.fit(X, Y, weights, validation_data=(X[:50], Y[:50]))
    assert own.members_[2].validation_scores_ == net.validation_scores_
    with pytest.raises(ValueError, match="feature names"):
        own.predict(frame[["d", "a", "b", "c"]])


def test_ctrl_c_keeps_the_members_that_were_trained() -> None:
    calls = []

    def press(estimator: Any, row: dict[str, Any]) -> None:
        calls.append(row["epoch"])
        if len(calls) == 15:  # in the second member
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(UserWarning, match="interrupted by user"):
        own = ensemble(callbacks=(press,)).fit(X, Y)
    assert [member.n_iter_ for member in own.members_] == [12, 3]
    assert len(own.predict(X)) == len(X)


# -- at once --------------------------------------------------------------------------------------


def test_members_that_share_launches_train_in_threads_with_the_same_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone, here = ensemble().fit(X, Y), set()
    monkeypatch.setattr(members, "_shares_launches", lambda estimator, X: True)
    several = threading.Barrier(3)

    def watch(estimator: Any, row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            several.wait(20)  # no member goes on before all have begun
        here.add(threading.get_ident())

    own = ensemble(callbacks=(watch,)).fit(X, Y)
    assert len(here) == 3
    np.testing.assert_array_equal(own.predict_proba(X), alone.predict_proba(X))


def test_ctrl_c_stops_members_in_threads_after_their_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(members, "_shares_launches", lambda estimator, X: True)

    pressed: list[int] = []

    def press(estimator: Any, row: dict[str, Any]) -> None:
        if row["epoch"] == 2 and not pressed:
            pressed.append(2)
            signal.raise_signal(signal.SIGINT)

    endless = ensemble(callbacks=(press,), max_iter=10**6, tol=0.0, n_iter_no_change=np.inf)
    with pytest.warns(UserWarning, match="interrupted by user"):
        own = endless.fit(X, Y)
    assert len(own.members_) == 3
    assert all(member.n_iter_ < 10**6 for member in own.members_)


def test_a_member_that_fails_fails_the_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(estimator: Any, row: dict[str, Any]) -> None:
        raise ValueError("planted")

    for in_threads in (False, True):
        monkeypatch.setattr(members, "_shares_launches", lambda estimator, X, at=in_threads: at)
        with pytest.raises(ValueError, match="planted"):
            ensemble(callbacks=(fail,)).fit(X, Y)


def test_ensembles_work_within_meta_estimators_and_together() -> None:
    grid = GridSearchCV(ensemble(), {"n_members": [None, 2], "alpha": [0.1, 1.0]}, cv=2, n_jobs=4)
    alone = clone(grid).set_params(n_jobs=1).fit(X, Y)
    with together():
        grid.fit(X, Y)
    key = "mean_test_score"
    np.testing.assert_array_equal(grid.cv_results_[key], alone.cv_results_[key])
    pipeline = make_pipeline(StandardScaler(), ensemble())
    assert cross_val_predict(pipeline, X, Y, cv=2, method="predict_proba").shape == (150, 3)


# -- what belongs to an estimator -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["pickle", "joblib"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_ensemble_predicts_the_same(kind: str, how: str, tmp_path: Path) -> None:
    x, y = data(kind)
    own = ensemble(kind).fit(x, y)
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(own))
    else:
        joblib.dump(own, tmp_path / "own")
        twin = joblib.load(tmp_path / "own")
    np.testing.assert_array_equal(twin.predict(x), own.predict(x))
    assert clone(twin).n_members == 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_ensemble_gives_its_predictions(kind: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    x, y = data(kind)
    own = ensemble(kind).fit(x, y)
    own.to_onnx(tmp_path / "own.onnx")
    session = runtime.InferenceSession(str(tmp_path / "own.onnx"))
    found = dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {"x": x}), strict=True)
    )
    if kind == "numbers":
        np.testing.assert_allclose(found["predictions"][:, 0], own.predict(x), rtol=1e-9)
        return
    np.testing.assert_allclose(found["probabilities"], own.predict_proba(x), rtol=1e-9)
    np.testing.assert_array_equal(found["label"], own.predict(x))


def test_a_pipeline_with_an_ensemble_is_exported() -> None:
    skl2onnx = pytest.importorskip("skl2onnx", reason="skl2onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pipeline = make_pipeline(StandardScaler(), ensemble()).fit(X, Y)
    graph = skl2onnx.to_onnx(pipeline, X[:1], options={"zipmap": False})
    session = runtime.InferenceSession(graph.SerializeToString())
    labels, probabilities = session.run(None, {"X": X})
    np.testing.assert_allclose(probabilities, pipeline.predict_proba(X), rtol=1e-6)
    np.testing.assert_array_equal(labels, pipeline.predict(X))


def test_an_ensemble_has_no_counterpart_in_scikit_learn() -> None:
    with pytest.raises(OptionError, match="VotingClassifier"):
        ensemble().fit(X, Y).to_sklearn()
    with pytest.raises(ValueError, match="n_members"):
        ensemble(n_members=0).fit(X, Y)


def test_a_callback_that_stops_a_member_stops_that_one_alone() -> None:
    stopped = []

    def stop(estimator: Any, row: dict[str, Any]) -> None:
        if not stopped:
            stopped.append(estimator)
            raise StopTraining

    own = ensemble(callbacks=(stop,)).fit(X, Y)
    assert [member.n_iter_ for member in own.members_] == [1, 12, 12]
