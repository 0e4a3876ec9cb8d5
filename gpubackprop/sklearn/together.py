"""Fits that scikit-learn's meta-estimators start side by side train together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import joblib

from gpubackprop.backends.devices import is_host
from gpubackprop.errors import OptionError
from gpubackprop.training.rounds import SHARED
from gpubackprop.training.team import device_names


class _Together(contextlib.ContextDecorator):
    """What `together` returns: it may be entered several times, also within itself."""

    def __init__(self, settings: dict[str, Any], devices: Sequence[str]) -> None:
        self._settings, self._devices = settings, devices
        self._own = threading.local()  # joblib's configuration is that of a thread

    def __enter__(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(SHARED.together())
            if self._devices:
                stack.enter_context(SHARED.spread(self._devices))
            stack.enter_context(joblib.parallel_config(backend="threading", **self._settings))
            vars(self._own).setdefault("entered", []).append(stack.pop_all())

    def __exit__(self, *error: object) -> None:
        self._own.entered.pop().close()


def together(
    n_jobs: int | None = None, devices: str | int | Sequence[str] | None = None
) -> _Together:
    """Train the fits that run at the same time together, whoever has started them.

    Inside the context joblib runs its jobs in threads, and the estimators of this package that fit
    at the same time train epoch by epoch: on a GPU the epochs of all of them share launches, on the
    CPU they take turns. That holds for all that uses joblib (GridSearchCV, RandomizedSearchCV,
    cross_val_score, BaggingClassifier, OneVsRestClassifier, StackingClassifier) and for threads
    that a program starts itself. The results are those of the fits one after another. A fit that
    fails, or is stopped, hurts no other.

    On a machine without a GPU, joblib's processes use more cores than its threads; `together` is
    then of use only for a program that runs on both.

    Parameters
    ----------
    n_jobs : int or None
        Number of threads of meta-estimators that leave theirs at None; None is joblib's default.
        One that has `n_jobs` keeps it: as many fits train together, so it may be much larger than
        the number of cores.
    devices : "all", int, sequence of str, or None
        GPUs over which the fits are spread, as for `Trainer`: each fit takes the next one when it
        begins, and the epochs of each GPU share launches. It is for estimators whose `device` is
        "auto" or "cuda" and for data of the host; a fit that is predicted to be faster on the CPU
        stays there.

    Returns
    -------
    context manager
        It may be entered again after its end, or decorate a function.

    Raises
    ------
    OptionError
        `devices` are no names of GPUs.
    DeviceUnavailable
        "all" was asked for and there is no GPU.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from gpubackprop.sklearn import MLPRegressor
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]], [1.0, 3.0, 5.0, 7.0]
    >>> net = MLPRegressor(hidden_layer_sizes=4, n_iter_no_change=2, tol=10.0, random_state=1)
    >>> with together():
    ...     search = GridSearchCV(net, {"alpha": [0.0, 0.1]}, cv=2, n_jobs=4).fit(X, y)
    >>> sorted(search.best_params_)
    ['alpha']
    """
    names = () if devices is None else device_names(devices)
    if names and is_host(names[0]):
        raise OptionError(
            f"devices is {devices!r} but together spreads fits over GPUs; leave it out on the CPU"
        )
    return _Together({} if n_jobs is None else {"n_jobs": n_jobs}, names)
