"""python -m benchmarks.profile_step shows which calls a NumPy training step spends its time on.

A step is a list of recorded NumPy calls; each is a line of this profile. The clock is this thread's
processor time, with one BLAS thread, so that other load on the machine matters little.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

import threadpoolctl

from gpubackprop.backends.numpy import set_num_threads
from gpubackprop.backends.numpy.recorded_calls import RecordedCalls
from gpubackprop.bench.ours import setup
from gpubackprop.bench.shapes import NETWORKS, Case
from gpubackprop.bench.timers import Timer


class Profile:
    """A replacement of `RecordedCalls.run` that adds up each call's nanoseconds over the steps."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.spent: dict[tuple[str, str], int] = defaultdict(int)
        self.calls: dict[tuple[str, str], int] = defaultdict(int)

    def run(self, recorded: RecordedCalls) -> None:
        for function, args in recorded.calls:
            start = time.thread_time_ns()
            function(*args)
            taken = time.thread_time_ns() - start
            line = (_name(function), _shapes(args))
            self.spent[line] += taken
            self.calls[line] += 1

    def lines(self, steps: int, least: float) -> list[str]:
        """Return calls with at least that share of the time, largest first, and the rest in a
        line."""
        total, rest = sum(self.spent.values()), 0
        text = [f"{'share':>7}{'calls':>7}  call"]
        for line, taken in sorted(self.spent.items(), key=lambda item: -item[1]):
            if taken / total < least:
                rest += taken
                continue
            calls = self.calls[line] / steps
            text.append(f"{taken / total:>7.1%}{calls:>7.0f}  {line[0]}{line[1]}")
        return [*text, f"{rest / total:>7.1%}{'':>7}  all others"]


def _name(function: Any) -> str:
    owner = getattr(function, "__self__", None)
    prefix = f"{type(owner).__name__}." if owner is not None and hasattr(owner, "__dict__") else ""
    return prefix + str(getattr(function, "__name__", function))


def _shapes(args: tuple[Any, ...]) -> str:
    shapes = ("x".join(map(str, arg.shape)) or "()" for arg in args if hasattr(arg, "shape"))
    return "(" + ", ".join(shapes) + ")"


def profile(case: Case, passes: int) -> tuple[Profile, int]:
    """Return the profile of that training step, and the number of profiled steps."""
    found, original = Profile(), RecordedCalls.run
    set_num_threads(1)
    with threadpoolctl.threadpool_limits(1):
        RecordedCalls.run = lambda self: found.run(self)  # type: ignore[method-assign]  # plans keep it
        try:
            work = setup(case, Timer(), "numpy")
            work.outputs()
            found.clear()
            for _ in range(passes):
                work.run()
        finally:
            RecordedCalls.run = original  # type: ignore[method-assign]
    return found, passes * work.units


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_step", description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="lecture")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--passes", type=int, default=20, help="over 16 batches (default 20)")
    parser.add_argument("--least", type=float, default=0.005, help="share that gets a line")
    args = parser.parse_args(arguments)
    case = Case("training_step", (args.batch, *NETWORKS[args.network]), variant="adam")
    found, steps = profile(case, args.passes)
    print(f"{case.name}, {steps} steps, one thread")
    print("\n".join(found.lines(steps, args.least)))


if __name__ == "__main__":
    main()
