"""NPY and NPZ files, never unpickled; NPY is memory-mapped."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubackprop.data.files import did_you_mean, listing
from gpubackprop.errors import DataError

Array = npt.NDArray[Any]


def load_npy(file: Path) -> Array:
    """Return the array of an NPY file as a read-only memmap.

    Raises
    ------
    DataError
        The file is not NPY, is truncated, or holds Python objects (which only pickle could read).
    """
    try:
        array: Array = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # a damaged header is evaluated as Python text, so any may come
        if "Python objects" in str(error):
            raise DataError(_objects(str(file))) from error
        raise DataError(
            f"{file} is not a whole NPY file: {error}; write it again with numpy.save"
        ) from error
    return array


def load_npz(file: Path, target: object, features: object) -> tuple[Array, Array | None, str]:
    """Return inputs, targets (None if no key is given) and the key of the inputs of an NPZ file.

    Parameters
    ----------
    file : Path
        The file.
    target : object
        Key of the targets, or None.
    features : object
        Key of the inputs. If None, it is "x", or else the only array that is not the target.
    """
    if not zipfile.is_zipfile(file):
        raise DataError(f"{file} is no NPZ (zip) file, or is cut off; write it with numpy.savez")
    try:
        with np.load(file, allow_pickle=False) as archive:
            keys = list(archive.files)
            target_key = None if target is None else _one_key(target, keys, "target", file)
            x_key = _input_key(features, target_key, keys, file)
            x = _member(archive, x_key, file)
            y = None if target_key is None else _member(archive, target_key, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise DataError(
            f"{file} is a damaged NPZ file: {error}; write it again with numpy.savez"
        ) from error
    return x, y, x_key


def _member(archive: Any, key: str, file: Path) -> Array:
    """Return one array of the archive."""
    try:
        array = archive[key]
    except (ValueError, SyntaxError) as error:
        if "Object arrays" in str(error):
            raise DataError(_objects(f"{file}: array {key!r}")) from error
        raise DataError(f"{file}: array {key!r} is damaged: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{file}: {key!r} is no NumPy array; write the file with numpy.savez")
    return array


def _input_key(features: object, target: str | None, keys: list[str], file: Path) -> str:
    """Return the key of the inputs: the given one, "x", or the only one beside the target."""
    others = [key for key in keys if key != target]
    if features is not None:
        key = _one_key(features, keys, "features", file)
        if key == target:
            raise DataError(f"{file}: {key!r} is both features and target; choose one")
        return key
    if "x" in others:
        return "x"
    if len(others) != 1:
        raise DataError(
            f"{file}: which array holds the inputs? It has {listing(keys)}; name one with "
            "features, or save it under the key 'x'"
        )
    return others[0]


def _one_key(request: object, keys: list[str], role: str, file: Path) -> str:
    """Return the key that `request` names; a sequence of one key is accepted."""
    if isinstance(request, list | tuple) and len(request) == 1:
        request = request[0]
    key = str(request)
    if key not in keys:
        raise DataError(
            f"{file}: no array {key!r} for the {role}{did_you_mean(key, keys)}; "
            f"the file has {listing(keys)}"
        )
    return key


def _objects(what: str) -> str:
    return (
        f"{what} holds Python objects, which only pickle can read and which could run code; "
        "save it as numbers, e.g. numpy.save(file, array.astype('float32'))"
    )
