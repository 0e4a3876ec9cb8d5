"""include/strip.cuh: what the threads of a launch say of the parts that they take fits together,
whatever the shape, the alignment and the launch."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.cupy_launch import STRIP_COLUMNS, STRIP_ROWS, join_rows
from tests import emulator
from tests.emulator.module import HERE, Module

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
E = 4  # float32
ROOM = 16  # rows of a thread in the probe's output
FIELDS = ("row", "lo", "hi", "place", "column", "first_column", "whole1", "whole2", "whole4")


def said_by_threads(
    shape: tuple[int, int], join: int, misaligned: int, grid: tuple[int, int]
) -> list[list[dict[str, int]]]:
    """For each thread, what it says of each row that it visits."""
    threads = grid[0] * grid[1] * STRIP_ROWS * STRIP_COLUMNS
    out = np.full((threads, ROOM, len(FIELDS)), -(2**40))
    arguments = (*map(np.int64, shape), np.int32(join), np.int32(misaligned), np.int64(ROOM), out)
    Module(HERE / "probes.cu")("probe_strip", grid, (STRIP_COLUMNS, STRIP_ROWS), arguments)
    assert (out[:, -1] == -(2**40)).all(), "a thread visits more rows than the probe has room for"
    return [
        [dict(zip(FIELDS, row.tolist(), strict=True)) for row in thread if row[0] != -(2**40)]
        for thread in out
    ]


SHAPES = [(1, 1), (5, 3), (9, 33), (70, 2), (100, 4), (33, 128), (3, 300), (40, 129), (7, 131)]


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("misaligned", range(E))
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_share_a_matrix_out(shape, joined, misaligned, chunks):
    rows, cols = shape
    join = join_rows(cols, E) if joined else 0
    width = join * cols if joined else cols
    grid = (-(-(width + E - 1) // (STRIP_COLUMNS * E)), chunks)
    taken = np.zeros(rows * cols, int)
    for thread in said_by_threads(shape, join, misaligned, grid):
        for n, said in enumerate(thread):
            assert 0 <= said["lo"] <= E
            assert 0 <= said["hi"] <= E
            assert said["place"] == said["row"] * width + said["column"]
            assert (said["place"] + misaligned) % E == (0 if joined else said["row"] * cols % E)
            taken[said["place"] + said["lo"] : said["place"] + said["hi"]] += 1
            rest = [other["lo"] == 0 and other["hi"] == E for other in thread[n:]]
            for count in (1, 2, 4):
                assert said[f"whole{count}"] == (len(rest) >= count and all(rest[:count]))
            inside = said["place"] + said["lo"]  # the column of an element that exists
            if said["lo"] < said["hi"]:
                assert (said["first_column"] + said["lo"]) % cols == inside % cols
    assert (taken == 1).all(), "each element belongs to exactly one thread"
