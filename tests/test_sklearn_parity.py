"""The estimators compute scikit-learn's numbers: loss curve to 1e-10, predictions equal."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
from scipy import sparse

from gpubackprop.formulas import ACTIVATIONS
from gpubackprop.sklearn import MLPClassifier
from gpubackprop.sklearn.parameters import SKLEARN_ACTIVATIONS
from tests.sklearn_pairs import (
    LOSS_TOLERANCE,
    assert_same_fit,
    assert_same_predictions,
    digits,
    estimators,
    fitted,
    multilabel,
    regression,
    weights,
)

BOTH = ["MLPClassifier", "MLPRegressor"]


def data(name):
    return digits(150) if name == "MLPClassifier" else regression()


@pytest.mark.parametrize("activation", sorted(SKLEARN_ACTIVATIONS))
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("name", BOTH)
def test_a_fit_is_scikit_learns_for_every_solver_and_activation(name, solver, activation):
    x, y = data(name)
    pair = fitted(
        name, x, y, solver=solver, activation=activation, hidden_layer_sizes=(12, 7),
        max_iter=12 if solver == "lbfgs" else 25, learning_rate_init=0.01, batch_size=32,
    )  # fmt: skip
    assert_same_fit(*pair, x)


@pytest.mark.parametrize("options", [{}, {"solver": "lbfgs"}, {"early_stopping": True}], ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_reported_numbers_have_scikit_learns_types(options, dtype, tmp_path):
    x, y = digits(150)
    theirs, ours = fitted("MLPClassifier", x.astype(dtype), y, hidden_layer_sizes=4, **options)
    checked = [theirs, ours]
    if not options:
        for _ in range(2):  # the second reads the first's
            kept = estimators("MLPClassifier", hidden_layer_sizes=4)[1]
            checked.append(kept.set_params(checkpoint=tmp_path / "fit").fit(x.astype(dtype), y))
    for name in ("loss_", "best_loss_", "best_validation_score_", "n_iter_", "t_"):
        assert len({type(getattr(model, name, None)) for model in checked}) == 1, name
    for name in ("loss_curve_", "validation_scores_"):
        assert len({type((getattr(model, name, None) or [0])[-1]) for model in checked}) == 1, name


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
@pytest.mark.parametrize("dtypes", ["f4 f4", "f4 f8", "f4 f2", "f4 i2", "f4 i8", "f8 f4"])
@pytest.mark.parametrize("weight", [None, "f4", "f8"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_losses_of_a_regression_have_scikit_learns_types(weight, dtypes, loss, tmp_path):
    x, y = regression()
    x, y = x.astype(dtypes[:2]), np.abs(y).astype(dtypes[3:])
    own = () if weight is None else (weights(len(y)).astype(weight),)
    for solver, batch in (("adam", "auto"), ("adam", 7), ("lbfgs", "auto")):
        options = {"loss": loss, "max_iter": 2, "hidden_layer_sizes": 3, "batch_size": batch}
        checked = list(fitted("MLPRegressor", x, y, *own, solver=solver, **options))
        for _ in range(2 * (solver == "adam")):  # the second reads the first's
            kept = estimators("MLPRegressor", **options)[1]
            checkpoint = tmp_path / f"fit-{batch}"
            checked.append(kept.set_params(checkpoint=checkpoint).fit(x, y, *own))
        for name in ("loss_", "best_loss_"):
            assert len({type(getattr(model, name, None)) for model in checked}) == 1, name
        curves = [getattr(model, "loss_curve_", [0]) for model in checked]
        assert len({type(curve[-1]) for curve in curves}) == 1


WARNED = {
    "epochs": ({}, lambda y: y),
    "batch": ({"batch_size": 500}, lambda y: y),
    "iterations": ({"solver": "lbfgs"}, lambda y: y),
    "calls": ({"solver": "lbfgs", "max_fun": 2, "max_iter": 9}, lambda y: y),
    "column": ({}, lambda y: y[:, None]),
}


@pytest.mark.parametrize("case", WARNED)
@pytest.mark.parametrize("name", BOTH)
def test_warnings_are_scikit_learns_and_filters_of_its_module_hold(name, case):
    (x, y), (options, shaped) = data(name), WARNED[case]
    pair = estimators(name, hidden_layer_sizes=4, **({"max_iter": 2} | options))
    for action in ("always", "default", "once"):
        said = []
        for model in pair:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter(action)
                for _ in range(2):
                    model.fit(x, shaped(y))
            said.append([(w.category, str(w.message)) for w in caught])
        assert said[0] == said[1]
        assert said[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"sklearn\.neural_network")
        for model in pair:
            model.fit(x, shaped(y))


TARGETS = {
    "two classes": ("MLPClassifier", lambda: (digits(150)[0], digits(150)[1] > 4), {}),
    "class names": ("MLPClassifier", lambda: (digits(150)[0], digits(150)[1].astype(str)), {}),
    "multi-label": ("MLPClassifier", multilabel, {}),
    "one class": ("MLPClassifier", lambda: (digits(20)[0], np.ones(20, int)), {}),
    "multi-output": ("MLPRegressor", lambda: regression(3), {}),
    "poisson": ("MLPRegressor", lambda: (regression()[0], digits(150)[1]), {"loss": "poisson"}),
    "poisson of two": (
        "MLPRegressor", lambda: (regression()[0], digits(150)[0][:, 2:4]), {"loss": "poisson"}
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("case", TARGETS)
def test_a_fit_is_scikit_learns_for_every_kind_of_target_with_and_without_weights(
    case, weighted, solver
):
    name, make, options = TARGETS[case]
    x, y = make()
    sample_weight = (weights(len(x)),) if weighted else ()
    pair = fitted(
        name, x, y, *sample_weight, **options, solver=solver, hidden_layer_sizes=9,
        max_iter=12 if solver == "lbfgs" else 25, batch_size=40,
    )  # fmt: skip
    assert_same_fit(*pair, x)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("case", TARGETS)
def test_early_stopping_splits_scores_and_stops_as_scikit_learns(case, weighted):
    name, make, options = TARGETS[case]
    x, y = make()
    sample_weight = (weights(len(x)),) if weighted else ()
    pair = fitted(
        name, x, y, *sample_weight, **options, early_stopping=True, max_iter=60, tol=0.01,
        n_iter_no_change=3, learning_rate_init=0.02, hidden_layer_sizes=9, validation_fraction=0.2,
    )  # fmt: skip
    assert len(pair[1].validation_scores_) == pair[1].n_iter_
    assert_same_fit(*pair, x)


@pytest.mark.slow
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("policy", ["constant", "invscaling", "adaptive"])
def test_sgd_moves_its_rate_and_stops_as_scikit_learns(policy, momentum, nesterov):
    x, y = digits(150)
    pair = fitted(
        "MLPClassifier", x, y, solver="sgd", learning_rate=policy, momentum=momentum,
        nesterovs_momentum=nesterov, learning_rate_init=0.02, power_t=0.3, tol=0.02,
        n_iter_no_change=2, max_iter=80, hidden_layer_sizes=10,
    )  # fmt: skip
    assert_same_fit(*pair, x)


OPTIONS = {
    "no shuffling": {"shuffle": False, "batch_size": 7},
    "batches of one": {"batch_size": 1, "max_iter": 3},
    "one batch": {"batch_size": 150},
    "no penalty": {"alpha": 0.0},
    "a large penalty": {"alpha": 10.0},
    "other moments": {"beta_1": 0.0, "beta_2": 0.5, "epsilon": 1e-3},
    "no hidden units but one": {"hidden_layer_sizes": [1]},
    "four layers": {"hidden_layer_sizes": np.array([8, 7, 6, 5])},
    "no patience": {"n_iter_no_change": 1, "tol": 1.0, "max_iter": 50},
    "patience without end": {"n_iter_no_change": np.inf, "tol": 1e9},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_mean_what_they_mean_in_scikit_learn(case):
    x, y = digits(150)
    assert_same_fit(*fitted("MLPClassifier", x, y, **OPTIONS[case]), x)


def test_confident_mistakes_are_bounded_as_scikit_learns():
    """Raw pixels: probabilities below eps, of which scikit-learn takes the logarithm of eps."""
    x, y = digits(150)
    pair = fitted("MLPClassifier", x * 160, y, max_iter=15)
    assert max(pair[0].loss_curve_) > 20
    assert_same_fit(*pair, x * 160)
    x, y = multilabel()
    assert_same_fit(*fitted("MLPClassifier", x * 100, y, max_iter=15), x * 100)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_array])
def test_sparse_input_gives_scikit_learns_fit(name, kind):
    x, y = digits(150) if name == "MLPClassifier" else (digits(150)[0], regression()[1])
    for solver in ("adam", "lbfgs"):
        pair = fitted(name, kind(x), y, solver=solver, max_iter=12, early_stopping=True)
        assert_same_fit(*pair, kind(x))


@pytest.mark.parametrize("name", BOTH)
def test_float32_stays_float32_and_is_as_near_to_float64_as_scikit_learns(name):
    x, y = data(name)
    theirs, ours = fitted(name, x.astype(np.float32), y, max_iter=15)
    exact, _ = fitted(name, x, y, max_iter=15)
    assert {a.dtype for a in ours.coefs_ + ours.intercepts_} == {np.dtype(np.float32)}
    if name == "MLPRegressor":
        assert ours.predict(x.astype(np.float32)).dtype == np.float32
    error = [np.abs(np.array(e.loss_curve_) / exact.loss_curve_ - 1).max() for e in (ours, theirs)]
    assert error[0] <= max(error[1], 1e-6)
    assert_same_predictions(theirs, ours, x.astype(np.float32), 1e-4)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("name", BOTH)
def test_partial_fit_goes_on_as_scikit_learns_also_with_batches_of_other_sizes(name, solver):
    x, y = data(name)
    theirs, ours = estimators(name, solver=solver, learning_rate="invscaling", batch_size=16)
    for start, stop in ((0, 50), (50, 100), (100, 117), (0, 50), (10, 12)):
        first = {"classes": np.unique(y)} if name == "MLPClassifier" and start == 0 else {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for estimator in (theirs, ours):
                estimator.partial_fit(x[start:stop], y[start:stop], **first)
        assert len(caught) == 2 * (stop - start < 16)  # a batch larger than the data
        assert len({str(warning.message) for warning in caught}) <= 1
    assert_same_fit(theirs, ours, x)
    assert len(ours.loss_curve_) == 5


@pytest.mark.parametrize("name", BOTH)
def test_partial_fit_after_pickling_goes_on_as_without(name):
    x, y = data(name)
    theirs, ours = fitted(name, x, y, max_iter=3)
    theirs.partial_fit(x, y)
    ours.partial_fit(x, y)
    restored = pickle.loads(pickle.dumps(ours))
    for estimator in (theirs, ours, restored):
        estimator.partial_fit(x, y)
    assert_same_fit(theirs, ours, x)
    assert restored.loss_curve_ == ours.loss_curve_
    for mine, other in zip(restored.coefs_, ours.coefs_, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_warm_start_goes_on_as_scikit_learns(solver, early_stopping):
    x, y = digits(150)
    pair = estimators(
        "MLPClassifier", warm_start=True, solver=solver, early_stopping=early_stopping, max_iter=5
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for estimator in pair:
            estimator.fit(x, y)
            estimator.set_params(max_iter=7, alpha=0.01).fit(x, y)
    assert_same_fit(*pair, x)


@pytest.mark.parametrize("name", BOTH)
def test_parameters_edited_in_place_or_assigned_count_in_predict_and_partial_fit(name):
    x, y = data(name)
    theirs, ours = fitted(name, x, y, max_iter=3)
    for estimator in (theirs, ours):
        estimator.coefs_[0][:5] *= 0.5
        estimator.intercepts_[-1] = estimator.intercepts_[-1] + 0.25
    assert_same_predictions(theirs, ours, x, LOSS_TOLERANCE)
    kept = ours.coefs_[1]
    for _ in range(2):
        for estimator in (theirs, ours):
            estimator.partial_fit(x, y)
            estimator.coefs_[1][...] -= 0.125
    assert ours.coefs_[1] is kept  # as scikit-learn's, updated in place
    assert_same_fit(theirs, ours, x)


def test_a_random_state_is_drawn_from_in_scikit_learns_order():
    x, y = digits(100)
    states = [np.random.RandomState(5) for _ in range(2)]
    pair = estimators("MLPClassifier", early_stopping=True, max_iter=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for estimator, state in zip(pair, states, strict=True):
            estimator.set_params(random_state=state).fit(x, y)
    assert states[0].random_sample() == states[1].random_sample()


def test_the_global_random_state_is_used_without_a_seed():
    x, y = digits(60)
    curves = []
    for estimator in estimators("MLPClassifier", random_state=None, max_iter=3):
        np.random.seed(4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            curves.append(estimator.fit(x, y).loss_curve_)
    np.testing.assert_allclose(curves[1], curves[0], rtol=LOSS_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - SKLEARN_ACTIVATIONS))
def test_the_gradient_of_a_step_is_the_central_difference_of_loss_(activation):
    check_gradient(activation)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_a_step_is_that_of_the_loss_for_two_and_three_classes(weighted):
    """What scikit-learn's test_gradient checks of a private method, through public ones."""
    for activation in sorted(SKLEARN_ACTIVATIONS):
        for classes in (2, 3):
            check_gradient(activation, classes=classes, weighted=weighted)


def check_gradient(activation, classes=3, weighted=False):
    """One step of plain descent on all rows: (before - after) / rate is the gradient of loss_."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(5, 4)), np.arange(5) % classes
    sample_weight = rng.uniform(0.5, 2.0, 5) if weighted else None
    rate = 2.0**-10
    start = MLPClassifier(
        6, activation, solver="sgd", momentum=0.0, learning_rate_init=rate, alpha=0.1,
        random_state=1, shuffle=False,
    ).partial_fit(x, y, sample_weight, classes=range(classes))  # fmt: skip

    def step(name, layer, index, change):
        model = copy.deepcopy(start)
        getattr(model, name)[layer][index] += change
        return model.partial_fit(x, y, sample_weight)

    after = copy.deepcopy(start).partial_fit(x, y, sample_weight)
    for name in ("coefs_", "intercepts_"):
        for layer, array in enumerate(getattr(start, name)):
            descent = (array - getattr(after, name)[layer]) / rate
            for index in list(np.ndindex(array.shape))[::7]:
                losses = [step(name, layer, index, change).loss_ for change in (1e-5, -1e-5)]
                numeric = (losses[0] - losses[1]) / 2e-5
                assert descent[index] == pytest.approx(numeric, rel=1e-5, abs=1e-7)
