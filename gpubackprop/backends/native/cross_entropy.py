"""Native softmax cross entropy: in plans, at once, and at once again without a new record."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import numpy as np

from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.native.arguments import address, record
from gpubackprop.backends.native.calls import code_of, compute_of, is_vector, row_stride
from gpubackprop.backends.native.losses import OWN_CLASS, OWN_LOGITS, NativeLosses
from gpubackprop.backends.numpy.eager import KEPT_ROWS, Store
from gpubackprop.backends.numpy.recorded_calls import get_num_threads, run_now

Array = np.ndarray
LABELS, PROBABILITIES = (4, 5, 6), (0, 1)  # codes of labels, and of probabilities
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
    own : array or None
        The rows' losses, if the caller has no array for them.
    """

    def __init__(self, function: Any, values: dict[str, Any], own: Array | None) -> None:
        made = record("softmax_cross_entropy", values | {"first": 0, "last": values["rows"]})
        self.call, self.made = partial(function, ctypes.byref(made)), made
        self.call()
        self.targets = "labels" if values["probabilities"] is None else "probabilities"
        self.itemsize = values["logits"].itemsize
        made.arrays = {"row_loss": own}

    def run(self, logits: Array, targets: Array, result: dict[str, Array]) -> bool:
        """Run the call on other arrays; return whether it takes them."""
        delta, made, at = result.get("delta"), self.made, address(logits)
        if at % self.itemsize or not targets.flags.aligned:
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


class NativeCrossEntropy(NativeLosses):
    """Native softmax cross entropy; see `NativeBackend`."""

    def softmax_cross_entropy(
        self,
        logits: Array,
        targets: Array,
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None = None,
        upstream: Array | float = 1.0,
        divisor: Array | None = None,
    ) -> None:
        library, key = self._native("softmax_cross_entropy"), None
        arguments = (logits, targets, options, result, sample_weight, upstream)
        summed = "weight_sum" in result or "correct_rows" in result
        if library is None or summed:  # these are for a GPU
            super().softmax_cross_entropy(*arguments, divisor)
            return
        if self._call is run_now and divisor is None:
            key = key_of(*arguments)
            kept = _KEPT.pop(key, None)
            if kept is not None and kept.run(logits, targets, result):
                _KEPT.keep(key, kept)
                return
        if not self._fits(logits, result):
            super().softmax_cross_entropy(*arguments, divisor)
            return
        z, delta, by_label = (
            self._rows(logits, OWN_LOGITS),
            self._rows_for(result.get("delta")),
            targets.ndim == 1,
        )
        given, compute = targets, compute_of(z)
        targets = self._targets(targets, LABELS if by_label else PROBABILITIES, compute)
        class_weight = self._row_numbers(options.class_weight, compute, OWN_CLASS)
        ignores = by_label and options.ignore_index is not None
        labels = {
            "labels": targets if by_label else None, "class_weight": class_weight,
            "ignore_index": options.ignore_index or 0, "has_ignore_index": int(ignores),
            "label_storage": code_of(targets) if by_label else 0,
        }  # fmt: skip
        parts = self._parts(len(z), z.size * compute.itemsize)
        weighed = by_label and (ignores or class_weight is not None)
        shared = self._shared(parts, z, options, result, sample_weight, upstream, weighed, 1.0)
        if divisor is not None:
            shared |= {"divisor_at": np.zeros(1), "weighs": 0}
            self._call(np.copyto, shared["divisor_at"], divisor)
        values = {
            **shared, **labels, "logits": z, "probabilities": None if by_label else targets,
            "delta": delta, "lse": result.get("lse"), "predicted": result.get("predicted"),
            "correct": result.get("correct") if by_label else None, "cols": z.shape[1],
            "stride_logits": row_stride(z),
            "stride_delta": 0 if delta is None else row_stride(delta),
            "stride_probabilities": 0 if by_label else row_stride(targets),
            "label_smoothing": options.label_smoothing, "z_loss": options.z_loss,
            "soft_cap": options.soft_cap,
            "probability_storage": 0 if by_label else code_of(targets),
        }  # fmt: skip
        if not by_label:
            labels["class_weight"] = None  # it is no weight of a row
        if divisor is None:
            self._weigh(library, shared, {**labels, "classes": z.shape[1]}, 1.0)
        direct = z is logits and targets is given and delta is result.get("delta")
        if key is not None and direct and len(parts) == 1:
            own = None if "row_loss" in result else values["row_loss"]
            kept = KeptLoss(library.softmax_cross_entropy, values, own)
            _KEPT.keep(key, kept)
            return
        self._issue(library.softmax_cross_entropy, "softmax_cross_entropy", values, parts)
        self._finish_loss(library, shared, result, options, parts, delta)
