"""Where each layer's weights and biases lie in the one flat parameter buffer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpubackprop.backends.numpy.blocks import ALIGNMENT
from gpubackprop.errors import ShapeError

Array = np.ndarray


class ParameterLayout:
    """All weights, then all biases, each start aligned to 128 bytes; the gaps hold zeros.

    Weights come first so that what concerns weights alone (the L2 penalty) is one range. The
    gradient and every optimizer slot have the same layout, so an update is one pass, a gradient
    norm one reduction, a checkpoint one write.

    Attributes
    ----------
    size : elements of the flat buffer. weights_end : end of the weights' range.
    count : parameters, without the gaps.
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

    def copy(self, flat: Array, layout: ParameterLayout, out: Array) -> None:
        """out = flat, layer by layer: the one way from this layout to another.

        The starts of the layers depend on the size of an element, so buffers of two dtypes must not
        be copied element by element. The gaps of `out` stay as they are.

        Parameters
        ----------
        flat : (size,) of this layout, on the host.
        layout : of `out`, with the same shapes.
        out : (layout.size,) of any float dtype, on the host.

        Raises
        ------
        ShapeError : a layer has another shape there.
        """
        self.check_shapes(layout)
        for mine, theirs in zip(self.views(flat), layout.views(out), strict=True):
            for source, target in zip(mine, theirs, strict=True):
                np.copyto(target, source, "same_kind")

    def check_shapes(self, layout: ParameterLayout) -> None:
        """ShapeError, which names the first such layer, where `layout` has other shapes."""
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
