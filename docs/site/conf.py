"""The site's settings: `make docs` runs Sphinx with them over the repository's own documents.

Sources are where GitHub shows them, so a link works in both places. A Python file of docs/ is a page
of cells, which the build runs (`tools.site.gallery`). Nothing is fetched from another server.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from myst_parser.parsers.sphinx_ import MystParser

import gpubackprop
from tools.site import gallery, links, numbers

project = "gpubackprop"
author = "the gpubackprop authors"
copyright = "2026, the gpubackprop authors"
version = release = gpubackprop.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "kernels/README.md",
    "benchmarks/README.md",
    "benchmarks/counts/README.md",
    "benchmarks/results/README.md",
    "benchmarks/results/tables.md",
    "tests/README.md",
    "tests/emulator/README.md",
]
exclude_patterns = ["docs/site/**", ".*", "build/**", "runs/**"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext", ".py": "cells"}

# -- text ------------------------------------------------------------------------------------------

myst_heading_anchors = 4
myst_enable_extensions: list[str] = []
suppress_warnings = ["myst.header"]  # a README may begin where it likes
pygments_style, pygments_dark_style = "friendly", "monokai"
highlight_language = "none"

# -- reference -------------------------------------------------------------------------------------

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # the docstrings say them, with shapes
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
templates_path = [str(ROOT / "docs/site/templates")]  # of the reference, which asks for a full path

# -- pages -----------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"gpubackprop {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["extra"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}


class CellsParser(MystParser):
    """Reads a page of cells: it runs them, and goes on with the Markdown that comes out."""

    supported = ("cells",)

    def parse(self, inputstring, document):
        path = Path(document["source"])
        super().parse(gallery.markdown(path, inputstring), document)


def _export_numbers(app, error):
    if error is None and app.builder.format == "html":
        numbers.write(Path(app.outdir, "_static", "play_numbers.js"))


def setup(app):
    app.connect("build-finished", _export_numbers)
    app.add_source_parser(CellsParser)
    links.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
