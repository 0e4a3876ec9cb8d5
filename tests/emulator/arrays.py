"""Awkward arrays, as callers bring them: shifted by an element, with gaps between rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests import tolerances

Array = np.ndarray
SENTINEL = 77.0  # exact in every float type; this number surrounds each array


class Guarded:
    """Make arrays inside larger ones, and check afterwards that nothing around them was written."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self._made: list[tuple[Array, Array]] = []

    def empty(self, shape: tuple[int, ...], dtype: Any, *, shift: int = 0, gap: int = 0) -> Array:
        """Return (rows, cols) or (count,), full of the sentinel.

        It starts `shift` elements after a multiple of 32 bytes and has `gap` elements between rows.
        """
        rows, cols = shape if len(shape) == 2 else (1, shape[0])
        itemsize = np.dtype(dtype).itemsize
        count = 64 + rows * (cols + gap) + 64
        raw = np.zeros(count * itemsize + 128, np.uint8)
        start = -raw.ctypes.data % 128
        whole = raw[start : start + count * itemsize].view(dtype)
        whole[...] = np.asarray(SENTINEL).astype(dtype)
        begin = 32 + shift  # 32 elements of any type are a multiple of 16 bytes
        block = whole[begin : begin + rows * (cols + gap)].reshape(rows, cols + gap)[:, :cols]
        mask = np.ones(count, np.bool_)
        inside = mask[begin : begin + rows * (cols + gap)].reshape(rows, cols + gap)
        inside[:, :cols] = False
        self._made.append((whole, mask))
        return block if len(shape) == 2 else block[0]

    def normal(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        *,
        shift: int = 0,
        gap: int = 0,
        scale: float = 1.0,
    ) -> Array:
        array = self.empty(shape, dtype, shift=shift, gap=gap)
        array[...] = (self.rng.standard_normal(shape) * scale).astype(dtype)
        return array

    def put(self, values: Array, *, shift: int = 0, gap: int = 0) -> Array:
        array = self.empty(values.shape, values.dtype, shift=shift, gap=gap)
        array[...] = values
        return array

    def check(self) -> None:
        for whole, mask in self._made:
            wanted = np.asarray(SENTINEL).astype(whole.dtype)
            assert (whole[mask] == wanted).all(), "a kernel wrote outside its array"


def wide(array: Array) -> Array:
    """Return its values in float64."""
    return np.asarray(array).astype(np.float64)


def ulps(got: Any, oracle: Any, dtype: Any, scale: tolerances.Scale = "tensor") -> float:
    """Return `tolerances.ulps`; raise unless NaN and infinities are in the same places."""
    tolerances.assert_same_pattern(got, oracle)
    return tolerances.ulps(got, oracle, dtype, scale)
