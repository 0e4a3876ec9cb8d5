"""python -m tools.fuzz --minutes 60 [--seed S] [--only estimators|torch|network]"""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from tools.fuzz.search import search

NAMES = {
    "network": ("network", "FUZZER"),
    "estimators": ("estimators", "FUZZER"),
    "torch": ("pytorch", "FUZZER"),
    "patch": ("pytorch", "PATCH_FUZZER"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="of each fuzzer")
    parser.add_argument("--seed", type=int, default=None, help="default: from the clock; printed")
    parser.add_argument("--only", choices=NAMES)
    options = parser.parse_args()
    seed = int(time.time()) if options.seed is None else options.seed
    failed = 0
    for name in [options.only] if options.only else NAMES:
        fuzzer = getattr(importlib.import_module(f"tools.fuzz.{NAMES[name][0]}"), NAMES[name][1])
        print(f"=== {name}: {options.minutes:g} minutes, seed {seed}", flush=True)
        tally = search(fuzzer, seed, 60 * options.minutes, say=lambda s: print(s, flush=True))
        print(f"=== {name}: {tally.programs} programs, {len(tally.found)} findings")
        for signature in tally.found:
            print(f"  {tally.found[signature]:5d}  {signature}")
        for reason, count in fuzzer.counts.items():
            print(f"  {count:5d}  known: {reason}")
        failed += len(tally.found)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
