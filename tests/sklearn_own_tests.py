"""scikit-learn's own tests of its MLP, with this package's classes in place of scikit-learn's.

The module's source is read from the installed scikit-learn and run unchanged, except for the names
that it imports.
"""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path

import gpubackprop.sklearn

SOURCE = "sklearn.neural_network.tests.test_mlp"
IMPORT = "from sklearn.neural_network import MLPClassifier, MLPRegressor"
EXCHANGED = "from gpubackprop.sklearn import MLPClassifier, MLPRegressor"

# Tests that read private attributes which these classes do not have: the reason, and the test here
# that covers what they check.
PRIVATE = {
    "test_gradient": (
        "calls _loss_grad_lbfgs",
        "test_sklearn_parity.py::test_the_gradient_of_a_step_is_that_of_the_loss_for_two_and_three_classes",
    ),
}


def load() -> types.ModuleType:
    """Return the exchanged module, executed."""
    spec = importlib.util.find_spec(SOURCE)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    if source.count(IMPORT) != 1:
        raise RuntimeError(f"{spec.origin} no longer imports the classes by {IMPORT!r}")
    module = types.ModuleType("tests.exchanged_test_mlp")
    module.__file__ = spec.origin
    exec(compile(source.replace(IMPORT, EXCHANGED), spec.origin, "exec"), module.__dict__)
    assert module.MLPClassifier is gpubackprop.sklearn.MLPClassifier
    return module
