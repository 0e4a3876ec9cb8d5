"""The picture of a network: `gpubackprop.plots.network`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.errors import OptionError, ShapeError
from gpubackprop.figures import BLUE, GREY, ORANGE, finish, in_style, new_figure
from gpubackprop.gradients import Gradients
from gpubackprop.network import MLP

Array = np.ndarray
MOST_UNITS = 8  # of a layer that are drawn; of more, the first and the last
_RADIUS = 0.3
_APART = 3.0  # distance of two layers; that of two units of a layer is 1


@dataclass
class _Panel:
    """What is drawn once: a value for each unit and for each weight, or None for a unit."""

    title: str
    units: Sequence[Array | None]
    weights: Sequence[Array]


@in_style
def network(
    net: MLP,
    gradients: Gradients | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    row: int = 0,
    title: str = "",
) -> Any:
    """Draw a network as units and weights, and with gradients who is responsible for the loss.

    Without gradients a line's colour is its weight. With gradients there are two pictures. In the
    forward one, units hold their values: x, h_l, and yhat. In the backward one, units hold
    delta_l = dL/da_l, and lines the gradient of their weight, which all rows share. Orange is
    above 0 and blue below; the darkest is the largest of its layer.

    Parameters
    ----------
    net : MLP
        The network.
    gradients : Gradients or None
        What `net.gradients` returned.
    path : path or None
        The PNG to write.
    row : int
        The row of the batch whose values are drawn.
    title : str
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ShapeError
        The gradients are of another network.
    OptionError
        The batch has no such row.
    MissingDependencyError
        matplotlib is not installed.
    StorageError
        The file cannot be written.

    Examples
    --------
    >>> net = MLP([2, 3, 2], "tanh")
    >>> figure = network(net, net.gradients(np.ones((1, 2)), np.array([0])), "network.png")
    >>> len(figure.axes)
    2
    """
    panels = _panels(net, gradients, row)
    across = _APART * (len(net.widths) - 1) + 1.4
    high = max(_drawn(width)[-1][1] + 1 for width in net.widths) + 1.0
    scale = min(0.95, 14.0 / across)
    size = (across * scale, high * scale * len(panels) + 0.4 * bool(title) + 0.5)
    figure = new_figure(size, title)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, i + 1)
        _draw(axes, net, panel)
        axes.set_xlim(-0.7, across - 0.7)
        axes.set_ylim(-(high - 1.0) / 2 - 0.55, (high - 1.0) / 2 + 0.35)
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.set_title(panel.title, fontsize=12, color=GREY)
    return finish(figure, path)


def _panels(net: MLP, gradients: Gradients | None, row: int) -> list[_Panel]:
    to_host = net.backend.to_host
    W = [np.asarray(to_host(w), np.float64) for w in net.W]
    if gradients is None:
        return [_Panel("lines: weights", [None] * len(net.widths), W)]
    if [w.shape for w in W] != [tuple(g.shape) for g in gradients.W]:
        shapes = [tuple(g.shape) for g in gradients.W]
        raise ShapeError(f"the gradients are of weights {shapes} but the network is {net!r}")
    if not -len(gradients.x) <= row < len(gradients.x):
        raise OptionError(f"row is {row} but the gradients are of {len(gradients.x)} rows")

    def of_row(arrays: Sequence[Any]) -> list[Array]:
        return [np.asarray(to_host(array), np.float64)[row] for array in arrays]

    values = of_row([gradients.x, *gradients.h, gradients.yhat])
    deltas = [None, *of_row(gradients.pre_activation)]
    slopes = [np.asarray(to_host(g), np.float64) for g in gradients.W]
    loss = float(np.mean(to_host(gradients.loss)))
    return [
        _Panel(f"forward:  units x, h and ŷ,  lines W,  loss {loss:.4g}", values, W),
        _Panel("backward:  units δ = ∂L/∂a,  lines ∇W", deltas, slopes),
    ]


def _drawn(width: int) -> list[tuple[int | None, float]]:
    """Return (unit, place from the top) of the units that are drawn; None is where some are not."""
    if width <= MOST_UNITS:
        return [(unit, float(unit)) for unit in range(width)]
    half = MOST_UNITS // 2
    first = [(unit, float(unit)) for unit in range(half)]
    last = [(width - half + 1 + i, half + 1.0 + i) for i in range(half - 1)]
    return [*first, (None, float(half)), *last]


def _places(width: int) -> Iterator[tuple[int | None, float]]:
    """Yield (unit, height) with the layer's middle at height 0."""
    drawn = _drawn(width)
    middle = drawn[-1][1] / 2
    for unit, place in drawn:
        yield unit, middle - place


def _draw(axes: Any, net: MLP, panel: _Panel) -> None:
    from matplotlib.collections import LineCollection

    for layer, W in enumerate(panel.weights):
        largest = float(np.abs(W).max()) or 1.0
        lines = [
            (float(W[i, j]) / largest, [(_APART * layer, low), (_APART * (layer + 1), high)])
            for j, low in _places(net.widths[layer])
            for i, high in _places(net.widths[layer + 1])
            if i is not None and j is not None
        ]
        lines.sort(key=lambda line: abs(line[0]))  # the strong ones above the faint ones
        colors = [_color(share) for share, _ in lines]
        widths = [0.4 + 2.6 * abs(share) for share, _ in lines]
        axes.add_collection(
            LineCollection([ends for _, ends in lines], colors=colors, linewidths=widths, zorder=1)
        )
    last = len(net.widths) - 1
    for layer, values in enumerate(panel.units):
        _draw_units(axes, _APART * layer, net.widths[layer], values)
        name = str(net.activations[layer - 1]) if 0 < layer < last else "x" if not layer else ""
        lowest = min(height for _, height in _places(net.widths[layer]))
        axes.text(
            _APART * layer, lowest - 0.42, name or net.output, ha="center", va="top", size=10,
            color=GREY,
        )  # fmt: skip


def _draw_units(axes: Any, across: float, width: int, values: Array | None) -> None:
    from matplotlib.patches import Circle

    largest = float(np.abs(values).max()) or 1.0 if values is not None else 1.0
    for unit, height in _places(width):
        if unit is None:
            axes.text(across, height, "⋮", ha="center", va="center", size=16, color=GREY)
            continue
        share = 0.0 if values is None else float(values[unit]) / largest
        fill = _color(share)
        axes.add_patch(
            Circle((across, height), _RADIUS, facecolor=fill, edgecolor=GREY, linewidth=1, zorder=2)
        )
        if values is not None:
            color = "white" if abs(share) > 0.65 else "black"
            axes.text(
                across, height, _short(float(values[unit])), ha="center", va="center", size=8.5,
                color=color, zorder=3,
            )  # fmt: skip


def _short(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 1000:
        text = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    else:
        text = f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", "\N{MINUS SIGN}")


def _color(share: float) -> tuple[float, ...]:
    """Return a colour from blue at -1 over white to orange at 1."""
    code = ORANGE if share > 0 else BLUE
    hue = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    depth = min(abs(share), 1.0)
    return tuple(1.0 + depth * (h - 1.0) for h in hue)
