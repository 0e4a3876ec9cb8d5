"""An ensemble: networks that differ in their seeds alone, and whose outputs are averaged.

The estimator has no network of its own then; `members_` are estimators of one network each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import config_context, get_config
from sklearn.utils import check_random_state

from gpubackprop import ensemble
from gpubackprop.backends import devices
from gpubackprop.errors import OptionError
from gpubackprop.sklearn.arrays import backend_of, on_gpu
from gpubackprop.training.threads import side_by_side

Array = Any
# What an estimator has of its one network, and an ensemble has not.
OF_ONE = (
    "coefs_", "intercepts_", "loss_curve_", "best_loss_", "validation_scores_", "t_",
    "best_validation_score_", "validation_loss_curve_", "_optimizer", "_kept_session",
    "_no_improvement_count", "_random_state",
)  # fmt: skip
OF_ALL = ("n_outputs_", "out_activation_", "n_layers_", "device_")  # the same in all members


def members_of(estimator: Any) -> list[Any] | None:
    """Return the fitted members of an ensemble; None if the estimator has a network of its own."""
    members: list[Any] | None = vars(estimator).get("members_")
    return members


class OfOne:
    """An attribute of one network, in the class: an ensemble's error says that its members have it.

    An estimator's own attribute comes before it, so it is asked only where that is missing.

    Parameters
    ----------
    name : str
        The attribute.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, estimator: Any, kind: type) -> Any:
        name, members = self.name, None if estimator is None else members_of(estimator)
        error = f"{kind.__name__!r} object has no attribute {name!r}"
        if members and hasattr(members[0], name):
            error += f", because it is an ensemble; its members have one each: members_[0].{name}"
        raise AttributeError(error, name=name, obj=estimator)


def check_number(estimator: Any) -> None:
    """Raise OptionError if training is to go on with another number of networks."""
    e, members = estimator, members_of(estimator)
    wanted = 1 if e.n_members is None else e.n_members
    if members is None:
        if wanted == 1 or "coefs_" not in vars(e):
            return
        trained = "one network"
    else:
        if wanted > 1 and wanted == len(members):
            return
        trained = f"{len(members)} members" if len(members) > 1 else "1 member of an ensemble"
    raise OptionError(
        f"n_members was set to {e.n_members} but training goes on with {trained}; fit anew with "
        "warm_start=False"
    )


def fit_members(
    estimator: Any, X: Any, y: Any, sample_weight: Any, incremental: bool, validation: Any
) -> None:
    """Fit the members to X and y, or go on with them, and set the attributes of the ensemble.

    Parameters
    ----------
    estimator : BaseMLP
        The ensemble.
    X : (n_samples, n_features) array-like
        Training rows.
    y : array-like
        Labels or numbers.
    sample_weight : (n_samples,) array-like or None
        Factor of each row.
    incremental : bool
        Whether this is a call of `partial_fit`.
    validation : tuple or None
        See `fit`.
    """
    e = estimator
    if getattr(e, "_skl_callbacks", None):
        raise OptionError(
            f"set_callbacks is for one network, and n_members is {e.n_members}; leave one of the "
            "two out, or use the parameter callbacks, which is called for each member"
        )
    first = members_of(e) is None or not (e.warm_start or incremental)
    X, y = e._validate_input(X, y, incremental, first)
    if validation is not None:  # without the names of columns, which the ensemble has compared
        outputs = e._encode(y).shape[1]
        validation = (*e._validate_new(*validation[:2], outputs), *validation[2:])
    members = new_members(e) if first else [_updated(e, k, m) for k, m in enumerate(e.members_)]
    fits = [
        partial(_fit_one, e, member, X, y, sample_weight, incremental, validation)
        for member in members
    ]
    trained = _fit_each(members, fits, _shares_launches(e, X))
    if first:
        members = members[:trained]  # Ctrl-C has stopped before the others
        for name in OF_ONE:
            vars(e).pop(name, None)
    e.members_ = members
    for name in OF_ALL:
        setattr(e, name, getattr(members[0], name))
    e.n_iter_ = max(member.n_iter_ for member in members)
    e.loss_ = float(np.mean([member.loss_ for member in members]))


def new_members(estimator: Any) -> list[Any]:
    """Return estimators of one network each, with seeds drawn as scikit-learn's ensembles do."""
    drawn = check_random_state(estimator.random_state)
    seeds = drawn.randint(np.iinfo(np.int32).max, size=estimator.n_members)
    return [
        type(estimator)(**_parameters(estimator, place) | {"random_state": int(seed)})
        for place, seed in enumerate(seeds)
    ]


def _updated(estimator: Any, place: int, member: Any) -> Any:
    """Set the parameters of the ensemble in a member, except its seed; return it."""
    return member.set_params(
        **_parameters(estimator, place) | {"random_state": member.random_state}
    )


def _parameters(estimator: Any, place: int) -> dict[str, Any]:
    own = estimator.get_params(deep=False) | {"n_members": None}
    own["progress"] = estimator.progress and place == 0  # one bar, and not one over another
    if estimator.checkpoint is not None:
        file = Path(os.fspath(estimator.checkpoint))
        own["checkpoint"] = file.with_name(f"{file.stem}-{place + 1}{file.suffix}")
    return own


def _fit_one(
    e: Any, member: Any, X: Any, y: Any, weights: Any, incremental: bool, validation: Any
) -> None:
    if not incremental:
        member.fit(X, y, weights, validation_data=validation)
    elif hasattr(e, "classes_"):
        member.partial_fit(X, y, weights, e.classes_)
    else:
        member.partial_fit(X, y, weights)


def _shares_launches(estimator: Any, X: Any) -> bool:
    """Return whether the members may compute on one GPU, where their epochs share launches."""
    if estimator.devices is not None:  # an epoch has its own threads, and takes its turn
        return False
    device = estimator.device
    if device == "auto" and not on_gpu(X):
        device = devices.choose("auto")[0]
    return on_gpu(X) or not devices.is_host(device)


def _fit_each(members: Sequence[Any], fits: Sequence[Callable[[], None]], together: bool) -> int:
    """Fit the members, in threads if they share launches; return how many were trained.

    On the CPU threads gain nothing, so they are fitted one after another.
    """
    if not together:
        for number, (member, fit) in enumerate(zip(members, fits, strict=True), 1):
            fit()
            if was_interrupted(member):
                return number
        return len(members)
    settings = get_config()

    def configured(fit: Callable[[], None]) -> None:
        with config_context(**settings):
            fit()

    for error in side_by_side([partial(configured, fit) for fit in fits]):
        if error is not None:
            raise error
    return len(members)


def was_interrupted(estimator: Any) -> bool:
    """Return whether Ctrl-C ended the last fit, which keeps what was learned."""
    return bool(vars(estimator).get("_interrupted", False))


def mean_of(outputs: Sequence[Array]) -> Array:
    """Return the mean of arrays (N, K) of one dtype, where they lie."""
    on_host = isinstance(outputs[0], np.ndarray)
    return ensemble.mean_of(outputs, None if on_host else backend_of(outputs[0]))
