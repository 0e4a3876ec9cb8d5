"""Links of the documents, as the site needs them: to folders, and to code, which is no page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

FOLDERS = {"docs/decisions": "docs/decisions.rst"}  # a folder -> the page that lists it


def setup(app: Any) -> None:
    """Have Sphinx change links before it reads a document."""
    app.connect("source-read", lambda app, name, source: _read(Path(app.srcdir), name, source))


def _read(root: Path, name: str, source: list[str]) -> None:
    if (root / f"{name}.md").exists():
        source[0] = changed(source[0], (root / name).parent, root)


def changed(text: str, here: Path, root: Path) -> str:
    """Return the Markdown with links to folders led to their page, and to code to the file."""

    def link(match: re.Match[str]) -> str:
        target = (here / match[1]).resolve()
        if target.suffix == ".py" and not target.is_relative_to(root / "docs"):
            return f"](path:{match[1]})"
        page = FOLDERS.get(target.relative_to(root).as_posix()) if target.is_dir() else None
        if page is None:
            return match[0]
        up = "../" * len(here.resolve().relative_to(root).parts)
        return f"]({up}{page})"

    return re.sub(r"\]\((?!\w+:)([^)#\s]+)\)", link, text)
