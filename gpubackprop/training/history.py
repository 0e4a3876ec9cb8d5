"""The record of a training: one row per epoch."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from typing import Any

from gpubackprop.ops import display
from gpubackprop.tensorfile import write_atomically

Row = dict[str, Any]


class History:
    """The rows of a training, one per epoch.

    A row has ``epoch, steps, lr, loss, accuracy or rmse, val_..., seconds, samples_per_second``.

    Parameters
    ----------
    rows : list of dict, or None
        One dictionary per finished epoch.

    Attributes
    ----------
    rows : list of dict
        One dictionary per finished epoch.
    best_epoch : int or None
        The epoch whose weights were kept, from 1.
    stopped : str
        Why training ended: "epochs", "patience", "interrupted", "callback"; "" while it runs.

    Examples
    --------
    >>> history = History([{"epoch": 1, "loss": 0.7}, {"epoch": 2, "loss": 0.6}])
    >>> len(history), history["loss"], history.columns
    (2, [0.7, 0.6], ['epoch', 'loss'])
    """

    def __init__(self, rows: list[Row] | None = None) -> None:
        self.rows: list[Row] = rows or []
        self.best_epoch: int | None = None
        self.stopped = ""

    def __getitem__(self, column: str) -> list[float]:
        """Return one column over the epochs; NaN for an epoch that lacks it."""
        if not any(column in row for row in self.rows):
            raise KeyError(f"{column!r} is not in the history, which has {', '.join(self.columns)}")
        return [row.get(column, math.nan) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __copy__(self) -> History:
        """Return a history that grows independently of this one."""
        twin: History = object.__new__(type(self))
        vars(twin).update(vars(self) | {"rows": list(self.rows)})
        return twin

    def _summary(self) -> str:
        epochs = "1 epoch" if len(self) == 1 else f"{len(self)} epochs"
        best = "" if self.best_epoch is None else f", best epoch {self.best_epoch}"
        return f"History of {epochs}{best}" + (f", ended by {self.stopped}" if self.stopped else "")

    def _cells(self) -> list[list[Any]]:
        return [[row.get(name) for name in self.columns] for row in self.rows]

    def __repr__(self) -> str:
        if not self.rows:
            return self._summary()
        return f"{self._summary()}\n{display.text_table(self.columns, self._cells())}"

    def _repr_html_(self) -> str:
        return display.html_table(self._summary(), self.columns, self._cells())

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in the order in which they came up."""
        names: dict[str, None] = {}
        for row in self.rows:
            names |= dict.fromkeys(row)
        return list(names)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write all rows, with a header.

        Parameters
        ----------
        path : path
            The file to write.

        Raises
        ------
        StorageError
            The file cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(Path(path), text.getvalue().encode())
