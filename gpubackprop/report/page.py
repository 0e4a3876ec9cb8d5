"""The page: its style, and the pieces of HTML that the sections are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from gpubackprop import __version__

STYLE = """
:root { --text: #1d2125; --soft: #5b6570; --line: #dde1e6; --back: #fff; --panel: #f6f7f9;
        --first: #0072b2; --second: #d55e00; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7ea; --soft: #9aa5b1; --line: #3a4047; --back: #16191d; --panel: #1f2429;
          --first: #56b4e9; --second: #f0944d; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
       max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { margin: .4rem 0; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.cards { display: grid; gap: .7rem; margin: 1.2rem 0;
         grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.cards div { background: var(--panel); border-radius: .5rem; padding: .6rem .8rem; }
.cards b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.charts { display: grid; gap: 1.2rem;
          grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption .key { display: inline-block; width: .8em; height: .8em; border-radius: 50%;
                  margin: 0 .3em 0 .8em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
         overflow-wrap: normal; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
td.number, th.number { text-align: right; }
table.confusion td { text-align: center; min-width: 2.6rem; border: 1px solid var(--line); }
table.bars { width: 100%; } table.bars td.number { width: 1%; white-space: nowrap; }
td.bar { width: 55%; min-width: 6rem; }
td.bar i { display: block; height: .8rem; border-radius: .2rem; background: var(--first); }
pre { background: var(--panel); border-radius: .5rem; padding: .7rem .9rem; overflow-x: auto;
      font-size: .85rem; white-space: pre-wrap; }
details { margin: .6rem 0; } summary { cursor: pointer; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 13px system-ui, sans-serif; fill: var(--soft); }
svg .label { fill: var(--text); }
svg line.grid { stroke: var(--line); } svg line.axis { stroke: var(--soft); }
svg line.mark { stroke: var(--soft); stroke-dasharray: 3 4; }
svg polyline { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
svg .first { stroke: var(--first); } svg .second { stroke: var(--second); }
svg circle.first { fill: var(--first); } svg circle.second { fill: var(--second); }
svg .dot { fill: var(--first); fill-opacity: .45; }
.first-key { background: var(--first); } .second-key { background: var(--second); }
@media (max-width: 34rem) { th, td { padding: .3rem .4rem; } }
@media print { body { max-width: none; } h2 { break-after: avoid; } tr { break-inside: avoid; } }
"""


def page(title: str, lead: str, parts: Iterable[str]) -> str:
    """Return the whole file.

    Parameters
    ----------
    title : str
        Text of the heading and of the window.
    lead : str
        Text below the heading.
    parts : iterable of str
        HTML; empty parts are left out.
    """
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(lead)}</p>\n{body}\n'
        f'<p class="soft">Made by gpubackprop {escape(__version__)}.</p>\n</body></html>\n'
    )


def section(title: str, *parts: str) -> str:
    """Return a heading and what stands below it, or "" if nothing does."""
    body = "\n".join(part for part in parts if part)
    return f"<h2>{escape(title)}</h2>\n{body}" if body else ""


def text(words: str) -> str:
    """Return a paragraph in small print."""
    return f'<p class="soft">{escape(words)}</p>'


def cards(values: Iterable[tuple[str, str]]) -> str:
    """Return (what, figure) pairs as panels."""
    panels = (f"<div><b>{escape(figure)}</b>{escape(what)}</div>" for what, figure in values)
    return f'<div class="cards">{"".join(panels)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its first column has names, the others figures."""
    if not (lines := [list(row) for row in rows]):
        return ""
    heads = "".join(
        f'<th scope="col"{_number(column)}>{escape(name)}</th>' for column, name in enumerate(head)
    )
    body = "".join(
        "<tr>" + "".join(_cell(column, value) for column, value in enumerate(row)) + "</tr>"
        for row in lines
    )
    inner = f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table>{inner}</table></div>'


def _number(column: int) -> str:
    return ' class="number"' if column else ""


def _cell(column: int, value: str) -> str:
    kind, end = ('th scope="row"', "th") if not column else ('td class="number"', "td")
    return f"<{kind}>{escape(value)}</{end}>"


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and texts."""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<div class="wide"><table><tbody>{body}</tbody></table></div>' if body else ""


def charts(*drawn: tuple[str, str]) -> str:
    """Return drawings, each with its caption in HTML, beside each other where there is room."""
    figures = "".join(
        f"<figure>{svg}<figcaption>{caption}</figcaption></figure>" for svg, caption in drawn if svg
    )
    return f'<div class="charts">{figures}</div>' if figures else ""


def key(names: Iterable[tuple[str, str]]) -> str:
    """Return the legend of (style's class, name) pairs."""
    return "".join(f'<span class="key {kind}-key"></span>{escape(name)}' for kind, name in names)


def folded(title: str, body: str, *, many: bool) -> str:
    """Return the body, behind a line to open it if it is long."""
    if not (many and body):
        return body
    return f"<details><summary>{escape(title)}</summary>{body}</details>"
