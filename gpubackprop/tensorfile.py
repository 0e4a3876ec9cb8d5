"""Files of named arrays with JSON values beside them, in the safetensors format.

A crash while writing leaves the previous file whole. There is no pickle, so reading executes
nothing.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.errors import ModelFileError, StorageError

Array = np.ndarray
VALUES_KEY = "gpubackprop"  # the one metadata entry; it holds all values as JSON


def write_tensors(path: str | os.PathLike[str], arrays: dict[str, Array], values: Any) -> None:
    """Write `arrays` and the JSON-able `values` to `path`: temporary file, sync, rename.

    If the process is killed at any moment, `path` holds either its previous content or the new one,
    whole. NaN and infinities among the values are written as Python's JSON writes them.

    Raises
    ------
    StorageError
        The disk is full, the directory is read-only, or the like; the previous file is untouched.
    TypeError
        The format has no such value or dtype.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    # safetensors' NumPy API writes the memory as it is: strides and byte order would be lost.
    contiguous = {
        name: np.asarray(array, array.dtype.newbyteorder("="), order="C")
        for name, array in arrays.items()
    }
    metadata = {VALUES_KEY: json.dumps(values, default=_plain)}
    try:
        content = save(contiguous, metadata=metadata)
    except SafetensorError as error:
        raise TypeError(
            f"{path}: these arrays have no place in a safetensors file: {error}"
        ) from error
    write_atomically(Path(path), content)


def _plain(value: Any) -> Any:
    """Return a NumPy number or array among the values as JSON knows it."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be written as JSON")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` so that no reader and no crash ever sees a part of it.

    If `path` is a symbolic link, the link stays and the file that it names is replaced. Raises
    StorageError as `write_tensors` does.
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise StorageError(
            f"{path} could not be written ({error.strerror or error}); a file that was there "
            f"before is untouched; free space or choose another folder"
        ) from error
    _sync_directory(target.parent)


def _sync_directory(folder: Path) -> None:
    """Make a rename durable. If that is impossible, a crash may leave either file, whole."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def remove_leftovers(path: Path) -> None:
    """Delete temporary files that killed writers of `path` left beside it."""
    target = Path(os.path.realpath(path))
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def read_tensors(
    path: str | os.PathLike[str], kind: str, version: int
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return arrays and values of a file that `write_tensors` wrote with values["kind"] == kind.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ModelFileError
        The file is unreadable, truncated, foreign, of another kind or of a newer version; the
        message names file and reason.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.is_dir():
        raise ModelFileError(f"{path} is a directory but a {kind} file was expected")
    try:
        with open(path, "rb"):  # safetensors' own errors do not tell these from damage
            pass
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror or error})") from error
    try:
        with safe_open(path, framework="numpy") as file:
            values = _values(path, file.metadata() or {}, kind, version)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except ModelFileError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(
            f"{path} is not a whole safetensors file ({error}); it is cut off or of another format"
        ) from error
    return arrays, values


def _values(path: Path, metadata: dict[str, str], kind: str, version: int) -> dict[str, Any]:
    """Return the JSON values; raise ModelFileError for another kind or a newer version."""
    try:
        values = json.loads(metadata[VALUES_KEY])
        found = values["kind"], values["version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path} is a safetensors file but not one of gpubackprop's: its metadata has no "
            f"readable {VALUES_KEY!r} entry"
        ) from error
    if found[0] != kind:
        raise ModelFileError(f"{path} holds a {found[0]} but a {kind} was expected")
    if not isinstance(found[1], int) or found[1] > version:
        raise ModelFileError(
            f"{path} has format version {found[1]} but this gpubackprop reads up to {version}; "
            f"upgrade it"
        )
    return values


def require_array(
    path: str | os.PathLike[str],
    arrays: dict[str, Array],
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> Array:
    """Return arrays[name]; raise ModelFileError for another shape or dtype, NaN or infinity."""
    if name not in arrays:
        raise ModelFileError(f"{path} has no tensor {name!r}; it holds {', '.join(sorted(arrays))}")
    array = arrays[name]
    if array.shape != shape:
        raise ModelFileError(
            f"{path}: {name} has shape {array.shape} but the architecture wants {shape}"
        )
    if array.dtype != dtype:
        raise ModelFileError(f"{path}: {name} is {array.dtype} but {dtype} is wanted")
    bad = ~np.isfinite(array)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ModelFileError(
            f"{path}: {name}[{', '.join(map(str, where))}] is {array[where]} "
            f"({int(bad.sum())} such values); the file comes from a diverged training or is damaged"
        )
    return array


def require_count(
    path: str | os.PathLike[str], name: str, value: Any, high: float = math.inf
) -> int:
    """Return `value` as an integer in [0, high]; raise ModelFileError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise ModelFileError(
            f"{path}: {name} is {value!r} but must be a count of at least 0{upper}"
        )
    return value
