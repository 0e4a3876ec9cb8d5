"""The values that the estimators' parameters may have, as scikit-learn validates them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils._param_validation import (
    Interval,
    Options,
    StrOptions,
    validate_parameter_constraints,
)

from gpubackprop.errors import GpubackpropError
from gpubackprop.formulas import ACTIVATIONS, activation
from gpubackprop.losses import LOSSES, loss
from gpubackprop.optimizers import OPTIMIZERS, Optimizer
from gpubackprop.schedules import SCHEDULES, Schedule

SKLEARN_ACTIVATIONS = frozenset({"identity", "logistic", "tanh", "relu"})
SKLEARN_LOSSES = frozenset({"squared_error", "poisson"})  # scikit-learn's regressor has these
SKLEARN_SOLVERS = frozenset({"lbfgs", "sgd", "adam"})
SKLEARN_RATES = frozenset({"constant", "invscaling", "adaptive"})
SKLEARN_MODULE = "sklearn.neural_network._multilayer_perceptron"
_SHOWN: dict[Any, Any] = {}  # the filters "default" and "once" note here what they have shown


class ActivationName(StrOptions):
    """A registry name, which may have its parameter: "leaky_relu(0.2)"."""

    def __init__(self) -> None:
        super().__init__(set(ACTIVATIONS))

    def is_satisfied_by(self, val: Any) -> bool:
        try:
            return isinstance(val, str) and bool(activation(val))
        except GpubackpropError:
            return False


class LossName(StrOptions):
    """scikit-learn's two losses, and every loss of linear output units."""

    def __init__(self) -> None:
        more = {name for name, kind in LOSSES.items() if kind.output == "linear"}
        super().__init__(set(SKLEARN_LOSSES) | more)

    def is_satisfied_by(self, val: Any) -> bool:
        try:
            return isinstance(val, str) and loss(val).name in self.options
        except GpubackpropError:
            return False


NETWORK_CONSTRAINTS: dict[str, list[Any]] = {
    "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
    "activation": [ActivationName(), list, tuple],
    "solver": [StrOptions(set(SKLEARN_SOLVERS) | set(OPTIMIZERS)), Optimizer],
    "alpha": [Interval(Real, 0, None, closed="left")],
    "batch_size": [StrOptions({"auto", "full"}), Interval(Integral, 1, None, closed="left")],
    "learning_rate": [StrOptions(set(SKLEARN_RATES) | set(SCHEDULES)), Schedule],
    "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
    "power_t": [Interval(Real, 0, None, closed="left")],
    "max_iter": [Interval(Integral, 1, None, closed="left")],
    "shuffle": ["boolean"],
    "random_state": ["random_state"],
    "tol": [Interval(Real, 0, None, closed="left")],
    "verbose": ["verbose"],
    "warm_start": ["boolean"],
    "momentum": [Interval(Real, 0, 1, closed="both")],
    "nesterovs_momentum": ["boolean"],
    "early_stopping": ["boolean"],
    "validation_fraction": [Interval(Real, 0, 1, closed="left")],
    "beta_1": [Interval(Real, 0, 1, closed="left")],
    "beta_2": [Interval(Real, 0, 1, closed="left")],
    "epsilon": [Interval(Real, 0, None, closed="neither")],
    "n_iter_no_change": [
        Interval(Integral, 1, None, closed="left"),
        Options(Real, {np.inf}),
    ],
    "max_fun": [Interval(Integral, 1, None, closed="left")],
    "device": [str],
    "devices": [StrOptions({"all"}), Interval(Integral, 1, None, closed="left"), list, tuple, None],
    "precision": [StrOptions({"float32", "float64"}), None],
    "dropout": [Interval(Real, 0, 1, closed="left"), list, tuple],
    "callbacks": [list, tuple],
    "progress": ["boolean"],
    "checkpoint": [str, os.PathLike, None],
    "checkpoint_every": [Interval(Integral, 1, None, closed="left")],
    "n_members": [Interval(Integral, 1, None, closed="left"), None],
}


PLAIN = (str, int, float, np.number, np.bool_, type(None))  # they cannot change and hold nothing


def check_parameters(estimator: Any) -> None:
    """Validate an estimator's parameters by its constraints; plain ones that were valid still are.

    Raises
    ------
    InvalidParameterError
        As scikit-learn's own estimators.
    """
    parameters = estimator.get_params(deep=False)
    names, values = tuple(parameters), parameters.values()
    check: Any = _check_values
    for value in values:
        for part in value if type(value) is tuple else (value,):
            if not isinstance(part, PLAIN):
                check = _check_all
    check(type(estimator), names, *values)


def _check_all(kind: Any, names: tuple[str, ...], *values: Any) -> None:
    named = dict(zip(names, values, strict=True))
    validate_parameter_constraints(kind._parameter_constraints, named, kind.__name__)


_check_values = lru_cache(maxsize=256, typed=True)(_check_all)  # an error is not kept


def hidden_sizes(value: Any) -> list[int]:
    """Return `hidden_layer_sizes` as a list.

    ValueError, in scikit-learn's words, is raised unless all sizes are > 0.
    """
    sizes = list(value) if isinstance(value, Iterable) else [value]
    if np.any(np.array(sizes) <= 0):
        raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
    return sizes


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn as `warnings.warn` in scikit-learn's module; file and line are the caller's."""
    caller = sys._getframe(1)
    warnings.warn_explicit(
        message, category, caller.f_code.co_filename, caller.f_lineno, SKLEARN_MODULE, _SHOWN
    )
