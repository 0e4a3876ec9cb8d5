"""The processes that providers work in: what they are told, by lines of JSON, and answer."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from gpubackprop.bench.providers import BY_NAME
from gpubackprop.bench.shapes import Case

THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
    "NPROC",  # heeded by XLA's own pool, which the others leave as it is
)  # fmt: skip
PYTHON = [sys.executable]  # a rehearsal puts an emulated card in front
# Seconds until a worker is taken for hung. A step's oracle and a compiler's search take a while.
PATIENCE = {"prepare": 300.0, "oracle": 600.0, "machine": 300.0, "round": 120.0, "drop": 60.0}


class Process:
    """A worker, and the pipes to it. One that does not answer in time is ended."""

    def __init__(self, provider: str, device: str, threads: int, *, small: bool = False) -> None:
        command = [*PYTHON, "-m", "gpubackprop.bench.worker", provider, device]
        command += ["--small"] * small
        self._process = subprocess.Popen(
            command, env=environment(threads), text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def ask(self, what: str, **values: Any) -> dict[str, Any]:
        """Its answer; {"missing": ...} where it has died or does not answer."""
        self.tell(what, **values)
        return self.answer(what)

    def tell(self, what: str, **values: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` reports it
            self._process.stdin.write(json.dumps({"do": what, **values}) + "\n")
            self._process.stdin.flush()

    def answer(self, what: str = "prepare") -> dict[str, Any]:
        seconds = PATIENCE.get(what, PATIENCE["prepare"])
        try:
            line = self._lines.get(timeout=seconds)
        except Empty:
            self._process.kill()
            return {"missing": f"no answer to {what!r} in {seconds:.0f} s; its process was ended"}
        if not line:
            return {"missing": f"its process ended with code {self._process.wait()}; see above"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)
        self._process.stdout.close()


def environment(threads: int) -> dict[str, str]:
    """Of a worker: its threads, this package where the parent found it, and a JAX that takes memory
    as it needs it: at first it would take three quarters of a GPU's."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    more = dict.fromkeys(THREAD_VARIABLES, str(threads))
    more |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": os.pathsep.join(paths)}
    return os.environ | more


# The clock starts in a bare interpreter, for everybody alike.
COLD = """\
import time
begin = time.perf_counter()
{imports}
imported = time.perf_counter() - begin
from gpubackprop.bench.worker import cold_main
cold_main(imported)
"""


def cold_start(case: Case, provider: str, device: str, threads: int) -> dict[str, Any]:
    """The answer of a new process to its first steps."""
    with tempfile.TemporaryDirectory() as cache:  # of compiled kernels: none are there
        script = COLD.format(imports=BY_NAME[provider].imports)
        command = [sys.executable, "-c", script, provider, device]
        command += [json.dumps(asdict(case))]
        caches = {"CUPY_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
        try:
            done = subprocess.run(
                command, env=environment(threads) | caches, capture_output=True, text=True,
                check=False, timeout=PATIENCE["prepare"],
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            return {"missing": f"no answer in {error.timeout:.0f} s; its process was ended"}
    if done.returncode:
        last = "".join(done.stderr.splitlines()[-1:]).removeprefix("ModuleNotFoundError: ")
        return {"missing": last or f"its process ended with code {done.returncode}"}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
