"""Copies of the tree in which mutants are made, and the pytest that waits in each."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tools.mutants.mutations import ROOT, Mutant
from tools.mutants.worker import CPU_LIMIT, Reply

COPIED = ("gpubackprop", "kernels", "tests", "tools")


class Copy:
    """A copy of the tree.

    Its path is the same in the next run, so the emulator's headers that g++ compiled there stay
    valid. A lock keeps two runs apart.
    """

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir()).resolve() / f"gpubackprop-mutants-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
        for number in range(64):
            self._lock = (base / f"{number}.lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                self._lock.close()
        else:
            raise SystemExit(f"error: all places for copies in {base} are taken")
        self.path, self.cache = base / str(number), base / f"{number}.cache"
        self.kernels, self.original = self.path / "kernels", self.path / "original"
        shutil.rmtree(self.path, ignore_errors=True)
        for name in COPIED:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, self.path / name, ignore=ignored)
        shutil.copytree(ROOT / "kernels", self.original)
        shutil.copy2(ROOT / "pyproject.toml", self.path)
        self.cache.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def broken(self, mutant: Mutant) -> Iterator[None]:
        """Put the mutant into the copy; at the end, delete what was compiled from it."""
        path = self.kernels / mutant.file
        text, compiled = path.read_text(), set(self.cache.iterdir())
        lines = text.splitlines(keepends=True)
        lines[mutant.line - 1] = mutant.after + "\n"
        path.write_text("".join(lines))
        try:
            yield
        finally:
            path.write_text(text)
            for made in set(self.cache.iterdir()) - compiled:
                if made.is_dir():  # an interrupted compilation
                    shutil.rmtree(made)
                elif not made.name.startswith("header-"):  # the emulator's headers stay
                    made.unlink(missing_ok=True)

    @cached_property
    def worker(self) -> Worker:
        return Worker(self)


class Worker:
    """A process that runs `tools.mutants.worker` in a copy."""

    def __init__(self, copy: Copy) -> None:
        environment = os.environ | {
            "GPUBACKPROP_EMULATOR_CACHE": str(copy.cache), "PYTHONPATH": str(copy.path),
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
        }  # fmt: skip
        environment.pop("PYTEST_ADDOPTS", None)
        their_requests, requests = os.pipe()
        replies, their_replies = os.pipe()
        log = copy.path / "worker.log"
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tools.mutants.worker", str(their_requests),
                 str(their_replies)],
                cwd=copy.path, env=environment, pass_fds=(their_requests, their_replies),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        os.close(their_requests)
        os.close(their_replies)
        self._requests, self._replies = os.fdopen(requests, "w"), os.fdopen(replies)
        self._log = log
        self.tests: list[str] = self._receive()["tests"]

    def run(
        self, tests: Sequence[str], limit: float = CPU_LIMIT, *, to_the_end: bool = False
    ) -> Reply:
        """Run the tests in this order until one fails or takes more than `limit` seconds.

        The seconds are processor time.
        """
        if not tests:
            return Reply()
        request = {"tests": list(tests), "limit": limit, "to_the_end": to_the_end}
        print(json.dumps(request), file=self._requests, flush=True)
        return Reply(**self._receive())

    def close(self) -> None:
        self._requests.close()
        self._process.wait()

    def kill(self) -> None:
        """Kill the process at once, with the tests that run."""
        self._process.kill()

    def _receive(self) -> dict[str, Any]:
        line = self._replies.readline()
        if not line:
            raise SystemExit(f"error: pytest ended:\n{self._log.read_text()[-3000:]}")
        message: dict[str, Any] = json.loads(line)
        return message
