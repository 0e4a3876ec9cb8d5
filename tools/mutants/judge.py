"""The verdict on a mutant: the test that kills it, the reason why none can, or that it survived."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.emulator.builds import EmulatorError
from tests.emulator.module import object_code
from tools.mutants.copies import Copy
from tools.mutants.mutations import Mutant, users
from tools.mutants.worker import CPU_LIMIT, Reply

SURVIVED = "survived"
SAME_CODE = "same code"  # g++ -O2 gives the same object code, in every entry
DOES_NOT_COMPILE = "does not compile"
HOW = re.compile(r" \((time limit|memory limit|signal \d+|exit code \d+)\)$")
SLOW = 1.0  # seconds without a mutant; slower tests run after the quick ones
QUICK_LIMIT = 3.0  # seconds of processor time for a quick test; longer is an endless loop
SLOWER = 3  # times its own seconds without a mutant is an endless loop, if that is beyond CPU_LIMIT
NEIGHBOURS = 6  # first try the tests that killed so many nearest mutants


class Order:
    """The tests for a mutant: only tests that use its file, likely killers first.

    Parameters
    ----------
    tests : all tests.
    baseline : time and sources of each test without a mutant. If it is None, every mutant gets
        all tests.
    """

    def __init__(self, tests: Sequence[str], baseline: Reply | None = None) -> None:
        self.tests, self.baseline = list(tests), baseline
        variants: Counter[str] = Counter()
        self._variant = {}
        for test in tests:  # the first case of each test function before the second of any
            function = test.partition("[")[0]
            self._variant[test] = variants[function]
            variants[function] += 1
        self._killers: dict[str, list[tuple[int, str]]] = {}

    def note(self, mutant: Mutant, killer: str) -> None:
        if killer in self._variant:
            self._killers.setdefault(mutant.file, []).append((mutant.line, killer))

    def for_mutant(self, mutant: Mutant, sources: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the quick and the slow tests; `sources` are the .cu files that include its
        file."""
        killers = self._killers.get(mutant.file, [])
        nearest = [test for _, test in sorted(killers, key=lambda k: abs(k[0] - mutant.line))]
        most = [test for test, _ in Counter(test for _, test in killers).most_common()]
        likely = list(dict.fromkeys([*nearest[:NEIGHBOURS], *most]))
        rest = sorted(self.tests, key=lambda test: (self._variant[test], self._seconds(test)))
        tests = [t for t in dict.fromkeys([*likely, *rest]) if self._concerns(t, sources)]
        return (
            [test for test in tests if self._seconds(test) < SLOW],
            [test for test in tests if self._seconds(test) >= SLOW],
        )

    def limit(self, tests: Sequence[str]) -> float:
        """Return the seconds of processor time for each of these.

        No mutant is killed by a test that is as slow without it.
        """
        return max([CPU_LIMIT, *(SLOWER * self._seconds(test) for test in tests)])

    def _seconds(self, test: str) -> float:
        return self.baseline.seconds[test] if self.baseline else 0.0

    def _concerns(self, test: str, sources: Sequence[str]) -> bool:
        return self.baseline is None or any(s in sources for s in self.baseline.sources[test])


class Judge:
    """A judge of mutants in one copy."""

    def __init__(self, copy: Copy, order: Order) -> None:
        self.copy, self.order = copy, order
        self.kernels = users(copy.kernels)
        self.sources = users(copy.kernels, (copy.path / "tests" / "emulator").glob("*.cu"))

    def verdict(self, mutant: Mutant, first: str = "") -> str:
        """Return the test that kills it, SURVIVED, SAME_CODE or DOES_NOT_COMPILE.

        A test that kills it other than by failing is named with how. `first` is the test to begin
        with.
        """
        kernels = self.kernels[mutant.file]
        quick, slow = self.order.for_mutant(mutant, self.sources[mutant.file])
        run = self.copy.worker.run
        with self.copy.broken(mutant):
            begin = [first] if first in self.order.tests else []
            reply = run(begin, self.order.limit(begin))
            if not reply.failed:
                reply = run(quick, QUICK_LIMIT if self.order.baseline else CPU_LIMIT)
            if not reply.failed and self._same_code(kernels):
                return SAME_CODE
            if not reply.failed:
                reply = run(slow, self.order.limit(slow))
        if not reply.failed:
            return SURVIVED
        if reply.how == DOES_NOT_COMPILE:
            return DOES_NOT_COMPILE
        self.order.note(mutant, reply.failed)
        return reply.failed if reply.how == "failed" else f"{reply.failed} ({reply.how})"

    def _same_code(self, kernels: Sequence[str]) -> bool:
        try:
            return all(
                object_code(self.copy.kernels / kernel)
                == _original_code(self.copy.original / kernel)
                for kernel in kernels
            )
        except EmulatorError:
            return False  # no test compiles this entry: a gap of the tests


@cache
def _original_code(path: Path) -> bytes:
    return object_code(path)


def killer_of(verdict: str) -> str:
    """Return the test's name, or "" if the verdict names none."""
    return HOW.sub("", verdict) if "::" in verdict else ""
