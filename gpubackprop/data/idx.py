"""IDX, the format of MNIST: two zero bytes, a type code, the number of dimensions, the sizes."""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubackprop.errors import DataError

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_NAME = re.compile(r"[-._]idx\d*(-u?byte)?(\.gz)?$", re.IGNORECASE)
_CHUNK = 1 << 20
_Stream = gzip.GzipFile | io.BufferedReader


def is_idx_name(name: str) -> bool:
    """Return whether a file name is that of an IDX file.

    >>> [is_idx_name(n) for n in ("train-images-idx3-ubyte.gz", "t.idx", "train-images.png")]
    [True, True, False]
    """
    return _NAME.search(name) is not None


def load_idx(file: Path) -> npt.NDArray[Any]:
    """Return the array of an IDX file, read-only: a memmap, or for .gz an array in memory.

    IDX is big-endian, and so is the dtype of the result if it is wider than a byte.

    Raises
    ------
    DataError
        The magic number is wrong, the file is truncated or longer than its header says, or a .gz
        file is not gzip.
    """
    zipped = file.suffix.lower() == ".gz"
    try:
        with gzip.open(file, "rb") if zipped else open(file, "rb") as stream:
            dtype, shape = _read_header(stream, file)
            start = 4 + 4 * len(shape)
            size = math.prod(shape) * dtype.itemsize
            data = _read_up_to(stream, size + 1) if zipped else None
    except (EOFError, zlib.error) as error:
        raise DataError(f"{file} is a truncated or damaged gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read as IDX: {error}") from error
    found = file.stat().st_size - start if data is None else len(data)
    if found != size:
        more = "more" if found > size else "less; the file is truncated"
        raise DataError(
            f"{file}: its header promises {' x '.join(map(str, shape))} of {dtype.name}, "
            f"{size} bytes, but it holds {more}; download or write it again"
        )
    if size == 0:
        return np.empty(shape, dtype=dtype)
    if data is None:
        return np.memmap(file, dtype=dtype, mode="r", offset=start, shape=shape)
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    array.flags.writeable = False
    return array


def _read_header(stream: _Stream, file: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return dtype and shape; raise DataError for another magic number."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or magic[3] == 0:
        hint = "; it is gzip: name it .gz" if magic[:2] == b"\x1f\x8b" else ""
        raise DataError(
            f"{file} is no IDX file: it begins with {magic.hex(' ')}, an IDX file with 00 00, a "
            f"type code ({', '.join(f'{code:02x}' for code in _DTYPES)}) and the number of "
            f"dimensions, 1 or more{hint}"
        )
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{file} is truncated inside its header; download or write it again")
    return np.dtype(_DTYPES[magic[2]]), tuple(np.frombuffer(sizes, dtype=">u4").tolist())


def _read_up_to(stream: _Stream, most: int) -> bytearray:
    """Read up to `most` bytes, in pieces: a header that promises too much costs no memory."""
    data = bytearray()
    while chunk := stream.read(min(_CHUNK, most - len(data))):
        data += chunk
    return data
