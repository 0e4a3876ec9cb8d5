"""The layer operations of the NumPy backend: products, activations with dropout, column sums.

float16 and bfloat16 arrays are computed in float32, block by block, and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpubackprop.backends.base import Backend
from gpubackprop.backends.numpy.blocks import Scratch, add_reduce, for_row_blocks
from gpubackprop.backends.numpy.calls import emit_drop, emit_value, is_sixteen_bit
from gpubackprop.backends.precision import round_to_tf32
from gpubackprop.formulas import OUTPUTS, Activation, Dropout
from gpubackprop.formulas.losses import log_softmax_rows

Array = np.ndarray
Call = Callable[..., None]
SUM_ROWS = 8  # column_sum adds so many rows one after another, then forms partial sums
ADDED_BYTES, LEAST_ADDED_ROWS = 1 << 20, 64  # of a product that is added to an array
# Numbers of scratch arrays; the formulas have 0 to 3.
WIDE, WIDE_SAVED, WIDE_BIAS, LEFT, RIGHT, PRODUCT = 4, 5, 6, 7, 8, 9
PARTIAL = 20  # column_sum uses this number and the next


class LayerOperations(Backend):
    """The layer operations of `NumpyBackend`."""

    _call: Call
    _scratch: Callable[[], Scratch]

    def matmul(self, x: Array, y: Array, out: Array, accumulate: bool = False) -> None:
        scratch = self._scratch()
        x, y = self._widened(x, scratch, LEFT), self._widened(y, scratch, RIGHT)
        if accumulate:
            self._add_product(x, y, out, scratch)
            return
        if not is_sixteen_bit(out.dtype):
            self._call(np.matmul, x, y, out)
            return
        wide = scratch.take(0, PRODUCT, out.shape, x.dtype)
        self._call(np.matmul, x, y, wide)
        self._call(np.copyto, out, wide)

    def _add_product(self, x: Array, y: Array, out: Array, scratch: Scratch) -> None:
        """Issue out += x @ y, for rows of `out` whose product stays in the cache."""
        rows = max(LEAST_ADDED_ROWS, ADDED_BYTES // max(1, out.shape[1] * out.itemsize))
        for start in range(0, len(out), rows):
            part = out[start : start + rows]
            product = scratch.take(0, PRODUCT, part.shape, out.dtype)
            self._call(np.matmul, x[start : start + rows], y, product)
            self._call(np.add, part, product, part)

    def _widened(self, x: Array, scratch: Scratch, number: int) -> Array:
        """Return `x`, or its copy in float32 in the same order if it is narrower, or in TF32."""
        order = "C" if x.flags.c_contiguous else "F"
        if self.tf32 and x.dtype == np.float32:
            rounded = scratch.take(0, number, x.shape, np.float32, order)
            self._call(round_to_tf32, x, rounded)
            return rounded
        if not is_sixteen_bit(x.dtype):
            return x
        wide = scratch.take(0, number, x.shape, np.float32, order)
        self._call(np.copyto, wide, x)
        return wide

    def affine_forward(
        self,
        x: Array,
        W: Array,
        b: Array,
        activation: Activation,
        a: Array,
        h: Array,
        dropout: Dropout | None = None,
    ) -> None:
        scratch, product = self._scratch(), a
        if is_sixteen_bit(a.dtype):  # the sum of product and bias is rounded once
            product = scratch.take(0, PRODUCT, a.shape, np.float32)
        self.matmul(x, W.T, product)
        self._activate(product, b, activation, a, h, dropout)

    def affine_epilogue(
        self,
        a: Array,
        b: Array,
        activation: Activation,
        h: Array,
        dropout: Dropout | None = None,
    ) -> None:
        self._activate(a, b, activation, a, h, dropout)

    def activation_forward(
        self, a: Array, activation: Activation, h: Array, dropout: Dropout | None = None
    ) -> None:
        self._activate(a, None, activation, a, h, dropout)

    def _activate(
        self,
        product: Array,
        b: Array | None,
        activation: Activation,
        a: Array,
        h: Array,
        dropout: Dropout | None,
    ) -> None:
        scratch, in_place, sixteen_bit = self._scratch(), h is a, is_sixteen_bit(a.dtype)
        b = None if b is None else self._widened(b, scratch, WIDE_BIAS)
        # With dropout and h apart from a, g(a) stays in a if the slope is a function of it alone.
        over_a = dropout is not None and activation.saved == "h" and not activation.homogeneous

        def emit(call: Call, rows: slice, slot: int) -> None:
            block = a[rows]
            out = block if in_place else h[rows]
            wide = product[rows]
            if sixteen_bit and product is a:
                wide = scratch.take(slot, WIDE, block.shape, np.float32)
                call(np.copyto, wide, block)
            if b is not None:
                call(np.add, wide, b, wide)
                if sixteen_bit and not (in_place or over_a):
                    call(np.copyto, block, wide)
            value = wide if sixteen_bit or in_place or over_a else out
            emit_value(call, activation, wide, value, scratch, slot)
            if sixteen_bit and over_a and not in_place:
                call(np.copyto, block, value)
            if dropout is not None:
                kept = value if sixteen_bit else out
                emit_drop(call, value, kept, dropout, rows.start, scratch, slot)
            if sixteen_bit:
                call(np.copyto, out, value)

        for_row_blocks(self._call, len(a), a.shape[1] * (4 if sixteen_bit else a.itemsize), emit)

    def activation_backward(
        self,
        grad_h: Array,
        saved: Array,
        activation: Activation,
        delta: Array,
        grad_b: Array | None = None,
        dropout: Dropout | None = None,
    ) -> None:
        scratch, sixteen_bit = self._scratch(), is_sixteen_bit(delta.dtype)

        def emit(call: Call, rows: slice, slot: int) -> None:
            g, s, out = grad_h[rows], saved[rows], delta[rows]
            d = out
            if sixteen_bit:
                d = scratch.take(slot, WIDE, g.shape, np.float32)
                wide = scratch.take(slot, WIDE_SAVED, s.shape, np.float32)
                call(np.copyto, d, g)
                call(np.copyto, wide, s)
                g, s = d, wide
            self._emit_slope(call, g, s, activation, d, scratch, slot)
            if dropout is not None:
                emit_drop(call, d, d, dropout, rows.start, scratch, slot)
            if sixteen_bit:
                call(np.copyto, out, d)

        if activation.name != "identity" or dropout is not None:
            for_row_blocks(
                self._call,
                len(delta),
                delta.shape[1] * (4 if sixteen_bit else delta.itemsize),
                emit,
            )
        elif delta is not grad_h:
            self._call(np.copyto, delta, grad_h)
        if grad_b is not None:
            self.column_sum(delta, grad_b)

    def _emit_slope(
        self,
        call: Call,
        g: Array,
        s: Array,
        activation: Activation,
        d: Array,
        scratch: Scratch,
        slot: int,
    ) -> None:
        """Issue d = g * g'(saved) for a block."""
        if activation.name == "identity":
            if d is not g:
                call(np.copyto, d, g)
            return
        slope, *work = (scratch.take(slot, i, s.shape, s.dtype) for i in range(4))
        if activation.backward is not None:
            call(activation.backward, g, s, d, tuple(work), activation.parameter)
            return
        call(activation.slope, s, slope, tuple(work), activation.parameter)
        call(np.multiply, g, slope, d)

    def affine_backward(
        self, delta: Array, h_prev: Array, W: Array, grad_W: Array, grad_h: Array | None
    ) -> None:
        self.matmul(delta.T, h_prev, grad_W)
        if grad_h is not None:
            self.matmul(delta, W, grad_h)

    def column_sum(self, delta: Array, out: Array) -> None:
        """Compute out[j] = sum_i delta[i, j] by a tree of fixed shape.

        At most SUM_ROWS terms are added one after another, so that the error grows with log N and
        not with N; near the root, where the sums are large, it is half as many. Short rows are
        joined into long ones, which NumPy adds fast.
        """
        rows, columns = delta.shape
        scratch, level = self._scratch(), 0
        while rows > SUM_ROWS // 2 and delta.flags.c_contiguous:
            terms = SUM_ROWS if rows > 16 * SUM_ROWS else SUM_ROWS // 2
            join = max(1, min(512 // max(columns, 1), rows // (4 * terms)))
            group = terms * join
            whole = rows // group
            tail = rows - whole * group
            partial = scratch.take(
                0, PARTIAL + level % 2, (whole * join + tail, columns), out.dtype
            )
            view = delta[: whole * group].reshape(whole, terms, join * columns)
            sums = partial[: whole * join].reshape(whole, join * columns)
            self._call(add_reduce, view, 1, out.dtype, sums)
            if tail:
                self._call(np.copyto, partial[whole * join :], delta[whole * group :])
            delta, rows, level = partial, len(partial), level + 1
        self._call(add_reduce, delta, 0, out.dtype, out)

    def output(self, a: Array, kind: str, out: Array) -> None:
        self._by_rows(OUTPUTS[kind], a, out)

    def softmax(self, a: Array, out: Array, *, log: bool = False) -> None:
        self._by_rows(log_softmax_rows if log else OUTPUTS["softmax"], a, out)

    def _by_rows(self, function: Callable[[Array, Array], None], a: Array, out: Array) -> None:
        def emit(call: Call, rows: slice, slot: int) -> None:
            block = a[rows]
            call(function, block, block if out is a else out[rows])

        for_row_blocks(self._call, len(a), a.shape[1] * a.itemsize, emit)
