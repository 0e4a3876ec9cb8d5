"""The pages of docs/ that run: every cell, with its asserts; and the tool that runs them."""

from __future__ import annotations

import traceback

import pytest

from tests.cli_runs import ROOT
from tools.site import gallery

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.py"))
PAGES = [page for page in PAGES if not page.startswith("docs/site/")]  # the site's settings
# What each page must show, in words of the issue that asked for it.
SHOWN = {
    "docs/lecture/01_chain.py": (1, "library: δ_l"),
    "docs/lecture/02_responsible.py": (1, "grad_h_1 = W_2^T delta_2"),
    "docs/lecture/03_matrices.py": (0, "loops: largest difference"),
    "docs/lecture/04_softmax.py": (1, "-log yhat_y"),
    "docs/lecture/05_vanishing.py": (2, "'logistic'"),
    "docs/lecture/06_check.py": (1, "GradientCheck(passed"),
    "docs/lecture/07_digits.py": (3, "accuracy"),
    "docs/seven_steps.py": (2, "softmax_cross_entropy_cluster4_labels_f32"),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_cell_of_a_page_runs_and_the_page_shows_its_pictures(page):
    found = gallery.run(ROOT / page)
    pictures = [picture for cell in found for picture in cell.pictures]
    assert all(picture[:4] == b"\x89PNG" for picture in pictures)
    if page in SHOWN:
        count, words = SHOWN[page]
        assert len(pictures) == count
        assert words in "".join(cell.printed for cell in found)


def test_the_lecture_has_its_pages():
    assert set(PAGES) >= set(SHOWN)


PAGE = """# not shown
# %% [markdown]
# # Title
#
# text
# %%
x = 1
print(x)
x + 1
# %%
None
# %%
"""


def test_a_page_becomes_text_code_and_what_the_code_showed():
    assert gallery.markdown("page.py", PAGE) == (
        "# Title\n\ntext\n\n```python\nx = 1\nprint(x)\nx + 1\n```\n\n```text\n1\n2\n```\n\n"
        "```python\nNone\n```\n"
    )


def test_a_figure_becomes_a_picture_with_the_heading_as_its_text():
    page = "# %% [markdown]\n# # A [curve]\n# %%\nclass F:\n    def _repr_png_(self):\n        return b'x'\n\nF()\n"
    assert gallery.markdown("page.py", page).endswith(
        "![Figure: A curve](data:image/png;base64,eA==)\n"
    )


def test_an_error_of_a_cell_names_the_page_and_the_line():
    with pytest.raises(ZeroDivisionError) as error:
        gallery.run("page.py", "# %%\nx = 1\n# %%\ny = 2\nx / 0\n")
    (*_, last) = traceback.extract_tb(error.value.__traceback__)
    assert (last.filename, last.lineno, last.line) == ("page.py", 5, "x / 0")
