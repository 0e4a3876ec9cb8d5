"""The fits and their devices: one line of JSON for each fit, also from the processes of joblib."""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

VARIABLE = "GPUBACKPROP_SKLEARN_REPORT"  # it names the file in which `accelerate` collects fits
ORIGINAL = "scikit-learn itself"  # stands in place of a device
UNSEEN = "  (not seen: scikit-learn's own estimators in processes that the program started)"


_open: list[str] = []  # files of this process's contexts, the innermost last
_sent: str | None = None  # the file that came with the estimator that was unpickled last


@contextlib.contextmanager
def collecting(path: str) -> Iterator[None]:
    """Report fits in the file `path`, also those of processes that are started meanwhile."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = path
    _open.append(path)
    try:
        yield
    finally:
        _open.remove(path)
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def destination() -> str | None:
    """Return the file in which fits are reported now, or None.

    A worker of joblib lives longer than a context, and its environment is that of its start.
    Therefore the file's name travels with the estimators that the worker receives.
    """
    return _open[-1] if _open else _sent or os.environ.get(VARIABLE)


def adopt(path: str | None) -> None:
    """Report in `path` from now on; it came with an estimator, to a process without a context."""
    global _sent
    if (
        path and not _open and os.path.isdir(os.path.dirname(path))
    ):  # old pickles name a lost folder
        _sent = path


def add(estimator: Any, shape: tuple[int, ...], seconds: float) -> None:
    """Append this fit to the report, if there is one; a report that has gone is no error."""
    path = destination()
    if not path:
        return
    line = json.dumps(
        {
            "estimator": type(estimator).__name__,
            "device": getattr(estimator, "device_", ORIGINAL),
            "rows": shape[0],
            "columns": shape[1],
            "epochs": int(estimator.n_iter_),
            "seconds": seconds,
            "process": os.getpid(),
        }
    )
    with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")  # a short line is appended whole


class Report:
    """The fits of a program.

    Attributes
    ----------
    rows : list of dict
        For each fit: estimator, device, rows, columns, epochs, seconds, process.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def read(self, path: str) -> None:
        """Take the lines that `add` has appended to the file, if any."""
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.rows = [json.loads(line) for line in file]

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        if not self.rows:
            return f"gpubackprop.sklearn: no MLPClassifier or MLPRegressor was fitted\n{UNSEEN}"
        groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for row in self.rows:
            groups[row["estimator"], row["device"]].append(row)
        lines = ["gpubackprop.sklearn ran"]
        for (estimator, device), rows in sorted(groups.items()):
            sizes = sorted((row["rows"], row["columns"]) for row in rows)
            shapes = " to ".join(f"{n} x {d}" for n, d in dict.fromkeys((sizes[0], sizes[-1])))
            processes = len({row["process"] for row in rows})
            seconds = sum(row["seconds"] for row in rows)
            lines.append(
                f"  {estimator} on {device}: {_count(len(rows), 'fit')} of {shapes}, "
                f"{sum(row['epochs'] for row in rows)} epochs, {seconds:.2f} s "
                f"in {_count(processes, 'process', 'processes')}"
            )
        return "\n".join([*lines, UNSEEN])


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
