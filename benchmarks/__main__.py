"""python -m benchmarks measures all that this machine can, and writes it to benchmarks/results/.

    python -m benchmarks                      all cases, all installed peers
    python -m benchmarks --op softmax         some cases; the results of all others stay
    python -m benchmarks --device cuda        with the GPU (the default if one works)
    python -m benchmarks --size smoke         does it work? Writes no results

Afterwards it renews the tables, pictures and the README's performance section. The benchmarks of
the drop-in front ends (bench_sklearn, bench_torch) run at the end.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from gpubackprop.backends import devices
from gpubackprop.backends.host import probe_cpu
from gpubackprop.bench import notes
from gpubackprop.bench import record as records
from gpubackprop.bench.cases import SIZES
from gpubackprop.bench.providers import peers_option
from gpubackprop.bench.run import Settings, measure
from gpubackprop.cli.bench import result_lines
from gpubackprop.cli.common import whole
from gpubackprop.errors import GpubackpropError, OptionError

RESULTS = Path(__file__).parent / "results"
SCRIPTS = ("benchmarks.bench_sklearn", "benchmarks.bench_torch")


def main(arguments: list[str] | None = None) -> int:
    args = _arguments(arguments)
    try:
        return run(args)
    except GpubackpropError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OptionError) else 1


def run(args: argparse.Namespace) -> int:
    name, reason = devices.choose(args.device)
    threads = tuple(args.threads or sorted({1, probe_cpu().cores}))
    settings = Settings(
        args.size, name, reason, args.op, args.peers, threads, args.budget, args.cpu
    )
    save = Saver(args.json, write=args.size != "smoke" or args.json is not None)
    print(f"device: {name} ({reason}); threads: {', '.join(map(str, threads))}", flush=True)
    measured = measure(settings, lambda text: print(text, flush=True), save)
    record = save.record or measured
    for line in result_lines(record):
        print(line)
    print(f"\n{notes.summary(record)}")
    if save.path is not None:
        print(f"written: {save.path}")
        if args.json is None:
            report.refresh(report.newest(RESULTS))
    failed = any(row.wrong for row in records.rows_of(measured))
    if args.scripts and not args.op and args.size != "smoke":
        failed |= run_scripts()
    return int(failed)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--op", default="", help="only the cases whose name contains this")
    parser.add_argument("--device", default="auto", help='"auto", "cpu", "cuda" or "cuda:N"')
    parser.add_argument(
        "--peers", type=peers_option, default="all", metavar="NAMES",
        help='"all", "none", or names with commas',
    )  # fmt: skip
    parser.add_argument("--threads", type=whole(1), nargs="+", help="default: 1 and all cores")
    parser.add_argument(
        "--budget", type=float, default=float("inf"), help="start no case after these seconds"
    )
    parser.add_argument("--json", type=Path, help="this file instead of one in results/")
    parser.add_argument(
        "--no-cpu", dest="cpu", action="store_false", help="on a GPU: leave the CPU out"
    )
    parser.add_argument(
        "--no-scripts", dest="scripts", action="store_false",
        help="leave bench_sklearn and bench_torch out",
    )  # fmt: skip
    return parser.parse_args(arguments)


class Saver:
    """Write the record after each case, and keep what an earlier run of that file measured.

    Attributes
    ----------
    path : the file; None before the first call, or if nothing is written.
    record : the content of the file.
    """

    def __init__(self, path: Path | None, *, write: bool) -> None:
        self._given, self._write = path, write
        self.path: Path | None = None
        self.record: dict[str, Any] | None = None
        self._before: dict[str, Any] | None = None

    def __call__(self, record: dict[str, Any]) -> None:
        if not self._write:
            return
        if self.path is None:
            self.path = self._given or records.default_path(record, RESULTS)
            if self.path.exists():
                self._before = records.load(self.path)
        self.record = record if self._before is None else records.merged(self._before, record)
        records.write(self.path, self.record)


def run_scripts() -> bool:
    """Run the front ends' own benchmarks if they exist; return whether one failed."""
    failed = False
    for name in SCRIPTS:
        if importlib.util.find_spec(name) is None:
            continue
        print(f"\n== {name}", flush=True)
        failed |= bool(subprocess.run([sys.executable, "-m", name], check=False).returncode)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
