"""The native layer operations: what follows a product, activations backward, column sums."""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.native.calls import (
    NativeCalls,
    code_of,
    compute_of,
    is_vector,
    rows_of,
    same_formula,
)
from gpubackprop.backends.native.library import Library
from gpubackprop.formulas import ACTIVATIONS, Activation, Dropout
from gpubackprop.formulas.dropout import NO_DROPOUT

Array = np.ndarray
PARTIAL = 40  # number of the scratch array of partial sums
FLOATS = range(4)  # codes of the storage dtypes
CHUNK_ELEMENTS, CHUNK_ROWS = 1 << 15, 64  # of column sums: a chunk stays in the cache
OUTPUT_KINDS = {"linear": 0, "logistic": 1, "exp": 2}
_FUNCTIONS = ("value", "slope", "backward")


def chunk_rows(columns: int) -> int:
    """Return the rows of a chunk of column sums; they depend on the shape alone."""
    return max(CHUNK_ROWS, CHUNK_ELEMENTS // max(1, columns))


class NativeLayers(NativeCalls):
    """The native layer operations; see `NativeBackend`."""

    def _activate(
        self,
        product: Array,
        b: Array | None,
        activation: Activation,
        a: Array,
        h: Array,
        dropout: Dropout | None,
    ) -> None:
        library = self._native("affine_epilogue")
        if library is None:
            super()._activate(product, b, activation, a, h, dropout)
            return
        number = self._activation(library, activation)
        in_place = h is a
        strides = rows_of(product, a, h)
        codes = code_of(a), code_of(product)
        fits = number >= 0 and strides is not None and codes[0] in FLOATS and codes[1] in FLOATS
        fits = fits and a.dtype == h.dtype and is_vector(b) and a.size > 0
        fits = fits and (b is None or b.dtype == a.dtype)
        if not fits or strides is None:
            super()._activate(product, b, activation, a, h, dropout)
            return
        if number == 0 and b is None and dropout is None and h is product:
            return
        values = {
            "product": product, "bias": b, "a": None if in_place else a, "h": h,
            "cols": a.shape[1], "stride_product": strides[0], "stride_a": strides[1],
            "stride_h": strides[2], "parameter": activation.parameter,
            **(dropout.kernel_fields if dropout else NO_DROPOUT),
            "storage": codes[0], "product_storage": codes[1], "activation": number,
        }  # fmt: skip
        parts = self._parts(len(a), product.nbytes)
        self._issue(library.affine_epilogue, "affine_epilogue", values, parts)

    def activation_backward(
        self,
        grad_h: Array,
        saved: Array,
        activation: Activation,
        delta: Array,
        grad_b: Array | None = None,
        dropout: Dropout | None = None,
    ) -> None:
        library = self._native("activation_backward")
        if library is None:
            super().activation_backward(grad_h, saved, activation, delta, grad_b, dropout)
            return
        number = self._activation(library, activation)
        strides, code = rows_of(grad_h, saved, delta), code_of(delta)
        fits = number >= 0 and strides is not None and code in FLOATS and is_vector(grad_b)
        fits = fits and grad_h.dtype == saved.dtype == delta.dtype and delta.size > 0
        fits = fits and (grad_b is None or self._sums(delta, grad_b))
        if not fits or strides is None:
            super().activation_backward(grad_h, saved, activation, delta, grad_b, dropout)
            return
        if number == 0 and dropout is None and delta is grad_h:
            if grad_b is not None:
                self.column_sum(delta, grad_b)
            return
        rows, columns = delta.shape
        chunk = chunk_rows(columns)
        parts = self._parts(rows, delta.nbytes, chunk)
        partial = None if grad_b is None else self._partial(delta, chunk)
        values = {
            "grad_h": grad_h, "saved": saved, "delta": delta, "partial": partial,
            "grad_b": grad_b if len(parts) == 1 else None, "rows": rows, "cols": columns,
            "stride_grad": strides[0], "stride_saved": strides[1], "stride_delta": strides[2],
            "chunk_rows": chunk, "parameter": activation.parameter,
            **(dropout.kernel_fields if dropout else NO_DROPOUT),
            "storage": code, "sum_storage": code if grad_b is None else code_of(grad_b),
            "activation": number,
        }  # fmt: skip
        self._issue(library.activation_backward, "activation_backward", values, parts)
        if grad_b is not None and partial is not None and len(parts) > 1:
            self._finish(library, partial, code, grad_b)

    def column_sum(self, delta: Array, out: Array) -> None:
        library = self._native("column_sum")
        if library is None:
            super().column_sum(delta, out)
            return
        strides, code = rows_of(delta), code_of(delta)
        fits = strides is not None and code in FLOATS and is_vector(out) and delta.size > 0
        if strides is None or not fits or not self._sums(delta, out):
            super().column_sum(delta, out)
            return
        rows, columns = delta.shape
        chunk = chunk_rows(columns)
        parts, partial = self._parts(rows, delta.nbytes, chunk), self._partial(delta, chunk)
        values = {
            "x": delta, "partial": partial, "out": out if len(parts) == 1 else None, "rows": rows,
            "cols": columns, "stride": strides[0], "chunk_rows": chunk, "divisor": 1.0,
            "storage": code, "sum_storage": code_of(out),
        }  # fmt: skip
        self._issue(library.column_sum, "column_sum", values, parts)
        if len(parts) > 1:
            self._finish(library, partial, code, out)

    def _sums(self, delta: Array, out: Array) -> bool:
        """Return whether `out` takes sums in the compute dtype of delta."""
        return code_of(out) in FLOATS and compute_of(out) == compute_of(delta)

    def _partial(self, delta: Array, chunk: int) -> Array:
        shape = -(-len(delta) // chunk), delta.shape[1]
        return self._scratch().take(0, PARTIAL, shape, compute_of(delta))

    def _finish(self, library: Library, partial: Array, code: int, out: Array) -> None:
        values = {
            "partial": partial, "out": out, "rows": len(partial), "cols": partial.shape[1],
            "divisor": 1.0, "storage": code, "sum_storage": code_of(out),
        }  # fmt: skip
        self._issue(library.column_sum_finish, "column_sum_finish", values)

    def _activation(self, library: Library, activation: Activation) -> int:
        """Return the activation's number in the library; -1 if it is not there."""
        number = library.activations.get(activation.name, -1)
        known = ACTIVATIONS.get(activation.name)
        return number if same_formula(known, activation, _FUNCTIONS) else -1

    def output(self, a: Array, kind: str, out: Array) -> None:
        if kind == "softmax":
            self.softmax(a, out)
            return
        library, strides, code = self._native("output"), rows_of(a, out), code_of(a)
        fits = strides is not None and code in FLOATS and a.dtype == out.dtype and a.size > 0
        if library is None or strides is None or not fits or kind not in OUTPUT_KINDS:
            super().output(a, kind, out)
        elif kind != "linear" or out is not a:
            values = {
                "a": a, "out": out, "cols": a.shape[1], "stride_a": strides[0],
                "stride_out": strides[1], "storage": code, "kind": OUTPUT_KINDS[kind],
            }  # fmt: skip
            self._issue(library.output, "output", values, self._parts(len(a), a.nbytes))

    def softmax(self, a: Array, out: Array, *, log: bool = False) -> None:
        library, strides, code = self._native("softmax"), rows_of(a, out), code_of(a)
        fits = strides is not None and code in FLOATS and a.dtype == out.dtype and a.size > 0
        if library is None or strides is None or not fits:
            super().softmax(a, out, log=log)
            return
        values = {
            "a": a, "out": out, "cols": a.shape[1], "stride_a": strides[0],
            "stride_out": strides[1], "storage": code, "log_output": int(log),
        }  # fmt: skip
        self._issue(library.softmax, "softmax", values, self._parts(len(a), a.nbytes))
