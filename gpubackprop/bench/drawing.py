"""The look of the benchmarks' pictures, and a figure as PNG."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from gpubackprop._optional import require

# Okabe & Ito 2008, and a wine red of Paul Tol's: people with any common colour blindness tell them
# apart. Ours is the first.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#000000",
    "#882255",
)  # fmt: skip
MARKERS = "osD^vPX*"
STYLE = {
    "font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "grid.color": "#DDDDDD", "legend.frameon": False, "legend.fontsize": 10, "lines.linewidth": 2,
    "figure.facecolor": "white",
}  # fmt: skip
Axes = Any


def look(number: int) -> dict[str, Any]:
    """Return colour and marker number `number`; the pairs repeat after 64."""
    shift = number // len(COLORS)
    return {
        "color": COLORS[number % len(COLORS)], "marker": MARKERS[(number + shift) % len(MARKERS)]
    }  # fmt: skip


def png(draw: Callable[[Any], bool], title: str) -> bytes | None:
    """Return what `draw(figure)` draws; None if it draws nothing."""
    matplotlib = require("matplotlib", "cli", "draw the benchmarks")
    module = require("matplotlib.figure", "cli", "draw the benchmarks")
    with matplotlib.rc_context(STYLE):
        figure = module.Figure(layout="constrained")
        if not draw(figure):
            return None
        figure.suptitle(title, fontsize=12)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
        return content.getvalue()
