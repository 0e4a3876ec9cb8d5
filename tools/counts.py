"""Count what compiled kernels do, and predict their share of the copy rate.

    python -m tools.counts                               # the project's goals, for sm_90
    python -m tools.counts softmax_cross_entropy/f32     # cases whose names begin so
    python -m tools.counts --json counts.json            # and the numbers behind the table
    python -m tools.counts --before benchmarks/counts/2026-11-28-b99f9fa.json   # with earlier ones

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
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import model
from benchmarks.model import H200, Card, Counts
from tests.emulator import compilers
from tools.counted_cases import ARCHITECTURE, CASES, Case


def counted(name: str) -> Case:
    case = CASES[name]()
    case.name = name
    return case


def table(cases: Sequence[Case], before: dict[str, Case] | None = None, card: Card = H200) -> str:
    """Return a line for each case; with `before`, its earlier line above it."""
    lines = [
        f"{'case':58}{'launches':>9}{'registers':>10}{'blocks':>7}{'insn/elem':>10}{'issue':>7}"
        f"{'trips':>7}{'conflicts':>10}{'B/thread':>9}{'KB/SM':>6}{'bytes':>6}{'share':>6}"
    ]
    for case in cases:
        if before and case.name in before:
            lines.append(_line(before[case.name], card, "before: "))
        lines.append(_line(case, card))
    return "\n".join(lines)


def _line(case: Case, card: Card, prefix: str = "") -> str:
    launches = case.launches
    main = max(launches, key=lambda counts: counts.instructions * counts.blocks)
    instructions = sum(c.instructions * c.blocks + c.end_instructions for c in launches)
    wavefronts = sum(c.wavefronts * c.blocks for c in launches)
    least = sum(c.least_wavefronts * c.blocks for c in launches)
    issue = sum(model.parts(c, card)["issue"] for c in launches) / (case.bytes / card.copy)
    trips = f"{main.trips}{f'+{main.end_trips}' if main.end_trips else ''}"
    return (
        f"{prefix + case.name:58}{len(launches):9}{main.registers:10}{main.at_once():7}"
        f"{32 * instructions / case.elements:10.1f}{issue:7.0%}{trips:>7}"
        f"{wavefronts / least if least else 1:10.2f}{main.flight:9.0f}"
        f"{main.in_flight(card) / 1000:6.0f}{sum(c.bytes for c in launches) / case.bytes:6.2f}"
        f"{model.share(launches, case.bytes, card):6.2f}  {model.slowest(launches, card)}"
    )


def read(path: Path) -> dict[str, Case]:
    """Return the cases of a file that ``--json`` wrote."""
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return {
        case["name"]: Case(**{**case, "launches": [Counts(**one) for one in case["launches"]]})
        for case in cases
    }


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
    options = parser.parse_args(arguments)
    names = [name for name in CASES if name.startswith(tuple(options.case))]
    if not names:
        parser.error(f"no case begins with {' or '.join(options.case)}")
    try:
        cases = [counted(name) for name in names]
    except compilers.CompileError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(cases, read(options.before) if options.before else None))
    if options.json:
        write(options.json, cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
