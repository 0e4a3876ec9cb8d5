"""What was fitted where: one line of JSON for each fit, also from the processes of joblib."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from typing import Any

VARIABLE = "GPUBACKPROP_SKLEARN_REPORT"  # the file that `accelerate` collects the fits in
ORIGINAL = "scikit-learn itself"  # in place of a device


def add(estimator: Any, shape: tuple[int, ...], seconds: float) -> None:
    """Append this fit to the report, if there is one."""
    path = os.environ.get(VARIABLE)
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
    with open(path, "a", encoding="utf-8") as file:  # a short line is appended whole
        file.write(line + "\n")


class Report:
    """The fits of a program.

    Attributes
    ----------
    rows : a dictionary for each fit: estimator, device, rows, columns, epochs, seconds, process.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def read(self, path: str) -> None:
        """Take the lines that `add` has appended to the file, if any."""
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.rows = [json.loads(line) for line in file]

    def __str__(self) -> str:
        if not self.rows:
            return "gpubackprop.sklearn: no MLPClassifier or MLPRegressor was fitted"
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
        return "\n".join(lines)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
