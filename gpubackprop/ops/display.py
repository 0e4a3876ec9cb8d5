"""How objects show themselves: in a line or a small table, and as HTML in notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpubackprop.backends import backend_of

SHOWN = 10  # rows of a long table, and names of a long list
LETTERS = 40  # of a long name
_CELL = 'style="text-align: right"'


def figure(value: Any) -> str:
    """A number in few digits; other values as text, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_, int, np.integer, str)):
        return str(value)
    try:
        return f"{float(value):.4g}"
    except (TypeError, ValueError):
        return str(value)


def call(name: str, *arguments: Any, **options: Any) -> str:
    """``name(arguments, option=value)``."""
    parts = [*map(str, arguments), *(f"{key}={value!r}" for key, value in options.items())]
    return f"{name}({', '.join(parts)})"


def names(values: Iterable[Any], count: int = SHOWN) -> str:
    """The first of them, long ones cut."""
    values = list(values)
    texts = [text if (text := str(value)).isprintable() else repr(text) for value in values[:count]]
    shown = [text if len(text) <= LETTERS else f"{text[: LETTERS - 3]}..." for text in texts]
    return ", ".join([*shown, "..."] if len(values) > count else shown)


def size(array: Any) -> str:
    """Shape and dtype: "(150, 4) float32"."""
    return "none" if array is None else f"{tuple(array.shape)} {array.dtype}"


def norm(array: Any) -> float:
    """The Euclidean norm, in float64, wherever the array lies."""
    host = backend_of(array).to_host(array)
    return float(np.linalg.norm(np.asarray(host, np.float64)))


def ends(rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    """The rows, or the first and the last ones with dots between them."""
    if len(rows) <= SHOWN:
        return list(rows)
    half = SHOWN // 2
    return [*rows[:half], ["..."] * len(rows[0]), *rows[-half:]]


def text_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns to the right, as wide as they must be."""
    cells = [list(headers), *([figure(cell) for cell in row] for row in ends(rows))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def escaped(text: str) -> str:
    """`text` as HTML shows it. The module is imported here: nobody needs it at the start."""
    import html

    return html.escape(text)


def html_table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The same for a notebook; names that come from data are escaped."""
    head = "".join(f"<th {_CELL}>{escaped(name)}</th>" for name in headers)
    body = "".join(
        "<tr>" + "".join(f"<td {_CELL}>{escaped(figure(cell))}</td>" for cell in row) + "</tr>"
        for row in ends(rows)
    )
    top = f"<caption>{escaped(caption)}</caption><thead><tr>{head}</tr></thead>"
    return f"<table>{top}<tbody>{body}</tbody></table>"
