"""Where each layer's weights and biases lie in the one flat parameter buffer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpubackprop.backends.numpy.blocks import ALIGNMENT

Array = np.ndarray


class ParameterLayout:
    """All weights, then all biases, each start aligned to 128 bytes; the gaps hold zeros.

    Weights come first so that what concerns weights alone (the L2 penalty) is one range. The
    gradient and every optimizer slot have the same layout, so an update is one pass, a gradient
    norm one reduction, a checkpoint one write.

    Attributes
    ----------
    size : elements of the flat buffer. weights_end : end of the weights' range.
    count : parameters, without the gaps. gaps : slices of the flat buffer between them.
    """

    def __init__(self, widths: Sequence[int], dtype: np.dtype) -> None:
        self.shapes = list(zip(widths[1:], widths[:-1], strict=True))
        step = ALIGNMENT // np.dtype(dtype).itemsize

        def place(start: int, sizes: list[int]) -> tuple[list[int], int]:
            starts = []
            for size in sizes:
                starts.append(start)
                start += -(-size // step) * step
            return starts, start

        self._weights, self.weights_end = place(
            0, [rows * columns for rows, columns in self.shapes]
        )
        self._biases, self.size = place(self.weights_end, [rows for rows, _ in self.shapes])
        self.count = sum(rows * columns + rows for rows, columns in self.shapes)
        sizes = [rows * columns for rows, columns in self.shapes] + [r for r, _ in self.shapes]
        starts = [*self._weights, *self._biases]
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        following = [*starts[1:], self.size]
        pairs = zip(ends, following, strict=True)
        self.gaps = [slice(end, start) for end, start in pairs if end < start]

    def __repr__(self) -> str:
        widths = [self.shapes[0][1], *(rows for rows, _ in self.shapes)]
        return f"ParameterLayout({widths}: {self.count} parameters in {self.size} elements)"

    def views(self, flat: Array) -> tuple[list[Array], list[Array]]:
        """(W, b): for each layer a (D_l, D_{l-1}) and a (D_l,) view into `flat` (size,)."""
        W = [
            flat[start : start + rows * columns].reshape(rows, columns)
            for start, (rows, columns) in zip(self._weights, self.shapes, strict=True)
        ]
        b = [
            flat[start : start + rows]
            for start, (rows, _) in zip(self._biases, self.shapes, strict=True)
        ]
        return W, b
