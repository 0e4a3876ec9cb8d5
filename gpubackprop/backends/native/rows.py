"""The native operations on rows of data: gathers with conversion, standardisation, division."""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.native.calls import NativeCalls, code_of, is_vector, rows_of
from gpubackprop.backends.native.layers import FLOATS

Array = np.ndarray
COPIED_BYTES = 1 << 23  # below, NumPy's one thread copies rows of one type as fast


class NativeRows(NativeCalls):
    """The native operations on rows; see `NativeBackend`."""

    def gather_rows(self, source: Array, rows: Array | None, out: Array) -> None:
        library = self._native("gather_rows")
        matrices = [x.reshape(len(x), -1) if x.ndim == 1 else x for x in (source, out)]
        strides = rows_of(*matrices) if matrices[0].ndim == matrices[1].ndim == 2 else None
        codes = code_of(source), code_of(out)
        fits = codes[0] >= 0 and codes[1] in FLOATS and out.size > 0
        fits = fits and (rows is None or (rows.dtype == np.int64 and is_vector(rows)))
        parts = self._parts(len(out), out.nbytes)
        copied = codes[0] == codes[1] and (len(parts) == 1 or out.nbytes < COPIED_BYTES)
        if library is None or strides is None or not fits or copied:
            super().gather_rows(source, rows, out)
            return
        values = {
            "source": source, "rows": rows, "out": out, "cols": matrices[1].shape[1],
            "source_rows": len(source), "stride_source": strides[0], "stride_out": strides[1],
            "source_storage": codes[0], "out_storage": codes[1],
        }  # fmt: skip
        self._issue(library.gather_rows, "gather_rows", values, parts)

    def standardize(self, raw: Array, mean: Array, scale: Array, out: Array) -> None:
        library, strides = self._native("standardize"), rows_of(raw, out)
        codes = code_of(raw), code_of(out)
        fits = codes[0] >= 0 and codes[1] in FLOATS and out.size > 0 and is_vector(mean, scale)
        fits = fits and mean.dtype == scale.dtype == np.float64
        if library is None or strides is None or not fits:
            super().standardize(raw, mean, scale, out)
            return
        values = {
            "raw": raw, "mean": mean, "scale": scale, "out": out, "cols": raw.shape[1],
            "stride_raw": strides[0], "stride_out": strides[1], "raw_storage": codes[0],
            "out_storage": codes[1],
        }  # fmt: skip
        self._issue(library.standardize, "standardize", values, self._parts(len(raw), raw.nbytes))

    def divide(self, x: Array, divisor: float, out: Array) -> None:
        library, codes = self._native("divide"), (code_of(x), code_of(out))
        fits = codes[0] in (0, 1) and codes[0] == codes[1] and is_vector(x, out) and x.size > 0
        if library is None or not fits:
            super().divide(x, divisor, out)
            return
        values = {
            "x": x, "out": out, "divisor": float(divisor), "storage": codes[0],
            "out_storage": codes[1],
        }  # fmt: skip
        parts = [(0, x.size)] if x.ndim != 1 else self._parts(len(x), x.nbytes)
        self._issue(library.divide, "divide", values, parts)
