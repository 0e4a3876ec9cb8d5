"""Many small networks: `fit_many`, its processes, and one after another.

    python -m benchmarks.bench_many [--device cpu] [--out results.json] [--picture many.png]

Each provider has its own process, and rounds are interleaved. Before timing, losses are compared
with a loop by hand in float64. Figures of a busy machine mean nothing: run it on a quiet one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import front_ends
from gpubackprop.bench import many, many_picture
from gpubackprop.bench import record as records
from gpubackprop.bench.providers import IN_TURN, MANY, PROCESSES
from gpubackprop.tensorfile import write_atomically


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="fit_many against one network after another.")
    parser.add_argument("--device", default="cpu", help='"cpu", "cuda" or "cuda:1"')
    parser.add_argument("--rounds", type=int, default=5, help="turns of each case")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads of each process")
    parser.add_argument(
        "--most", type=int, default=64, help="the most networks (default 64; 640 takes minutes)"
    )
    parser.add_argument("--least", type=int, default=1, help="the fewest networks")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    parser.add_argument("--picture", type=Path, help="file for the picture as PNG")
    parser.add_argument("--draw", type=Path, help="draw this file of results, and measure nothing")
    options = parser.parse_args(arguments)
    if options.draw is not None:
        return _draw(records.load(options.draw), options.picture)
    within = range(options.least, options.most + 1)
    chosen = [case for case in many.many_cases() if case.shape[0] in within]
    names = {name: name for name in (MANY, PROCESSES, IN_TURN)}
    record = front_ends.measure(chosen, names, options, options.threads)
    code = front_ends.finish(record, options.out)
    return _draw(record, options.picture) or code


def _draw(record: dict[str, Any], file: Path | None) -> int:
    if file is None:
        return 0
    content = many_picture.picture(record)
    if content is None:
        print("no picture: it wants three numbers of networks")
        return 1
    write_atomically(file, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
