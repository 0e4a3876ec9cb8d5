"""Callbacks of `tests/test_many.py` that a process imports by their names."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def ctrl_c_after_one(trainer: Any, row: dict[str, Any]) -> None:
    if row["epoch"] == 1:
        signal.raise_signal(signal.SIGINT)


def die(trainer: Any, row: dict[str, Any]) -> None:
    os._exit(7)


def stop_printing(trainer: Any, row: dict[str, Any]) -> None:
    """Print, which must not come among a process's results."""
    print("a callback prints", flush=True)


class Slowly:
    """A callback that tells by a file that an epoch is done, and then waits."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, trainer: Any, row: dict[str, Any]) -> None:
        self.file.touch()
        time.sleep(0.05)
