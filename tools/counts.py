"""Count what compiled kernels do, and predict their share of the copy rate.

    python -m tools.counts                               # the project's goals, for sm_90
    python -m tools.counts softmax_cross_entropy/f32     # cases whose names begin so
    python -m tools.counts --json counts.json            # and the numbers behind the table
    python -m tools.counts --before benchmarks/counts/2026-11-28-b99f9fa.json   # with earlier ones
    python -m tools.counts update --record               # into benchmarks/counts, and its README

It needs NVRTC (or nvcc) and nvdisasm, but no GPU: nothing is measured. The CUDA backend plans each
case for an H200, on the stand-in for CuPy. Of each launch one block (or cluster), in the middle of
the grid, is executed in its compiled code (`tests/emulator/sass_run.py`), and the last block if it
finishes a sum alone. All inputs are 0. A launch's instructions, wavefronts and bytes are those of
the block, times the number of blocks. Registers and shared memory are the compiler's.

    launches      of the case
    registers     of the launch with the most instructions, as the next columns
    blocks        that a multiprocessor runs at once
    insn/elem     instructions of a thread for each element of the case, over all launches
    issue         the time of these instructions over that of the least bytes at the copy's rate
    trips         dependent round trips of the slowest warp, + those of the last block alone
    conflicts     wavefronts in shared memory over the fewest
    B/thread      the most bytes that a thread has in flight, averaged over its block
    KB/SM         the same of a multiprocessor, at best
    bytes         bytes of the sectors that are requested, over the least
    share         predicted by `benchmarks/model.py`, not measured; and what takes the most time
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import model
from benchmarks.model import H200, Card, Counts
from gpubackprop.bench.record import commit
from tests.emulator import compilers
from tools.counted_cases import ARCHITECTURE, CASES, Case

RECORDS = Path(__file__).resolve().parents[1] / "benchmarks/counts"
MARK = "<!-- the table: python -m tools.counts --record -->"


def counted(name: str) -> Case:
    case = CASES[name]()
    case.name = name
    return case


def cells(case: Case, card: Card = H200) -> dict[str, str]:
    """Return the columns of a case's line."""
    launches = case.launches
    main = max(launches, key=lambda counts: counts.instructions * counts.blocks)
    instructions = sum(c.instructions * c.blocks + c.end_instructions for c in launches)
    wavefronts = sum(c.wavefronts * c.blocks for c in launches)
    least = sum(c.least_wavefronts * c.blocks for c in launches)
    issue = sum(model.parts(c, card)["issue"] for c in launches) / (case.bytes / card.copy)
    return {
        "launches": f"{len(launches)}",
        "registers": f"{main.registers}",
        "blocks": f"{main.at_once()}",
        "insn/elem": f"{32 * instructions / case.elements:.1f}",
        "issue": f"{issue:.0%}",
        "trips": f"{main.trips}{f'+{main.end_trips}' if main.end_trips else ''}",
        "conflicts": f"{wavefronts / least if least else 1:.2f}",
        "B/thread": f"{main.flight:.0f}",
        "KB/SM": f"{main.in_flight(card) / 1000:.0f}",
        "bytes": f"{sum(c.bytes for c in launches) / case.bytes:.2f}",
        "share": f"{model.share(launches, case.bytes, card):.2f}",
        "most time": model.slowest(launches, card),
    }


def table(cases: Sequence[Case], before: Mapping[str, Case] | None = None) -> str:
    """Return a line for each case; with `before`, the earlier one above it."""
    lines = []
    for case in cases:
        if before and case.name in before:
            lines.append(_line("before: " + case.name, cells(before[case.name])))
        lines.append(_line(case.name, cells(case)))
    return "\n".join([_line("case", {name: name for name in cells(cases[0])}), *lines])


def _line(name: str, columns: Mapping[str, str]) -> str:
    return f"{name:58}" + "".join(f"{columns[key]:>{max(8, len(key) + 2)}}" for key in columns)


def document(before: Mapping[str, Case], after: Mapping[str, Case]) -> str:
    """Return the table of benchmarks/counts/README.md: "before -> after" where they differ."""
    names = list(cells(next(iter(after.values()))))
    lines = ["| case | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for name, case in after.items():
        new = cells(case)
        old = cells(before[name]) if name in before else new
        both = [new[key] if old[key] == new[key] else f"{old[key]} → {new[key]}" for key in names]
        lines.append(f"| {name} | " + " | ".join(both) + " |")
    return "\n".join(lines)


def record(path: Path, cases: Sequence[Case]) -> None:
    """Write a file of `RECORDS`, and the table of its README: each case's first counts and last."""
    write(path, cases)
    text = (RECORDS / "README.md").read_text(encoding="utf-8")
    made = f"{text.partition(MARK)[0]}{MARK}\n\n{document(*first_and_last())}\n"
    (RECORDS / "README.md").write_text(made, encoding="utf-8")


def first_and_last() -> tuple[dict[str, Case], dict[str, Case]]:
    """Return each case of the files of `RECORDS`, as the oldest one has it and as the newest."""
    files = [read(path) for path in sorted(RECORDS.glob("*.json"))]
    first: dict[str, Case] = {}
    last: dict[str, Case] = {}
    for file in files:
        first, last = file | first, last | file
    return first, last


def read(path: Path) -> dict[str, Case]:
    """Return the cases of a file that ``--json`` wrote."""
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return {
        case["name"]: Case(**{**case, "launches": [Counts(**one) for one in case["launches"]]})
        for case in cases
    }


def compiler_of(path: Path) -> str:
    """Return the version of the compiler whose code such a file describes."""
    return str(json.loads(path.read_text(encoding="utf-8"))["compiler"])


def write(path: Path, cases: Sequence[Case]) -> None:
    values = {
        "architecture": ARCHITECTURE,
        "compiler": _compiler(),
        "cases": [asdict(c) for c in cases],
    }
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _compiler() -> str:
    compiler = compilers.compiler()
    return "" if compiler is None else compiler.version


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.counts",
        description="What compiled kernels do, and the share of the copy rate that it predicts.",
    )
    parser.add_argument(
        "case", nargs="*", default=[""], help="cases, or the beginning of their names"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts")
    parser.add_argument(
        "--before", type=Path, metavar="FILE", help="a file of --json to compare with"
    )
    parser.add_argument("--record", action="store_true", help="keep the counts of these cases")
    options = parser.parse_args(arguments)
    names = [name for name in CASES if name.startswith(tuple(options.case))]
    if not names:
        parser.error(f"no case begins with {' or '.join(options.case)}")
    before = read(options.before) if options.before else {}
    cases = []
    for name in names:  # a line as soon as it is known
        try:
            cases.append(counted(name))
        except compilers.CompileError as error:
            print(error, file=sys.stderr)
            return 1
        heading, *lines = table(cases[-1:], before).splitlines()
        print("\n".join(lines if len(cases) > 1 else [heading, *lines]), flush=True)
    if options.json:
        write(options.json, cases)
    if options.record:
        now = datetime.datetime.now(datetime.UTC)  # with the time: the names of a day's files sort
        record(RECORDS / f"{now:%Y-%m-%dT%H%M}-{commit()[:7]}.json", cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
