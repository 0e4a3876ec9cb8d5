"""`MLPClassifier`."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import compute_class_weight, compute_sample_weight
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target, unique_labels

from gpubackprop.backends.cupy.library import import_cupy
from gpubackprop.sklearn import arrays
from gpubackprop.sklearn.estimator import BaseMLP
from gpubackprop.sklearn.parameters import NETWORK_CONSTRAINTS
from gpubackprop.sklearn.prediction import two_columns
from gpubackprop.sklearn.stored import check_width

Array = Any


def fitted_binarizer(y: Any) -> LabelBinarizer:
    """Return ``LabelBinarizer().fit(y)``; plain integer labels do without its general checks."""
    binarizer = LabelBinarizer()
    if type(y) is np.ndarray and y.ndim == 1 and y.dtype.kind in "iu" and y.dtype.isnative:
        classes = np.unique(y)
        if 1 <= len(classes) <= len(y) // 2:  # scikit-learn warns if there are more
            binarizer.y_type_ = "binary" if len(classes) <= 2 else "multiclass"
            binarizer.sparse_input_, binarizer.classes_ = False, classes
            with warnings.catch_warnings():  # as in its checks: an earlier fit's are shown again
                return binarizer
    return binarizer.fit(y)


class MLPClassifier(ClassifierMixin, BaseMLP):
    """Multi-layer perceptron classifier, a drop-in for `sklearn.neural_network.MLPClassifier`.

    The loss is the cross entropy of a softmax output, or of logistic outputs for two classes and
    for multi-label targets.

    Parameters
    ----------
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
    class_weight : dict, "balanced" or None
        Factor of each class on the sample weights.
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
        Number of networks of an ensemble, whose probabilities are averaged; None and 1 are one
        network. They have the same parameters and data, and seeds drawn from `random_state`. They
        are in `members_`, with all that one network has; the ensemble has no `coefs_`.
        `partial_fit` and warm starts go on with the same number.

    Attributes
    ----------
    classes_ : (n_classes,) array
        Labels; a list of arrays for multi-label targets.
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
        Accuracy on the held-out rows after each epoch.
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
    members_ : list of MLPClassifier
        The members of an ensemble, if `n_members` is larger than 1. `loss_` is then the mean of
        theirs, and `n_iter_` the largest. *Beyond scikit-learn.*

    Notes
    -----
    On the CPU in float64 the loss curve is scikit-learn's (1.9) to rounding, from the same seed:
    the same draws in the same order, the same Adam, penalty and stopping rules.

    References
    ----------
    `sklearn.neural_network.MLPClassifier`.

    Examples
    --------
    >>> X, y = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0, 1, 1, 0]
    >>> clf = MLPClassifier(8, solver="lbfgs", random_state=1, device="cpu").fit(X, y)
    >>> clf.predict(X)
    array([0, 1, 1, 0])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **NETWORK_CONSTRAINTS,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    loss = "log_loss"

    def __init__(
        self,
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
        class_weight: Any = None,
        dropout: Any = 0.0,
        callbacks: Any = (),
        progress: bool = False,
        checkpoint: Any = None,
        checkpoint_every: int = 1,
        n_members: int | None = None,
    ) -> None:
        self._store(locals())

    # -- targets ----------------------------------------------------------------------------------

    def _n_classes(self) -> int:
        return len(self.classes_)

    def _output_activation(self) -> str:
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _validate_input(
        self, X: Any, y: Any, incremental: bool, reset: bool
    ) -> tuple[Any, np.ndarray]:
        X, y = self._checked(X, y, reset)
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._label_binarizer = fitted_binarizer(y)
            self.classes_ = self._label_binarizer.classes_
            return X, y
        if hasattr(self, "coefs_") and self._label_binarizer.y_type_.startswith("multilabel"):
            check_width(1 if y.ndim == 1 else y.shape[1], len(self.classes_))
        if not self.warm_start:
            self._refuse_unknown(y)
        elif set(classes := unique_labels(y)) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same "
                "classes as in the previous call to fit. Previously "
                f"got {self.classes_}, `y` has {classes}"
            )
        return X, y

    def _validate_new(self, X: Any, y: Any, outputs: int) -> tuple[Any, np.ndarray]:
        X, y = self._checked(X, y, False)
        multilabel = self._label_binarizer.y_type_.startswith("multilabel")
        arrays.with_columns(y, outputs if multilabel else 1)
        self._refuse_unknown(y)
        return X, y

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = arrays.validate(self, X, y, reset=reset)
        return X, arrays.column_raveled(y)

    def _known_codes(self, y: Any) -> np.ndarray | None:
        """Return the (N,) class numbers of integer labels that are all known, else None.

        None means to ask scikit-learn, which knows all kinds of labels and warns if there are more
        classes than rows.
        """
        classes = getattr(self._label_binarizer, "classes_", None)  # absent before the first fit
        if classes is None or type(y) is not np.ndarray or y.ndim != 1 or y.dtype.kind not in "iu":
            return None
        if y.dtype != classes.dtype or not 2 <= len(classes) <= len(y) // 2:
            return None
        codes = np.minimum(classes.searchsorted(y), len(classes) - 1)
        known = np.array_equal(classes, self.classes_) and (classes[codes] == y).all()
        return codes if known else None

    def _refuse_unknown(self, y: np.ndarray) -> None:
        if self._known_codes(y) is not None:
            return
        classes = unique_labels(y)
        if len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
            raise ValueError(
                "`y` has classes not in `self.classes_`. "
                f"`self.classes_` has {self.classes_}. 'y' has {classes}."
            )

    def _encode(self, y: Any) -> np.ndarray:
        codes = self._known_codes(y)
        if codes is None or self._label_binarizer.y_type_ not in ("binary", "multiclass"):
            return self._label_binarizer.transform(y).astype(bool)
        columns = np.arange(len(self.classes_))
        return codes[:, None] == (columns[1:] if len(columns) == 2 else columns)

    def _weights(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray | None:
        if self.class_weight is None:
            return sample_weight
        if self.class_weight == "balanced" or y.ndim > 1:
            by_class = compute_sample_weight(self.class_weight, y)
        else:  # weights of all classes, because a batch may lack some
            factors = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
            by_class = factors[np.searchsorted(self.classes_, y)]
        return by_class if sample_weight is None else by_class * sample_weight

    # -- public methods ---------------------------------------------------------------------------

    @available_if(lambda estimator: estimator._check_solver())
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None
    ) -> MLPClassifier:
        """Update the network with one epoch over the given data.

        Parameters
        ----------
        X : (n_samples, n_features) array-like
            Inputs, as for `fit`.
        y : (n_samples,) or (n_samples, n_classes) array-like
            Labels, or indicators.
        sample_weight : (n_samples,) array-like or None
            Factor of each row.
        classes : (n_classes,) array-like or None
            All classes of all calls; the first call needs them.

        Returns
        -------
        MLPClassifier
            The estimator itself.

        Raises
        ------
        ValueError
            Labels are unknown, X and y do not fit each other, or class_weight is "balanced", which
            needs the labels of all batches.
        """
        if self.class_weight == "balanced":
            raise ValueError(
                'class_weight="balanced" is not supported for partial_fit, which sees one batch at '
                "a time; pass the dictionary of "
                "sklearn.utils.compute_class_weight('balanced', classes=classes, y=y) of all labels"
            )
        classes = arrays.to_host(classes)
        if _check_partial_fit_first_call(self, classes):
            self._label_binarizer = LabelBinarizer()  # not fitted where y is no target
            multilabel = type_of_target(arrays.to_host(y)).startswith("multilabel")
            self._label_binarizer.fit(y if multilabel else classes)
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Array:
        """Predict the class of each row.

        Parameters
        ----------
        X : (n_samples, n_features) array-like
            Inputs.

        Returns
        -------
        array
            Labels (n_samples,), or indicators (n_samples, n_classes) of multi-label targets.
        """
        if arrays.on_gpu(X) and self._label_binarizer.y_type_ in ("binary", "multiclass"):
            codes = import_cupy().argmax(self._probabilities(X), axis=1)
            if np.array_equal(self.classes_, np.arange(len(self.classes_))):
                return arrays.like(codes, X)
            return arrays.like(self.classes_[arrays.to_host(codes)], X)
        y_pred = arrays.to_host(self._outputs(X))
        if self.n_outputs_ == 1:
            y_pred = y_pred.ravel()
        return arrays.like(self._label_binarizer.inverse_transform(y_pred), X)

    def predict_proba(self, X: Any) -> Array:
        """Predict the probability of each class.

        Parameters
        ----------
        X : (n_samples, n_features) array-like
            Inputs.

        Returns
        -------
        (n_samples, n_classes) array
            Probabilities, in the order of ``classes_``.
        """
        return arrays.like(self._probabilities(X), X)

    def _probabilities(self, X: Any) -> Array:
        """Return probabilities (n_samples, n_classes), on the device of the network's output."""
        y_pred = self._outputs(X)
        return y_pred if self.n_outputs_ > 1 else two_columns(y_pred)

    def predict_log_proba(self, X: Any) -> Array:
        """Predict the logarithm of the probability of each class.

        Parameters
        ----------
        X : (n_samples, n_features) array-like
            Inputs.

        Returns
        -------
        (n_samples, n_classes) array
            The logarithm of `predict_proba`.
        """
        if type(self).predict_proba is not MLPClassifier.predict_proba:  # a subclass has its own
            y_prob = self.predict_proba(X)
            return np.log(y_prob, out=y_prob)
        y_prob = self._probabilities(X)
        log = import_cupy().log if arrays.on_gpu(X) else np.log
        return arrays.like(log(y_prob, y_prob), X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Compute the accuracy of the predictions for X.

        Parameters
        ----------
        X : (n_samples, n_features) array-like
            Inputs.
        y : (n_samples,) or (n_samples, n_classes) array-like
            Labels, or indicators; they may lie on a GPU.
        sample_weight : (n_samples,) array-like or None
            Factor of each row; it may lie on a GPU.

        Returns
        -------
        float
            The share of rows that are predicted right.
        """
        given = map(arrays.to_host, (y, self.predict(X)))
        return accuracy_score(*given, sample_weight=arrays.to_host(sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
