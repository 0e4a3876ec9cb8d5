"""One contestant in a process of its own: set up, check, then a timed round for each line read."""

from __future__ import annotations

import json
import sys
import time

from benchmarks.cases import CASES


def main() -> None:
    case_name, contestant = sys.argv[1:3]
    try:
        check, run = CASES[case_name].contestants[contestant]()
        print(json.dumps({"check": check()}), flush=True)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    for line in sys.stdin:
        repeats = int(line)
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        print((time.perf_counter() - start) / repeats, flush=True)


if __name__ == "__main__":
    main()
