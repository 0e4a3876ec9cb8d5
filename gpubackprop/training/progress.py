"""The progress bar: loss, samples per second and time left."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from typing import Any

REFRESH_SECONDS = 0.1


def _size() -> dict[str, Any]:
    """Return tqdm's options for the width.

    If a terminal says that it has 0 rows (docker -t), tqdm would show no bar.
    """
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        columns = rows = 0
    return {"dynamic_ncols": True} if columns and rows else {"ncols": 100, "nrows": 24}


def _widgets() -> bool:
    return importlib.util.find_spec("ipywidgets") is not None


def _tqdm(*, notebook: bool) -> Any:
    """Return tqdm's class: a notebook's with ipywidgets, else that of text."""
    if notebook and _widgets():
        return importlib.import_module("tqdm.notebook").tqdm
    return importlib.import_module("tqdm").tqdm


class ProgressBar:
    """A tqdm bar over the samples of all epochs.

    Where nobody looks, outside a terminal and a notebook, it is silent unless `show`.
    """

    def __init__(self, total: int, done: int, epochs: int, show: bool | None) -> None:
        self._bar: Any = None
        self._epochs, self._due, self._validation = epochs, 0.0, ""
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        notebook = getattr(shell, "kernel", None) is not None  # there stderr is no terminal
        terminal = sys.stderr is not None and sys.stderr.isatty()
        if notebook or terminal if show is None else show:
            self._bar = _tqdm(notebook=notebook)(
                total=total,
                initial=done,
                unit=" samples",
                unit_scale=True,
                **_size(),
                bar_format="{desc} |{bar}| {percentage:3.0f}% {rate_fmt}, {remaining} left"
                "{postfix}",
            )

    @property
    def shown(self) -> bool:
        return self._bar is not None

    def advance(
        self, rows: int, epoch: int, summary: Callable[[], dict[str, float]] | None
    ) -> None:
        """Count `rows` more samples in epoch `epoch` (from 0).

        `summary` returns the loss of the epoch so far. It is None if that would wait for a GPU; the
        last epoch's loss then stays.
        """
        if self._bar is None:
            return
        now = time.monotonic()
        if summary is not None and now >= self._due:
            self._due = now + REFRESH_SECONDS
            self._show(epoch, summary()["loss"])
        self._bar.update(rows)

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Show the loss of a whole epoch; from here on also show its validation figures."""
        shown = [f"{name} {row[name]:.4f}" for name in ("val_loss", "val_accuracy") if name in row]
        self._validation = "".join(f", {item}" for item in shown)
        if self._bar is not None:
            self._show(row["epoch"] - 1, row["loss"])

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self, epoch: int, loss: float) -> None:
        self._bar.set_description_str(f"epoch {epoch + 1}/{self._epochs}", refresh=False)
        self._bar.set_postfix_str(f"loss {loss:.4f}{self._validation}", refresh=False)
