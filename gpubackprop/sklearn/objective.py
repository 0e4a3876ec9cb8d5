"""What the solvers minimise: the package's losses, reported as scikit-learn reports them.

The gradients are those of `gpubackprop.losses`. The reported value differs from theirs:
scikit-learn bounds probabilities away from 0 and 1 by one eps, takes the logarithms of rounded
probabilities, divides the squared error by the number of outputs (its gradient not), and adds the
constants of the Poisson deviance. So a pass records what each row's value is computed from, and
`Objective.row_values` does that for a whole epoch at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, xlogy

from gpubackprop.formulas import pointwise_loss
from gpubackprop.losses import (
    BinaryCrossEntropy,
    Loss,
    Poisson,
    SoftmaxCrossEntropy,
    SquaredError,
    loss,
)
from gpubackprop.sklearn.parameters import SKLEARN_LOSSES

Array = np.ndarray

# scikit-learn's out_activation_: output function of the network, and its loss
OUTPUTS: dict[str, tuple[str, type[Loss]]] = {
    "softmax": ("softmax", SoftmaxCrossEntropy),
    "logistic": ("logistic", BinaryCrossEntropy),
    "identity": ("linear", SquaredError),
    "exp": ("exp", Poisson),
}


@dataclass(frozen=True)
class Objective:
    """Loss of a network with `units` output units, as one of scikit-learn's loss functions.

    Attributes
    ----------
    out_activation : "softmax", "logistic", "identity" or "exp". units : output units K.
    reported : the estimator's loss, e.g. "squared_error"; "" for a classifier. Where it was
        set after the network was made it is what is reported, and the gradient stays, as in
        scikit-learn.
    """

    out_activation: str
    units: int
    reported: str = ""

    @property
    def output(self) -> str:
        """The network's output function."""
        return OUTPUTS[self.out_activation][0]

    @property
    def records_logits(self) -> bool:
        """Whether a pass records the logits (rows, K), and not the loss of each row (rows, 1)."""
        own = {"identity": "squared_error", "exp": "poisson"}.get(self.out_activation, "")
        if self._is_beyond and self.out_activation == "identity":
            return False
        return self.out_activation == "logistic" or self.reported not in ("", own)

    @property
    def _is_beyond(self) -> bool:
        """Whether the estimator's loss is one that scikit-learn does not have."""
        return self.reported not in ("", *SKLEARN_LOSSES)

    @property
    def record(self) -> str:
        """What a step is to record, see `StepOptions`."""
        return "logits" if self.records_logits else "row_loss"

    @property
    def record_width(self) -> int:
        return self.units if self.records_logits else 1

    def loss(self) -> Loss:
        """The package's loss, of each row: a step learns their mean, or the sum of rows with
        weights that sum to 1."""
        if self._is_beyond and self.out_activation == "identity":
            return loss(self.reported, reduction="none")
        make: Any = OUTPUTS[self.out_activation][1]
        return make(reduction="none")

    def targets(self, y: Array, dtype: Any) -> Array:
        """scikit-learn's y, (N, K) one-hot, indicator or numbers, as the loss takes it."""
        if self.out_activation == "softmax":
            return y.argmax(1)
        return np.ascontiguousarray(y, dtype)

    def reported_type(self, dtype: Any, y: Array, weights: Array | None) -> type:
        """The type of scikit-learn's loss: float32 where outputs of `dtype`, y and weights are, but
        for the logarithms of other numbers, which SciPy takes in float64."""
        wide = np.result_type(dtype, y.dtype, *([] if weights is None else [weights.dtype]))
        single = wide == np.float32 and (
            self.reported == "squared_error" or (self.reported == "poisson" and y.dtype == wide)
        )
        return np.float32 if single else np.float64

    def row_values(self, record: Array, y: Array, weights: Array | None = None) -> Array:
        """(N,) reported loss of each row, in float64, without the weights of the rows.

        Parameters
        ----------
        record : (N, record_width) of the network's dtype. y : (N, K), as `targets` is given it.
        weights : (N,) of the loss that was recorded; a row of weight 0 gets 0.
        """
        if self.records_logits:
            return self.values_of_logits(record, y)
        eps = float(np.finfo(record.dtype).eps)
        values = record[:, 0].astype(np.float64)
        if weights is not None:
            values = np.divide(values, weights, out=np.zeros_like(values), where=weights != 0)
        if self.out_activation == "softmax":
            return np.clip(values, -math.log1p(-eps), -math.log(eps))
        if self.out_activation == "identity":
            return values / self.units
        wide = y.astype(np.float64)
        return values + (xlogy(wide, wide) - wide).sum(1)

    def values_of_logits(self, logits: Array, y: Array) -> Array:
        """`row_values` of logits (N, K), for every output but softmax: y may be larger than the
        dtype of the network holds."""
        if self.out_activation == "logistic":
            eps = float(np.finfo(logits.dtype).eps)
            p = np.clip(expit(logits), eps, 1 - eps)
            return -(xlogy(y, p) + xlogy(1 - y.astype(p.dtype), 1 - p)).sum(1, dtype=np.float64)
        a, wide = logits.astype(np.float64), y.astype(np.float64)
        exp = self.out_activation == "exp"
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            yhat = np.exp(a) if exp else a
            if self._is_beyond:
                formula = pointwise_loss(self.reported)
                value, delta, work = (np.empty_like(yhat) for _ in range(3))
                formula.value_and_delta(yhat, wide, value, delta, work, formula.parameter)
                return value.mean(1)
            if self.reported == "squared_error":
                return 0.5 * np.square(wide - yhat).mean(1)
            if exp:
                return (yhat - wide * a + xlogy(wide, wide) - wide).sum(1)
            return (xlogy(wide, wide / yhat) - wide + yhat).sum(1)
