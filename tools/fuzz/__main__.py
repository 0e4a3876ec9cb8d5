"""python -m tools.fuzz --minutes 60                      every fuzzer, for so long
python -m tools.fuzz --minutes 60 --only torch --seed 3   one fuzzer, with this seed
python -m tools.fuzz --minutes 60 --only emulated         torch on emulated kernels; only if named

A failing program is shrunk and printed as a program that fails by itself. A fault that was met
before is only counted. The exit status is 1 if there was a fault. Ctrl-C ends a fuzzer early.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.fuzz.programs import Fuzzer
from tools.fuzz.search import search

PLACES = {
    "estimators": ("estimators", "FUZZER"),
    "torch": ("pytorch", "FUZZER"),
    "patch": ("pytorch", "PATCH_FUZZER"),
    "network": ("network", "FUZZER"),
    "emulated": ("pytorch", "EMULATED_FUZZER"),
}
ALWAYS = ("estimators", "torch", "patch", "network")


def fuzzer(name: str) -> Fuzzer:
    module, attribute = PLACES[name]
    found: Fuzzer = getattr(importlib.import_module(f"tools.fuzz.{module}"), attribute)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="of each fuzzer")
    parser.add_argument("--seed", type=int, help="of the programs; by default the time, printed")
    parser.add_argument("--only", choices=PLACES)
    parser.add_argument(
        "--last", type=Path, help="file that has the program that runs: for what ends the process"
    )
    options = parser.parse_args(arguments)
    keep = options.last.write_text if options.last else lambda text: None
    seed = int(time.time()) if options.seed is None else options.seed
    failed = 0
    for name in [options.only] if options.only else ALWAYS:
        chosen = fuzzer(name)
        print(f"=== {name}: {options.minutes:g} minutes, seed {seed}", flush=True)
        tally = search(
            chosen, seed, 60 * options.minutes, say=lambda s: print(s, flush=True), before=keep
        )
        print(f"=== {name}: {tally.programs} programs, {len(tally.found)} distinct failures")
        for signature, count in tally.found.items():
            print(f"  {count:5d}  {signature}")
        for reason, count in chosen.counts.items():
            print(f"  {count:5d}  known: {reason}")
        failed += len(tally.found)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
