"""What all pictures share: style, colours, a figure without pyplot, and how it is written."""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gpubackprop._optional import require
from gpubackprop.tensorfile import write_atomically

Draw = TypeVar("Draw", bound=Callable[..., Any])
DPI = 160
# Okabe & Ito 2008: told apart with every common colour blindness, and by lightness in print.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
_STYLE = {
    "font.size": 13,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "axes.titlesize": 14,
    "axes.labelsize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "none",
    "legend.fontsize": 12,
    "lines.linewidth": 2.2,
    "figure.facecolor": "white",
}


def in_style(draw: Draw) -> Draw:
    """Run `draw` in this module's style; report it if matplotlib is absent."""

    @functools.wraps(draw)
    def styled(*args: Any, **options: Any) -> Any:
        with require("matplotlib", "cli", "draw pictures").rc_context(_STYLE):
            return draw(*args, **options)

    return styled  # type: ignore[return-value]


def new_figure(size: tuple[float, float], title: str = "") -> Any:
    """Return an empty figure of (width, height) inches that a notebook shows.

    It is made without pyplot, so that no display is needed and no global state is touched.
    """
    module = require("matplotlib.figure", "cli", "draw pictures")
    figure = module.Figure(figsize=size, dpi=DPI, layout="constrained")
    figure._repr_png_ = functools.partial(_png, figure, DPI // 2)
    if title:
        figure.suptitle(literal(title), fontsize=15)
    return figure


def literal(name: Any) -> str:
    """Return a user's name so that matplotlib draws each letter: "$" must begin no formula."""
    text = str(name).encode("utf-8", "backslashreplace").decode()  # bytes of a file name
    return text.replace("$", r"\$")


def finish(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    """Write the figure as a PNG, whole or not at all, if there is a path; return it."""
    if path is not None:
        write_atomically(Path(path), _png(figure, DPI))
    return figure


def _png(figure: Any, dpi: int) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():  # a letter that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        figure.savefig(content, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.15)
    return content.getvalue()
