"""The objective of the solvers: the package's losses, reported as scikit-learn reports them.

The gradients are those of `gpubackprop.losses`. The reported value differs from theirs:
scikit-learn bounds probabilities away from 0 and 1 by one eps, takes the logarithms of rounded
probabilities, divides the squared error (but not its gradient) by the number of outputs, and adds
the constants of the Poisson deviance. A pass therefore records the numbers from which each row's
value is computed, and `Objective.row_values` computes the values of a whole epoch at once.
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

# For each out_activation_ of scikit-learn: the network's output function, and its loss.
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
    out_activation : str
        "softmax", "logistic", "identity" or "exp".
    units : int
        Number of output units K.
    reported : str
        The estimator's loss, e.g. "squared_error"; "" for a classifier. If it was set after the
        network was made, it is reported but the gradient stays, as in scikit-learn.
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
        """Whether a pass records the logits (rows, K) and not the loss of each row (rows, 1)."""
        own = {"identity": "squared_error", "exp": "poisson"}.get(self.out_activation, "")
        if self._is_beyond and self.out_activation == "identity":
            return False
        return self.out_activation == "logistic" or self.reported not in ("", own)

    @property
    def values_need_targets(self) -> bool:
        """Whether the value of a row depends on its targets, beside what a pass records of it."""
        return self.records_logits or self.out_activation == "exp"

    @property
    def _is_beyond(self) -> bool:
        """Whether scikit-learn lacks the estimator's loss."""
        return self.reported not in ("", *SKLEARN_LOSSES)

    @property
    def record(self) -> str:
        """What a step must record, see `StepOptions`."""
        return "logits" if self.records_logits else "row_loss"

    @property
    def record_width(self) -> int:
        return self.units if self.records_logits else 1

    def loss(self, reduction: str = "none") -> Loss:
        """Return the package's loss of each row, or of a batch.

        A step learns their mean, or the sum of rows with weights that sum to 1.
        """
        if self._is_beyond and self.out_activation == "identity":
            return loss(self.reported, reduction=reduction)
        make: Any = OUTPUTS[self.out_activation][1]
        return make(reduction=reduction)

    @property
    def is_total(self) -> bool:
        """Whether an epoch's reported loss follows from the sum of the rows' losses.

        That of a classifier does if each is bounded by `total_eps`.
        """
        if self.out_activation == "identity":
            return self.reported == "squared_error"
        return self.out_activation != "exp" and not self.reported

    def total_eps(self, dtype: Any) -> float:
        """Return, where `is_total`, the bound of probabilities in the rows' losses; 0 for none."""
        return 0.0 if self.out_activation == "identity" else float(np.finfo(dtype).eps)

    def value_of_total(self, mean: float) -> float:
        """Return the reported loss, where `is_total`, from the mean of the rows' losses."""
        return mean / self.units if self.out_activation == "identity" else mean

    def targets(self, y: Array, dtype: Any) -> Array:
        """Return scikit-learn's y, (N, K) one-hot, indicator or numbers, as the loss takes it."""
        if self.out_activation == "softmax":
            return y.argmax(1)
        return np.ascontiguousarray(y, dtype)

    def reported_type(self, dtype: Any, y: Array, weights: Array | None) -> type:
        """Return the type of scikit-learn's loss.

        It is float32 if all its terms are. SciPy is asked for the type of its logarithms: more of
        them are float32 from its version 1.18 on.
        """
        if self._is_beyond:
            return np.float64
        terms, factor = [np.dtype(dtype), y.dtype], y.dtype
        if not self.reported:
            # Targets of a classifier are booleans. One column becomes two, of integers.
            terms, factor = terms[:1], np.dtype(np.bool_ if y.shape[1] > 1 else np.int64)
        if self.reported != "squared_error":
            logarithm = xlogy(np.empty(0, factor), np.empty(0, np.result_type(*terms)))
            terms.append(logarithm.dtype)
        if weights is not None:
            terms.append(weights.dtype)
        return np.float32 if np.result_type(*terms) == np.float32 else np.float64

    def row_values(
        self, record: Array, y: Array | None, weights: Array | None = None, bounds: Any = None
    ) -> Array:
        """Return the (N,) reported loss of each row, in float64, without the weights of the rows.

        Parameters
        ----------
        record : (N, record_width) array
            The record of a pass, in the network's dtype.
        y : (N, K) array or None
            Targets, as for `targets`; None unless `values_need_targets`.
        weights : (N,) array or None
            Weights of the recorded loss; a row of weight 0 gets 0.
        bounds : dtype or None
            The dtype of scikit-learn's probabilities, which stay one eps away from 0 and 1; None is
            the record's.
        """
        if self.records_logits:
            assert y is not None
            return self.values_of_logits(record, y, bounds)
        eps = float(np.finfo(bounds or record.dtype).eps)
        values = record[:, 0].astype(np.float64)
        if weights is not None:
            values = np.divide(values, weights, out=np.zeros_like(values), where=weights != 0)
        if self.out_activation == "softmax":
            np.maximum(values, -math.log1p(-eps), out=values)
            return np.minimum(values, -math.log(eps), out=values)
        if self.out_activation == "identity":
            return values / self.units
        assert y is not None
        wide = y.astype(np.float64)
        return values + (xlogy(wide, wide) - wide).sum(1)

    def values_of_logits(self, logits: Array, y: Array, bounds: Any = None) -> Array:
        """Return `row_values` for logits (N, K), for every output except softmax.

        y may be larger than the network's dtype can hold.
        """
        if self.out_activation == "logistic":
            eps = float(np.finfo(bounds or logits.dtype).eps)
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
