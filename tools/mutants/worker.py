"""pytest as a server: it imports and collects once, then forks for each list of tests.

    python -m tools.mutants.worker REQUESTS REPLIES

It runs in a copy of the tree, with two inherited pipes of JSON lines. A request is
`{"tests": [...], "limit": 10.0, "to_the_end": false}` with each test once, and its answer is a
`Reply`. The kernels may change between two requests, because only the children read them. A child
compiles entry by entry.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from tools.mutants.mutations import kernel_tests

CPU_LIMIT = 10.0  # seconds for one test without compilers; nearly all take less than 3
WHOLE_LIMIT = 120.0  # the same without a mutant, where no loop is endless
WALL_LIMIT = 300.0  # seconds for one test, whatever it waits for
MEMORY_LIMIT = 6 << 30  # bytes; a broken index could fill a sparse map of 100 GiB
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>: send a signal when the parent ends
COMPILERS = ("g++", "cc1plus", "as", "collect2", "ld")
# A library has its own stacks, 512 mappings or more; a process may have 65,530 (vm.max_map_count).
LIBRARIES = 32
STUBBORN = re.compile(r"EmulatorError: (g\+\+|\w+\.cuh?: )")


@dataclass
class Reply:
    """The answer to a request.

    Attributes
    ----------
    failed : the first test that did not pass, or "".
    how : "failed", "does not compile", "time limit", "memory limit" or "signal N".
    message : the failure's message.
    seconds : the processor time of each test that ran, without that of compilers.
    builds : what each test compiled, called or loaded: source, mode and macros in one text.
    """

    failed: str = ""
    how: str = ""
    message: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    builds: dict[str, list[str]] = field(default_factory=dict)


def source_of(build: str) -> str:
    """Return the .cu file of a build, as `Reply` names it."""
    return build.partition(" ")[0]


def cpu_seconds() -> float:
    """Return the processor time of this process and of the children that it has waited for."""
    return sum(os.times()[:4])


class Server:
    """The pytest plugin: it answers requests instead of running the collected tests."""

    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = os.fdopen(requests), os.fdopen(replies, "w")
        self.items: dict[str, pytest.Item] = {}
        self.failure: tuple[str, str] | None = None
        self.used: set[str] = set()  # builds that the current test uses
        self.compiling = 0.0  # processor time of the current test in compilers
        self.libraries = 0  # libraries of this child

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self._reply({"tests": list(self.items)})
        for line in self.requests:
            request = json.loads(line)
            self._reply(asdict(self._serve(**request)))
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failure is None:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash else str(report.longrepr)
            self.failure = "does not compile" if STUBBORN.search(message) else "failed", message

    def _reply(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self.replies, flush=True)

    def _serve(self, tests: list[str], limit: float, to_the_end: bool) -> Reply:
        """Run the tests in as many children as they need, see LIBRARIES."""
        whole = Reply()
        while tests and not (whole.failed and not to_the_end):
            part = self._serve_a_part(tests, limit, to_the_end)
            whole.seconds |= part.seconds
            whole.builds |= part.builds
            if part.failed and not whole.failed:
                whole.failed, whole.how, whole.message = part.failed, part.how, part.message
            if part.failed and part.failed not in part.seconds:
                break  # the child did not survive the test
            if not part.seconds:
                raise RuntimeError(f"no test was begun: {part.how}")
            tests = tests[len(part.seconds) :]
        return whole

    def _serve_a_part(self, tests: list[str], limit: float, to_the_end: bool) -> Reply:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                self._run_tests(tests, to_the_end, write)
                os._exit(0)
            finally:
                os._exit(98)
        os.close(write)
        try:
            return Watch(pid, read, limit).reply()
        finally:
            os.close(read)

    def _run_tests(self, tests: list[str], to_the_end: bool, events: int) -> None:
        """Run the tests, in the child."""
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        log = os.open("pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        self._compile_entry_by_entry()
        self._time_the_compilers()
        for name in tests:
            os.write(events, json.dumps({"begun": name}).encode() + b"\n")
            self.failure, self.used, self.compiling = None, set(), 0.0
            item, start = self.items[name], cpu_seconds()
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            ended = {
                "ended": name, "seconds": cpu_seconds() - start - self.compiling,
                "builds": sorted(self.used), "failure": self.failure,
            }  # fmt: skip
            os.write(events, json.dumps(ended).encode() + b"\n")
            if self.libraries > LIBRARIES or (self.failure and not to_the_end):
                break

    def _compile_entry_by_entry(self) -> None:
        """Compile single entries without optimisation.

        A mutant's library serves few launches: in most verdicts g++ takes longer than the tests.
        """
        from gpubackprop.backends.cupy_launch import entries
        from tests.emulator import builds, module, operations

        builds.MODES["values"] = ("-O0", "-g0")
        defines = {entry: dict(chosen) for _, entry, chosen in entries()}
        one = cache(lambda source, entry, mode: module.Module(source, mode, defines[entry]))

        def launch(source: str, mode: str, entry: str, *args: Any, **options: Any) -> None:
            one(source, entry, mode)(entry, *args, **options)

        operations.module = lambda source, mode="values": partial(launch, source, mode)  # type: ignore
        self._note_uses(module.Module)

    def _time_the_compilers(self) -> None:
        from tests.emulator import builds

        run = builds.run

        def timed(*args: Any) -> None:
            start = cpu_seconds()
            try:
                run(*args)
            finally:
                self.compiling += cpu_seconds() - start

        builds.run = timed  # type: ignore[assignment]

    def _note_uses(self, kind: type) -> None:
        """Record what a test compiles, calls or loads through the emulator's `Module`."""
        create, call = kind.__init__, kind.__call__  # type: ignore[misc]
        builds: dict[int, str] = {}

        def noted_create(
            module: Any, source: str | Path, mode: str = "values",
            defines: dict[str, str] | None = None, *, load: bool = True,
        ) -> None:  # fmt: skip
            name = str(source).removeprefix(f"{Path.cwd()}/")
            builds[id(module)] = " ".join((name, mode, *sorted((defines or {}).values())))
            self.used.add(builds[id(module)])
            self.libraries += load
            create(module, source, mode, defines, load=load)

        def noted_call(module: Any, *args: Any, **options: Any) -> None:
            self.used.add(builds[id(module)])
            call(module, *args, **options)

        kind.__init__, kind.__call__ = noted_create, noted_call  # type: ignore[misc,method-assign]


class Watch:
    """Read the events of a child until it ends, and end it at a limit."""

    def __init__(self, pid: int, events: int, cpu_limit: float) -> None:
        self.pid, self.events, self.cpu_limit = pid, events, cpu_limit
        self.result = Reply()
        self.running = ""
        self.since = self.cpu_before = 0.0

    def reply(self) -> Reply:
        text = b""
        while not (limit := self._limit_passed()):
            if not select.select([self.events], [], [], 0.2)[0]:
                continue
            if not (piece := os.read(self.events, 1 << 16)):
                break
            *lines, text = (text + piece).split(b"\n")
            for line in lines:
                self._note(json.loads(line))
        if limit:
            os.kill(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # a sanitizer's process may hang
        if limit or code:
            self.result.failed = self.running
            self.result.how = limit or (f"signal {-code}" if code < 0 else f"exit code {code}")
        return self.result

    def _note(self, event: dict[str, Any]) -> None:
        if "begun" in event:
            self.running, self.since = event["begun"], time.monotonic()
            self.cpu_before = self._cpu_seconds(str(self.pid))
            return
        self.result.seconds[event["ended"]] = event["seconds"]
        self.result.builds[event["ended"]] = event["builds"]
        if event["failure"] and not self.result.failed:
            self.result.failed = event["ended"]
            self.result.how, self.result.message = event["failure"]

    def _limit_passed(self) -> str:
        if not self.running:
            return ""
        waited = time.monotonic() - self.since
        over = waited > self.cpu_limit < self._cpu_seconds() - self.cpu_before
        if over or waited > WALL_LIMIT:
            return "time limit"
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="utf-8").split()[1])
        return "memory limit" if pages * os.sysconf("SC_PAGESIZE") > MEMORY_LIMIT else ""

    def _cpu_seconds(self, processes: str = "[0-9]*") -> float:
        """Return the processor time of the child and of its descendants, which share its
        session."""
        ticks = 0
        for path in Path("/proc").glob(f"{processes}/stat"):
            with contextlib.suppress(OSError):  # the process has ended
                name, _, fields = path.read_text().partition(" (")[2].rpartition(") ")
                _, _, _, session, *rest = fields.split()
                if int(session) == self.pid and name not in COMPILERS:
                    ticks += int(rest[7]) + int(rest[8])
        return ticks / os.sysconf("SC_CLK_TCK")


def chosen(root: Path) -> list[str]:
    """Return pytest's arguments that choose the tests of the mutants, in a tree."""
    tests = [f"tests/{path.name}" for path in kernel_tests(root)]
    tests.remove("tests/test_kernel_compile.py")  # it checks the output of the GPU compilers
    return ["-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]


def main() -> int:
    server = Server(int(sys.argv[1]), int(sys.argv[2]))
    options = [*chosen(Path()), "-o", "timeout=0", "--tb=short", "--basetemp=scratch"]
    return int(pytest.main(options, plugins=[server]))


if __name__ == "__main__":
    sys.exit(main())
