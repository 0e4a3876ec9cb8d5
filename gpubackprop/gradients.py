"""The values of a forward pass, and all gradients of the loss: `MLP.forward`, `MLP.gradients`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.errors import OptionError
from gpubackprop.ops import display

Array = np.ndarray


@dataclass(frozen=True)
class ForwardValues:
    """All values of a forward pass, each a whole matrix; index l - 1 holds layer l.

    Parameters
    ----------
    x : (N, D_0) array
        The inputs h_0, as the first product took them.
    a : list of L arrays (N, D_l)
        Pre-activations a_l = h_{l-1} W_l^T + b_l.
    h : list of L - 1 arrays (N, D_l)
        Hidden units h_l = g_l(a_l).
    yhat : (N, K) array
        The network's output O(a_L).

    Examples
    --------
    >>> from gpubackprop import MLP
    >>> values = MLP([4, 8, 3], "tanh", seed=0).forward(np.ones((2, 4)))
    >>> bool(np.allclose(values.h[0], np.tanh(values.a[0])))
    True
    """

    x: Array
    a: list[Array]
    h: list[Array]
    yhat: Array

    def _cells(self) -> tuple[list[str], list[list[Any]]]:
        headers = ["layer", "units", "|a|", "|h|"]
        norms = [*map(display.norm, self.h), None]
        rows = [
            [layer, a.shape[1], display.norm(a), h]
            for layer, (a, h) in enumerate(zip(self.a, norms, strict=True), 1)
        ]
        return headers, rows

    def _summary(self) -> str:
        return f"Forward pass of {len(self.x)} rows through {len(self.a)} layers"

    def __repr__(self) -> str:
        """Return the number of units and norms as a table."""
        return f"{self._summary()}\n{display.text_table(*self._cells())}"

    def _repr_html_(self) -> str:
        return display.html_table(self._summary(), *self._cells())


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
    forward : ForwardValues or None
        The values of the forward pass; `x`, `a`, `h` and `yhat` are its arrays.

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
    forward: ForwardValues | None = None

    @property
    def x(self) -> Array:
        """The inputs h_0, an (N, D_0) array."""
        return self._values().x

    @property
    def a(self) -> list[Array]:
        """The pre-activations a_l of all layers, L arrays (N, D_l)."""
        return self._values().a

    @property
    def h(self) -> list[Array]:
        """The hidden units h_l = g_l(a_l), L - 1 arrays (N, D_l)."""
        return self._values().h

    @property
    def yhat(self) -> Array:
        """The output yhat = O(a_L), an (N, K) array."""
        return self._values().yhat

    def _values(self) -> ForwardValues:
        if self.forward is None:
            raise OptionError(
                "these gradients were made without the values of the forward pass; "
                "MLP.gradients keeps them"
            )
        return self.forward

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
