"""Run a page of Python cells and make Markdown of its text, code, outputs and figures.

A page is a Python file in the percent format that Jupyter (jupytext), VS Code and Spyder open as a
notebook: "# %% [markdown]" begins a cell of text in comments, "# %%" one of code. What a code cell
prints is shown behind it; so is the value of its last line, a figure as a picture.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import linecache
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CELL = re.compile(r"^# %%(?P<markdown> \[markdown\])?.*$")


@dataclass
class Cell:
    """A cell, and what it showed when it ran.

    Attributes
    ----------
    line : int
        Number of its first line in the file.
    markdown : bool
        Whether it is text.
    source : str
        Text or code.
    printed : str
        What the code printed, and its last value unless that is a figure.
    pictures : list of bytes
        PNGs of the figures.
    """

    line: int
    markdown: bool
    source: str
    printed: str = ""
    pictures: list[bytes] = field(default_factory=list)


def cells(text: str) -> Iterator[Cell]:
    """Yield the cells of a page that are not empty; what stands before the first is left out."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if _CELL.match(line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        markdown = bool(_CELL.match(lines[start])["markdown"])  # type: ignore[index]
        body = lines[start + 1 : end]
        if markdown:
            body = [re.sub(r"^# ?", "", line) for line in body]
        source = "\n".join(body).strip("\n")
        if source:
            yield Cell(start + 2, markdown, source)


def run(path: str | Path, text: str | None = None) -> list[Cell]:
    """Run the code cells of a page in one namespace and return all cells.

    Raises
    ------
    Exception
        What a cell raises; the traceback has the page's file and line.
    """
    text = Path(path).read_text(encoding="utf-8") if text is None else text
    name = str(path)
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    names: dict[str, Any] = {"__name__": "__main__", "__file__": name}
    found = list(cells(text))
    for cell in found:
        if not cell.markdown:
            _run_cell(cell, name, names)
    return found


def _run_cell(cell: Cell, name: str, names: dict[str, Any]) -> None:
    tree = ast.parse("\n" * (cell.line - 1) + cell.source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), names)
            _show(value, cell)
    cell.printed = printed.getvalue()


def _show(value: Any, cell: Cell) -> None:
    if hasattr(value, "_repr_png_"):
        cell.pictures.append(value._repr_png_())
    elif value is not None:
        print(repr(value))


def markdown(path: str | Path, text: str | None = None) -> str:
    """Run a page and return it as Markdown; its pictures are data URIs."""
    parts, heading = [], Path(path).stem
    for cell in run(path, text):
        if cell.markdown:
            parts.append(cell.source)
            found = re.findall(r"^#+ (.+)$", cell.source, re.M)
            heading = found[-1] if found else heading
            continue
        parts.append(f"```python\n{cell.source}\n```")
        if cell.printed.strip():
            parts.append(f"```text\n{cell.printed.rstrip()}\n```")
        for picture in cell.pictures:
            data = base64.b64encode(picture).decode()
            alt = re.sub(r"[\[\]]", "", heading)
            parts.append(f"![Figure: {alt}](data:image/png;base64,{data})")
    return "\n\n".join(parts) + "\n"
