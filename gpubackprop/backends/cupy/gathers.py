"""Rows by their numbers on a GPU: a whole batch in one launch, and the place of the next numbers.

A launch gathers one matrix, converted, and beside it the narrow rows (labels, weights) of the same
numbers. The numbers lie where an address in the device's memory says; the launch moves it on. So a
step needs no copy of its row numbers, and an epoch is replays of one graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.launcher import row_stride
from gpubackprop.backends.memory import RowCursor
from gpubackprop.errors import DtypeError, ShapeError

Array = Any  # a cupy.ndarray
Pair = tuple[Array, Array]  # source and out
Issuer = Any  # the backend of the module `issuer`, which stands on this one
BESIDE = 3  # arrays that a launch copies beside its matrix (kernels/gather_rows.cu)
WORD = 4  # bytes
# Words of a row that is copied beside. A thread takes a word at a time; wide rows are left to
# launches of their own, whose accesses are of 16 bytes.
MOST_WORDS = 32


class DeviceRows(RowCursor):
    """The address of the next row numbers, in the device's memory.

    Parameters
    ----------
    backend : Issuer
        The backend that allocates.

    Attributes
    ----------
    address : (1,) uint64 array
        What the kernel reads, and moves on.
    """

    def __init__(self, backend: Issuer) -> None:
        self._backend, self.address = backend, backend.zeros(1, np.uint64)
        self._rows: Array = None  # kept, since the address alone does not
        self._there = 0  # what `address` holds when the queued calls are done; 0 if unknown

    def put(self, rows: Array) -> None:
        if rows.dtype != np.int64 or not rows.flags.c_contiguous:
            raise DtypeError(
                f"row numbers are {rows.dtype} with strides {rows.strides} but a GPU reads int64 "
                f"without gaps; take them from place"
            )
        begin = int(rows.data.ptr)
        if begin != self._there:
            self._backend.fill(self.address, begin)
        self._rows, self._there = rows, 0

    def done(self) -> None:
        self._there = int(self._rows.data.ptr) + int(self._rows.nbytes)


@dataclass(frozen=True)
class _Launch:
    """A matrix, and the narrow arrays that go with it."""

    source: Array
    out: Array
    beside: Sequence[Pair] = ()


def gather_rows(backend: Issuer, source: Array, rows: Array | None, out: Array) -> None:
    _check(source, rows, out)
    _launch(backend, _Launch(source, out), rows)


def gather_batch(backend: Issuer, pairs: Sequence[Pair], rows: Array | DeviceRows) -> None:
    numbers = None if isinstance(rows, DeviceRows) else rows
    for source, out in pairs:
        _check(source, numbers, out)
    cursor, launches = rows if numbers is None else None, _launches_of(pairs)
    for place, launch in enumerate(launches, 1):
        _launch(backend, launch, numbers, cursor, moves=place == len(launches))


def _check(source: Array, rows: Array | None, out: Array) -> None:
    if source.shape[1:] != out.shape[1:] or (rows is not None and rows.shape != out.shape[:1]):
        raise ShapeError(f"no gather from {source.shape} to {out.shape}")


def _launches_of(pairs: Sequence[Pair]) -> list[_Launch]:
    """Return the launches that gather all pairs; narrow rows go beside the widest."""
    there = [pair for pair in pairs if pair[1].size]
    if not there:
        return []
    first = max(there, key=lambda pair: pair[1].nbytes)
    rest = [pair for pair in there if pair is not first]
    beside = [pair for pair in rest if _is_narrow(*pair, like=first)][:BESIDE]
    alone = [pair for pair in rest if all(pair is not other for other in beside)]
    return [*(_Launch(*pair) for pair in alone), _Launch(*first, beside)]


def _is_narrow(source: Array, out: Array, like: Pair) -> bool:
    """Return whether the rows of a pair can be copied word by word beside another pair's."""
    if source.dtype != out.dtype or out.itemsize % WORD or len(source) != len(like[0]):
        return False
    whole = source.flags.c_contiguous and out.flags.c_contiguous
    return whole and _words(out) <= MOST_WORDS and len(out) == len(like[1])


def _words(out: Array) -> int:
    """Return the words of a row."""
    return int(out.nbytes) // WORD // len(out)


def _launch(
    backend: Issuer,
    gather: _Launch,
    rows: Array | None,
    cursor: DeviceRows | None = None,
    *,
    moves: bool = False,
) -> None:
    source, out = gather.source, gather.out
    if source.ndim < 2:
        source, out = source.reshape(source.size, 1), out.reshape(out.size, 1)
    count, columns = out.shape
    beside = [*gather.beside, *[(None, None)] * (BESIDE - len(gather.beside))]

    def arguments(_: Any) -> dict[str, Any]:
        fields = {
            "source": source, "rows": rows, "cursor": cursor and cursor.address, "out": out,
            "counter": backend.memory.counter() if cursor and moves else None, "count": count,
            "cols": columns, "source_rows": source.shape[0], "stride_source": row_stride(source),
            "stride_out": row_stride(out),
        }  # fmt: skip
        for number, (narrow, narrow_out) in enumerate(beside):
            fields |= {f"beside{number}": narrow, f"beside_out{number}": narrow_out}
            fields[f"words{number}"] = 0 if narrow is None else _words(narrow_out)
        fields["most_words"] = max(fields[f"words{number}"] for number in range(BESIDE))
        return fields

    backend.launch("gather_rows", out.shape, out.dtype, arguments, formula=str(source.dtype))
