"""Subclasses of the estimators: what scikit-learn would call is called, or is an error."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import sklearn.neural_network

import gpubackprop.sklearn
from gpubackprop.errors import OptionError
from gpubackprop.sklearn.convert import NOT_CALLED
from tests.sklearn_pairs import digits

pytestmark = pytest.mark.filterwarnings("ignore")
OPTIONS = {"hidden_layer_sizes": 5, "max_iter": 3, "random_state": 0}
PACKAGES = (sklearn.neural_network, gpubackprop.sklearn)


def derived(package, name="MLPClassifier", **own):
    return type("Derived", (getattr(package, name),), own)


def sharpened(self, X):
    """Probabilities at half the temperature, as a calibrating subclass has them."""
    powers = type(self).__mro__[1].predict_proba(self, X) ** 2
    return powers / powers.sum(axis=1, keepdims=True)


def test_log_probabilities_are_those_of_a_subclass_with_probabilities_of_its_own():
    x, y = digits(100)
    theirs, ours = (
        derived(package, predict_proba=sharpened)(**OPTIONS).fit(x, y).predict_log_proba(x)
        for package in PACKAGES
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_private_methods_that_only_scikit_learn_calls_are_those_that_are_refused(name):
    theirs, ours = (getattr(package, name) for package in PACKAGES)
    private = {
        method
        for base in theirs.__mro__
        if base.__module__.startswith("sklearn.neural_network")
        for method, value in vars(base).items()
        if inspect.isfunction(value) and method.startswith("_") and not method.startswith("__")
    }
    assert {method for method in private if not hasattr(ours, method)} == set(NOT_CALLED)


@pytest.mark.parametrize("method", NOT_CALLED)
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_a_private_method_that_scikit_learn_would_call_is_an_error_and_not_left_out(method, call):
    x, y = digits(60)
    model = derived(gpubackprop.sklearn, **{method: lambda self, *given: None})(**OPTIONS)
    more = {"classes": np.unique(y)} if call == "partial_fit" else {}
    with pytest.raises(OptionError, match=f"^Derived has {method} of its own"):
        getattr(model, call)(x, y, **more)
    on_the_instance = gpubackprop.sklearn.MLPClassifier(**OPTIONS)
    setattr(on_the_instance, method, lambda *given: None)
    with pytest.raises(OptionError, match=f"^MLPClassifier has {method} of its own"):
        getattr(on_the_instance, call)(x, y, **more)


def test_a_regressor_made_of_attributes_predicts_as_scikit_learns():
    rng = np.random.default_rng(0)
    x, (first, second) = rng.normal(size=(7, 4)), (rng.normal(size=(4, 5)), rng.normal(size=(5, 1)))
    predicted = []
    for package in PACKAGES:
        model = package.MLPRegressor(hidden_layer_sizes=5)
        model.coefs_, model.intercepts_ = [first, second], [np.ones(5), np.ones(1)]
        model.n_layers_, model.out_activation_ = 3, "identity"
        predicted.append(model.predict(x))
    np.testing.assert_allclose(predicted[1], predicted[0], rtol=1e-12)


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_an_estimator_that_predicts_otherwise_has_no_onnx_graph(method):
    x, y = digits(60)
    model = derived(gpubackprop.sklearn, **{method: lambda self, X: np.ones(len(X))})(**OPTIONS)
    with pytest.raises(OptionError, match=f"^Derived has {method} of its own, which a graph would"):
        model.fit(x, y).to_onnx()
    derived(gpubackprop.sklearn, describe=lambda self: "nothing else")(**OPTIONS).fit(
        x, y
    ).to_onnx()
