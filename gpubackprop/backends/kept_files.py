"""What compilers leave on disk: files that are whole or not there, and a folder of the process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path


def write(path: Path, content: bytes) -> Path:
    """Write the file whole or not at all, even if other processes write the same; return it."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".new")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
        os.replace(name, path)
    except OSError:
        if not path.exists():  # Windows does not replace a library that another process has loaded
            raise
    finally:
        forget(Path(name))
    return path


def forget(path: Path) -> None:
    """Remove a file that cannot be used, if it is there."""
    with suppress(OSError):
        path.unlink()


@cache
def own_directory() -> Path:
    """Return a folder that lasts as long as this process."""
    directory = tempfile.mkdtemp(prefix="gpubackprop-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)
