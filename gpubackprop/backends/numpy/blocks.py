"""Cut arrays into blocks that stay in cache; scratch memory for the blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpubackprop.backends.numpy.recorded_calls import WORKERS, Call, RecordedCalls, get_num_threads

# Bytes of one array in a block. A NumPy call costs about half a microsecond whatever its size, so
# blocks may not be small; larger ones fall out of the second-level cache. See benchmarks/README.md.
BLOCK_BYTES = 1 << 18
# Smaller work runs on the caller's thread, because handing a part over costs time too. In a plan
# the limit is higher: after a matrix product OpenBLAS's threads spin for some time and keep the
# other cores busy, so our threads gain nothing there (benchmarks/README.md).
THREAD_BYTES, PLANNED_THREAD_BYTES = 1 << 18, 1 << 24
# NumPy's type stubs do not know `out` as a positional argument, as recorded calls pass it.
add_reduce: Any = np.add.reduce
maximum_reduce: Any = np.maximum.reduce
logical_and_reduce: Any = np.logical_and.reduce
ALIGNMENT = 128  # bytes; a CUDA memory transaction, and more than any SIMD register


def aligned_empty(size: int, dtype: Any) -> np.ndarray:
    """Return an uninitialised (size,) array whose data start on a multiple of ALIGNMENT."""
    itemsize = np.dtype(dtype).itemsize
    raw = np.empty(size * itemsize + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + size * itemsize].view(dtype)


class Scratch:
    """Reusable block-sized memory: one flat buffer per (thread slot, number)."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, int], np.ndarray] = {}
        self._views: dict[tuple[Any, ...], np.ndarray] = {}

    def take(
        self, slot: int, number: int, shape: tuple[int, ...], dtype: Any, order: str = "C"
    ) -> np.ndarray:
        """Return an uninitialised array, valid until the same (slot, number) is taken again."""
        key = (slot, number, shape, dtype, order)
        view = self._views.get(key)
        return self._make(key) if view is None else view

    def _make(self, key: tuple[Any, ...]) -> np.ndarray:
        slot, number, shape, dtype, order = key
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = self._buffers.get((slot, number))
        if buffer is None or buffer.nbytes < nbytes:
            buffer = aligned_empty(nbytes, np.uint8)
            self._buffers[slot, number] = buffer
        flat = buffer[:nbytes].view(dtype)
        view = flat.reshape(shape) if order == "C" else flat.reshape(shape[::-1]).T
        self._views[key] = view
        return view


def rows_per_block(row_bytes: int, block_bytes: int = BLOCK_BYTES) -> int:
    return max(1, block_bytes // max(1, row_bytes))


def row_ranges(rows: int, row_bytes: int, block_bytes: int = BLOCK_BYTES) -> Iterator[slice]:
    """Yield slices that cover `rows` rows in blocks of at most `block_bytes` or one row."""
    step = rows_per_block(row_bytes, block_bytes)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


EmitBlock = Callable[[Callable[..., None], slice, int], None]


def for_row_blocks(
    call: Callable[..., None],
    rows: int,
    row_bytes: int,
    emit: EmitBlock,
    *,
    total_bytes: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Issue ``emit(call, rows_of_block, slot)`` for every block, split over threads if that pays.

    Parameters
    ----------
    call : callable
        Issues a call: runs it or records it.
    rows : int
        Number of rows to cover.
    row_bytes : int
        Bytes of one row.
    emit : callable
        Issues the calls of one block; `slot` distinguishes the threads' scratch memories.
    total_bytes : int
        Size that decides whether threads pay; by default rows * row_bytes.
    block_bytes : int
        The most bytes of rows in a block.
    """
    ranges = list(row_ranges(rows, row_bytes, block_bytes))
    threads = min(get_num_threads(), len(ranges))
    enough = PLANNED_THREAD_BYTES if isinstance(call, RecordedCalls) else THREAD_BYTES
    if threads < 2 or (total_bytes or rows * row_bytes) < enough:
        for block in ranges:
            emit(call, block, 0)
        return
    parts: list[list[Call]] = [[] for _ in range(threads)]
    for index, block in enumerate(ranges):
        slot = index * threads // len(ranges)
        part = parts[slot]
        emit(lambda function, *args, part=part: part.append((function, args)), block, slot)
    call(WORKERS.run, parts)
