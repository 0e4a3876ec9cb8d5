"""``gpubackprop bench``: this machine's CPU and GPU, beside the limit and the peers."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpubackprop.backends import devices
from gpubackprop.backends.host import probe_cpu
from gpubackprop.bench import comparing, machines, notes, page, tables
from gpubackprop.bench import record as records
from gpubackprop.bench.cases import cases
from gpubackprop.bench.providers import GROUPS, PROVIDERS, peers_option
from gpubackprop.bench.run import Settings, measure
from gpubackprop.cli.common import Say, add_device_options, count, real, to_json
from gpubackprop.cli.outputs import add_overwrite_option, claim_file
from gpubackprop.errors import GpubackpropError, OptionError
from gpubackprop.tensorfile import write_atomically

_EPILOG = f"""\
examples:
  gpubackprop bench
  gpubackprop bench --full --peers all
  gpubackprop bench --op softmax --peers torch --json bench.json --html bench.html
  gpubackprop bench --compare A.json B.json --html report.html
  gpubackprop bench --list --full --op training_step

peers: all, none, or some of {", ".join(GROUPS)}

Each provider works in a process of its own and is checked against a float64 computation before it
is timed. Figures are medians with their 20th and 80th percentiles; let nothing else run meanwhile.
A verdict is "undecided" where those intervals overlap.
"""
PAGE_START = b"<!doctype html>"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.usage = "gpubackprop bench [options]"
    parser.description = (
        "Measure this machine's CPU and GPU against their limits and the peers, or compare results."
    )
    _what(parser)
    parser.add_argument("--op", default="", metavar="TEXT", help="cases whose name contains TEXT")
    parser.add_argument(
        "--peers",
        type=peers_option,
        default="none",
        metavar="NAMES",
        help='default "none"; see below',
    )
    parser.add_argument(
        "--budget", type=real(1.0), default=float("inf"), metavar="SECONDS",
        help="start no case after this time (default: no limit)",
    )  # fmt: skip
    parser.add_argument(
        "--json", metavar="FILE", help="write the result as JSON; - prints that and nothing else"
    )
    parser.add_argument(
        "--csv", nargs="?", const="-", metavar="FILE",
        help="write a line for each row as CSV; - or no FILE prints that and nothing else",
    )  # fmt: skip
    parser.add_argument(
        "--html", metavar="FILE", help="write one file to share: tables and pictures, no network"
    )
    add_overwrite_option(parser)
    add_device_options(parser)
    parser.set_defaults(size="quick")


def _what(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose cases, and those that do something else than measure."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", dest="size", action="store_const", const="quick",
        help="the most important cases (default)",
    )  # fmt: skip
    size.add_argument(
        "--full", dest="size", action="store_const", const="full", help="every case, for minutes"
    )
    size.add_argument(
        "--smoke", dest="size", action="store_const", const="smoke",
        help="every case at a tiny size: does it work? Its times mean nothing",
    )  # fmt: skip
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--compare", nargs="+", metavar="FILE",
        help="measure nothing: set results of --json side by side, the others against the first",
    )  # fmt: skip
    instead.add_argument(
        "--list", action="store_true", help="measure nothing: show the cases and who takes part"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, or compare or list; a choice that is not there is wrong usage.

    ``python -m benchmarks`` treats it alike.
    """
    try:
        return _run(args)
    except OptionError as error:
        if not args.traceback:
            args.parser.error(str(error))
        raise


def _run(args: argparse.Namespace) -> int:
    if args.list:
        if args.csv or args.html or args.json not in (None, "-"):
            args.parser.error("--list prints to the terminal; of the outputs it has --json - alone")
        return show_list(args)
    _claim(args)
    return compare(args) if args.compare else _measure(args)


def _measure(args: argparse.Namespace) -> int:
    name, reason = devices.choose(args.device)
    say = Say(json="-" in (args.json, args.csv))
    threads = args.threads or probe_cpu().cores
    settings = Settings(args.size, name, reason, args.op, args.peers, (threads,), args.budget)
    with_cpu = "" if devices.is_host(name) else f" and the CPU with {count(threads, 'thread')}"
    say.line(f"device: {name} ({reason}){with_cpu}")
    record = measure(settings, progress)
    clear_progress()
    for line in result_lines(record):
        say.line(line)
    say.line()
    say.result(notes.summary(record))
    _write(args, record, lambda: tables.row_cells(record), [record])
    wrong = [row for row in records.rows_of(record) if row.wrong]
    if wrong:
        raise WrongResult(
            f"{count(len(wrong), 'result')} differed from the oracle, the first: "
            f"{wrong[0].provider} on {wrong[0].case}: {wrong[0].note}"
        )
    return 0


def result_lines(record: dict[str, Any]) -> list[str]:
    """Return warnings, the table, remarks, and what was not measured."""
    rows = records.rows_of(record)
    text = [f"warning: {doubt}" for doubt in machines.doubts(record)]
    text += tables.lines(rows)
    if found := notes.remarks(rows):
        text += ["", "remarks:", *(f"  {remark}" for remark in found)]
    text += ["", "not measured:"]
    return text + [f"  {line}" for line in notes.left_out(record) or ["nothing"]]


# -- comparing ------------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> int:
    """Set files side by side; return 0 whatever the verdicts are."""
    if len(args.compare) < 2 and not (args.html or args.csv):
        args.parser.error(
            "--compare needs two files or more (one is enough for --html and --csv); write them "
            "with --json"
        )
    loaded = [records.load(Path(file)) for file in args.compare]
    found = comparing.compare(loaded)
    if args.op:
        lines = [line for line in found.lines if args.op in line.case]
        if not lines:
            names = sorted({line.case.partition("/")[0] for line in found.lines})
            raise OptionError(
                f"no case of these files contains {args.op!r}; operations are {', '.join(names)}"
            )
        found = comparing.Comparison(loaded, lines)
    say = Say(json="-" in (args.json, args.csv))
    for line in comparison_lines(found, args.compare):
        say.line(line)
    _write(args, comparison_json(found, args.compare), found.cells, loaded, found)
    return 0


def comparison_lines(found: comparing.Comparison, files: list[str]) -> list[str]:
    """Return lines for a terminal: machines, warnings, each case, and the count of each verdict."""
    numbers = range(len(found.records))
    text = [f"{machines.letter(n)}: {file}" for n, file in zip(numbers, files, strict=True)]
    text += ["", *tables.text(page.head_cells(found.records)), ""]
    text += [f"warning: {line}" for line in machines.warnings(found.records)]
    if len(found.records) < 2:
        return text
    text += ["", *tables.text(page.comparison_cells(found)), ""]
    return text + [found.summary(number) for number in numbers[1:]]


def comparison_json(found: comparing.Comparison, files: list[str]) -> dict[str, Any]:
    """Return for programs what `comparison_lines` says."""
    numbers = range(len(found.records))
    head = page.head_cells(found.records)[1:]
    return {
        "files": files,
        "machines": [{line[0]: line[1 + n] for line in head if line[1 + n]} for n in numbers],
        "warnings": machines.warnings(found.records),
        "cases": [
            {
                "case": line.case, "place": line.place,
                "rows": [row.json() if row else None for row in line.rows],
                "factors": [line.factor(n) for n in numbers[1:]],
                "verdicts": [line.verdict(n) for n in numbers[1:]],
            }
            for line in found.lines
        ],
        "counts": [found.counts(n) for n in numbers[1:]],
    }  # fmt: skip


# -- the list -------------------------------------------------------------------------------------


def show_list(args: argparse.Namespace) -> int:
    """Print the cases of the size, and the providers."""
    name, reason = devices.choose(args.device)
    kind = name.partition(":")[0]
    found = [case for case in cases(args.size, kind) if args.op in case.name]
    if not found:
        raise OptionError(
            f"no case contains {args.op!r}; operations are "
            f"{', '.join(sorted({case.op for case in cases(args.size, kind)}))}"
        )
    say = Say(json=args.json == "-")
    say.line(f"device: {name} ({reason})")
    for case in found:
        key = "  (key case: also beside the peers that compile)" if case.key else ""
        say.result(f"{case.name}{key}")
    say.line(f"{count(len(found), 'case')} of size {args.size}")
    say.line("\npeers:")
    for one in (one for one in PROVIDERS if one.group and kind in one.kinds):
        say.line(f"  {one.name} (--peers {one.group}): {_installed(one.distribution, one.extra)}")
    say.object({"device": name, "size": args.size, "cases": [case.name for case in found]})
    return 0


def _installed(distribution: str, extra: str) -> str:
    if not distribution:
        return "part of this package"
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f'not installed; run: pip install "gpubackprop[{extra}]"'


# -- files ----------------------------------------------------------------------------------------


def _claim(args: argparse.Namespace) -> None:
    """Report wrong usage if a file with something else is there, or if two outputs are one."""
    kinds: list[tuple[str | None, str, Callable[[Path], bool]]] = [
        (args.json, "result of bench", is_result),
        (args.csv, "table of bench", is_table),
        (args.html, "page of bench", is_page),
    ]
    given = [path for path, _, _ in kinds if path is not None]
    if len(given) != len(set(given)):
        args.parser.error(f"{' and '.join(given)}: each output needs a file of its own")
    if args.html == "-":
        args.parser.error("--html needs the name of a file, as the page has pictures in it")
    for path, what, is_own in kinds:
        if path not in (None, "-"):
            for read in args.compare or []:
                if Path(str(path)).exists() and Path(read).exists() and Path(read).samefile(path):
                    args.parser.error(f"{path} would be written over while it is compared")
            claim_file(args, str(path), what, is_own)


def _write(
    args: argparse.Namespace,
    values: dict[str, Any],
    cells: Callable[[], tables.Cells],
    loaded: list[dict[str, Any]],
    found: comparing.Comparison | None = None,
) -> None:
    """Write every output that was asked for."""
    if args.json == "-":
        Say(json=True).object(values)
    elif args.json:
        write_atomically(Path(args.json), to_json(values).encode())
    if args.csv == "-":
        print(tables.csv_text(cells()), end="")
    elif args.csv:
        write_atomically(Path(args.csv), tables.csv_text(cells()).encode())
    if args.html:
        text = page.page(found or comparing.compare(loaded))
        write_atomically(Path(args.html), text.encode())


class WrongResult(GpubackpropError):  # noqa: N818 (reads as a sentence)
    """A provider computed something else than the others."""


def is_result(file: Path) -> bool:
    """Return whether it is a record, or what --compare --json wrote."""
    try:
        records.load(file)
    except (GpubackpropError, ValueError):
        return _starts(file, b'{"files"') or b'"verdicts"' in file.read_bytes()
    return True


def is_table(file: Path) -> bool:
    heads = (b"size,case,op,provider", b"size,case,op,contestant", b"case,place,A seconds")
    return any(_starts(file, head) for head in heads)


def is_page(file: Path) -> bool:
    return _starts(file, PAGE_START) and b"<title>gpubackprop benchmarks" in file.read_bytes()


def _starts(file: Path, text: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(text)) == text


def progress(text: str) -> None:
    """Report on stderr: one line that changes on a terminal, else a line for each step."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def clear_progress() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
