"""scikit-learn's callbacks (`set_callbacks`, SLEP023): the tasks of a fit, one for each epoch.

scikit-learn has them from 1.9 on. Before that the estimators have no `set_callbacks`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing: this scikit-learn has no callbacks."""


__all__ = ["CallbackSupportMixin", "FitTasks"]
Array = np.ndarray
Parameters = Callable[[], dict[str, Any]]


class FitTasks:
    """The task of a fit, and within it the task of the present epoch or iteration.

    Parameters
    ----------
    estimator : BaseMLP
        The estimator, which has callbacks.
    X : array-like
        The training data, as `fit` was given them.
    y : array-like
        The targets, likewise.
    sample_weight : array-like or None
        Factor of each row.
    """

    def __init__(self, estimator: Any, X: Any, y: Any, sample_weight: Any) -> None:
        self.estimator = estimator
        self._data = {
            "estimator": estimator, "X": X, "y": y,
            "metadata": {} if sample_weight is None else {"sample_weight": sample_weight},
        }  # fmt: skip
        self._fit = estimator._init_callback_context(max_subtasks=estimator.max_iter)
        self._epoch: Any = None
        self._fit.call_on_fit_task_begin(**self._data)

    def begin_epoch(self) -> None:
        """Begin the task of the next epoch."""
        self._epoch = self._fit.subcontext(task_name=self._name())
        self._epoch.call_on_fit_task_begin(**self._data)

    def _name(self) -> str:
        return "iteration" if self.estimator.solver == "lbfgs" else "epoch"

    def end_epoch(self, parameters: Parameters) -> bool:
        """End the task of the epoch; return True if a callback wants the fit to stop.

        Parameters
        ----------
        parameters : callable
            Returns coefs_ and intercepts_ as copies; called only if a callback wants the estimator
            as if the fit had stopped here.
        """
        context, self._epoch = self._epoch, None
        return bool(
            context.call_on_fit_task_end(**self._data, reconstruction_attributes=parameters)
        )

    def end(self) -> None:
        """End the task of the fit, and before it that of an epoch that was not finished."""
        if self._epoch is not None:
            self._epoch.call_on_fit_task_end(estimator=self.estimator)
        self._fit.call_on_fit_task_end(**self._data, reconstruction_attributes=dict)
