"""`MLPRegressor`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin, _fit_context
from sklearn.metrics import r2_score
from sklearn.utils.metaestimators import available_if

from gpubackprop.errors import DtypeError
from gpubackprop.sklearn import arrays
from gpubackprop.sklearn.estimator import BaseMLP
from gpubackprop.sklearn.parameters import NETWORK_CONSTRAINTS, LossName

Array = Any


class MLPRegressor(RegressorMixin, BaseMLP):
    """Multi-layer perceptron regressor, a drop-in for `sklearn.neural_network.MLPRegressor`.

    Parameters
    ----------
    loss : "squared_error" (half of it) or "poisson" (half the deviance; yhat = exp, y >= 0).
        *Beyond scikit-learn:* every other loss of linear output units in
        `gpubackprop.losses.LOSSES`, also with its parameter in parentheses.
    hidden_layer_sizes : units of each hidden layer, or a number for one layer.
    activation : of the hidden layers: "identity", "logistic", "tanh", "relu". *Beyond
        scikit-learn:* every name of `gpubackprop.formulas.ACTIVATIONS` ("gelu",
        "leaky_relu(0.2)"), or a list with one for each hidden layer.
    solver : "adam", "sgd", "lbfgs". *Beyond:* a name of `gpubackprop.optimizers.OPTIMIZERS` with
        that optimizer's defaults and `learning_rate_init`, or an `Optimizer` with its own rate.
    alpha : L2 penalty on the weights, divided by the rows of a batch (the sum of their weights).
    batch_size : rows of a batch; "auto" is min(200, n_samples). *Beyond:* "full", all rows.
    learning_rate : "constant", "invscaling", "adaptive" for "sgd" (Adam's is constant). *Beyond:* a
        name of `gpubackprop.schedules.SCHEDULES` or a `Schedule`, for every solver but "lbfgs".
    learning_rate_init, power_t : initial rate, and the exponent of "invscaling".
    max_iter, max_fun : most epochs (iterations of "lbfgs"), and function calls of "lbfgs".
    shuffle : a new order of the rows in every epoch.
    random_state : int, `RandomState` or None: initial weights, validation split, orders.
    tol, n_iter_no_change : training ends when the loss (or validation score) has not improved by
        `tol` in so many epochs in a row.
    verbose : print the device, and loss and score of each epoch.
    warm_start : `fit` goes on from the last solution.
    momentum, nesterovs_momentum : of "sgd". beta_1, beta_2, epsilon : of "adam".
    early_stopping, validation_fraction : hold out that share of the rows, stop by the score on
        them, and keep the best parameters.
    device : *beyond scikit-learn, as all that follows:* "auto" (a GPU that works and is
        predicted to be sooner done, else the CPU; `verbose` says why), "cpu", "cuda", "cuda:1". X
        on a GPU is computed there.
    precision : "float32" or "float64" to compute in; None: that of X.
    dropout : rate p in [0, 1) of every hidden layer, or a list with one for each. In training, and
        so in `loss_curve_`, a hidden unit is 0 with probability p, else divided by 1 - p;
        predictions and scores are without. Where p > 0 a seed is drawn from `random_state`, once:
        `partial_fit` and warm starts go on with its masks. Not for "lbfgs".
    callbacks : functions called as ``callback(estimator, row)`` after each epoch, `row` with epoch,
        loss, and val_loss, val_score where rows are held out. What one returns is ignored; one
        that raises `gpubackprop.StopTraining` ends training after that epoch. `coefs_` and
        `intercepts_` are those of the epoch; training goes on from what is written into them.
    progress : show a progress bar.
    checkpoint, checkpoint_every : file from which an interrupted `fit` goes on bit for bit, written
        every so many epochs; for each fit its own. With a larger `max_iter` a finished one goes on.

    Attributes
    ----------
    coefs_, intercepts_ : arrays (fan_in, fan_out) and (fan_out,) of each layer, on the host; they
        may be assigned or edited before `predict` and `partial_fit`.
    loss_, best_loss_, loss_curve_ : loss of the last, the best and of each epoch, L2 included.
    validation_scores_, best_validation_score_ : R^2 on the held-out rows, or None.
    validation_loss_curve_ : loss on the held-out rows (no penalty), or None. *Beyond.*
    n_iter_, t_ : epochs done, and rows seen. n_layers_, n_outputs_, out_activation_.
    n_features_in_, feature_names_in_ : of X.
    device_ : "cpu" or "cuda:N", where the last fit ran. *Beyond.*

    Notes
    -----
    On the CPU in float64 the loss curve is scikit-learn's (1.9) to rounding, from the same seed:
    the same draws in the same order, the same Adam, penalty and stopping rules.

    >>> X, y = [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]
    >>> reg = MLPRegressor("squared_error", 8, "identity", solver="lbfgs", random_state=1)
    >>> reg = reg.fit(X, y)
    >>> reg.predict([[3.0]]).round(2)
    array([7.])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **NETWORK_CONSTRAINTS,
        "loss": [LossName()],
    }

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: Any = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: Any = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        device: str = "auto",
        precision: str | None = None,
        dropout: Any = 0.0,
        callbacks: Any = (),
        progress: bool = False,
        checkpoint: Any = None,
        checkpoint_every: int = 1,
    ) -> None:
        self._store(locals())

    def _output_activation(self) -> str:
        return "exp" if self.loss == "poisson" else "identity"

    def _validate_input(
        self, X: Any, y: Any, incremental: bool, reset: bool
    ) -> tuple[Any, np.ndarray]:
        X, y = arrays.validate(self, X, y, reset=reset, y_numeric=True)
        if y.dtype.kind not in "fiub":
            raise DtypeError(f"y has dtype {y.dtype} but must be real numbers")
        if self.precision is not None and arrays.largest(y) > np.finfo(self.precision).max:
            raise ValueError(
                f"Input y contains a value too large for dtype('{self.precision}'), which is the "
                f'estimator\'s precision; use precision="float64", or None'
            )
        return X, arrays.column_raveled(y)

    def _validate_new(self, X: Any, y: Any, outputs: int) -> tuple[Any, np.ndarray]:
        X, y = self._validate_input(X, y, True, False)
        return X, arrays.with_columns(y, outputs)

    def _encode(self, y: Any) -> np.ndarray:
        return y.reshape(-1, 1) if y.ndim == 1 else y

    @available_if(lambda estimator: estimator._check_solver())
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Update the network with one epoch over the given data.

        Parameters
        ----------
        X : (n_samples, n_features), as for `fit`. y : (n_samples,) or (n_samples, n_outputs).
        sample_weight : (n_samples,), or None.

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Array:
        """Predicted values of each row: (n_samples,) or (n_samples, n_outputs)."""
        y_pred = self._outputs(X)
        return arrays.like(y_pred.reshape(-1) if y_pred.shape[1] == 1 else y_pred, X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R^2 of the predictions for X.

        Parameters
        ----------
        X : (n_samples, n_features), as for `predict`.
        y : (n_samples,) or (n_samples, n_outputs); it and the weights may lie on a GPU.
        sample_weight : (n_samples,), or None.
        """
        given = map(arrays.to_host, (y, self.predict(X)))
        return r2_score(*given, sample_weight=arrays.to_host(sample_weight))
