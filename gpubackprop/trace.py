"""One sample on its way through a network, with every matrix between: `MLP.trace`.

The names are those of `gpubackprop.passes`; a sample is a column, as in the lecture:

    a_l = W_l h_{l-1} + b_l,   h_l = g_l(a_l),   yhat = O(a_L)
    grad_h_l = W_{l+1}^T delta_{l+1},   delta_l = grad_h_l * g_l'(a_l)
    grad_W_l = delta_l h_{l-1}^T,   grad_b_l = delta_l
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.errors import ShapeError
from gpubackprop.gradients import ForwardValues, Gradients
from gpubackprop.losses import Loss, SoftmaxCrossEntropy
from gpubackprop.ops import display

Array = np.ndarray
SHOWN = 8  # rows and columns of a matrix; of a larger one the first and the last


class Traced(Protocol):
    """What `trace` asks of a network; an `MLP` has it."""

    @property
    def W(self) -> Any: ...
    @property
    def b(self) -> Any: ...
    @property
    def backend(self) -> Backend: ...
    @property
    def activations(self) -> Sequence[Any]: ...
    @property
    def output(self) -> Any: ...
    def check_loss(self, spec: Any) -> Loss: ...
    def forward(self, x: Any) -> ForwardValues: ...
    def gradients(self, x: Any, targets: Any, loss: Any = None) -> Gradients: ...


@dataclass(frozen=True)
class Step:
    """One step of a trace: its formula, and the matrices in it by name.

    Parameters
    ----------
    formula : str
        The formula, e.g. "a_1 = W_1 h_0 + b_1".
    matrices : dict of arrays
        Name -> matrix (D, E), vector (D,) or number, on the host.
    """

    formula: str
    matrices: dict[str, Array]

    def __str__(self) -> str:
        return f"{self.formula}\n\n{_beside(self.matrices)}"


@dataclass(frozen=True)
class Trace:
    """One sample on its way through a network and back, as `MLP.trace` returns it.

    Parameters
    ----------
    title : str
        What is shown.
    steps : tuple of Step
        In the order in which they are computed.

    Examples
    --------
    >>> from gpubackprop import MLP
    >>> network = MLP([2, 1], output="linear", initializer="zeros")
    >>> network.W[0] = [[2.0, 3.0]]
    >>> print(network.trace([1.0, 10.0]))
    Forward pass of one sample through MLP([2, 1], activation=[], output='linear', dtype='float32')
    <BLANKLINE>
    a_1 = W_1 h_0 + b_1
    <BLANKLINE>
      W_1 (1, 2)    h_0 (2,)    b_1 (1,)    a_1 (1,)
            2  3           1           0          32
                          10
    <BLANKLINE>
    yhat = linear(a_1)
    <BLANKLINE>
      yhat (1,)
             32
    """

    title: str
    steps: tuple[Step, ...]

    def __repr__(self) -> str:
        return "\n\n".join([self.title, *map(str, self.steps)])

    def _repr_html_(self) -> str:
        return f"<pre>{display.escaped(repr(self))}</pre>"


def trace(network: Traced, x: Any, target: Any = None, loss: str | Loss | None = None) -> Trace:
    """Return the trace of one sample; see `MLP.trace`."""
    x = _one_sample(x)
    shown = f"one sample through {network!r}"
    if target is None:
        values = _of_one_row(network, network.forward(x))
        return Trace(f"Forward pass of {shown}", tuple(_forward(network, values)))
    targets = np.asarray(target)
    by_label = targets.size == 1 and network.output == "softmax"
    targets = targets.reshape(1) if by_label else targets.reshape(1, -1)
    chosen = network.check_loss(loss)
    gradients = network.gradients(x, targets, chosen)
    values = _of_one_row(network, gradients._values())
    steps = [
        *_forward(network, values),
        _loss(network, values, gradients, targets[0], chosen),
        *_backward(network, values, gradients),
    ]
    return Trace(f"Forward and backward pass of {shown}", tuple(steps))


def _one_sample(x: Any) -> Any:
    shape = np.shape(x)
    if len(shape) == 1:
        return x[None] if hasattr(x, "dtype") else np.asarray(x)[None]
    if len(shape) != 2 or shape[0] != 1:
        raise ShapeError(f"x has shape {shape} but trace shows one sample; pass x[i], of one row i")
    return x


def _of_one_row(network: Traced, values: ForwardValues) -> dict[str, Array]:
    """Return a_l, h_l and yhat of the only row by their names, on the host."""
    named = {"h_0": values.x, "yhat": values.yhat}
    named |= {f"a_{layer}": a for layer, a in enumerate(values.a, 1)}
    named |= {f"h_{layer}": h for layer, h in enumerate(values.h, 1)}
    return {name: _host(network, array)[0] for name, array in named.items()}


def _host(network: Traced, array: Any) -> Array:
    return np.asarray(network.backend.to_host(array), np.float64)


def _forward(network: Traced, values: dict[str, Array]) -> list[Step]:
    steps, last = [], len(network.W)
    for layer, (W, b) in enumerate(zip(network.W, network.b, strict=True), 1):
        a, before = f"a_{layer}", f"h_{layer - 1}"
        formula = f"{a} = W_{layer} {before} + b_{layer}"
        shown = {f"W_{layer}": _host(network, W), before: values[before]}
        shown |= {f"b_{layer}": _host(network, b), a: values[a]}
        if layer < last:
            formula += f",   h_{layer} = {network.activations[layer - 1]}({a})"
            shown[f"h_{layer}"] = values[f"h_{layer}"]
        steps.append(Step(formula, shown))
    steps.append(Step(f"yhat = {network.output}(a_{last})", {"yhat": values["yhat"]}))
    return steps


def _loss(
    network: Traced, values: dict[str, Array], gradients: Gradients, target: Array, chosen: Loss
) -> Step:
    loss, delta = (
        f"L = {float(_host(network, gradients.loss).sum()):.6g}",
        f"delta_{len(network.W)}",
    )
    shown = {"yhat": values["yhat"], "t": np.atleast_1d(target)}
    how = f"{chosen!r}, {delta} = dL/da_{len(network.W)}"
    if isinstance(chosen, SoftmaxCrossEntropy) and np.ndim(target) == 0:
        shown["e_y"] = np.eye(len(values["yhat"]))[int(target)]
        del shown["t"]
        if chosen.config() == SoftmaxCrossEntropy().config():
            how = f"-log yhat_y with y = {int(target)},   {delta} = yhat - e_y"
    return Step(f"{loss} = {how}", shown | {delta: _host(network, gradients.output)[0]})


def _backward(network: Traced, values: dict[str, Array], gradients: Gradients) -> list[Step]:
    steps = []
    for layer in range(len(network.W), 0, -1):
        before, delta = f"h_{layer - 1}", f"delta_{layer}"
        formula = f"grad_W_{layer} = {delta} {before}^T,   grad_b_{layer} = {delta}"
        column = _host(network, gradients.pre_activation[layer - 1])[0]
        shown = {delta: column, before: values[before]}
        shown[f"grad_W_{layer}"] = _host(network, gradients.W[layer - 1])
        shown[f"grad_b_{layer}"] = _host(network, gradients.b[layer - 1])
        steps.append(Step(formula, shown))
        if layer == 1:
            break
        below, grad_h = layer - 1, f"grad_h_{layer - 1}"
        name = str(network.activations[below - 1])
        formula = f"{grad_h} = W_{layer}^T {delta},   delta_{below} = {grad_h} * {name}'(a_{below})"
        shown = {f"W_{layer}^T": _host(network, network.W[layer - 1]).T, delta: column}
        shown[grad_h] = _host(network, gradients.hidden[below - 1])[0]
        shown[f"a_{below}"] = values[f"a_{below}"]
        shown[f"delta_{below}"] = _host(network, gradients.pre_activation[below - 1])[0]
        steps.append(Step(formula, shown))
    return steps


def _beside(matrices: dict[str, Array]) -> str:
    """Return matrices side by side, each under its name and shape."""
    blocks = []
    for name, matrix in matrices.items():
        head = f"{name} {np.shape(matrix)}"
        lines = _lines(matrix)
        width = max(map(len, [head, *lines]))
        blocks.append([line.rjust(width) for line in [head, *lines]])
    gaps = [" " * len(block[0]) for block in blocks]
    rows = zip_longest(*blocks)
    joined = ("    ".join(cell or gap for cell, gap in zip(row, gaps, strict=True)) for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in joined)


def _lines(matrix: Array) -> list[str]:
    """Return the rows of a matrix in aligned columns; a vector is a column."""
    table = [["..." if v is None else f"{v:.4g}" for v in row] for row in _few(matrix)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.rjust, row, widths)) for row in table]


def _few(matrix: Array) -> list[list[float | None]]:
    """Return rows and columns, those in the middle of a large matrix replaced by None."""
    matrix = np.asarray(matrix, np.float64)
    table = matrix if matrix.ndim == 2 else matrix.reshape(-1, 1)

    def few(values: list[Any], gap: Any) -> list[Any]:
        if len(values) <= SHOWN:
            return values
        return [*values[: SHOWN // 2], gap, *values[-(SHOWN // 2 - 1) :]]

    columns = few(list(range(table.shape[1])), None)
    rows = few(list(range(table.shape[0])), None)
    return [[None if r is None or c is None else float(table[r, c]) for c in columns] for r in rows]
