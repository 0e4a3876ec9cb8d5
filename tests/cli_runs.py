"""Run commands of the command line in this process; the small files that they read."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl

from gpubackprop.backends.numpy import get_num_threads, set_num_threads
from gpubackprop.cli import main

ROOT = Path(__file__).resolve().parents[1]
# The variables that pytest-xdist sets in its workers would switch pytest-benchmark off.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")
} | {"PYTHONPATH": str(ROOT)}
COMMAND = [sys.executable, "-m", "gpubackprop"]


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run_cli(*arguments: Any) -> Result:
    """Run `main` with these arguments; afterwards restore the thread settings of the process."""
    out, err, threads = io.StringIO(), io.StringIO(), get_num_threads()
    with (
        threadpoolctl.threadpool_limits(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main([str(argument) for argument in arguments])
    set_num_threads(threads)
    return Result(code, out.getvalue(), err.getvalue())


def ok(*arguments: Any) -> Result:
    result = run_cli(*arguments)
    assert result.code == 0, result.err
    return result


def write_table(path: Path, columns: dict[str, Any]) -> Path:
    """Write a CSV file of these columns."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(np.asarray(c).tolist() for c in columns.values()), strict=True))
    return path


def read_table(text: str) -> dict[str, list[str]]:
    """Return the columns of CSV text."""
    header, *rows = csv.reader(io.StringIO(text))
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def flowers(rows: int = 90, seed: int = 0) -> dict[str, Any]:
    """Return three classes that are far apart in the plane of `length` and `width`."""
    rng = np.random.default_rng(seed)
    kind = np.arange(rows) % 3
    centre = np.array([[10.0, 0.1], [20.0, 0.2], [30.0, 0.1]])[kind]
    x = centre + rng.normal(size=(rows, 2)) * [1.0, 0.01]
    return {
        "length": x[:, 0],
        "width": x[:, 1],
        "kind": np.array(["iris", "lily", "rose"])[kind],
    }


def houses(rows: int = 120, seed: int = 0) -> dict[str, Any]:
    """Return a price that is a linear function of area and rooms."""
    rng = np.random.default_rng(seed)
    area, rooms = rng.uniform(20, 200, rows), rng.integers(1, 7, rows)
    return {"area": area, "rooms": rooms, "price": 50_000 + 3_000 * area + 10_000 * rooms}


# Options of a training that takes hundredths of a second.
QUICK = ("--hidden", "8", "--epochs", "5", "--device", "cpu")
