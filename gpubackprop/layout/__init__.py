"""The place of each layer's weights and biases in the one flat parameter buffer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpubackprop.backends.numpy.blocks import ALIGNMENT
from gpubackprop.errors import ShapeError

Array = np.ndarray


class ParameterLayout:
    """All weights, then all biases, each from a multiple of 128 bytes on; the gaps hold zeros.

    Weights come first, so that the L2 penalty, which concerns weights alone, works on one range.
    The gradient and every optimizer slot have the same layout: an update is one pass, a gradient
    norm one reduction, a checkpoint one write.

    Attributes
    ----------
    size : int
        Elements of the flat buffer.
    weights_end : int
        End of the weights' range.
    count : int
        Number of parameters, without the gaps.
    gaps : list of slice
        The parts of the flat buffer between parameters.
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
        """Return (W, b): for each layer a (D_l, D_{l-1}) and a (D_l,) view into `flat` (size,)."""
        W = [
            flat[start : start + rows * columns].reshape(rows, columns)
            for start, (rows, columns) in zip(self._weights, self.shapes, strict=True)
        ]
        b = [
            flat[start : start + rows]
            for start, (rows, _) in zip(self._biases, self.shapes, strict=True)
        ]
        return W, b

    @property
    def starts(self) -> tuple[list[int], list[int]]:
        """Return where in the flat buffer each layer's weights begin, and each layer's biases.

        Returns
        -------
        pair of lists
            One number for each layer in each.
        """
        return list(self._weights), list(self._biases)

    def copy(self, flat: Array, layout: ParameterLayout, out: Array) -> None:
        """Copy a buffer of this layout into one of another layout, layer by layer.

        The starts of the layers depend on the size of an element, so buffers of two dtypes must not
        be copied element by element. The gaps of `out` stay as they are.

        Parameters
        ----------
        flat : (size,) array
            Buffer of this layout, on the host.
        layout : ParameterLayout
            The layout of `out`, with the same shapes.
        out : (layout.size,) array
            Buffer of any float dtype, on the host.

        Raises
        ------
        ShapeError
            A layer has another shape there.
        """
        self.check_shapes(layout)
        for mine, theirs in zip(self.views(flat), layout.views(out), strict=True):
            for source, target in zip(mine, theirs, strict=True):
                np.copyto(target, source, "same_kind")

    def check_shapes(self, layout: ParameterLayout) -> None:
        """Raise ShapeError if `layout` has other shapes; the message names the first such layer."""
        if len(self.shapes) != len(layout.shapes):
            raise ShapeError(
                f"a buffer of {len(self.shapes)} layers does not fit a network of "
                f"{len(layout.shapes)} layers"
            )
        for layer, (mine, theirs) in enumerate(zip(self.shapes, layout.shapes, strict=True), 1):
            if mine != theirs:
                raise ShapeError(
                    f"a buffer for weights of shape {mine} in layer {layer} does not fit weights "
                    f"of shape {theirs} there"
                )
