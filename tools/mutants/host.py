"""python -m tools.mutants.host --sample 20: break the C++ of the host path, one line at a time.

A mutant is a copy of kernels/ with one changed line below host/. The tests of the host path,
compiled from that copy, should fail. There is no record; the sample follows from the seed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.mutants.mutations import KERNELS, ROOT, Mutant, mutants_of, sample

# The quick tests first; what survives them meets the sanitizers, which take half a minute.
TESTS = (
    ("tests/test_host_kernels.py", "tests/test_host_math.py", "-m", "not slow"),
    ("tests/test_host_kernels.py", "-k", "leaves_its_memory"),
)
LIMIT = 600.0  # seconds for the tests of one mutant; more is an endless loop
SURVIVED, KILLED, TIME_LIMIT, DOES_NOT_COMPILE = (
    "SURVIVED", "killed", "time limit", "does not compile",
)  # fmt: skip


def host_mutants(kernels: Path = KERNELS) -> list[Mutant]:
    files = sorted((kernels / "host").glob("*.[ch]pp"))
    return [
        mutant
        for path in files
        if path.name != "arguments.hpp"
        for mutant in mutants_of(path.relative_to(kernels).as_posix(), path.read_text())
    ]


@contextmanager
def broken(mutant: Mutant) -> Iterator[Path]:
    """Give a copy of kernels/ with the changed line."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kernels"
        shutil.copytree(KERNELS, copy)
        path = copy / mutant.file
        lines = path.read_text().splitlines(keepends=True)
        lines[mutant.line - 1] = mutant.after + "\n"
        path.write_text("".join(lines))
        yield copy


def verdict(mutant: Mutant, limit: float = LIMIT) -> str:
    """Return what the tests say of a mutant."""
    with broken(mutant) as kernels:
        environment = os.environ | {
            "GPUBACKPROP_HOST_KERNELS": str(kernels), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--sweeps=sample"]
        for tests in TESTS:
            try:
                done = subprocess.run(
                    [*command, "-p", "no:cacheprovider", *tests], cwd=ROOT, env=environment,
                    capture_output=True, text=True, timeout=limit, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return TIME_LIMIT
            if done.returncode != 0:
                break
        else:
            return SURVIVED
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if " error: " in done.stdout:
        return DOES_NOT_COMPILE
    return f"{KILLED} {failed[0].split(' - ')[0] if failed else f'({done.returncode})'}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants.host", description=__doc__)
    parser.add_argument("--sample", type=int, default=10, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    everything, survivors = host_mutants(), 0
    print(f"{options.sample} of {len(everything)} mutants", flush=True)
    for mutant in sample(everything, options.sample, options.seed):
        start = time.perf_counter()
        said = verdict(mutant)
        survivors += said == SURVIVED
        change = f"{mutant.before.strip()}  ->  {mutant.after.strip()}"
        place = f"{mutant.file}:{mutant.line}"
        print(f"{said} {time.perf_counter() - start:.0f} s {place}: {change}", flush=True)
    print(f"{survivors} survived")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
