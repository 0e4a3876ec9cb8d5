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
    loss : str
        "squared_error" (half of it) or "poisson" (half the deviance; yhat = exp, y >= 0). *Beyond
        scikit-learn:* every other loss of linear output units in `gpubackprop.losses.LOSSES`, which
        may have its parameter in parentheses.
    hidden_layer_sizes : sequence of int, or int
        Units of each hidden layer; a number stands for one layer.
    activation : str, or sequence
        Activation of the hidden layers: "identity", "logistic", "tanh", "relu". *Beyond
        scikit-learn:* every name of `gpubackprop.formulas.ACTIVATIONS` ("gelu", "leaky_relu(0.2)"),
        or a list with one for each hidden layer.
    solver : str or Optimizer
        One of "adam", "sgd", "lbfgs". *Beyond scikit-learn:* a name of
        `gpubackprop.optimizers.OPTIMIZERS`, with that optimizer's defaults and
        `learning_rate_init`, or an `Optimizer` with its own learning rate.
    alpha : float
        L2 penalty on the weights, divided by the rows of a batch (by the sum of their weights).
    batch_size : int or str
        Rows of a batch; "auto" is min(200, n_samples). *Beyond scikit-learn:* "full" is all rows.
    learning_rate : str or Schedule
        Schedule for "sgd": "constant", "invscaling", "adaptive" (Adam's is constant). *Beyond
        scikit-learn:* a name of `gpubackprop.schedules.SCHEDULES` or a `Schedule`, for every solver
        except "lbfgs".
    learning_rate_init : float
        Initial learning rate.
    power_t : float
        Exponent of "invscaling".
    max_iter : int
        Most epochs, or iterations of "lbfgs".
    shuffle : bool
        Whether every epoch has a new order of the rows.
    random_state : int, RandomState or None
        Source of initial weights, validation split and orders.
    tol : float
        Smallest improvement of the loss (or validation score) that counts.
    verbose : bool
        Whether to print the device, and loss and score of each epoch. On a GPU also whether an
        epoch is one launch, or why not.
    warm_start : bool
        Whether `fit` goes on from the last solution.
    momentum : float
        Momentum of "sgd".
    nesterovs_momentum : bool
        Whether "sgd" uses Nesterov's momentum.
    early_stopping : bool
        Whether to hold out rows, stop by the score on them, and keep the best parameters.
    validation_fraction : float
        Share of the rows that early stopping holds out.
    beta_1 : float
        Decay rate of the first moment of "adam".
    beta_2 : float
        Decay rate of the second moment of "adam".
    epsilon : float
        Number that "adam" adds to the root.
    n_iter_no_change : int
        Training ends after so many epochs in a row without an improvement by `tol`.
    max_fun : int
        Most function calls of "lbfgs".
    device : str
        *Beyond scikit-learn, as all that follows.* Either "auto", "cpu", "cpu:numpy" (the CPU
        without compiled kernels), "cuda" or "cuda:1". "auto" takes a GPU that works and is
        predicted to finish sooner, else the CPU; `verbose` says why. If X lies on a GPU, it is
        computed there.
    devices : str, int, sequence of str, or None
        Several devices that train one network: "all" GPUs, a number of them, or names such as
        ["cuda:0", "cuda:1"]; a thread for each computes its rows of every batch. The result is that
        of one device, to rounding. Not for "lbfgs". Predictions use one device. None is `device`.
    precision : {"float32", "float64"} or None
        Dtype to compute in; None is that of X.
    dropout : float, or sequence of float
        Rate p in [0, 1) of every hidden layer, or of each. In training, and so in `loss_curve_`, a
        hidden unit is 0 with probability p and otherwise divided by 1 - p. Predictions and scores
        use no dropout. If p > 0, a seed is drawn from `random_state` once; `partial_fit` and warm
        starts go on with its masks. Not for "lbfgs".
    callbacks : sequence of callable
        Called as ``callback(estimator, row)`` after each epoch. `row` has epoch and loss, and
        val_loss and val_score if rows are held out. The returned value is ignored. If a callback
        raises `gpubackprop.StopTraining`, training ends after that epoch. `coefs_` and
        `intercepts_` are those of the epoch; if a callback writes into them, training goes on from
        there.
    progress : bool
        Whether to show a progress bar.
    checkpoint : path or None
        File from which an interrupted `fit` goes on bit for bit; one file belongs to one fit. With
        a larger `max_iter` a finished fit goes on.
    checkpoint_every : int
        Number of epochs between two checkpoints.
    n_members : int or None
        Number of networks of an ensemble, whose predictions are averaged; None and 1 are one
        network. They have the same parameters and data, and seeds drawn from `random_state`. They
        are in `members_`, with all that one network has; the ensemble has no `coefs_`.
        `partial_fit` and warm starts go on with the same number.

    Attributes
    ----------
    coefs_ : list of (fan_in, fan_out) arrays
        Weights of each layer, on the host. They may be assigned or edited before `predict` and
        `partial_fit`.
    intercepts_ : list of (fan_out,) arrays
        Biases of each layer, likewise.
    loss_ : float
        Loss of the last epoch, L2 penalty included.
    best_loss_ : float or None
        Lowest loss of an epoch; None with early stopping.
    loss_curve_ : list of float
        Loss of each epoch.
    validation_scores_ : list of float, or None
        R^2 on the held-out rows after each epoch.
    best_validation_score_ : float or None
        The highest of these.
    validation_loss_curve_ : list of float, or None
        Loss on the held-out rows, without penalty. *Beyond scikit-learn.*
    n_iter_ : int
        Epochs done.
    t_ : int
        Rows seen.
    n_layers_ : int
        Number of layers, the inputs included.
    n_outputs_ : int
        Number of output units.
    out_activation_ : str
        Activation of the output units.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : (D_0,) array of str
        Names of the columns, if X was a data frame.
    device_ : str
        Where the last fit ran: "cpu", "cpu:numpy" or "cuda:N"; several are joined by commas.
        *Beyond scikit-learn.*
    members_ : list of MLPRegressor
        The members of an ensemble, if `n_members` is larger than 1. `loss_` is then the mean of
        theirs, and `n_iter_` the largest. *Beyond scikit-learn.*

    Notes
    -----
    On the CPU in float64 the loss curve is scikit-learn's (1.9) to rounding, from the same seed:
    the same draws in the same order, the same Adam, penalty and stopping rules.

    References
    ----------
    `sklearn.neural_network.MLPRegressor`.

    Examples
    --------
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
        devices: Any = None,
        precision: str | None = None,
        dropout: Any = 0.0,
        callbacks: Any = (),
        progress: bool = False,
        checkpoint: Any = None,
        checkpoint_every: int = 1,
        n_members: int | None = None,
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
        X : (n_samples, n_features) array-like
            Inputs, as for `fit`.
        y : (n_samples,) or (n_samples, n_outputs) array-like
            Targets.
        sample_weight : (n_samples,) array-like or None
            Factor of each row.

        Returns
        -------
        MLPRegressor
            The estimator itself.
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Array:
        """Predict the values of each row.

        Parameters
        ----------
        X : (n_samples, n_features) array-like
            Inputs.

        Returns
        -------
        (n_samples,) or (n_samples, n_outputs) array
            Predictions.
        """
        y_pred = self._outputs(X)
        return arrays.like(y_pred.reshape(-1) if y_pred.shape[1] == 1 else y_pred, X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Compute R^2 of the predictions for X.

        Parameters
        ----------
        X : (n_samples, n_features) array-like
            Inputs.
        y : (n_samples,) or (n_samples, n_outputs) array-like
            Targets; they may lie on a GPU.
        sample_weight : (n_samples,) array-like or None
            Factor of each row; it may lie on a GPU.

        Returns
        -------
        float
            The coefficient of determination.
        """
        given = map(arrays.to_host, (y, self.predict(X)))
        return r2_score(*given, sample_weight=arrays.to_host(sample_weight))
