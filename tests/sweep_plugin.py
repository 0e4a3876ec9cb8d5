"""The part of `tests/sweeps.py` that pytest calls: it skips cases, says so, and writes the record.
`conftest.py` takes the hooks and the fixture `sweep` from here.

With workers (pytest-xdist) each of them collects and skips the same. The process that started them
learns of it when they end, prints the last line and writes the record.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests import sweeps

PLUGIN = pytest.StashKey["SweepPlugin"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sweeps", choices=sweeps.MODES, default="all",
        help="which cases of the long sweeps to run: tests/sweeps.py",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PLUGIN] = SweepPlugin(config)
    config.pluginmanager.register(config.stash[PLUGIN])


@pytest.fixture
def sweep(request: pytest.FixtureRequest) -> sweeps.Sweep:
    """How many cases of its own the test must take."""
    is_whole = request.config.stash[PLUGIN].is_whole(file_of(request.node))
    return sweeps.Sweep(request.node, is_whole=is_whole)


class SweepPlugin:
    """The plugin of one run.

    Attributes
    ----------
    mode : str
        One of `sweeps.MODES`.
    left : int
        How many cases a sample skips.
    total : int
        How many cases these sweeps have.
    collected : Counter
        Number of collected tests by file.
    finished : Counter
        Number of finished tests by file.
    partly : set
        Files of which a part was chosen (``-k``, ``-m``, a sample, one test by its name).
    swept : set
        Files with sweeps.
    failed : list
        Tests by name.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.mode = config, str(config.getoption("sweeps"))
        self.record = sweeps.recorded()
        self.left = self.total = 0
        self.collected: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.partly: set[str] = set()
        self.swept: set[str] = set()
        self.failed: list[str] = []
        os.environ.setdefault("GPUBACKPROP_SEED", sweeps.seed())  # so that workers take the same

    def is_whole(self, file: str) -> bool:
        """Return whether this run takes every case of the file."""
        if self.mode == "changed":
            return self.record.get(file) != sweeps.key_of(file)
        return self.mode == "all"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.collected.update(map(file_of, items))
        self.swept |= set(map(file_of, sweeps.left_out(items)[0]))
        out, self.total = sweeps.left_out([i for i in items if not self.is_whole(file_of(i))])
        self.left = len(out)
        if out:
            gone = set(out)
            items[:] = [item for item in items if item not in gone]
            self.config.hook.pytest_deselected(items=out)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.partly |= set(map(file_of, items))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(self.config, "workerinput"):
            return  # the process that started the worker gets the report too
        file = file_of_name(report.nodeid)
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when != "teardown":
            return
        self.finished[file] += 1
        for taken, whole in sweeps.noted(report):
            self.swept.add(file)
            if taken < whole:
                self.left, self.total = self.left + whole - taken, self.total + whole

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Note a worker that has ended; all of them have collected the same."""
        if self.collected or not hasattr(node, "workeroutput"):
            return
        told = node.workeroutput["sweeps"]
        self.left, self.total = self.left + told["left"], self.total + told["total"]
        self.collected = Counter(told["collected"])
        self.partly |= set(told["partly"])
        self.swept |= set(told["swept"])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["sweeps"] = {
                "left": self.left, "total": self.total, "collected": dict(self.collected),
                "partly": sorted(self.partly), "swept": sorted(self.swept),
            }  # fmt: skip
        elif os.environ.get("GPUBACKPROP_RECORD") and not missing_compiler():
            sweeps.record(self.whole_files())

    def whole_files(self) -> list[str]:
        """Return files with sweeps of which every test ran, and none failed."""
        named = {argument.partition("::")[0] for argument in self.config.args if "::" in argument}
        failed = set(map(file_of_name, self.failed))
        return sorted(
            file
            for file in self.swept - self.partly - failed - named
            if self.is_whole(file) and self.finished[file] == self.collected[file]
        )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Iterator[None]:
        yield  # the line comes after the list of skipped tests, among the last lines
        write = terminalreporter.write_line
        for test in self.failed:
            if file_of_name(test) in self.swept and not self.is_whole(file_of_name(test)):
                write(f"run it alone: {alone(test)}", red=True)
        if self.mode == "changed" and (changed := sorted(filter(self.is_whole, self.swept))):
            write(f"not on record, so run whole: {', '.join(changed)}")
        if self.left:
            write(
                f"left out: {self.left:,} of {self.total:,} sweep cases, seed {sweeps.seed()}; "
                "make test-all runs them"
            )


def missing_compiler() -> str:
    from tests import emulator

    return emulator.missing_compiler()


def file_of(item: pytest.Item) -> str:
    return file_of_name(item.nodeid)


def file_of_name(test: str) -> str:
    return test.partition("::")[0]


def alone(test: str) -> str:
    """Return the command that runs a case of a sample again."""
    sample = f"GPUBACKPROP_SEED={sweeps.seed()} python -m pytest --sweeps=sample"
    return f"{sample} {shlex.quote(test)}"
