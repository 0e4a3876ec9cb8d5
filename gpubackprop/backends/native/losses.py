"""The native losses: softmax cross entropy, pointwise losses, means and running totals.

On one thread a call does all of it. Otherwise each part computes its rows, and a last call the
mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.native.calls import (
    NativeCalls,
    Part,
    code_of,
    compute_of,
    is_vector,
    row_stride,
    same_formula,
)
from gpubackprop.backends.native.layers import FLOATS
from gpubackprop.backends.native.library import Library
from gpubackprop.formulas import POINTWISE_LOSSES, PointwiseLoss

Array = np.ndarray
TARGETS = (0, 1, 2, 3, 4, 6)  # codes of the pointwise losses' targets
# Numbers of scratch arrays.
OWN_TARGETS, OWN_ROW_LOSS, OWN_UPSTREAM, OWN_WEIGHT, OWN_CLASS, OWN_LOGITS, OWN_DELTA = range(
    50, 57
)
NO_LABELS = {
    "labels": None, "class_weight": None, "classes": 0, "ignore_index": 0, "label_storage": 0,
    "has_ignore_index": 0,
}  # fmt: skip
_FUNCTIONS = ("value_and_delta",)


class NativeLosses(NativeCalls):
    """What the native losses share, and the pointwise losses; see `NativeBackend`."""

    def pointwise_loss(
        self,
        a: Array,
        targets: Array,
        formula: PointwiseLoss,
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None = None,
        upstream: Array | float = 1.0,
    ) -> None:
        library = self._native("pointwise_loss")
        number = -1 if library is None else library.losses.get(formula.name, -1)
        known = same_formula(POINTWISE_LOSSES.get(formula.name), formula, _FUNCTIONS)
        if library is None or number < 0 or not known or not self._fits(a, result):
            super().pointwise_loss(a, targets, formula, options, result, sample_weight, upstream)
            return
        a, delta = self._rows(a, OWN_LOGITS), self._rows_for(result.get("delta"))
        targets = self._targets(targets, TARGETS, compute_of(a))
        factor = float(a.shape[1]) if options.reduction == "elementwise_mean" else 1.0
        parts = self._parts(len(a), a.size * compute_of(a).itemsize)
        shared = self._shared(parts, a, options, result, sample_weight, upstream, False, factor)
        values = {
            **shared, "a": a, "targets": targets, "delta": delta,
            "correct": result.get("correct"), "cols": a.shape[1], "stride_a": row_stride(a),
            "stride_targets": row_stride(targets),
            "stride_delta": 0 if delta is None else row_stride(delta), "divisor_factor": factor,
            "parameter": formula.parameter, "target_storage": code_of(targets), "formula": number,
        }  # fmt: skip
        self._weigh(library, shared, NO_LABELS, factor)
        self._issue(library.pointwise_loss, "pointwise_loss", values, parts)
        self._finish_loss(library, shared, result, options, parts, delta)

    # -- what all losses share --------------------------------------------------------------------

    def _fits(self, logits: Array, result: dict[str, Array]) -> bool:
        """Return whether the kernels take these logits and results."""
        delta = result.get("delta")
        vectors = (result.get(name) for name in ("row_loss", "lse", "predicted", "correct"))
        return (
            code_of(logits) in FLOATS
            and logits.size > 0
            and compute_of(logits) == result["loss"].dtype
            and (delta is None or (delta.dtype == logits.dtype and delta.flags.writeable))
            and is_vector(*vectors)
        )

    def _rows(self, x: Array, number: int) -> Array:
        """Return x if its rows have no gaps, else a copy."""
        return x if row_stride(x) >= 0 else self._copied(x, x.dtype, number)

    def _rows_for(self, delta: Array | None) -> Array | None:
        """Return where a kernel writes delta: there, or memory without gaps."""
        if delta is None or row_stride(delta) >= 0:
            return delta
        return self._scratch().take(0, OWN_DELTA, delta.shape, delta.dtype)

    def _targets(self, targets: Array, codes: tuple[int, ...], compute: np.dtype) -> Array:
        """Return targets as a kernel reads them: themselves, or a copy."""
        fits = is_vector(targets) if targets.ndim == 1 else row_stride(targets) >= 0
        if code_of(targets) in codes and fits:
            return targets
        return self._copied(targets, np.int64 if targets.ndim == 1 else compute, OWN_TARGETS)

    def _row_numbers(self, numbers: Array | None, compute: np.dtype, number: int) -> Array | None:
        """Return (N,) or (K,) numbers in the compute dtype: themselves, or a copy."""
        if numbers is None or (numbers.dtype == compute and is_vector(numbers)):
            return numbers
        return self._copied(numbers, compute, number)

    def _shared(
        self,
        parts: list[Part],
        logits: Array,
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None,
        upstream: Array | float,
        by_label: bool,
        factor: float,
    ) -> dict[str, Any]:
        """Return the fields that all losses have: reduction, weights and upstream gradient.

        `by_label` says that labels decide what a row counts in the mean, and `factor` is what its
        divisor is multiplied by.
        """
        rows, compute, whole = len(logits), compute_of(logits), len(parts) == 1
        mean, reduced = options.reduction.endswith("mean"), options.reduction != "none"
        weighs = mean and (by_label or sample_weight is not None)
        row_loss = result.get("row_loss")
        if row_loss is None and reduced:
            row_loss = self._scratch().take(0, OWN_ROW_LOSS, (rows,), compute)
        at, value = None, 1.0
        if isinstance(upstream, np.ndarray):
            at = self._row_numbers(upstream, compute, OWN_UPSTREAM)
        else:
            value = float(upstream)
        return {
            "row_loss": row_loss, "loss": result["loss"] if reduced and whole else None,
            "sample_weight": self._row_numbers(sample_weight, compute, OWN_WEIGHT),
            "upstream": at, "upstream_value": value,
            "upstream_stride": int(at is not None and at.ndim > 0),
            "divisor_at": np.zeros(1) if weighs and not whole else None,
            "divisor": rows * factor if mean and not weighs else 1.0, "rows": rows,
            "weighs": int(weighs and whole), "empty_is_zero": int(options.empty == "zero"),
            "storage": code_of(logits),
        }  # fmt: skip

    def _weigh(
        self, library: Library, shared: dict[str, Any], labels: dict[str, Any], factor: float
    ) -> None:
        """Issue the sum of the weights by which parts divide, if they do."""
        if shared["divisor_at"] is not None:
            own = {
                name: shared[name] for name in ("sample_weight", "divisor_at", "rows", "storage")
            }
            self._issue(library.row_weights, "row_weights", {**own, **labels, "factor": factor})

    def _finish_loss(
        self,
        library: Library,
        shared: dict[str, Any],
        result: dict[str, Array],
        options: LossOptions,
        parts: list[Part],
        delta: Array | None,
    ) -> None:
        """Issue the mean or the sum of the rows' losses after several parts, and delta's copy."""
        if len(parts) > 1 and options.reduction != "none":
            names = ("row_loss", "divisor_at", "rows", "divisor", "storage", "empty_is_zero")
            own = {name: shared[name] for name in names}
            self._issue(library.reduce_loss, "reduce_loss", {**own, "loss": result["loss"]})
        if delta is not result.get("delta"):
            self._call(np.copyto, result["delta"], delta)

    def accumulate(
        self,
        loss: Array,
        rows: int,
        correct: Array | None,
        penalty: tuple[Array, Array | float] | None,
        totals: Array,
    ) -> None:
        library = self._native("accumulate")
        if library is None:
            super().accumulate(loss, rows, correct, penalty, totals)
            return
        l2 = None if penalty is None else penalty[1]
        at = l2 if isinstance(l2, np.ndarray) else None
        weights2 = None if penalty is None else penalty[0]
        fits = code_of(loss) in (0, 1) and is_vector(loss, correct, totals)
        fits = fits and (at is None or at.dtype == loss.dtype)
        fits = fits and (weights2 is None or weights2.dtype == np.float64)
        if not fits:
            super().accumulate(loss, rows, correct, penalty, totals)
            return
        values = {
            "loss": loss, "correct": correct, "weights2": weights2, "l2": at, "totals": totals,
            "rows": rows, "l2_value": 0.0 if at is not None or l2 is None else float(l2),
            "storage": code_of(loss),
        }  # fmt: skip
        self._issue(library.accumulate, "accumulate", values)
