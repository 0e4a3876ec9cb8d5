"""The verdict on a mutant: the test that kills it, the reason why none can, or that it survived."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random

from gpubackprop.backends.cupy_launch import entries
from tests.emulator.builds import EmulatorError
from tests.emulator.module import object_code
from tools.mutants.copies import Copy
from tools.mutants.equivalent import reason_of
from tools.mutants.mutations import Mutant, users
from tools.mutants.worker import CPU_LIMIT, Reply, source_of

SURVIVED = "survived"
SAME_CODE = "same code"  # g++ -O2 gives the same object code, in every entry
DOES_NOT_COMPILE = "does not compile"
HOW = re.compile(r" \((time limit|memory limit|signal \d+|exit code \d+)\)$")
SLOW = 1.0  # seconds without a mutant; slower tests run after the quick ones
QUICK_LIMIT = 3.0  # seconds of processor time for a quick test; longer is an endless loop
SLOWER = 3  # times its own seconds without a mutant is an endless loop, if that is beyond CPU_LIMIT
NEIGHBOURS = (
    6  # first try the tests that killed so many nearest mutants, then those that killed most
)


class Order:
    """The tests for a mutant: only tests that use its file, likely killers first.

    Parameters
    ----------
    tests : all tests.
    baseline : time and builds of each test without a mutant. If it is None, every mutant gets
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
        most = [test for test, _ in Counter(test for _, test in killers).most_common(NEIGHBOURS)]
        tests = self._by_build(dict.fromkeys([*nearest[:NEIGHBOURS], *most]), sources)
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
        return self.baseline.seconds.get(test, 0.0) if self.baseline else 0.0

    def _by_build(self, likely: Iterable[str], sources: Sequence[str]) -> list[str]:
        """Return the tests that use the sources: the likely ones, then with few compilations first.

        After each test come all those that need nothing else to be compiled.
        """
        rest = sorted(self.tests, key=lambda test: (self._variant[test], self._seconds(test)))
        tests = dict.fromkeys([*likely, *rest])
        if self.baseline is None:
            return list(tests)
        builds = {
            test: {b for b in self.baseline.builds.get(test, ()) if source_of(b) in sources}
            for test in tests
        }
        order = {test: None for test in likely if builds[test]}
        made = {build for test in order for build in builds[test]}
        waiting = [test for test in tests if builds[test] and test not in order]
        while waiting:
            order |= dict.fromkeys(test for test in waiting if builds[test] <= made)
            waiting = [test for test in waiting if test not in order]
            made |= builds[waiting[0]] if waiting else set()
        return list(order)


class Judge:
    """A judge of mutants in one copy; with `most`, each gets only so many of the quick tests."""

    def __init__(self, copy: Copy, order: Order, most: int = 0) -> None:
        self.copy, self.order, self.most = copy, order, most
        self.kernels = users(copy.kernels)
        self.sources = users(copy.kernels, (copy.path / "tests" / "emulator").glob("*.cu"))

    def verdict(self, mutant: Mutant, first: str = "") -> str:
        """Return the test that kills it, SURVIVED, SAME_CODE or DOES_NOT_COMPILE.

        A test that kills it other than by failing is named with how. `first` is the test to begin
        with.
        """
        kernels = self.kernels[mutant.file]
        quick, slow = self.order.for_mutant(mutant, self.sources[mutant.file])
        if self.most:
            quick, slow = quick[: self.most], []
        run = self.copy.worker.run
        with self.copy.broken(mutant):
            begin = [first] if first in self.order.tests else []
            reply = run(begin, self.order.limit(begin))
            if not reply.failed:
                reply = run(quick, QUICK_LIMIT if self.order.baseline else CPU_LIMIT)
            compared = not (reply.failed or self.most or reason_of(mutant))
            if compared and self._same_code(kernels):
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
        """Compare entry by entry: if the mutant is not equivalent, one of the first differs."""
        try:
            return all(
                object_code(self.copy.kernels / kernel, defines)
                == object_code(self.copy.original / kernel, defines, kept=True)
                for kernel in kernels
                for defines in _entries(kernel)
            )
        except EmulatorError:
            return False  # no test compiles this entry: a gap of the tests


def _entries(kernel: str) -> list[tuple[tuple[str, str], ...]]:
    """Return the macros that choose each entry of a source; no macros are the whole file.

    They are in a random order that is always the same, since neighbours in the table are alike.
    """
    found = [defines for source, _, defines in entries() if source == kernel]
    return Random(0).sample(found, len(found)) or [()]


def killer_of(verdict: str) -> str:
    """Return the test's name, or "" if the verdict names none."""
    return HOW.sub("", verdict) if "::" in verdict else ""
