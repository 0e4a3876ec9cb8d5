"""python -m benchmarks.report writes results as Markdown, pictures and the README's section.

    python -m benchmarks.report                    the newest of each case and machine in results/
    python -m benchmarks.report FILE ...           these files
    python -m benchmarks.report --compare OLD NEW  cases that became slower or faster beyond noise
    python -m benchmarks.report --add FILE         put another machine's result into its folder

It writes docs/benchmarks.md and docs/images/benchmark_*.png, and the part of README.md between the
benchmark markers.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from gpubackprop.bench import machines, notes, pictures, tables
from gpubackprop.bench import record as records
from gpubackprop.bench.comparing import regressions
from gpubackprop.bench.machines import doubts
from gpubackprop.errors import DataError, GpubackpropError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NO_LIMIT = '"!" behind a share: what was measured was no limit there (benchmarks/README.md).'
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
Record = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"))
    parser.add_argument("--add", type=Path, metavar="FILE", help="copy FILE into results/ first")
    parser.add_argument("--out", type=Path, default=ROOT, help="where README.md and docs/ are")
    args = parser.parse_args(arguments)
    try:
        if args.compare:
            return compare(*(records.load(path) for path in args.compare))
        if args.add:
            args.files.append(add(args.add, args.out / "benchmarks" / "results"))
            print(f"written: {args.files.pop()}")
        loaded = [records.load(path) for path in args.files]
        chosen = by_machine(loaded) if loaded else newest(args.out / "benchmarks" / "results")
        written = refresh(chosen, args.out)
    except (OSError, GpubackpropError) as error:
        print(f"benchmarks.report: error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"written: {path}")
    return 0


def compare(old: Record, new: Record) -> int:
    """Compare two runs of one machine; return 1 if something became slower or is wrong now."""
    if machines.machine(old) != machines.machine(new):
        raise DataError(
            f"the machines differ ({machines.machine(old)}, {machines.machine(new)}); set them "
            "side by side with: gpubackprop bench --compare OLD NEW"
        )
    for text in machines.warnings([old, new]):
        print(f"warning: {text}")
    found = regressions(old, new)
    print("\n".join(found.lines()))
    return int(found.regressed)


def add(file: Path, results: Path) -> Path:
    """Write a result into its machine's folder, in the compact form; return the file.

    Raises
    ------
    DataError : it is no result, or its times mean nothing.
    """
    record = records.load(file)
    if machines.is_smoke(record):
        raise DataError(f"{file} is {machines.SMOKE}; measure with: gpubackprop bench --full")
    path = records.default_path(record, results)
    if path.exists():
        raise DataError(f"{path} is there already; remove it first if {file} is the better one")
    records.write(path, record)
    return path


def newest(results: Path) -> list[Record]:
    """Return one record for each machine: each case as it was measured last."""
    return by_machine([records.load(path) for path in sorted(results.glob("*/*.json"))])


def by_machine(loaded: list[Record]) -> list[Record]:
    """Return one record for each machine; later runs replace cases of earlier ones."""
    machines: dict[str, Record] = {}
    for record in sorted(loaded, key=lambda record: (record["date"], record.get("time", ""))):
        card = records.card(record)
        machines[card] = records.merged(machines[card], record) if card in machines else record
    return list(machines.values())


def refresh(found: list[Record], out: Path = ROOT) -> list[Path]:
    """Write pictures, docs/benchmarks.md and the README's section; return the files.

    Raises
    ------
    DataError : the README has no markers; nothing was written.
    """
    written: list[Path] = []
    page, readme = out / "docs" / "benchmarks.md", out / "README.md"
    before = readme.read_text(encoding="utf-8") if readme.exists() else None
    if before is not None:
        with_section(before, "")
    text = ["# Benchmarks", "", "Made by `python -m benchmarks.report` from `benchmarks/results/`."]
    for record in found:
        card = records.card(record)
        images = pictures.draw_all(record, out / "docs" / "images", card)
        written += images
        text += ["", f"## {card}", "", notes.machine(record), "", *_doubts(record)]
        text += _image_links(images, "images")
        text += ["", "### Limits", "", tables.limits_table(record)]
        text += ["", "### All cases", "", *_with_note(tables.full_table(record))]
    if not any(record["gpu"] for record in found):
        text += ["", "Not measured on a GPU."]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(text) + "\n", encoding="utf-8")
    written.append(page)
    if before is not None:
        readme.write_text(with_section(before, section(found, written)), encoding="utf-8")
        written.append(readme)
    return written


def section(found: list[Record], written: list[Path]) -> str:
    """Return the text between the README's markers."""
    text: list[str] = []
    for record in found:
        card = records.card(record)
        stems = {f"benchmark_{card}_{title}" for title in ("peers", "batch")}
        shown = [path for path in written if path.stem in stems]
        text += [notes.machine(record), "", *_doubts(record)]
        text += [*_with_note(tables.key_table(record)), "", *_remarks(record)]
        goals = notes.goals(record)
        text += [goals, ""] if goals else []
        text += [*_image_links(shown, "docs/images"), ""] if shown else []
    if not any(record["gpu"] for record in found):
        text += ["On a GPU: not measured.", ""]
    return "\n".join(text)


def _doubts(record: Record) -> list[str]:
    """Return the doubts as lines, followed by an empty line."""
    found = [
        f"- Warning: {doubt}" for run in notes.shown_runs(record) for doubt in _run(run, record)
    ]
    return [*dict.fromkeys(found), ""] if found else []


def _run(run: Record, record: Record) -> list[str]:
    """Return the doubts about one of the record's runs; earlier runs keep only a part of it."""
    return doubts(record | {"busy_before": None} | run) if "load_before" in run else []


def _remarks(record: Record) -> list[str]:
    keys = tables.key_names()
    rows = [row for row in records.rows_of(record) if row.case in keys]
    found = [f"- {remark}" for remark in notes.remarks(rows)]
    return [*found, ""] if found else []


def _with_note(text: str) -> list[str]:
    return [text, "", NO_LIMIT] if " ! " in text else [text]


def _image_links(images: list[Path], folder: str) -> list[str]:
    links = []
    for path in images:
        title = path.stem.rpartition("_")[2]
        links.append(f"![{pictures.TITLES[title]}]({folder}/{path.name})")
    return links


def with_section(readme: str, section: str) -> str:
    """Return `readme` with `section` between its markers.

    Raises
    ------
    DataError : a marker is missing.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(readme):
        raise DataError(f"the README has no {BEGIN} ... {END}")
    return pattern.sub(lambda match: f"{BEGIN}\n{section}{END}", readme, count=1)


if __name__ == "__main__":
    raise SystemExit(main())
