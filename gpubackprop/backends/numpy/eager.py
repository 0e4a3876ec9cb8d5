"""Calls that run at once, on arrays like those that a plan prepares.

Arrays that depend on shapes, dtypes and options alone are made at the first call, and kept for the
next call of that kind. A call takes them out of the store and puts them back afterwards, so two
threads that call at once never share memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import numpy as np

from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.numpy.blocks import Scratch, for_row_blocks
from gpubackprop.backends.numpy.calls import reduce_rows, zero_where_empty
from gpubackprop.backends.numpy.recorded_calls import get_num_threads, quiet_context
from gpubackprop.backends.numpy.softmax_cross_entropy import (
    IndexCrossEntropy,
    ProbabilityCrossEntropy,
    row_scales,
    scale_is_fixed,
    summarize,
    works_in,
)

Array = np.ndarray
KEPT = 8  # prepared calls in a store
KEPT_ROWS = 4096  # calls of more rows are not kept: a row takes 100 bytes, the scratch up to 1 MiB


class Store(dict[Hashable, Any]):
    """The prepared calls that were used last; no operation on it waits or needs a lock.

    ``pop(key, None)`` gives a kept call, which is the caller's alone until it is kept again.

    Parameters
    ----------
    size : int
        How many calls are kept.
    """

    def __init__(self, size: int = KEPT) -> None:
        super().__init__()
        self._size = size

    def keep(self, key: Hashable, prepared: Any) -> None:
        self[key] = prepared
        while len(self) > self._size:
            with suppress(RuntimeError, StopIteration):  # another thread may remove calls too
                self.pop(next(iter(self)), None)


class EagerCrossEntropy:
    """Softmax cross entropy for one kind of call: its row arrays, scratch and reduction.

    Parameters
    ----------
    logits : (N, K) array
        Logits of the first call.
    targets : (N,) or (N, K) array
        Targets of the first call.
    delta : (N, K) array or None
        Receives the gradient of the first call.
    options : LossOptions
        Options of the first call; later ones differ in the values of class_weight alone.
    dtype : dtype
        Compute dtype.
    """

    def __init__(
        self,
        logits: Array,
        targets: Array,
        delta: Array | None,
        options: LossOptions,
        dtype: np.dtype,
    ) -> None:
        kind = IndexCrossEntropy if targets.ndim == 1 else ProbabilityCrossEntropy
        direct, rows = works_in(delta, dtype), len(logits)
        self.entropy = kind(logits.shape, dtype, options, direct, Scratch())
        self.row_bytes = logits.shape[1] * dtype.itemsize
        self.own = {"scale": np.empty(rows, dtype), "row_loss": np.empty(rows, dtype)}
        self.divisor = 1.0
        self.rows = slice(0, rows)
        self.whole = 0 < rows <= self.entropy.block_rows
        self.run = quiet_context().run  # one thread at a time has this object
        self.unit = False  # whether scale and denominator are for upstream 1 and no weights

    def __call__(
        self,
        logits: Array,
        targets: Array,
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None,
        upstream: Array | float,
        divisor: Array | None,
    ) -> None:
        entropy, known = self.entropy, self.unit and "scale" not in result
        result = self.own | result
        if "correct_rows" in result:
            result = {"correct": np.empty(len(logits), np.bool_)} | result
        entropy.bind(logits, result.get("delta"), targets, result, options.class_weight)
        if not (known and sample_weight is None and upstream is UNIT and divisor is None):
            self._set_scales(targets, options, result, sample_weight, upstream, divisor)
        entropy.prologue()
        if self.whole:
            entropy.block(self.rows, 0)
        else:
            for_row_blocks(
                _call, self.rows.stop, self.row_bytes,
                lambda call, rows, slot: call(entropy.block, rows, slot),
                block_bytes=entropy.block_bytes,
            )  # fmt: skip
        entropy.epilogue()
        entropy.release()
        row_loss = result["row_loss"]
        if sample_weight is not None:
            np.multiply(row_loss, sample_weight, row_loss)
        if options.reduction != "none":
            reduce_rows(row_loss, self.divisor, result["loss"])
            if options.empty == "zero":
                zero_where_empty(self.divisor, result["loss"])
        if "weight_sum" in result or "correct_rows" in result:
            summarize(result, self.divisor)

    def _set_scales(
        self,
        targets: Array,
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None,
        upstream: Array | float,
        divisor: Array | None,
    ) -> None:
        labels, entropy = targets if targets.ndim == 1 else None, self.entropy
        denominator = np.ones(())
        row_scales(labels, sample_weight, upstream, options, result, denominator, divisor)
        self.divisor = float(denominator)  # NumPy divides faster by a number than by an array
        fixed = upstream is UNIT and divisor is None and result["scale"] is self.own["scale"]
        self.unit = fixed and scale_is_fixed(labels, sample_weight, upstream, options)
        entropy.fixed_scale = False
        if self.unit:
            entropy.fix_scale()


UNIT = 1.0  # this very object is the upstream gradient if none is given
_CROSS_ENTROPIES = Store()


def run_cross_entropy(
    logits: Array,
    targets: Array,
    options: LossOptions,
    result: dict[str, Array],
    sample_weight: Array | None,
    upstream: Array | float,
    divisor: Array | None = None,
) -> None:
    """Do `NumpyBackend.softmax_cross_entropy` at once."""
    dtype, delta = result["loss"].dtype, result.get("delta")
    direct = delta is not None and delta.flags.c_contiguous and delta.dtype == dtype
    key = (
        logits.shape, targets.ndim, dtype, direct, get_num_threads(),
        options.class_weight is None, options.ignore_index, options.label_smoothing,
        options.z_loss, options.soft_cap, options.reduction, options.empty,
    )  # fmt: skip
    if isinstance(upstream, float) and upstream == 1.0:
        upstream = UNIT
    prepared = _CROSS_ENTROPIES.pop(key, None)
    if prepared is None:
        prepared = EagerCrossEntropy(logits, targets, delta, options, dtype)
    prepared.run(prepared, logits, targets, options, result, sample_weight, upstream, divisor)
    if len(logits) <= KEPT_ROWS:
        _CROSS_ENTROPIES.keep(key, prepared)


def _call(function: Callable[..., Any], *args: Any) -> None:
    function(*args)
