"""Checks that hold for every data file, and the wording that the readers share."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gpubackprop.errors import DataError

Where = Callable[[int], str]
"""Names a row in a message, given its index from 0."""


def row_from_1(row: int) -> str:
    """Name row `row` (index from 0) of a file without lines; data rows count from 1."""
    return f"row {row + 1} (data rows counted from 1)"


def check_file(path: str | os.PathLike[str]) -> Path:
    """Return `path` as a Path to a regular, readable file that is not empty.

    Raises
    ------
    DataError
        There is no such file, or it is a directory, a device or a pipe, or may not be read, or has
        0 bytes.
    """
    file = Path(path)
    try:
        mode = file.stat().st_mode
        empty = stat.S_ISREG(mode) and not _first_byte(file)
    except FileNotFoundError as error:
        raise DataError(
            f"{file}: no such file (working directory {os.getcwd()}); check the path"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file} cannot be read: {reason}; check path and permissions") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{file} is a directory; give the path of one data file inside it")
    if not stat.S_ISREG(mode):
        raise DataError(f"{file} is a device or pipe; save the data to a file and give its path")
    if empty:
        raise DataError(f"{file} is empty (0 bytes); it may have been cut off while being written")
    return file


def _first_byte(file: Path) -> bytes:
    """Return one byte: the file may be opened and holds something."""
    with open(file, "rb") as stream:
        return stream.read(1)


def listing(names: Iterable[object], most: int = 30) -> str:
    """Return names in quotes, separated by commas; after `most` of them only their number."""
    quoted = [repr(str(name)) for name in names]
    more = f" and {len(quoted) - most} more" if len(quoted) > most else ""
    return ", ".join(quoted[:most]) + more


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """Return ' (did you mean 'x'?)' for the nearest choice, or '' if none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=1)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""


def shorten(value: object, most: int = 60) -> str:
    """Return the repr of a cell, cut to `most` characters so that a message stays one line."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 4] + "...'"
