"""``gpubackprop bench``: this machine's CPU and GPU, with the limit and the peers beside."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpubackprop.backends import devices
from gpubackprop.backends.host import probe_cpu
from gpubackprop.bench import record as records
from gpubackprop.bench import table
from gpubackprop.bench.contestants import GROUPS, peer_groups
from gpubackprop.bench.run import Settings, measure
from gpubackprop.cli.common import Say, add_device_options, count, real, to_json
from gpubackprop.cli.outputs import add_overwrite_option, claim_file
from gpubackprop.errors import GpubackpropError
from gpubackprop.tensorfile import write_atomically

_EPILOG = f"""\
examples:
  gpubackprop bench
  gpubackprop bench --full --peers all
  gpubackprop bench --op softmax --peers torch --json bench.json

peers: all, none, or some of {", ".join(GROUPS)}

Each contestant works in a process of its own and is checked against a float64 computation before it
is timed. Figures are medians; compare those of one run only, and let nothing else run meanwhile.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.usage = "gpubackprop bench [options]"
    parser.description = "Measure this machine's CPU and GPU against their limits and the peers."
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
    parser.add_argument("--op", default="", metavar="TEXT", help="cases whose name contains TEXT")
    parser.add_argument(
        "--peers", default="none", metavar="NAMES", help='default "none"; see below'
    )
    parser.add_argument(
        "--budget", type=real(1.0), default=float("inf"), metavar="SECONDS",
        help="start no case after this time",
    )  # fmt: skip
    parser.add_argument(
        "--json", metavar="FILE", help="write the result as JSON; - prints that and nothing else"
    )
    add_overwrite_option(parser)
    add_device_options(parser)
    parser.set_defaults(size="quick")


def run(args: argparse.Namespace) -> int:
    if args.json not in (None, "-"):
        claim_file(args, args.json, "result of bench", is_result)
    name, reason = devices.choose(args.device)
    say = Say(json=args.json == "-")
    threads = args.threads or probe_cpu().cores
    settings = Settings(
        args.size, name, reason, args.op, peer_groups(args.peers), (threads,), args.budget
    )
    with_cpu = "" if name == "cpu" else f" and the CPU with {count(threads, 'thread')}"
    say.line(f"device: {name} ({reason}){with_cpu}")
    record = measure(settings, progress)
    clear_progress()
    for line in (*table.lines(records.rows_of(record)), "", "not measured:"):
        say.line(line)
    for line in table.left_out(record) or ["nothing"]:
        say.line(f"  {line}")
    say.line()
    say.result(table.summary(record))
    say.object(record)
    if args.json and not say.json:
        write_atomically(Path(args.json), to_json(record).encode())
    wrong = [row for row in records.rows_of(record) if row.wrong]
    if wrong:
        raise WrongResult(
            f"{count(len(wrong), 'result')} differed from the oracle, the first: "
            f"{wrong[0].contestant} on {wrong[0].case}: {wrong[0].note}"
        )
    return 0


class WrongResult(GpubackpropError):  # noqa: N818 (reads as a sentence)
    """A contestant computed something else than the others."""


def is_result(file: Path) -> bool:
    try:
        records.load(file)
    except (GpubackpropError, ValueError):
        return False
    return True


def progress(text: str) -> None:
    """On stderr: one line that changes on a terminal, else a line for each step."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def clear_progress() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
