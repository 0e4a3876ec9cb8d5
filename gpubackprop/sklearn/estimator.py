"""The interface that the classifier and the regressor share."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from scipy import sparse
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from gpubackprop.errors import OptionError
from gpubackprop.ops.checks import functions
from gpubackprop.sklearn import arrays, report
from gpubackprop.sklearn.convert import NOT_CALLED, from_sklearn, not_called, to_sklearn
from gpubackprop.sklearn.fit_tasks import CallbackSupportMixin, FitTasks
from gpubackprop.sklearn.fitting import Fitting, Validation, ValidationData
from gpubackprop.sklearn.members import OF_ONE, OfOne, check_number, fit_members
from gpubackprop.sklearn.onnx_export import OnnxExport
from gpubackprop.sklearn.parameters import NETWORK_CONSTRAINTS, check_parameters, hidden_sizes
from gpubackprop.sklearn.prediction import outputs
from gpubackprop.sklearn.session import check_devices
from gpubackprop.sklearn.stored import check_goes_on, widths_of

Array = Any
REPORT = "_report"  # key in a pickled estimator's state: the file in which its fits are reported


class BaseMLP(CallbackSupportMixin, OnnxExport, Fitting):
    """The base of both estimators; not for direct use."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = NETWORK_CONSTRAINTS
    devices: Any = None  # estimators that an older version has pickled have no such parameter

    def _store(self, parameters: dict[str, Any]) -> None:
        """Set the parameters of a constructor, given as its local names, as attributes."""
        for name, value in parameters.items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    @classmethod
    @lru_cache
    def _get_param_names(cls) -> list[str]:
        """Return the names of the constructor's parameters; scikit-learn inspects it each time."""
        names: list[str] = super()._get_param_names()
        return names

    def _validate_params(self) -> None:
        check_parameters(self)

    # -- fitting ----------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, validation_data: ValidationData = None
    ) -> BaseMLP:
        """Fit the network to X and y.

        Parameters
        ----------
        X : (n_samples, n_features) array-like
            An array, data frame, CSR or CSC matrix, or tensor.
        y : (n_samples,) or (n_samples, n_outputs) array-like
            Labels or numbers.
        sample_weight : (n_samples,) array-like or None
            Factor of each row.
        validation_data : tuple or None
            The arrays (X, y) or (X, y, sample_weight), evaluated after each epoch; with
            ``early_stopping=True`` they take the place of held-out training rows. Beyond
            scikit-learn.

        Returns
        -------
        BaseMLP
            The estimator itself.

        Raises
        ------
        ValueError
            X or y is not what scikit-learn's own estimator takes, or the parameters are not finite
            after training.
        OptionError
            The options contradict each other.
        """
        return self._fit(X, y, sample_weight, validation_data=validation_data)

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        incremental: bool = False,
        validation_data: ValidationData = None,
    ) -> BaseMLP:
        started = time.perf_counter()
        sizes = hidden_sizes(self.hidden_layer_sizes)
        self._check_options(X, validation_data)
        if self.warm_start or incremental:
            check_number(self)
        if self.n_members is not None and self.n_members > 1:
            fit_members(self, X, y, sample_weight, incremental, validation_data)
            return self
        self.__dict__.pop("_interrupted", None)
        self.__dict__.pop("members_", None)  # of an earlier fit with n_members
        watched = not incremental and getattr(self, "_skl_callbacks", None)  # by `set_callbacks`
        tasks = FitTasks(self, X, y, sample_weight) if watched else None
        first = "coefs_" not in vars(self) or not (self.warm_start or incremental)
        X, given = self._validate_input(X, y, incremental, first)
        y = self._encode(given)  # before the weights are looked at, as in scikit-learn
        weights = self._weights(given, self._check_weights(sample_weight, X))
        if not first:
            check_goes_on(self, X.shape[1], sizes, y.shape[1])
        if incremental and hasattr(self, "_optimizer"):  # coefs_ may have been deleted
            widths = [X.shape[1], *sizes, y.shape[1]] if first else widths_of(self.coefs_)
            self._optimizer.check_widths(widths)
        validation = self._check_validation(validation_data, y.shape[1])
        self.n_outputs_ = y.shape[1]
        self._random_state = check_random_state(self.random_state)
        if first:
            self._initialize([X.shape[1], *sizes, self.n_outputs_], X.dtype)
        if self.solver == "lbfgs":
            self._fit_lbfgs(X, y, weights, tasks)
        else:
            self._fit_stochastic(X, y, weights, incremental, validation, tasks)
        if not all(np.isfinite(array).all() for array in [*self.coefs_, *self.intercepts_]):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may"
                " contain large values and need to be preprocessed."
            )
        if tasks is not None:
            tasks.end()
        report.add(self, X.shape, time.perf_counter() - started)
        return self

    def _check_weights(self, weights: Any, X: Any) -> np.ndarray | None:
        if weights is None:
            return None
        stand_in = np.empty((X.shape[0], 1)) if arrays.on_gpu(X) else X
        return _check_sample_weight(arrays.to_host(weights), stand_in)

    def _check_validation(self, validation_data: ValidationData, outputs: int) -> Validation:
        """Return validation_data as (X, encoded y, weights or None)."""
        if validation_data is None:
            return None
        X, y, weights = (*validation_data, None)[:3]
        X, y = self._validate_new(X, y, outputs)
        weights = self._check_weights(weights, X)
        return X, self._encode(y), weights

    def _check_options(self, X: Any, validation_data: ValidationData) -> None:
        """Raise OptionError for options that contradict each other, or that "lbfgs" ignores."""
        if any(hasattr(self, name) for name in NOT_CALLED):
            raise not_called(self)
        pair = validation_data is None or isinstance(validation_data, tuple | list)
        if not pair or len(validation_data or (0, 0)) not in (2, 3):
            raise OptionError("validation_data must be (X, y) or (X, y, sample_weight)")
        functions(dict(enumerate(self.callbacks)), "callbacks")
        if self.devices is not None:
            check_devices(self, X)
        wanted = {
            "validation_data": validation_data is not None,
            "callbacks": bool(self.callbacks),
            "progress": self.progress,
            "checkpoint": self.checkpoint is not None,
        }
        if self.solver == "lbfgs" and any(wanted.values()):
            names = ", ".join(name for name, is_wanted in wanted.items() if is_wanted)
            raise OptionError(f'solver="lbfgs" has no epochs, so leave out {names}')
        if self.solver == "lbfgs" and np.any(self.dropout):
            raise OptionError(
                f'solver="lbfgs" needs the same loss at every call, and dropout={self.dropout!r} '
                f'changes it; use solver="adam" or another, or dropout=0.0'
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickle, without the plans, which are made again.

        Inside `accelerate` the state names the file of its report, for the process that unpickles
        the estimator.
        """
        state = {k: v for k, v in super().__getstate__().items() if k != "_kept_session"}
        path = report.destination()
        return state if path is None else state | {REPORT: path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        report.adopt(state.get(REPORT))
        super().__setstate__({k: v for k, v in state.items() if k != REPORT})

    # -- predicting -------------------------------------------------------------------------------

    def _outputs(self, X: Any) -> Array:
        """Check X and return yhat (N, K), on the device that computes."""
        fitted = "coefs_" in vars(self) and not hasattr(self, "__sklearn_is_fitted__")
        if fitted and arrays.is_valid(self, X):
            return outputs(self, X)
        check_is_fitted(self)
        if arrays.on_gpu(X):
            return outputs(self, arrays.validate_on_gpu(self, X, reset=False))
        X = validate_data(
            self, arrays.to_host(X), accept_sparse=["csr", "csc"], reset=False,
            dtype="numeric" if self.precision is None else np.dtype(self.precision),
        )  # fmt: skip
        return outputs(self, X.tocsr() if sparse.issparse(X) else X)

    def to_sklearn(self) -> Any:
        """Make scikit-learn's own estimator with these parameters and this network.

        It is for programs that look at the class. Its `partial_fit` begins with a fresh optimizer,
        without dropout.

        Returns
        -------
        estimator
            An `sklearn.neural_network.MLPClassifier` or `MLPRegressor`.

        Raises
        ------
        OptionError
            scikit-learn does not have the activation, or this is an ensemble, or of a class with a
            `predict` or the like of its own.
        """
        return to_sklearn(self)

    @classmethod
    def from_sklearn(cls, estimator: Any) -> BaseMLP:
        """Make an estimator of this class from scikit-learn's own.

        Its `partial_fit` begins with a fresh optimizer.

        Parameters
        ----------
        estimator : estimator
            An `sklearn.neural_network.MLPClassifier` or `MLPRegressor`, fitted or not.

        Returns
        -------
        BaseMLP
            An estimator with the same parameters and the same network.

        Raises
        ------
        OptionError
            The estimator is of another class, or of one with a `predict` or the like of its own.
        """
        return from_sklearn(cls, estimator)

    def _check_solver(self) -> bool:
        if self.solver == "lbfgs":
            raise AttributeError(
                "partial_fit is only available for stochastic"
                f" optimizers. {self.solver} is not stochastic."
            )
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


for _name in OF_ONE:
    if not _name.startswith("_"):
        setattr(BaseMLP, _name, OfOne(_name))
