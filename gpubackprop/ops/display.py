"""How objects show themselves: on a line or in a small table, and as HTML in notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpubackprop.backends import backend_of

SHOWN = 10  # how many rows of a long table and names of a long list are shown
LETTERS = 40  # how many letters of a long name are shown
_CELL = 'style="text-align: right"'


def figure(value: Any) -> str:
    """Return a number in few digits, other values as text, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_, int, np.integer, str)):
        return str(value)
    try:
        return f"{float(value):.4g}"
    except (TypeError, ValueError):
        return str(value)


def call(name: str, *arguments: Any, **options: Any) -> str:
    """Return ``name(arguments, option=value)``."""
    parts = [*map(str, arguments), *(f"{key}={value!r}" for key, value in options.items())]
    return f"{name}({', '.join(parts)})"


def names(values: Iterable[Any], count: int = SHOWN) -> str:
    """Return the first `count` values as text, long ones shortened."""
    values = list(values)
    texts = [text if (text := str(value)).isprintable() else repr(text) for value in values[:count]]
    shown = [text if len(text) <= LETTERS else f"{text[: LETTERS - 3]}..." for text in texts]
    return ", ".join([*shown, "..."] if len(values) > count else shown)


def size(array: Any) -> str:
    """Return shape and dtype: "(150, 4) float32"."""
    return "none" if array is None else f"{tuple(array.shape)} {array.dtype}"


def norm(array: Any) -> float:
    """Return the Euclidean norm, in float64, of an array on any device."""
    host = backend_of(array).to_host(array)
    return float(np.linalg.norm(np.asarray(host, np.float64)))


def ends(rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    """Return the rows, or only the first and the last ones with dots between them."""
    if len(rows) <= SHOWN:
        return list(rows)
    half = SHOWN // 2
    return [*rows[:half], ["..."] * len(rows[0]), *rows[-half:]]


def text_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table of right-aligned columns, each as wide as its longest cell."""
    cells = [list(headers), *([figure(cell) for cell in row] for row in ends(rows))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def escaped(text: str) -> str:
    """Return `text` as HTML shows it. The module is imported here because few programs need it."""
    import html

    return html.escape(text)


def html_table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return the table for a notebook; names that come from data are escaped."""
    head = "".join(f"<th {_CELL}>{escaped(name)}</th>" for name in headers)
    body = "".join(
        "<tr>" + "".join(f"<td {_CELL}>{escaped(figure(cell))}</td>" for cell in row) + "</tr>"
        for row in ends(rows)
    )
    top = f"<caption>{escaped(caption)}</caption><thead><tr>{head}</tr></thead>"
    return f"<table>{top}<tbody>{body}</tbody></table>"
