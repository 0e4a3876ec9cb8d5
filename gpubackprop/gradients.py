"""All gradients of a network's loss, as `MLP.gradients` returns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.ops import display

Array = np.ndarray


@dataclass(frozen=True)
class Gradients:
    """All gradients of the loss, each a whole matrix; index l - 1 holds layer l.

    Parameters
    ----------
    loss : scalar, or (N,) array for reduction "none"
        The loss.
    output : (N, K) array
        Gradient delta_L = dL/da_L with respect to the output units' pre-activations.
    hidden : list of L - 1 arrays (N, D_l)
        Gradients dL/dh_l with respect to the hidden units.
    pre_activation : list of L arrays (N, D_l)
        Gradients dL/da_l; the last is `output`.
    W : list of L arrays (D_l, D_{l-1})
        Gradients with respect to the weights.
    b : list of L arrays (D_l,)
        Gradients with respect to the biases.

    Examples
    --------
    >>> from gpubackprop import MLP
    >>> network = MLP([4, 8, 3], seed=0)
    >>> gradients = network.gradients(np.ones((2, 4)), np.array([0, 2]))
    >>> gradients.W[0].shape, gradients.hidden[0].shape, gradients.output.shape
    ((8, 4), (2, 8), (2, 3))
    """

    loss: Any
    output: Array
    hidden: list[Array]
    pre_activation: list[Array]
    W: list[Array]
    b: list[Array]

    def _cells(self) -> tuple[list[str], list[list[Any]]]:
        headers = ["layer", "W", "|W|", "b", "|b|", "hidden", "|hidden|", "|pre-activation|"]
        hidden = [[str(tuple(h.shape)), display.norm(h)] for h in self.hidden] + [[None, None]]
        rows = [
            [
                layer, str(tuple(W.shape)), display.norm(W), str(tuple(b.shape)), display.norm(b),
                *h, display.norm(a),
            ]
            for layer, (W, b, h, a) in enumerate(
                zip(self.W, self.b, hidden, self.pre_activation, strict=True), 1
            )
        ]  # fmt: skip
        return headers, rows

    def _summary(self) -> str:
        loss = self.loss
        shown = f"of each of {len(loss)} rows" if np.ndim(loss) else display.figure(loss)
        kinds = dict.fromkeys(str(array.dtype) for array in (self.output, self.W[0]))
        kind = ", W and b ".join(kinds)
        return f"Gradients of {len(self.W)} layers, {len(self.output)} rows, {kind}, loss {shown}"

    def __repr__(self) -> str:
        """Return shapes and norms as a table."""
        return f"{self._summary()}\n{display.text_table(*self._cells())}"

    def _repr_html_(self) -> str:
        return display.html_table(self._summary(), *self._cells())
