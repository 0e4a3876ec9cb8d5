"""The native losses: softmax cross entropy, pointwise losses, means and running totals.

On one thread a call does all of it. Otherwise each part computes its rows, and a last call the
mean.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import numpy as np

from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.native.arguments import address, record
from gpubackprop.backends.native.calls import (
    NativeCalls,
    Part,
    code_of,
    compute_of,
    is_vector,
    row_stride,
    rows_of,
    same_formula,
)
from gpubackprop.backends.native.layers import FLOATS
from gpubackprop.backends.native.library import Library
from gpubackprop.backends.numpy.eager import KEPT_ROWS, Store
from gpubackprop.backends.numpy.recorded_calls import get_num_threads, run_now
from gpubackprop.formulas import POINTWISE_LOSSES, PointwiseLoss

Array = np.ndarray
LABELS, PROBABILITIES = (4, 5, 6), (0, 1)  # codes of labels, and of probabilities
TARGETS = (0, 1, 2, 3, 4, 6)  # codes of the pointwise losses' targets
OWN_TARGETS, OWN_ROW_LOSS, OWN_UPSTREAM, OWN_WEIGHT, OWN_CLASS = range(50, 55)  # scratch numbers
_FUNCTIONS = ("value_and_delta",)


_KEPT = Store()


def key_of(
    logits: Array,
    targets: Array,
    options: LossOptions,
    result: dict[str, Array],
    sample_weight: Array | None,
    upstream: Array | float,
) -> tuple[Any, ...] | None:
    """Return what a kept call depends on beside addresses; None if a call is not kept."""
    if sample_weight is not None or options.class_weight is not None:
        return None
    if type(upstream) is not float or len(logits) > KEPT_ROWS:
        return None
    delta = result.get("delta")
    return (
        logits.shape, logits.strides, logits.dtype, targets.strides, targets.dtype, upstream,
        None if delta is None else (delta.strides, delta.dtype), tuple(result),
        result["loss"].dtype, options.ignore_index, options.label_smoothing, options.z_loss,
        options.soft_cap, options.reduction, options.empty, get_num_threads(),
    )  # fmt: skip


class KeptLoss:
    """The record of a call of softmax cross entropy, for the next call of its kind.

    It holds no array of the caller. A call takes it out of the store and puts it back afterwards,
    so two threads that call at once never share it.

    Parameters
    ----------
    function : callable
        The host kernel.
    values : dict
        The fields of the record for the first call, which runs now.
    direct : bool
        Whether the kernel reads the caller's targets, and not a copy.
    """

    def __init__(self, function: Any, values: dict[str, Any], direct: bool) -> None:
        made = record("softmax_cross_entropy", values | {"first": 0, "last": values["rows"]})
        self.call, self.made = partial(function, ctypes.byref(made)), made
        self.call()
        self.targets = "labels" if values["probabilities"] is None else "probabilities"
        self.direct, self.itemsize = direct, values["logits"].itemsize
        made.arrays = {"row_loss": made.arrays.get("row_loss")}

    def run(self, logits: Array, targets: Array, result: dict[str, Array]) -> bool:
        """Run the call on other arrays; return whether it takes them."""
        delta, made, at = result.get("delta"), self.made, address(logits)
        if not self.direct or at % self.itemsize or not targets.flags.aligned:
            return False
        if delta is not None and not (delta.flags.writeable and delta.flags.aligned):
            return False
        made.logits = at
        setattr(made, self.targets, address(targets))
        for name, array in result.items():
            if name not in ("delta", "loss", "row_loss") and not is_vector(array):
                return False
            if name != "scale":
                setattr(made, name, address(array))
        self.call()
        return True


class NativeLosses(NativeCalls):
    """The native losses; see `NativeBackend`."""

    def softmax_cross_entropy(
        self,
        logits: Array,
        targets: Array,
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None = None,
        upstream: Array | float = 1.0,
    ) -> None:
        library, key = self._native("softmax_cross_entropy"), None
        arguments = (logits, targets, options, result, sample_weight, upstream)
        if library is None:
            super().softmax_cross_entropy(*arguments)
            return
        if self._call is run_now:
            key = key_of(*arguments)
            kept = _KEPT.pop(key, None)
            if kept is not None and kept.run(logits, targets, result):
                _KEPT.keep(key, kept)
                return
        compute, delta = result["loss"].dtype, result.get("delta")
        strides = rows_of(logits, delta)
        if strides is None or not self._fits(logits, compute, result):
            super().softmax_cross_entropy(*arguments)
            return
        by_label, given = targets.ndim == 1, targets
        targets = self._targets(targets, LABELS if by_label else PROBABILITIES, compute)
        class_weight = self._row_numbers(options.class_weight, compute, OWN_CLASS)
        labels, probabilities = (targets, None) if by_label else (None, targets)
        ignores = by_label and options.ignore_index is not None
        weighed = by_label and (ignores or class_weight is not None)
        parts = self._parts(len(logits), logits.size * compute.itemsize)
        shared = self._shared(
            parts, options, result, sample_weight, upstream, weighed, len(logits), compute
        )
        values = {
            **shared, "logits": logits, "labels": labels, "probabilities": probabilities,
            "delta": delta, "lse": result.get("lse"), "predicted": result.get("predicted"),
            "correct": result.get("correct") if by_label else None, "class_weight": class_weight,
            "rows": len(logits), "cols": logits.shape[1], "stride_logits": strides[0],
            "stride_delta": strides[1],
            "stride_probabilities": 0 if by_label else row_stride(targets),
            "ignore_index": options.ignore_index or 0, "label_smoothing": options.label_smoothing,
            "z_loss": options.z_loss, "soft_cap": options.soft_cap, "storage": code_of(logits),
            "label_storage": code_of(targets) if by_label else 0,
            "probability_storage": 0 if by_label else code_of(targets),
            "has_ignore_index": int(ignores),
        }  # fmt: skip
        if len(parts) > 1 and shared["divisor_at"] is not None:
            weights = {
                "labels": labels, "sample_weight": values["sample_weight"],
                "class_weight": class_weight if by_label else None,
                "divisor_at": shared["divisor_at"], "rows": len(logits),
                "classes": logits.shape[1], "ignore_index": values["ignore_index"], "factor": 1.0,
                "storage": code_of(logits), "label_storage": values["label_storage"],
                "has_ignore_index": int(ignores),
            }  # fmt: skip
            self._issue(library.row_weights, "row_weights", weights)
        if key is not None and len(parts) == 1:
            kept = KeptLoss(library.softmax_cross_entropy, values, targets is given)
            _KEPT.keep(key, kept)
            return
        self._issue(library.softmax_cross_entropy, "softmax_cross_entropy", values, parts)
        self._reduce(library, values, result, options, parts)

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
        compute, delta = result["loss"].dtype, result.get("delta")
        strides = rows_of(a, delta)
        number = -1 if library is None else library.losses.get(formula.name, -1)
        known = same_formula(POINTWISE_LOSSES.get(formula.name), formula, _FUNCTIONS)
        fits = strides is not None and number >= 0 and known and self._fits(a, compute, result)
        if library is None or strides is None or not fits:
            super().pointwise_loss(a, targets, formula, options, result, sample_weight, upstream)
            return
        targets = self._targets(targets, TARGETS, compute)
        factor = float(a.shape[1]) if options.reduction == "elementwise_mean" else 1.0
        parts = self._parts(len(a), a.size * compute.itemsize)
        shared = self._shared(
            parts, options, result, sample_weight, upstream, False, len(a) * factor, compute
        )
        values = {
            **shared, "a": a, "targets": targets, "delta": delta,
            "correct": result.get("correct"), "rows": len(a), "cols": a.shape[1],
            "stride_a": strides[0], "stride_targets": row_stride(targets),
            "stride_delta": strides[1], "divisor_factor": factor, "parameter": formula.parameter,
            "storage": code_of(a), "target_storage": code_of(targets), "formula": number,
        }  # fmt: skip
        if len(parts) > 1 and shared["divisor_at"] is not None:
            weights = {
                "labels": None, "sample_weight": values["sample_weight"], "class_weight": None,
                "divisor_at": shared["divisor_at"], "rows": len(a), "classes": 0,
                "ignore_index": 0, "factor": factor, "storage": code_of(a), "label_storage": 0,
                "has_ignore_index": 0,
            }  # fmt: skip
            self._issue(library.row_weights, "row_weights", weights)
        self._issue(library.pointwise_loss, "pointwise_loss", values, parts)
        self._reduce(library, values, result, options, parts)

    # -- what both have ---------------------------------------------------------------------------

    def _fits(self, logits: Array, compute: np.dtype, result: dict[str, Array]) -> bool:
        """Return whether the kernels take these logits and results."""
        delta = result.get("delta")
        vectors = (result.get(name) for name in ("row_loss", "lse", "predicted", "correct"))
        return (
            code_of(logits) in FLOATS
            and logits.size > 0
            and compute_of(logits) == compute
            and (delta is None or (delta.dtype == logits.dtype and delta.flags.writeable))
            and is_vector(*vectors)
        )

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
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None,
        upstream: Array | float,
        weighed: bool,
        count: float,
        compute: np.dtype,
    ) -> dict[str, Any]:
        """Return the fields that both losses have: reduction, weights and upstream gradient.

        `weighed` says that the mean divides by more than sample weights, and `count` is what it
        divides by if rows have no weight.
        """
        mean, whole = options.reduction.endswith("mean"), len(parts) == 1
        weighs = mean and (weighed or sample_weight is not None)
        row_loss, reduced = result.get("row_loss"), options.reduction != "none"
        if row_loss is None and reduced:
            rows = parts[-1][1]
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
            "divisor": float(count) if mean and not weighs else 1.0,
            "weighs": int(weighs and whole), "empty_is_zero": int(options.empty == "zero"),
        }  # fmt: skip

    def _reduce(
        self,
        library: Library,
        values: dict[str, Any],
        result: dict[str, Array],
        options: LossOptions,
        parts: list[Part],
    ) -> None:
        """Issue the mean or the sum of the rows' losses after several parts."""
        if len(parts) == 1 or options.reduction == "none":
            return
        shared = {
            name: values[name]
            for name in ("row_loss", "divisor_at", "rows", "divisor", "storage", "empty_is_zero")
        }
        self._issue(library.reduce_loss, "reduce_loss", {**shared, "loss": result["loss"]})

    def accumulate(
        self,
        loss: Array,
        rows: int,
        correct: Array | None,
        penalty: tuple[Array, Array | float] | None,
        totals: Array,
    ) -> None:
        library = self._native("accumulate")
        l2 = None if penalty is None else penalty[1]
        at = l2 if isinstance(l2, np.ndarray) else None
        weights2 = None if penalty is None else penalty[0]
        fits = code_of(loss) in (0, 1) and is_vector(loss, correct, totals)
        fits = fits and (at is None or at.dtype == loss.dtype)
        fits = fits and (weights2 is None or weights2.dtype == np.float64)
        if library is None or not fits:
            super().accumulate(loss, rows, correct, penalty, totals)
            return
        values = {
            "loss": loss, "correct": correct, "weights2": weights2, "l2": at, "totals": totals,
            "rows": rows, "l2_value": 0.0 if at is not None or l2 is None else float(l2),
            "storage": code_of(loss),
        }  # fmt: skip
        self._issue(library.accumulate, "accumulate", values)
