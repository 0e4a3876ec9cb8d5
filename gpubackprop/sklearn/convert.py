"""Conversion from scikit-learn's own classes and back, for programs that look at the class."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier, MLPRegressor

from gpubackprop.errors import OptionError
from gpubackprop.sklearn.members import members_of
from gpubackprop.sklearn.parameters import (
    SKLEARN_ACTIVATIONS,
    SKLEARN_LOSSES,
    SKLEARN_RATES,
    SKLEARN_SOLVERS,
)

ORIGINALS = {"MLPClassifier": MLPClassifier, "MLPRegressor": MLPRegressor}
KEPT = ("_label_binarizer", "_no_improvement_count")  # private attributes that both classes have
OURS = ("device_", "validation_loss_curve_")
# A subclass that has one of these computes something else than its base.
METHODS = {"fit", "partial_fit", "predict", "predict_proba", "predict_log_proba", "score"}
# Private methods of scikit-learn's classes that nothing here calls. Programs override them.
NOT_CALLED = (
    "_backprop",
    "_compute_loss_grad",
    "_forward_pass",
    "_forward_pass_fast",
    "_init_coef",
    "_loss_grad_lbfgs",
    "_predict",
    "_score",
    "_score_with_function",
    "_unpack",
    "_update_no_improvement_count",
)


def to_sklearn(estimator: Any) -> Any:
    """Return scikit-learn's estimator with the same parameters and, if fitted, the same network."""
    if (estimator.n_members or 1) > 1 or members_of(estimator) is not None:
        raise OptionError(
            "scikit-learn's estimator has one network; convert each of members_, and average their "
            "predictions with its VotingClassifier or VotingRegressor"
        )
    original = ORIGINALS["MLPClassifier" if hasattr(estimator, "predict_proba") else "MLPRegressor"]
    _refuse_overrides(estimator, original.__name__)
    given = estimator.activation
    names = {given} if isinstance(given, str) else set(given) or {"relu"}  # without hidden layers
    activation = names.pop()
    if names or activation not in SKLEARN_ACTIVATIONS:
        raise OptionError(
            f"activation {given!r} has no counterpart in scikit-learn, which has "
            f"{', '.join(sorted(SKLEARN_ACTIVATIONS))} for all hidden layers alike"
        )
    ours = estimator.get_params(deep=False) | {"activation": activation}
    known = original().get_params(deep=False)
    refused = [
        name
        for name, values in (("solver", SKLEARN_SOLVERS), ("learning_rate", SKLEARN_RATES))
        if not (isinstance(ours[name], str) and ours[name] in values)
    ]
    if "loss" in known and ours["loss"] not in SKLEARN_LOSSES:
        refused.append("loss")
    if ours["batch_size"] == "full":
        refused.append("batch_size")
    for name in refused:
        warnings.warn(
            f"scikit-learn has no {name}={ours[name]!r}: the converted estimator predicts the "
            f"same, but would go on training with {known[name]!r}",
            stacklevel=3,
        )
        ours[name] = known[name]
    wanted = {"dropout": np.any(ours["dropout"]), "class_weight": ours.get("class_weight")}
    for name, is_wanted in wanted.items():
        if is_wanted:
            warnings.warn(
                f"scikit-learn has no {name}: the converted estimator predicts the same, but would "
                "go on training without",
                stacklevel=3,
            )
    result = original(**{name: ours[name] for name in known})
    _copy_state(estimator, result)
    if _fitted(estimator) and result.early_stopping:  # a warm start may restore these
        result._best_coefs = [coef.copy() for coef in result.coefs_]
        result._best_intercepts = [intercept.copy() for intercept in result.intercepts_]
    return result


def from_sklearn(cls: type, estimator: Any) -> Any:
    """Return this package's `cls` with the parameters and network of scikit-learn's `estimator`."""
    original = ORIGINALS["MLPClassifier" if hasattr(cls, "predict_proba") else "MLPRegressor"]
    if not isinstance(estimator, original):
        raise OptionError(
            f"{cls.__name__}.from_sklearn wants scikit-learn's {original.__name__} but got "
            f"{type(estimator).__name__}"
        )
    _refuse_overrides(estimator, original.__name__)
    known = original().get_params(deep=False)
    result = cls(**{name: getattr(estimator, name) for name in known})
    _copy_state(estimator, result)
    if hasattr(result, "loss_curve_"):
        result.validation_loss_curve_ = None
    return result


def not_called(estimator: Any) -> OptionError:
    """Return the error for methods that a program has put and only scikit-learn would call."""
    own = ", ".join(name for name in NOT_CALLED if hasattr(estimator, name))
    return OptionError(
        f"{type(estimator).__name__} has {own} of its own. scikit-learn's estimator calls such "
        "private methods and this one does not, so they would have no effect; derive from "
        "sklearn.neural_network's class instead"
    )


def _refuse_overrides(estimator: Any, base: str) -> None:
    """Raise OptionError for a subclass of `base` that computes something else."""
    kind = type(estimator)
    for owner in kind.__mro__:
        if owner.__name__ == base and owner.__module__.startswith(("sklearn.", "gpubackprop.")):
            return
        if own := METHODS & set(vars(owner)):
            raise OptionError(
                f"{kind.__name__} has {', '.join(sorted(own))} of its own, which would be lost; "
                f"derive it from the other package's {base} instead"
            )


def _fitted(estimator: Any) -> bool:
    return hasattr(estimator, "coefs_")


def _copy_state(source: Any, target: Any) -> None:
    """Copy fitted attributes. The classes keep the optimizer's moments differently: they stay."""
    for name, value in vars(source).items():
        public = name.endswith("_") and not name.startswith("_") and name not in OURS
        if public or name in KEPT:
            setattr(target, name, copy.deepcopy(value))
