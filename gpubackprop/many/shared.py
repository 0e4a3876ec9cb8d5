"""Objects that go to several processes and are written once: arrays as files that are mapped.

A trainer is pickled for each process, but the data that it is given are not: in their place stands
the file that holds them. Processes map the file, so the rows are in memory once.
"""

from __future__ import annotations

import io
import itertools
import mmap
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
SHARED_BYTES = 1 << 16  # smaller arrays travel in the pickle: a file costs more
# (kind, file, offset in bytes, dtype, shape); a pickle has only kind and file
Place = tuple[Any, ...]


class Shared:
    """Writes objects into a folder, each once, and pickles what refers to them.

    Parameters
    ----------
    folder : Path
        An empty folder for the files.
    objects : iterable
        The data that trainings are given; others are pickled as they are.
    """

    def __init__(self, folder: Path, objects: Iterable[Any]) -> None:
        self._folder, self._numbers = folder, itertools.count()
        self._kept: list[Any] = []  # so that no other object gets an id of these
        self._places: dict[int, Place] = {}
        for value in objects:
            self._add(value)

    def _add(self, value: Any) -> None:
        if isinstance(value, tuple | list):
            for part in value:
                self._add(part)
        elif id(value) not in self._places and (place := self._place(value)) is not None:
            self._places[id(value)] = place
            self._kept.append(value)

    def _place(self, value: Any) -> Place | None:
        """Write `value`, unless it is small or a file already; return where it is."""
        if isinstance(value, np.ndarray):
            if value.nbytes < SHARED_BYTES or value.dtype.hasobject:
                return None
            if (mapped := mapped_place(value)) is not None:
                return mapped
            file = self._folder / f"{next(self._numbers)}.bin"
            np.ascontiguousarray(value).tofile(file)
            return "array", str(file), 0, value.dtype.str, value.shape
        if value is None or isinstance(value, str | int | float | np.generic):
            return None
        file = self._folder / f"{next(self._numbers)}.pickle"
        file.write_bytes(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        return "pickle", str(file)

    def dumps(self, value: Any) -> bytes:
        """Return the pickle of `value`, with the places of the shared objects in it."""
        file = io.BytesIO()
        _Pickler(file, self._places).dump(value)
        return file.getvalue()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, places: dict[int, Place]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._places = places

    def persistent_id(self, obj: Any) -> Place | None:
        return self._places.get(id(obj))


class Unpickler(pickle.Unpickler):
    """Reads what `Shared.dumps` wrote.

    Parameters
    ----------
    content : bytes
        The pickle.
    opened : dict
        The shared objects that this process has opened, by their places.
    """

    def __init__(self, content: bytes, opened: dict[Place, Any]) -> None:
        super().__init__(io.BytesIO(content))
        self._opened = opened

    def persistent_load(self, place: Place) -> Any:
        """Return the object at this place."""
        if place not in self._opened:
            self._opened[place] = _open(*place)
        return self._opened[place]


def _open(
    kind: str, file: str, offset: int = 0, dtype: str = "", shape: tuple[int, ...] = ()
) -> Any:
    if kind == "pickle":
        return pickle.loads(Path(file).read_bytes())
    if kind == "map":
        return np.memmap(file, dtype, "r", offset, shape)
    with open(file, "rb") as content:
        mapped = mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)
    # By a memoryview the array counts as one in memory, as it did for the caller.
    return np.frombuffer(memoryview(mapped), dtype).reshape(shape)


def mapped_place(array: Array) -> Place | None:
    """Return the place of a caller's memory map in its file, or None if it is none."""
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    file = getattr(root, "filename", None)
    if not isinstance(root.base, mmap.mmap) or file is None or not array.flags.c_contiguous:
        return None
    offset = root.offset + array.ctypes.data - root.ctypes.data
    return "map", str(file), offset, array.dtype.str, array.shape
