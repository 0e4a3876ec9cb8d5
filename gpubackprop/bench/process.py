"""The processes of the providers: they get messages as lines of JSON, and answer them."""

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
    "NPROC",  # XLA's own pool reads it and ignores the others
)  # fmt: skip
PYTHON = [sys.executable]  # a rehearsal prepends an emulated card
# After so many seconds a worker counts as hung. A step's oracle and a compiler's search take long.
PATIENCE = {"prepare": 300.0, "oracle": 600.0, "machine": 300.0, "round": 120.0, "drop": 60.0}


class Process:
    """A worker and the pipes to it; it is killed if it does not answer in time."""

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
        """Return the worker's answer; {"missing": ...} if it has died or does not answer."""
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
    """Return a worker's environment: its threads, and the path where the parent found this package.

    JAX is told to take memory as it needs it; by default it takes three quarters of a GPU's at
    once.
    """
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    more = dict.fromkeys(THREAD_VARIABLES, str(threads))
    more |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": os.pathsep.join(paths)}
    return os.environ | more


# The clock starts in a bare interpreter, for every provider alike.
COLD = """\
import time
begin = time.perf_counter()
{imports}
imported = time.perf_counter() - begin
from gpubackprop.bench.worker import cold_main
cold_main(imported)
"""


def cold_start(case: Case, provider: str, device: str, threads: int) -> dict[str, Any]:
    """Run the first steps in a new process, and return its answer."""
    with tempfile.TemporaryDirectory() as cache:  # the cache of compiled kernels is empty
        script = COLD.format(imports=BY_NAME[provider].imports)
        command = [sys.executable, "-c", script, provider, device]
        command += [json.dumps(asdict(case))]
        # Python keeps bytecode unless told otherwise, and what pip installed has it.
        caches = {
            "CUPY_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache,
            "PYTHONDONTWRITEBYTECODE": "",
        }  # fmt: skip
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
