"""include/strip.cuh: what the threads of a launch say of the parts that they take fits together,
whatever the shape, the alignment and the launch."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.cupy_launch import STRIP_COLUMNS, STRIP_ROWS, STRIP_UNROLL, join_rows
from tests import emulator
from tests.emulator.module import HERE, Module

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
E = 4  # float32
NOTHING = -(2**40)
ROOM = 32  # rows of a thread in the probe's output
FIELDS = ("row", "lo", "hi", "place", "column", "first_column", "whole1", "whole2", "whole4")


def said_by_threads(
    shape: tuple[int, int], join: int, misaligned: int, grid: tuple[int, int]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What each thread says of each row that it visits: (threads, ROOM) by field; and which it does."""
    threads = grid[0] * grid[1] * STRIP_ROWS * STRIP_COLUMNS
    out = np.full((threads, ROOM, len(FIELDS)), NOTHING)
    arguments = (*map(np.int64, shape), np.int32(join), np.int32(misaligned), np.int64(ROOM), out)
    Module(HERE / "probes.cu")("probe_strip", grid, (STRIP_COLUMNS, STRIP_ROWS), arguments)
    visited = out[:, :, 0] != NOTHING
    assert not visited[:, -1].any(), "a thread visits more rows than the probe has room for"
    return {field: out[:, :, n] for n, field in enumerate(FIELDS)}, visited


SHAPES = [
    (1, 1), (5, 3), (9, 33), (70, 2), (100, 4), (33, 128), (3, 300), (40, 129), (7, 131), (150, 130), (24, 9)
]  # fmt: skip


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("misaligned", range(E))
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_share_a_matrix_out(shape, joined, misaligned, chunks):
    rows, cols = shape
    join = join_rows(cols, E) if joined else 0
    width = join * cols if joined else cols
    grid = (-(-(width + E - 1) // (STRIP_COLUMNS * E)), chunks)
    said, visited = said_by_threads(shape, join, misaligned, grid)
    lo, hi, place = said["lo"], said["hi"], said["place"]
    assert ((lo >= 0) & (lo <= E) & (hi >= 0) & (hi <= E))[visited].all()
    assert (place == said["row"] * width + said["column"])[visited].all()
    pack_starts = 0 if joined else said["row"] * cols  # in its row, if rows are not joined
    assert ((place + misaligned - pack_starts) % E == 0)[visited].all()

    exists = visited & (lo < hi)
    first_column = place % cols if joined else said["column"]  # below 0 in a head: no column yet
    assert (said["first_column"] == first_column)[exists].all()
    taken = np.zeros(rows * cols, int)
    for e in range(E):
        np.add.at(taken, (place + e)[exists & (lo <= e) & (e < hi)], 1)
    assert (taken == 1).all(), "each element belongs to exactly one thread"

    # No more is visited than needs be, and each of the chunks takes as many (joined) rows, all of
    # them whole steps.
    assert joined or exists[visited].all()
    long_rows = -(-(rows * cols + misaligned) // width) if joined else rows
    assert said["row"][visited].max() == long_rows - 1
    chunk = np.arange(len(visited))[:, None] // (STRIP_ROWS * STRIP_COLUMNS) // grid[0]
    assert (said["row"] // rows_of_a_block(long_rows, chunks) == chunk)[visited].all()

    whole = visited & (lo == 0) & (hi == E)
    for count in (1, 2, 4):  # in this row and in the next ones that the thread visits
        wanted, so_far = np.zeros(whole.shape, int), np.ones(whole.shape, bool)
        for later in range(count):
            so_far[:, : ROOM - later] &= whole[:, later:]
            so_far[:, ROOM - later :] = False
            wanted += so_far
        assert (said[f"whole{count}"] == wanted)[visited].all()


def rows_of_a_block(long_rows: int, chunks: int) -> int:
    """As many as are in flight together, or a multiple; if there are fewer, a row for each thread."""
    least, full = -(-long_rows // chunks), STRIP_ROWS * STRIP_UNROLL
    unit = full if least > full - STRIP_ROWS else STRIP_ROWS
    return -(-least // unit) * unit
