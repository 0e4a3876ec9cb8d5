"""Charts as SVG text: they scale with the page, follow its colours, and need no package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Values = Sequence[float] | npt.NDArray[np.floating]
WIDTH, HEIGHT = 460, 300
RIGHT, TOP, BOTTOM = 14, 14, 46
BASE, END = HEIGHT - BOTTOM, WIDTH - RIGHT
MOST_POINTS = 1500  # of a scatter plot; more hide one another and make the file large


class Line(NamedTuple):
    """A curve: its name, its style's class ("first" or "second"), and its points."""

    name: str
    kind: str
    x: Values
    y: Values


class Scale:
    """From values to places on an axis.

    Parameters
    ----------
    low : float
        The smallest value.
    high : float
        The largest value.
    start : float
        Place of `low`.
    end : float
        Place of `high`.
    log : bool
        Whether the axis is logarithmic.
    """

    def __init__(
        self, low: float, high: float, start: float, end: float, *, log: bool = False
    ) -> None:
        if not high > low:
            half = abs(low) / 2 or 0.5
            low, high = low - half * (not log), high + half
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, value: float) -> float:
        a, b, v = self.low, self.high, value
        if self.log:
            a, b, v = math.log(a), math.log(b), math.log(v)
        return self.start + (v - a) / (b - a) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round values within the axis."""
        if self.log:
            return _log_ticks(self.low, self.high)
        step = 10 ** math.floor(math.log10((self.high - self.low) / most))
        for factor in (1, 2, 5, 10):
            if (self.high - self.low) / (step * factor) <= most:
                break
        step *= factor
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(found) >= 3:
            break
    return found


def number(value: float) -> str:
    """Return a number for an axis or a table: four digits, thousands apart."""
    if not math.isfinite(value):
        return str(value)
    rounded = float(f"{value:.4g}")
    if rounded and not 1e-4 <= abs(rounded) < 1e7:
        return f"{rounded:g}"
    text = f"{rounded:,.6f}".rstrip("0").rstrip(".") if abs(rounded) < 1e4 else f"{rounded:,.0f}"
    return "0" if text == "-0" else text


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "tick") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def _left(y: Scale) -> float:
    """Return where the drawing begins: beside the label and the widest tick."""
    return 32 + 7.4 * max(len(number(value)) for value in y.ticks())


def _axes(x: Scale, y: Scale, x_label: str, y_label: str, *, whole: bool = False) -> list[str]:
    """Return grid, ticks and labels; `whole` leaves ticks out that are no whole numbers."""
    left, parts = _left(y), []
    for value in y.ticks():
        parts.append(_segment("grid", left, y(value), END, y(value)))
        parts.append(_text(left - 7, y(value) + 4, number(value), "end"))
    wide = len(number(x.high)) > 5
    for value in x.ticks(4 if wide else 6):
        if not whole or value == int(value):
            parts.append(_text(x(value), BASE + 18, number(value)))
    parts.append(_segment("axis", left, BASE, END, BASE))
    parts.append(_text((left + END) / 2, HEIGHT - 6, x_label, kind="label"))
    return [*parts, _upright(y_label)]


def _upright(text: str) -> str:
    at = (TOP + BASE) / 2
    return (
        f'<text class="label" transform="translate(14 {at}) rotate(-90)" text-anchor="middle">'
        f"{escape(text)}</text>"
    )


def _drawing(parts: list[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def curves(
    lines: Sequence[Line], title: str, x_label: str, y_label: str, mark: float | None = None
) -> str:
    """Return curves over the epochs; the y axis is logarithmic if positive values span a lot.

    Parameters
    ----------
    lines : sequence of Line
        The curves; values that are not finite leave gaps.
    title : str
        What the drawing shows, for those who do not see it.
    x_label, y_label : str
        Names of the axes.
    mark : float or None
        The x at which a dotted line stands.
    """
    finite = [
        (x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)
    ]
    if not finite:
        return ""
    xs, ys = zip(*finite, strict=True)
    log = min(ys) > 0 and max(ys) > 30 * min(ys)
    margin = 0 if log else 0.04 * (max(ys) - min(ys))
    y = Scale(min(ys) - margin, max(ys) + margin, BASE, TOP, log=log)
    x = Scale(min(xs), max(xs), _left(y), END)
    parts = _axes(x, y, x_label, y_label, whole=True)
    if mark is not None:
        parts.append(_segment("mark", x(mark), TOP, x(mark), BASE))
    for line in lines:
        points = [
            f"{x(a):.1f},{y(b):.1f}"
            for a, b in zip(line.x, line.y, strict=True)
            if math.isfinite(b) and (b > 0 or not log)
        ]
        parts.append(f'<polyline class="{line.kind}" points="{" ".join(points)}"/>')
        if len(points) <= 30:
            centres = (point.split(",") for point in points)
            parts += [
                f'<circle class="{line.kind}" cx="{a}" cy="{b}" r="2.5"/>' for a, b in centres
            ]
    return _drawing(parts, title)


def scatter(true: Values, predicted: Values, title: str, name: str) -> str:
    """Return predicted against true values, with the line on which they are equal."""
    t, p = _picked(true, predicted)
    low, high = float(min(t.min(), p.min())), float(max(t.max(), p.max()))
    margin = 0.03 * (high - low)
    y = Scale(low - margin, high + margin, BASE, TOP)
    x = Scale(low - margin, high + margin, _left(y), END)
    parts = _axes(x, y, f"true {name}", f"predicted {name}")
    parts.append(_segment("second", x(x.low), y(y.low), x(x.high), y(y.high)))
    return _drawing(parts + _dots(x, y, t, p), title)


def residuals(true: Values, predicted: Values, title: str, name: str) -> str:
    """Return predicted minus true values over the predicted ones, with the line at 0."""
    t, p = _picked(true, predicted)
    e = p - t
    widest = float(np.abs(e).max()) * 1.05 or 1.0
    y = Scale(-widest, widest, BASE, TOP)
    x = Scale(float(p.min()), float(p.max()), _left(y) + 6, END - 6)
    parts = _axes(x, y, f"predicted {name}", "predicted − true")
    parts.append(_segment("second", _left(y), y(0), END, y(0)))
    return _drawing(parts + _dots(x, y, p, e), title)


def _picked(
    true: Values, predicted: Values
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    rows = np.random.default_rng(0).permutation(len(true))[:MOST_POINTS]
    return np.asarray(true, np.float64)[rows], np.asarray(predicted, np.float64)[rows]


def _dots(x: Scale, y: Scale, a: Values, b: Values) -> list[str]:
    pairs = zip(a, b, strict=True)
    return [f'<circle class="dot" cx="{x(v):.1f}" cy="{y(w):.1f}" r="3"/>' for v, w in pairs]
