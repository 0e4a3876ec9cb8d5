"""Running a process within a limit, so that what it has to say survives."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GRACE = 15.0  # seconds from SIGINT to SIGKILL: pytest writes its report then


@dataclass
class Ended:
    """How a process ended.

    Attributes
    ----------
    code : exit status, negative for a signal; None where it never started.
    interrupted : it was over its limit and was told so by SIGINT.
    killed : that did not help.
    """

    code: int | None
    seconds: float
    interrupted: bool = False
    killed: bool = False
    problem: str = ""


def run(command: list[str], log: Path, limit: float, *, grace: float | None = None) -> Ended:
    """Run `command` from the checkout, its output in `log`; nothing of it outlives this call."""
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
        _signal(process.pid, signal.SIGKILL)  # the whole group, children that are left included
        process.wait()
    return Ended(process.returncode, time.monotonic() - start, interrupted, killed)


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
