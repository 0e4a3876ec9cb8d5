"""One HTML file that shows one or more records. It needs no network and no other file."""

from __future__ import annotations

import base64
from html import escape

from gpubackprop import __version__
from gpubackprop.bench import bars, notes, pictures, tables
from gpubackprop.bench.cells import joules, share_cell
from gpubackprop.bench.comparing import VERDICTS, Comparison
from gpubackprop.bench.machines import facts, letter, machine, warnings
from gpubackprop.bench.record import rows_of
from gpubackprop.bench.tables import Cells, Record
from gpubackprop.errors import MissingDependencyError

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em;
       color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: left; }
th { border-bottom: 2px solid #888; }
td { font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
.warning { background: #fff4d6; border-left: 4px solid #e69f00; padding: .3em 1em; margin: .4em 0; }
.faster { color: #00664a; font-weight: 600; }
.slower { color: #a53e00; font-weight: 600; }
.undecided, .same { color: #666; }
img { max-width: 100%; }
"""
NO_LIMIT = (
    '"!" behind a share: what was measured was no limit there, as the work fits into a cache or '
    "the limit was measured worse than the work."
)


def page(comparison: Comparison) -> str:
    """Return the whole file. Without Matplotlib it has no pictures and says how to get them."""
    records = comparison.records
    several = len(records) > 1
    title = "gpubackprop benchmarks: " + ", ".join(dict.fromkeys(map(machine, records)))
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f'<p class="warning">{escape(text)}</p>' for text in warnings(records)]
    parts += [_table(head_cells(records)), _legend()]
    if several:
        parts.append("<h2>Side by side</h2>")
        parts += [f"<p>{escape(comparison.summary(n))}</p>" for n in range(1, len(records))]
        parts += [_pictures(lambda: {"side by side": bars.side_by_side(comparison)})]
        parts += [_table(comparison_cells(comparison))]
    for number, record in enumerate(records):
        name = f"{letter(number)}: {machine(record)}" if several else machine(record)
        parts += [f"<h2>{escape(name)}</h2>", *_record(record)]
    body = "\n".join(parts)
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n<p>Made by gpubackprop {escape(__version__)}.</p>\n</body></html>\n"
    )


def _legend() -> str:
    return (
        "<p>Times are medians of the rounds that count, with their 20th and 80th percentiles "
        f"(p20 – p80). {escape(NO_LIMIT)}</p>"
    )


def _record(record: Record) -> list[str]:
    rows = rows_of(record)
    found = [_pictures(lambda: pictures.drawn(record))]
    found += ["<h3>Limits</h3>", _table(tables.limits_cells(record))]
    keys = tables.key_cells(record)
    if len(keys) > 1:
        found += ["<h3>Key cases: time, and time of gpubackprop / time of each other</h3>"]
        found += [_table(keys)]
    said = [*notes.remarks(rows), *(f"not measured: {text}" for text in notes.left_out(record))]
    if said:
        items = "".join(f"<li>{escape(text)}</li>" for text in said)
        found += ["<h3>Remarks</h3>", f"<ul>{items}</ul>"]
    shown = " open" * (len(keys) == 1)
    found += [
        f"<details{shown}><summary>All cases and providers, {len(rows)} rows</summary>",
        _table(tables.full_cells(record)),
        "</details>",
    ]  # fmt: skip
    return found


def _pictures(draw: object) -> str:
    """Return images to embed; if Matplotlib is missing, a line that says so."""
    try:
        found = draw()  # type: ignore[operator]
    except MissingDependencyError as error:
        return f"<p>No pictures: {escape(str(error))}</p>"
    images = []
    for name, content in found.items():
        if content is not None:
            title = escape(pictures.TITLES.get(name, name))
            text = base64.b64encode(content).decode()
            images.append(f'<p><img alt="{title}" src="data:image/png;base64,{text}"></p>')
    return "\n".join(images)


def _table(cells: Cells) -> str:
    head, *rest = cells
    text = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(map(_cell, line)) + "</tr>" for line in rest)
    return f'<div class="wide"><table><tr>{text}</tr>\n{body}\n</table></div>'


def _cell(text: str) -> str:
    word = text.rpartition(" ")[2]
    kind = f' class="{word}"' if word in VERDICTS else ""
    bold = text.startswith("**")
    inner = escape(text.replace("**", ""))
    return f"<td{kind}>{f'<b>{inner}</b>' if bold else inner}</td>"


def head_cells(records: list[Record]) -> Cells:
    """Return machines, drivers, clocks, power, load and versions, with a column for each record."""
    names = [letter(number) for number in range(len(records))]
    return [["", *names], *([what, *values] for what, values in facts(records))]


def comparison_cells(comparison: Comparison) -> Cells:
    """Return case by case the times with p20 – p80, shares of the limit, and verdicts."""
    numbers = range(len(comparison.records))
    energy = any(row and row.joules for line in comparison.lines for row in line.rows)
    head = ["case", "on"]
    for number in numbers:
        head += [f"{letter(number)}: time (p20 – p80)", f"{letter(number)}: of the limit"]
        head += [f"{letter(number)}: joules"] * energy
    head += [f"{letter(number)} / A" for number in numbers[1:]]
    found = [head]
    for line in comparison.lines:
        cells = [line.case, line.place]
        for row, time in zip(line.rows, line.times(), strict=True):
            cells += [time, share_cell(row) if row else ""]
            cells += [joules(row) if row else ""] * energy
        for number in numbers[1:]:
            factor = line.factor(number)
            text = f"{factor:.3g} {line.verdict(number)}" if factor is not None else "-"
            cells.append(text)
        found.append(cells)
    return found
