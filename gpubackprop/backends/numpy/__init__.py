"""The NumPy backend: the verbs of backpropagation in place, in cache-sized blocks.

Every verb writes into arrays that the caller gives. A verb called on `NumpyBackend()` runs at once;
``NumpyBackend().plan(emit)`` records the verbs that ``emit(verbs)`` calls and returns a function
that replays them, allocating nothing. A CuPy backend has the same verbs and captures a CUDA graph.

Verbs trust their arguments: shapes, dtypes and options are checked in `gpubackprop.ops` and in
`gpubackprop.network`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends.numpy.blocks import Scratch, add_reduce, for_row_blocks
from gpubackprop.backends.numpy.calls import (
    Total,
    accumulate,
    emit_value,
    gather_rows,
    reduce_rows,
    sum_of_squares,
    units_right,
    zero_where_empty,
)
from gpubackprop.backends.numpy.memory import HostMemory
from gpubackprop.backends.numpy.softmax_cross_entropy import (
    IndexCrossEntropy,
    LossOptions,
    ProbabilityCrossEntropy,
    row_scales,
)
from gpubackprop.backends.numpy.tape import Tape, get_num_threads, run_now, set_num_threads
from gpubackprop.backends.numpy.updater import NumpyUpdater
from gpubackprop.formulas import OUTPUTS, Activation, PointwiseLoss, Update

__all__ = ["LossOptions", "NumpyBackend", "Total", "get_num_threads", "set_num_threads"]

Array = np.ndarray
SUM_ROWS = 8  # rows added one after another before partial sums are formed, in column_sum


class NumpyBackend(HostMemory):
    """Verbs of backpropagation on NumPy arrays (see the module's docstring)."""

    device, reason = "cpu", ""

    def __init__(self) -> None:
        self._call: Callable[..., None] = run_now
        self._shared_scratch: Scratch | None = None

    def plan(self, emit: Callable[[NumpyBackend], None]) -> Callable[[], None]:
        """Record the verbs that `emit` calls; the returned function replays them."""
        recorder, tape = NumpyBackend(), Tape()
        recorder._call, recorder._shared_scratch = tape, Scratch()
        emit(recorder)
        return tape.run

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Issue a host function as part of a plan (or run it at once)."""
        self._call(function, *args)

    def _scratch(self) -> Scratch:
        return self._shared_scratch or Scratch()

    # -- rows -------------------------------------------------------------------------------------

    def gather_rows(self, source: Array, rows: Array, out: Array) -> None:
        """out[i] = source[rows[i]], converted to the dtype of out.

        `rows` is read when the call runs, so a plan gathers another batch each time it is replayed.
        """
        self._call(gather_rows, source, rows, out)

    def divide(self, x: Array, divisor: float, out: Array) -> None:
        """out = x / divisor."""
        self._call(np.divide, x, divisor, out)

    # -- layers -----------------------------------------------------------------------------------

    def matmul(self, x: Array, y: Array, out: Array) -> None:
        """out = x @ y. Every matrix product of a training step comes through here."""
        self._call(np.matmul, x, y, out)

    def affine_forward(
        self, x: Array, W: Array, b: Array, activation: Activation, a: Array, h: Array
    ) -> None:
        """a = x W^T + b; h = g(a). h may be a; a is then not kept.

        x (N, D_in), W (D_out, D_in), b (D_out,), a and h (N, D_out).
        """
        self.matmul(x, W.T, a)
        self.affine_epilogue(a, b, activation, h)

    def affine_epilogue(self, a: Array, b: Array, activation: Activation, h: Array) -> None:
        """What follows the product of a layer: a += b; h = g(a). h may be a."""
        scratch = self._scratch()

        def emit(call: Callable[..., None], rows: slice, slot: int) -> None:
            block, out = a[rows], a[rows] if h is a else h[rows]
            call(np.add, block, b, block)
            emit_value(call, activation, block, block if h is a else out, scratch, slot)

        for_row_blocks(self._call, len(a), a.shape[1] * a.itemsize, emit)

    def activation_forward(self, a: Array, activation: Activation, h: Array) -> None:
        """h = g(a), elementwise; (N, D) both; h may be a."""
        scratch = self._scratch()

        def emit(call: Callable[..., None], rows: slice, slot: int) -> None:
            block = a[rows]
            emit_value(call, activation, block, block if h is a else h[rows], scratch, slot)

        for_row_blocks(self._call, len(a), a.shape[1] * a.itemsize, emit)

    def activation_backward(
        self,
        grad_h: Array,
        saved: Array,
        activation: Activation,
        delta: Array,
        grad_b: Array | None = None,
    ) -> None:
        """delta = grad_h * g'; grad_b = sum_i delta[i], where it is given.

        `saved` is h or a as activation.saved says; delta may be grad_h.
        """
        scratch = self._scratch()

        def emit(call: Callable[..., None], rows: slice, slot: int) -> None:
            g, s, d = grad_h[rows], saved[rows], delta[rows]
            slope, *work = (scratch.take(slot, i, s.shape, s.dtype) for i in range(4))
            if activation.backward is not None:
                call(activation.backward, g, s, d, tuple(work), activation.parameter)
                return
            call(activation.slope, s, slope, tuple(work), activation.parameter)
            call(np.multiply, g, slope, d)

        if activation.name != "identity":
            for_row_blocks(self._call, len(saved), saved.shape[1] * saved.itemsize, emit)
        elif delta is not grad_h:
            self._call(np.copyto, delta, grad_h)
        if grad_b is not None:
            self.column_sum(delta, grad_b)

    def affine_backward(
        self, delta: Array, h_prev: Array, W: Array, grad_W: Array, grad_h: Array | None
    ) -> None:
        """grad_W = delta^T h_prev; grad_h = delta W, the gradient for the layer below (or None)."""
        self.matmul(delta.T, h_prev, grad_W)
        if grad_h is not None:
            self.matmul(delta, W, grad_h)

    def column_sum(self, delta: Array, out: Array) -> None:
        """out[j] = sum_i delta[i, j] by a tree of fixed shape.

        At most SUM_ROWS terms are added in a row, so that the error grows with log N, not N, and
        half as many near the root, where the sums are large. Short rows are joined into long ones,
        which is what NumPy adds fast.
        """
        rows, columns = delta.shape
        scratch, level = self._scratch(), 0
        while rows > SUM_ROWS // 2 and delta.flags.c_contiguous:
            terms = SUM_ROWS if rows > 16 * SUM_ROWS else SUM_ROWS // 2
            join = max(1, min(512 // max(columns, 1), rows // (4 * terms)))
            group = terms * join
            whole = rows // group
            tail = rows - whole * group
            partial = scratch.take(0, 20 + level % 2, (whole * join + tail, columns), out.dtype)
            view = delta[: whole * group].reshape(whole, terms, join * columns)
            sums = partial[: whole * join].reshape(whole, join * columns)
            self._call(add_reduce, view, 1, out.dtype, sums)
            if tail:
                self._call(np.copyto, partial[whole * join :], delta[whole * group :])
            delta, rows, level = partial, len(partial), level + 1
        self._call(add_reduce, delta, 0, out.dtype, out)

    def output(self, a: Array, kind: str, out: Array) -> None:
        """yhat = O(a), O one of softmax, linear, logistic, exp; out may be a."""

        def emit(call: Callable[..., None], rows: slice, slot: int) -> None:
            block = a[rows]
            call(OUTPUTS[kind], block, block if out is a else out[rows])

        for_row_blocks(self._call, len(a), a.shape[1] * a.itemsize, emit)

    # -- losses -----------------------------------------------------------------------------------

    def softmax_cross_entropy(
        self,
        logits: Array,
        targets: Array,
        options: LossOptions,
        result: dict[str, Array],
        sample_weight: Array | None = None,
        upstream: Array | float = 1.0,
    ) -> None:
        """Loss and delta; the formulas are in `softmax_cross_entropy`'s docstring.

        `result` holds the arrays to fill: "loss" (), "row_loss" (N,) and "scale" (N,) of the
        compute dtype; optionally "delta" (N, K), which may be the logits, "lse" (N,), "correct"
        (N,) bool: the label is the first of the row's largest logits, as argmax finds it. Where
        "scale" is the same for every batch it is filled now and not by the plan: do not share it.
        """
        labels = targets if targets.ndim == 1 else None
        denominator = self._scales(labels, sample_weight, upstream, options, result)
        kind = ProbabilityCrossEntropy if labels is None else IndexCrossEntropy
        entropy = kind(logits, result.get("delta"), targets, result, options, self._scratch())
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

    def _scales(
        self,
        labels: Array | None,
        sample_weight: Array | None,
        upstream: Array | float,
        options: LossOptions,
        result: dict[str, Array],
    ) -> Array:
        """Fill result["scale"]; returns the 0-d denominator of the mean."""
        denominator = np.ones(())
        by_label = options.ignore_index is not None or options.class_weight is not None
        args = (labels if by_label else None, sample_weight, upstream, options, result, denominator)
        if sample_weight is None and not (labels is not None and by_label):
            with np.errstate(all="ignore"):  # the same for every batch: not part of the plan
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
    ) -> None:
        """Loss and delta of squared error, binary cross entropy or Poisson.

        `result` as for `softmax_cross_entropy`, without "lse"; "correct" (N,) bool: every unit is
        on its target's side of 1/2.
        """
        result = result | {"units": np.asarray(a.shape[1])}
        row_loss, delta, scratch = result["row_loss"], result.get("delta"), self._scratch()
        scale = result["scale"][:, None]
        denominator = self._scales(None, sample_weight, 1.0, options, result)

        def emit(call: Callable[..., None], rows: slice, slot: int) -> None:
            block = a[rows]
            value, work = (scratch.take(slot, i, block.shape, row_loss.dtype) for i in (0, 1))
            out = (
                scratch.take(slot, 2, block.shape, row_loss.dtype) if delta is None else delta[rows]
            )
            if "correct" in result:
                signs = [scratch.take(slot, i, block.shape, np.bool_) for i in (3, 4)]
                call(units_right, block, targets[rows], result["correct"][rows], *signs)
            call(formula.value_and_delta, block, targets[rows], value, out, work)
            call(add_reduce, value, 1, None, row_loss[rows])
            if delta is not None:
                call(np.multiply, out, scale[rows], out)

        for_row_blocks(self._call, len(a), a.shape[1] * a.itemsize, emit)
        self._reduce_loss(sample_weight, denominator, options, result)

    def accumulate(
        self,
        loss: Array,
        rows: int,
        correct: Array | None,
        penalty: tuple[Array, Array] | None,
        totals: Array,
    ) -> None:
        """Add one step to `totals`, a float64 array indexed by `Total`. Nothing is read back.

        `loss` () is the batch mean; `correct` (rows,) bool; `penalty` is (sum of squared weights,
        l2), both 0-d: l2 / 2 times the sum is the penalty.
        """
        self._call(accumulate, loss, rows, correct, penalty, totals)

    # -- updates ----------------------------------------------------------------------------------

    def add_scaled(self, x: Array, scale: Array, out: Array) -> None:
        """out += scale * x on flat arrays; `scale` a 0-d array read when the call runs."""
        scratch = self._scratch()

        def emit(call: Callable[..., None], block: slice, slot: int) -> None:
            work = scratch.take(slot, 0, x[block].shape, x.dtype)
            call(np.multiply, x[block], scale, work)
            call(np.add, out[block], work, out[block])

        for_row_blocks(self._call, len(x), x.itemsize, emit)

    def sum_of_squares(self, x: Array, out: Array) -> None:
        """out = sum x^2 in float64, `x` flat, `out` a 0-d float64 array."""
        self._call(sum_of_squares, x, out)

    def update(
        self,
        parameters: Array,
        gradient: Array,
        slots: tuple[Array, ...],
        formula: Update,
        coefficients: dict[str, Any],
    ) -> None:
        """One step of the optimizer on the flat buffers, block by block.

        `coefficients` holds 0-d arrays, read when the call runs: "c" the formula's tuple, "decay"
        the weight decay (coupled) or 1 - lr * weight decay (decoupled) or None, "clip" a factor on
        the gradient or None, "l2" None or (stop, factor): factor * p is added to the gradient of
        parameters[:stop].
        """
        scratch, c = self._scratch(), coefficients["c"]
        decay, clip, l2 = (coefficients.get(name) for name in ("decay", "clip", "l2"))

        def emit(call: Callable[..., None], block: slice, slot: int) -> None:
            p, g = parameters[block], gradient[block]
            s = tuple(array[block] for array in slots)
            total, *work = (scratch.take(slot, i, p.shape, p.dtype) for i in range(3))
            if l2 is not None and block.start < l2[0]:
                n = min(block.stop, l2[0]) - block.start
                call(np.multiply, p[:n], l2[1], work[0][:n])
                call(np.add, g[:n], work[0][:n], total[:n])
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

        bytes_each = parameters.itemsize * (3 + len(slots))
        for_row_blocks(
            self._call,
            len(parameters),
            parameters.itemsize,
            emit,
            total_bytes=len(parameters) * bytes_each,
        )

    updater = NumpyUpdater
