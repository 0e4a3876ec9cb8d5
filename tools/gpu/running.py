"""Run a process within a limit, so that its report survives."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GRACE = 15.0  # seconds from SIGINT to SIGKILL, in which pytest writes its report


@dataclass
class Ended:
    """The end of a process.

    Attributes
    ----------
    code : exit status, negative for a signal; None where it never started.
    interrupted : whether it was over its limit and got SIGINT.
    killed : whether it also needed SIGKILL.
    """

    code: int | None
    seconds: float
    interrupted: bool = False
    killed: bool = False
    problem: str = ""


def run(command: list[str], log: Path, limit: float, *, grace: float | None = None) -> Ended:
    """Run `command` in the checkout, with its output in `log`; no child outlives this call."""
    start = time.monotonic()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    try:
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        return Ended(None, time.monotonic() - start, problem=str(error))
    interrupted = killed = False
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        interrupted = True
        _signal(process.pid, signal.SIGINT)
        try:
            process.wait(GRACE if grace is None else grace)
        except subprocess.TimeoutExpired:
            killed = True
    finally:
        _signal(process.pid, signal.SIGKILL)  # the whole group, with all remaining children
        process.wait()
    return Ended(process.returncode, time.monotonic() - start, interrupted, killed)


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
