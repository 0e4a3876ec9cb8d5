"""The documentation site: what can be said without building it, and the built site (`make docs`).

The second part reads the folder that GPUBACKPROP_SITE names, and opens its pages in Chromium.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests import browser
from tests.cli_runs import ROOT
from tools.site import links, numbers

SITE = Path(os.environ.get("GPUBACKPROP_SITE") or ROOT / "nothing")
built = pytest.mark.skipif(
    not (SITE / "index.html").exists(),
    reason="no built site: `make docs` builds one and runs this",
)
WIDTHS = {"desktop": 1440, "phone": 390}

# -- without a build ------------------------------------------------------------------------------


def test_the_reference_lists_everything_public():
    docstrings = pytest.importorskip("tests.test_docstrings")
    text = (ROOT / "docs/api.rst").read_text(encoding="utf-8")
    listed = [
        name.rpartition(".") for name in re.findall(r"^   (gpubackprop\.[\w.]+)$", text, re.M)
    ]
    offered = [getattr(importlib.import_module(home), name) for home, _, name in listed]
    for module in docstrings.MODULES:
        values = docstrings.named(importlib.import_module(module))
        absent = [value for value in values if value not in offered]
        assert not absent, f"{module}: add {absent} to docs/api.rst"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[d](docs/decisions/)", "[d](docs/decisions.rst)"),
        ("[p](gpubackprop/passes.py)", "[p](path:gpubackprop/passes.py)"),
        ("[c](docs/lecture/01_chain.py)", "[c](docs/lecture/01_chain.py)"),
        ("[o](https://example.org/a.py) [k](kernels/README.md#types)",) * 2,
    ],
)
def test_links_to_folders_and_code_lead_somewhere_on_the_site_too(text, wanted):
    assert links.changed(text, ROOT, ROOT) == wanted


def test_a_link_to_a_folder_from_below_goes_up_first():
    assert links.changed("[d](decisions/)", ROOT / "docs", ROOT) == "[d](../docs/decisions.rst)"


def test_the_pages_formulas_in_javascript_have_the_librarys_numbers(tmp_path):
    if not shutil.which("node"):
        pytest.skip("node is not installed; `make docs` checks the same in a browser")
    numbers.write(tmp_path / "numbers.js")
    script = ROOT / "docs/site/static/play.js"
    program = (
        f"const r = require({str(script)!r}).check(require('./numbers.js'));"
        "console.log(r.worst, r.count, r.cases)"
    )
    done = subprocess.run(
        ["node", "-e", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    worst, count, networks = map(float, done.stdout.split())
    assert worst < 1e-13
    assert (count > 1000, networks) == (True, 18)


# -- the built site -------------------------------------------------------------------------------


class Page(HTMLParser):
    """Ids, and what links and other elements lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        self.targets += [values[name] for name in ("href", "src") if values.get(name)]


def pages() -> list[str]:
    return sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))


@cache
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@built
def test_the_site_has_what_was_asked_for():
    wanted = [
        "docs/start", "docs/lecture/01_chain", "docs/lecture/07_digits", "docs/seven_steps",
        "kernels/README", "docs/sklearn", "docs/torch", "docs/benchmarks", "docs/decisions",
        "CONTRIBUTING", "docs/api", "docs/play", "docs/generated/gpubackprop.MLP", "search",
    ]  # fmt: skip
    assert {f"{name}.html" for name in wanted} <= set(pages())
    index = (SITE / "searchindex.js").read_text(encoding="utf-8")
    assert "softmax_cross_entropy" in index
    assert "data:image" not in index


@built
def test_every_link_of_the_site_leads_to_a_page_and_its_place_there():
    broken = []
    for name in pages():
        for target in page(SITE / name).targets:
            if re.match(r"[a-z]+:", target):
                continue
            path, _, place = unquote(target).partition("#")
            there = (SITE / name).parent / path.partition("?")[0] if path else SITE / name
            anchor = place and there.suffix == ".html"
            if not there.exists() or (anchor and place not in page(there.resolve()).ids):
                broken.append(f"{name}: {target}")
    assert not broken


@built
def test_the_site_takes_nothing_from_another_server():
    for name in pages():
        text = (SITE / name).read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\"(https?:[^\"]+)", text)
        assert not [url for url in loaded if "canonical" not in url], name


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.missing():
        pytest.skip(browser.missing())
    with browser.Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@built
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_of_the_site_has_an_error_or_is_wider_than_the_window(chromium, width):
    wrong = {}
    for name in pages():
        if name == "index.html":
            continue  # it leads on to docs/index.html at once
        errors = chromium.open(SITE / name, WIDTHS[width])
        over = chromium.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        if errors or over > 0:
            wrong[name] = [*errors, f"{over} pixels too wide"]
    assert not wrong


@built
@pytest.mark.slow
def test_the_interactive_page_has_the_librarys_numbers_and_answers_to_its_sliders(chromium):
    assert not chromium.open(SITE / "docs/play.html", WIDTHS["desktop"])
    part = "document.querySelector('#play [data-part=\"{}\"]')".format
    assert float(chromium.evaluate(f"{part('check')}.dataset.worst")) < 1e-13
    assert int(chromium.evaluate(f"{part('check')}.dataset.count")) > 1000
    loss = float(chromium.evaluate(f"{part('loss')}.textContent"))
    chromium.evaluate(f"{part('fifty')}.click()")
    assert float(chromium.evaluate(f"{part('loss')}.textContent")) < 0.5 * loss
    chromium.evaluate(
        f"(() => {{ const d = {part('depth')}; d.value = 5; d.dispatchEvent(new Event('input')); }})()"
    )
    assert chromium.evaluate(f"{part('forward')}.querySelectorAll('circle').length") == 14
    shown = "document.querySelector('#play [data-part=\"weights\"] input')"
    before = chromium.evaluate(f"{part('loss')}.textContent")
    chromium.evaluate(
        f"(() => {{ const s = {shown}; s.value = 3; s.dispatchEvent(new Event('input')); }})()"
    )
    assert chromium.evaluate(f"{part('loss')}.textContent") != before


@built
@pytest.mark.slow
def test_the_search_finds_a_function(chromium):
    chromium.open(SITE / "search.html", WIDTHS["desktop"])
    url = (SITE / "search.html").resolve().as_uri()
    chromium.call("Page.navigate", url=f"{url}?q=gradient_check")
    found = chromium.evaluate(
        "new Promise(done => { const start = Date.now(); const look = () => {"
        " const n = document.querySelectorAll('#search-results li a').length;"
        " if (n || Date.now() - start > 10000) done(n); else setTimeout(look, 100); }; look(); })"
    )
    assert found > 0
