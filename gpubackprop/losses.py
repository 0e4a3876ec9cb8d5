"""Losses of a network: a formula with its options, the output function that belongs to it, checks.

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
    """A scalar (or per-row) function of a network's logits and targets.

    Attributes
    ----------
    name : registry name. output : output function O with yhat = O(logits).
    task : what the command line calls the learning of its targets.
    default : True for the loss that is taken where only the output function, or the task, is named.
    options : reduction and, for softmax cross entropy, everything else.
    """

    name: str
    output: str
    task: str
    default: bool
    options: LossOptions

    @abstractmethod
    def check_targets(self, targets: Any, rows: int, units: int, dtype: np.dtype) -> Array:
        """Targets as the array that `emit` takes, or an error naming the first bad one."""

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
        """Issue loss and delta on a backend; see `NumpyBackend.softmax_cross_entropy`.

        `upstream`, a number or a 0-d array read when the call runs, multiplies delta.
        """

    def check_units(self, units: int) -> None:  # noqa: B027 (most losses take any number)
        """OptionError where the loss cannot have `units` output units."""

    def buffers(self, backend: Backend, rows: int, dtype: Any) -> dict[str, Array]:
        """The result arrays of `emit`, without delta."""
        return {
            "loss": backend.zeros((), dtype),
            "row_loss": backend.empty(rows, dtype),
            "scale": backend.empty(rows, dtype),
        }

    def __repr__(self) -> str:
        """The call that makes it, without defaults."""
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
        """The formula's parameter by its name, where it is not the default."""
        return {}

    def config(self) -> dict[str, Any]:
        """Name and options as JSON values, for files."""
        values = vars(self.options) | {"name": self.name}
        weight = self.options.class_weight
        return values | {"class_weight": None if weight is None else weight.tolist()}


class SoftmaxCrossEntropy(Loss):
    """Cross entropy of a softmax output; options as in `gpubackprop.ops.softmax_cross_entropy`."""

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
    """A loss of `gpubackprop.ops.pointwise_loss`: what its entry in the registry says."""

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
    """sum_k (a_k - t_k)^2 / 2 with linear output units."""

    name = "squared_error"


class BinaryCrossEntropy(_Pointwise):
    """Binary cross entropy of each logistic output unit: multi-label classification."""

    name = "binary_cross_entropy"


class Poisson(_Pointwise):
    """exp(a) - t a: counts, with yhat = exp(a)."""

    name = "poisson"


class Huber(_Pointwise):
    """(a - t)^2 / 2 within `delta` of the target, and from there on linear: outliers count less.

    `delta`, above 0, is in the units of the targets, as in `torch.nn.HuberLoss`.
    """

    name = "huber"

    def __init__(self, *, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.formula = replace(self.formula, parameter=checks.number(delta, "delta", 1e-30))


LOSSES: dict[str, type[Loss]] = {
    cls.name: cls for cls in (SoftmaxCrossEntropy, SquaredError, BinaryCrossEntropy, Poisson, Huber)
}


def default_loss(*, output: str = "", task: str = "") -> Loss:
    """The loss that is meant where only an output function, or only a task, is named."""
    for cls in LOSSES.values():
        if cls.default and (cls.task == task if task else cls.output == output):
            return cls()
    raise OptionError(f"no loss belongs to output {output!r} and task {task!r}; pass one")


def loss(spec: str | Loss, **options: Any) -> Loss:
    """The loss that `spec` names, with `options`; a `Loss` is returned as it is.

    Parameters
    ----------
    spec : a registry name, or a name with its parameter in parentheses.
    options : arguments of the loss's class.

    Raises
    ------
    OptionError : unknown name, or an option or value that the loss does not have.

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
