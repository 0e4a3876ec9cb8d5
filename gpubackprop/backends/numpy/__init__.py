"""The NumPy backend: the operations of backpropagation in place, in cache-sized blocks.

`gpubackprop.backends.base.Backend` says what each operation does. float16 and bfloat16 arrays are
computed in float32, block by block, and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import numpy as np

from gpubackprop.backends import precision
from gpubackprop.backends.base import Backend
from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.memory import RowCursor
from gpubackprop.backends.numpy.blocks import Scratch, add_reduce, for_row_blocks
from gpubackprop.backends.numpy.calls import (
    HostRows,
    accumulate,
    emit_round_to_storage,
    gather_next,
    gather_rows,
    is_sixteen_bit,
    reduce_rows,
    sum_of_squares,
    units_right,
    zero_where_empty,
)
from gpubackprop.backends.numpy.eager import run_cross_entropy
from gpubackprop.backends.numpy.layers import LayerOperations
from gpubackprop.backends.numpy.memory import HostMemory
from gpubackprop.backends.numpy.one_hot import OneHotOperations
from gpubackprop.backends.numpy.recorded_calls import (
    RecordedCalls,
    get_num_threads,
    run_now,
    set_num_threads,
)
from gpubackprop.backends.numpy.softmax_cross_entropy import (
    IndexCrossEntropy,
    ProbabilityCrossEntropy,
    mean_divisor,
    row_scales,
    scale_is_fixed,
    summarize,
    works_in,
)
from gpubackprop.backends.numpy.updater import NumpyUpdater
from gpubackprop.backends.updater import UpdateRule
from gpubackprop.formulas import PointwiseLoss, Update

__all__ = ["NumpyBackend", "get_num_threads", "set_num_threads"]

Array = np.ndarray


class NumpyBackend(LayerOperations, OneHotOperations, HostMemory, Backend):
    """The operations of backpropagation on NumPy arrays; see `Backend`."""

    device, reason, tf32 = "cpu:numpy", "", False

    def __init__(self) -> None:
        self._call: Callable[..., None] = run_now
        self._shared_scratch: Scratch | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __reduce__(self) -> tuple[Any, ...]:
        """Make copies and pickles as new backends that compute alike."""
        state = {"reason": self.reason, "device": self.device}
        return type(self), (), state | ({"tf32": True} if self.tf32 else {})

    def in_any_order(self) -> Self:
        return self

    def with_tf32(self) -> Self:
        twin = type(self)()
        twin.device, twin.reason, twin.tf32 = self.device, self.reason, True
        return twin

    def automatic_precision(self) -> str:
        return precision.automatic(None)

    def plan(self, emit: Callable[[Self], None]) -> Callable[[], None]:
        recorder, recorded = type(self)(), RecordedCalls()
        recorder.device, recorder._call, recorder._shared_scratch = self.device, recorded, Scratch()
        recorder.tf32 = self.tf32
        emit(recorder)
        return self._planned(recorded)

    def _planned(self, recorded: RecordedCalls) -> Callable[[], None]:
        """Return what runs the recorded calls."""
        return recorded.run

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        self._call(function, *args)

    def _scratch(self) -> Scratch:
        return self._shared_scratch or Scratch()

    # -- rows -------------------------------------------------------------------------------------

    def gather_rows(self, source: Array, rows: Array | None, out: Array) -> None:
        if rows is None:
            self._call(np.copyto, out, source, "unsafe")
        else:
            self._call(gather_rows, source, rows, out)

    def gather_batch(self, pairs: Sequence[tuple[Array, Array]], rows: Array | RowCursor) -> None:
        for source, out in pairs:
            if isinstance(rows, HostRows):
                self._call(gather_next, source, rows, out)
            else:
                self.gather_rows(source, cast(Array, rows), out)

    def divide(self, x: Array, divisor: float, out: Array) -> None:
        self._call(np.divide, x, divisor, out)

    def standardize(self, raw: Array, mean: Array, scale: Array, out: Array) -> None:
        scratch = self._scratch()

        def emit(call: Callable[..., None], rows: slice, slot: int) -> None:
            wide = scratch.take(slot, 0, raw[rows].shape, np.float64)
            call(np.copyto, wide, raw[rows], "unsafe")
            call(np.subtract, wide, mean, wide)
            call(np.divide, wide, scale, wide)
            call(np.copyto, out[rows], wide, "same_kind")

        for_row_blocks(self._call, len(raw), raw.shape[1] * 8, emit)

    # -- losses -----------------------------------------------------------------------------------

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
        if self._call is run_now:
            run_cross_entropy(logits, targets, options, result, sample_weight, upstream, divisor)
            return
        if "correct_rows" in result:
            result = {"correct": np.empty(len(logits), np.bool_)} | result
        labels = targets if targets.ndim == 1 else None
        denominator = self._scales(labels, sample_weight, upstream, options, result, divisor)
        kind = ProbabilityCrossEntropy if labels is None else IndexCrossEntropy
        dtype, delta = result["row_loss"].dtype, result.get("delta")
        entropy = kind(logits.shape, dtype, options, works_in(delta, dtype), self._scratch())
        entropy.bind(logits, delta, targets, result, options.class_weight)
        if divisor is None and scale_is_fixed(labels, sample_weight, upstream, options):
            entropy.fix_scale()
        self._call(entropy.prologue)
        for_row_blocks(
            self._call,
            len(logits),
            logits.shape[1] * entropy.dtype.itemsize,
            lambda call, rows, slot: call(entropy.block, rows, slot),
            block_bytes=entropy.block_bytes,
        )
        self._call(entropy.epilogue)
        self._reduce_loss(sample_weight, denominator, options, result)
        if not result.keys().isdisjoint(("weight_sum", "correct_rows")):
            self._call(summarize, result, denominator)

    def number_rows_from(self, first: int) -> None:
        pass  # labels are checked before they get here

    def mean_divisor(
        self,
        targets: Array,
        options: LossOptions,
        out: Array,
        sample_weight: Array | None = None,
    ) -> None:
        labels = targets if targets.ndim == 1 else None
        self._call(mean_divisor, labels, len(targets), sample_weight, options, out)

    def _scales(
        self,
        labels: Array | None,
        sample_weight: Array | None,
        upstream: Array | float,
        options: LossOptions,
        result: dict[str, Array],
        divisor: Array | None = None,
    ) -> Array:
        """Fill result["scale"]; return the 0-d denominator of the mean.

        If the row scale does not depend on the batch, it is computed now, once, and a recorded plan
        only reads it. Each plan therefore wants a "scale" array of its own.
        """
        denominator = np.ones(())
        args = (labels, sample_weight, upstream, options, result, denominator, divisor)
        if divisor is None and scale_is_fixed(labels, sample_weight, upstream, options):
            with np.errstate(all="ignore"):  # it is the same for every batch, so no plan needs it
                row_scales(*args)
        else:
            self._call(row_scales, *args)
        return denominator

    def _reduce_loss(
        self,
        sample_weight: Array | None,
        denominator: Array,
        options: LossOptions,
        result: dict[str, Array],
    ) -> None:
        row_loss, loss = result["row_loss"], result["loss"]
        if sample_weight is not None:
            self._call(np.multiply, row_loss, sample_weight, row_loss)
        if options.reduction == "none":
            return
        self._call(reduce_rows, row_loss, denominator, loss)
        if options.empty == "zero":
            self._call(zero_where_empty, denominator, loss)

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
        result = result | {"units": np.asarray(a.shape[1])}
        row_loss, delta, scratch = result["row_loss"], result.get("delta"), self._scratch()
        sixteen_bit = is_sixteen_bit(a.dtype)
        scale = result["scale"][:, None]
        denominator = self._scales(None, sample_weight, upstream, options, result)

        def emit(call: Callable[..., None], rows: slice, slot: int) -> None:
            block = a[rows]
            value, work = (scratch.take(slot, i, block.shape, row_loss.dtype) for i in (0, 1))
            if delta is None or sixteen_bit:
                out = scratch.take(slot, 2, block.shape, row_loss.dtype)
            else:
                out = delta[rows]
            if "correct" in result:
                signs = [scratch.take(slot, i, block.shape, np.bool_) for i in (3, 4)]
                call(units_right, block, targets[rows], result["correct"][rows], *signs)
            if sixteen_bit:
                wide = scratch.take(slot, 5, block.shape, row_loss.dtype)
                call(np.copyto, wide, block)
                block = wide
            call(formula.value_and_delta, block, targets[rows], value, out, work, formula.parameter)
            call(add_reduce, value, 1, None, row_loss[rows])
            if delta is not None:
                call(np.multiply, out, scale[rows], out)
                if sixteen_bit:
                    call(np.copyto, delta[rows], out)

        for_row_blocks(self._call, len(a), a.shape[1] * a.itemsize, emit)
        self._reduce_loss(sample_weight, denominator, options, result)

    def accumulate(
        self,
        loss: Array,
        rows: int,
        correct: Array | None,
        penalty: tuple[Array, Array | float] | None,
        totals: Array,
    ) -> None:
        self._call(accumulate, loss, rows, correct, penalty, totals)

    # -- updates ----------------------------------------------------------------------------------

    def add_scaled(self, x: Array, scale: Array, out: Array) -> None:
        scratch = self._scratch()

        def emit(call: Callable[..., None], block: slice, slot: int) -> None:
            work = scratch.take(slot, 0, x[block].shape, x.dtype)
            call(np.multiply, x[block], scale, work)
            call(np.add, out[block], work, out[block])

        for_row_blocks(self._call, len(x), x.itemsize, emit)

    def sum_of_squares(self, x: Array, out: Array) -> None:
        self._call(sum_of_squares, x, out)

    def update(
        self,
        parameters: Array,
        gradient: Array,
        slots: tuple[Array, ...],
        formula: Update,
        coefficients: dict[str, Any],
    ) -> None:
        scratch, c = self._scratch(), coefficients["c"]
        copy, random = coefficients.get("copy"), coefficients.get("random")
        decay, clip, l2 = (coefficients.get(name) for name in ("decay", "clip", "l2"))

        def emit(call: Callable[..., None], block: slice, slot: int) -> None:
            p, g = parameters[block], gradient[block]
            s = tuple(array[block] for array in slots)
            total, *work = (scratch.take(slot, i, p.shape, p.dtype) for i in range(3))
            if l2 is not None and block.start < l2[0]:
                n = min(block.stop, l2[0]) - block.start
                call(np.multiply, p[:n], l2[1], total[:n])
                call(np.add, g[:n], total[:n], total[:n])
                if n < len(p):
                    call(np.copyto, total[n:], g[n:])
                g = total
            if clip is not None:
                call(np.multiply, g, clip, total)
                g = total
            if decay is not None and formula.decay == "coupled":
                call(np.multiply, p, decay, work[0])
                call(np.add, g, work[0], total)
                g = total
            elif decay is not None:
                call(np.multiply, p, decay, p)
            call(formula.apply, p, g, s, c, tuple(work))
            if copy is not None:
                emit_round_to_storage(call, p, copy[block], random, block.start, scratch, slot)

        bytes_each = parameters.itemsize * (3 + len(slots))
        for_row_blocks(
            self._call,
            len(parameters),
            parameters.itemsize,
            emit,
            total_bytes=len(parameters) * bytes_each,
        )

    def round_to_storage(self, x: Array, out: Array, random: Array | None = None) -> None:
        scratch = self._scratch()

        def emit(call: Callable[..., None], block: slice, slot: int) -> None:
            emit_round_to_storage(call, x[block], out[block], random, block.start, scratch, slot)

        for_row_blocks(self._call, len(x), x.itemsize, emit)

    def updater(
        self,
        rule: UpdateRule,
        parameters: Array,
        gradient: Array,
        slots: tuple[Array, ...],
        random: Array | None = None,
        half_copy: Array | None = None,
    ) -> NumpyUpdater:
        return NumpyUpdater(rule, parameters, gradient, slots, random, half_copy)
