"""Losses of a network: a formula, its options, its output function and the checks of its targets.

>>> loss = SoftmaxCrossEntropy(label_smoothing=0.1)
>>> loss.output
'softmax'
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np

from gpubackprop.backends import Backend, LossOptions
from gpubackprop.errors import OptionError
from gpubackprop.formulas import POINTWISE_LOSSES, lookup, pointwise_loss
from gpubackprop.ops import checks
from gpubackprop.ops.display import call, names
from gpubackprop.ops.pointwise_loss import REDUCTIONS, pointwise_targets
from gpubackprop.ops.softmax_cross_entropy import cross_entropy_options

Array = np.ndarray


class Loss(ABC):
    """Base of the losses: a scalar (or per-row) function of a network's logits and targets.

    Attributes
    ----------
    name : str
        Name in the registry `LOSSES`.
    output : str
        Name of the output function O that belongs to the loss, yhat = O(logits).
    task : str
        What the command line calls the learning of such targets.
    default : bool
        True for the loss that is taken if only the output function, or only the task, is named.
    options : LossOptions
        The reduction and, for softmax cross entropy, everything else.

    Examples
    --------
    >>> isinstance(SquaredError(), Loss), SquaredError().config()
    (True, {'name': 'squared_error', 'reduction': 'mean'})
    """

    name: str
    output: str
    task: str
    default: bool
    options: LossOptions

    @abstractmethod
    def check_targets(self, targets: Any, rows: int, units: int, dtype: np.dtype) -> Array:
        """Return the targets as the array that `emit` takes.

        Parameters
        ----------
        targets : array-like
            Of shape (N,) or (N, K): class indices, or a number for each output unit.
        rows : int
            Number of rows N of the logits.
        units : int
            Number of output units K.
        dtype : dtype
            The network's compute dtype, float32 or float64.

        Returns
        -------
        array
            Class indices (N,), or targets (N, K) of a float dtype.

        Raises
        ------
        ShapeError
            The shape does not fit ``(rows, units)``.
        DtypeError
            The targets are no numbers, or not integers where classes are wanted.
        TargetRangeError
            A class index is out of range; the message names the first one.
        OptionError
            A number lies outside the loss's domain; the message names the first one.
        """

    @abstractmethod
    def emit(
        self,
        backend: Backend,
        logits: Array,
        targets: Array,
        result: dict[str, Array],
        sample_weight: Array | None = None,
        upstream: Any = 1.0,
    ) -> None:
        """Compute loss and delta on a backend, or record the call there.

        Parameters
        ----------
        backend : Backend
            The backend that holds the arrays.
        logits : (N, K) array
            Pre-activations of the output layer.
        targets : (N,) or (N, K) array
            What `check_targets` returned.
        result : dict of arrays
            The arrays of `buffers` and, if wanted, "delta" (N, K). The call writes into them.
        sample_weight : (N,) array or None
            A weight for each row.
        upstream : float or 0-d array
            Factor on delta. An array is read when the call runs.
        """

    def check_units(self, units: int) -> None:  # noqa: B027 (most losses take any number)
        """Check that the loss can have `units` output units; most losses take any number.

        Parameters
        ----------
        units : int
            Number of output units of a network.

        Raises
        ------
        OptionError
            The loss belongs to another number of units.
        """

    def buffers(self, backend: Backend, rows: int, dtype: Any) -> dict[str, Array]:
        """Return new result arrays for `emit`, without delta.

        Parameters
        ----------
        backend : Backend
            The backend that allocates them.
        rows : int
            Number of rows N of a batch.
        dtype : dtype
            The network's compute dtype, float32 or float64.

        Returns
        -------
        dict of arrays
            "loss" of shape (), "row_loss" (N,) and "scale" (N,).
        """
        return {
            "loss": backend.zeros((), dtype),
            "row_loss": backend.empty(rows, dtype),
            "scale": backend.empty(rows, dtype),
        }

    def __repr__(self) -> str:
        """Return the call that makes the loss, without defaults."""
        values, defaults = vars(self.options), vars(LossOptions())
        changed = {
            name: value
            for name, value in values.items()
            if value is not defaults[name] and (name == "class_weight" or value != defaults[name])
        }
        changed |= self._changed_parameter()
        weight = changed.get("class_weight")
        if weight is not None:
            changed.pop("class_weight")
            weights = f"class_weight=[{names(map(float, weight))}]"
        return call(type(self).__name__, *([] if weight is None else [weights]), **changed)

    def _changed_parameter(self) -> dict[str, Any]:
        """Return the formula's parameter by its name, if it is not the default."""
        return {}

    def config(self) -> dict[str, Any]:
        """Return name and options as JSON values, for files.

        Returns
        -------
        dict
            "name", and each option by its name.
        """
        values = vars(self.options) | {"name": self.name}
        weight = self.options.class_weight
        return values | {"class_weight": None if weight is None else weight.tolist()}


class SoftmaxCrossEntropy(Loss):
    """Cross entropy of a softmax output: one class index, or a distribution, for each row.

    L_i = logsumexp(z_i) - z_i[t_i], and delta = softmax(z_i) - onehot(t_i).

    Parameters
    ----------
    class_weight : (K,) array-like or None
        Factor on the loss of each class.
    ignore_index : int or None
        Rows with this label count neither in the loss nor in the mean.
    label_smoothing : float
        Share in [0, 1] of each target that is spread evenly over the classes.
    z_loss : float
        Factor, at least 0, of logsumexp(z)^2, which is added to the loss.
    soft_cap : float
        If c > 0, c tanh(z / c) takes the place of the logits z.
    reduction : {"mean", "sum", "none"}
        Over the rows.
    empty : {"nan", "zero"}
        The mean over no row, or over weights that sum to 0; PyTorch gives NaN.

    Raises
    ------
    OptionError
        An option has an unknown name or is out of range.

    See Also
    --------
    gpubackprop.ops.softmax_cross_entropy : The operation, which has formulas of all options.

    References
    ----------
    I. Goodfellow, Y. Bengio and A. Courville, "Deep Learning", 2016, section 6.2.2. C. Szegedy et
    al., "Rethinking the Inception architecture", 2016 (label smoothing).

    Examples
    --------
    >>> from gpubackprop import MLP
    >>> loss = SoftmaxCrossEntropy(label_smoothing=0.1)
    >>> network = MLP([2, 3], initializer="zeros")
    >>> result = network.gradients(np.zeros((1, 2)), np.array([1]), loss)
    >>> print(round(float(result.loss), 4))
    1.0986
    """

    name, output, task, default = "softmax_cross_entropy", "softmax", "classification", True

    def __init__(
        self,
        *,
        class_weight: Any = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        soft_cap: float = 0.0,
        reduction: str = "mean",
        empty: str = "nan",
    ) -> None:
        classes = 0 if class_weight is None else np.size(class_weight)
        self.options = cross_entropy_options(
            classes, class_weight, ignore_index, label_smoothing, z_loss, reduction, empty,
            soft_cap=soft_cap,
        )  # fmt: skip

    def check_units(self, units: int) -> None:
        weight = self.options.class_weight
        if weight is not None and len(weight) != units:
            raise OptionError(
                f"class_weight has {len(weight)} entries but the network has {units} output units"
            )

    def check_targets(self, targets: Any, rows: int, units: int, dtype: np.dtype) -> Array:
        shape_only = np.broadcast_to(np.float32(0), (rows, units))
        return checks.cross_entropy_targets(targets, shape_only, self.options.ignore_index)[0]

    def emit(
        self,
        backend: Backend,
        logits: Array,
        targets: Array,
        result: dict[str, Array],
        sample_weight: Array | None = None,
        upstream: Any = 1.0,
    ) -> None:
        backend.softmax_cross_entropy(
            logits, targets, self.options, result, sample_weight, upstream
        )


class _Pointwise(Loss):
    """A loss of `gpubackprop.ops.pointwise_loss`; its entry in the registry says the rest."""

    def __init_subclass__(cls) -> None:
        entry = POINTWISE_LOSSES[cls.name]
        cls.output, cls.task, cls.default = entry.output, entry.task, entry.default

    def __init__(self, *, reduction: str = "mean") -> None:
        self.formula = POINTWISE_LOSSES[self.name]
        self.options = LossOptions(reduction=checks.choice(reduction, "reduction", REDUCTIONS))

    def check_targets(self, targets: Any, rows: int, units: int, dtype: np.dtype) -> Array:
        given = pointwise_targets(self.formula, targets, (rows, units))
        with np.errstate(over="ignore"):
            checked: Array = given.astype(dtype, copy=False)
        if checked is not given and (lost := np.isinf(checked) & ~np.isinf(given)).any():
            row, column = (int(i) for i in np.argwhere(lost)[0])
            raise OptionError(
                f"targets[{row}, {column}] is {given[row, column]}, beyond {dtype}; divide the "
                f'targets by a constant, or build the network with MLP(..., dtype="float64")'
            )
        return checked

    def emit(
        self,
        backend: Backend,
        logits: Array,
        targets: Array,
        result: dict[str, Array],
        sample_weight: Array | None = None,
        upstream: Any = 1.0,
    ) -> None:
        backend.pointwise_loss(
            logits, targets, self.formula, self.options, result, sample_weight, upstream
        )

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"name": self.name, "reduction": self.options.reduction}
        if self.formula.parameter_name:
            config[self.formula.parameter_name] = self.formula.parameter
        return config

    def _changed_parameter(self) -> dict[str, Any]:
        if self.formula.parameter == POINTWISE_LOSSES[self.name].parameter:
            return {}
        return {self.formula.parameter_name: self.formula.parameter}


class SquaredError(_Pointwise):
    """Squared error with linear output units: sum_k (a_k - t_k)^2 / 2, delta = a - t.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        Over the rows.

    Raises
    ------
    OptionError
        The reduction is unknown.

    References
    ----------
    C. M. Bishop, "Pattern Recognition and Machine Learning", 2006, section 5.2: the negative log
    likelihood of a normal distribution.

    Examples
    --------
    >>> from gpubackprop import MLP
    >>> network = MLP([2, 1], output="linear", initializer="zeros")
    >>> result = network.gradients(np.zeros((1, 2)), np.array([[3.0]]), SquaredError())
    >>> print(float(result.loss))
    4.5
    """

    name = "squared_error"


class BinaryCrossEntropy(_Pointwise):
    """Binary cross entropy of each logistic output unit: multi-label classification.

    With p = logistic(a), it is -sum_k (t_k log p_k + (1 - t_k) log(1 - p_k)), and delta = p - t.
    Targets lie in [0, 1].

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        Over the rows.

    Raises
    ------
    OptionError
        The reduction is unknown.

    References
    ----------
    I. Goodfellow, Y. Bengio and A. Courville, "Deep Learning", 2016, section 6.2.2.2.

    Examples
    --------
    >>> from gpubackprop import MLP
    >>> network = MLP([2, 1], output="logistic", initializer="zeros")
    >>> result = network.gradients(np.zeros((1, 2)), np.array([[1.0]]), BinaryCrossEntropy())
    >>> print(round(float(result.loss), 4))
    0.6931
    """

    name = "binary_cross_entropy"


class Poisson(_Pointwise):
    """Poisson regression of counts: sum_k (exp(a_k) - t_k a_k), delta = exp(a) - t, yhat = exp(a).

    It is the negative log likelihood without the term log t!. Targets are at least 0.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        Over the rows.

    Raises
    ------
    OptionError
        The reduction is unknown.

    References
    ----------
    P. McCullagh and J. Nelder, "Generalized Linear Models", 1989, chapter 6.

    Examples
    --------
    >>> from gpubackprop import MLP
    >>> network = MLP([2, 1], output="exp", initializer="zeros")
    >>> result = network.gradients(np.zeros((1, 2)), np.array([[3.0]]), Poisson())
    >>> print(float(result.loss))
    1.0
    """

    name = "poisson"


class Huber(_Pointwise):
    """Huber's loss: squared near the target and linear beyond, so that outliers count less.

    It is (a - t)^2 / 2 if abs(a - t) <= delta, else delta (abs(a - t) - delta / 2), as in
    `torch.nn.HuberLoss`.

    Parameters
    ----------
    delta : float
        Distance from the target, above 0 and in its units, where the loss becomes linear.
    reduction : {"mean", "sum", "none"}
        Over the rows.

    Raises
    ------
    OptionError
        `delta` is not above 0, or the reduction is unknown.

    References
    ----------
    P. J. Huber, "Robust estimation of a location parameter", 1964.

    Examples
    --------
    >>> from gpubackprop import MLP
    >>> network = MLP([2, 1], output="linear", initializer="zeros")
    >>> result = network.gradients(np.zeros((1, 2)), np.array([[3.0]]), Huber(delta=2.0))
    >>> print(float(result.loss))
    4.0
    """

    name = "huber"

    def __init__(self, *, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.formula = replace(self.formula, parameter=checks.number(delta, "delta", 1e-30))


LOSSES: dict[str, type[Loss]] = {
    cls.name: cls for cls in (SoftmaxCrossEntropy, SquaredError, BinaryCrossEntropy, Poisson, Huber)
}


def default_loss(*, output: str = "", task: str = "") -> Loss:
    """Return the loss that is meant if only an output function, or only a task, is named.

    Parameters
    ----------
    output : str
        Name of an output function.
    task : str
        Name of a task of the command line; it takes precedence.

    Returns
    -------
    Loss
        A new loss with default options.

    Raises
    ------
    OptionError
        No loss belongs to the name.

    Examples
    --------
    >>> default_loss(output="linear")
    SquaredError()
    """
    for cls in LOSSES.values():
        if cls.default and (cls.task == task if task else cls.output == output):
            return cls()
    raise OptionError(f"no loss belongs to output {output!r} and task {task!r}; pass one")


def loss(spec: str | Loss, **options: Any) -> Loss:
    """Return the loss that `spec` names, with `options`; a `Loss` is returned as it is.

    Parameters
    ----------
    spec : str or Loss
        A registry name, or a name with its parameter in parentheses.
    **options : object
        Arguments of the loss's class.

    Returns
    -------
    Loss
        The loss.

    Raises
    ------
    OptionError
        The name is unknown, or the loss does not have an option or its value.

    Examples
    --------
    >>> loss("squared_error", reduction="sum")
    SquaredError(reduction='sum')
    """
    if isinstance(spec, Loss):
        return spec
    name, given = spec, {}
    if isinstance(spec, str) and "(" in spec:
        formula = pointwise_loss(spec)
        name, given = formula.name, {formula.parameter_name: formula.parameter}
    cls = lookup(LOSSES, name, "loss")
    try:
        return cls(**given, **options)
    except TypeError as error:
        raise OptionError(f"loss {spec!r}: {error}") from None
