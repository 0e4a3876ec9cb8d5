"""The launch table: every size is covered, no limit of a grid passed, the entries exist."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gpubackprop.backends import cupy_launch
from gpubackprop.backends.cupy_launch import (
    KERNELS,
    MAX_GRID_X,
    MAX_GRID_Y,
    DeviceProperties,
    entries,
    join_rows,
    plan,
    suffix_of,
)  # fmt: skip
from gpubackprop.errors import OptionError
from tests import emulator, first_rung
from tests.emulator.module import KERNELS as SOURCES
from tests.emulator.module import signatures
from tests.test_kernel_strip import rows_of_a_block

H200 = DeviceProperties(multiprocessors=132)
ONE = DeviceProperties(multiprocessors=1)
BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2}
MATRICES = [
    (0, 7), (7, 0), (1, 1), (1, 400), (400, 1), (7, 3), (2**20, 16), (3, 100_000), (2**31, 1),
    (2**31, 2), (2**16 + 1, 65537), (33_000, 65_537), (2**22, 2**12), (1, 2**34), (2**34, 1),
]  # fmt: skip


def formula_of(kernel: str) -> str:
    return KERNELS[kernel].combinations()[0][0]


@pytest.mark.parametrize("device", [H200, ONE], ids=["132", "1"])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("shape", MATRICES, ids=str)
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        ("affine_epilogue", "f32"),
        ("activation_backward", "bf16"),
        ("column_sum", "f64"),
        ("affine_epilogue_dropout", "f16"),
    ],
)
def test_strips_cover_every_element_within_the_limits(kernel, dtype, shape, contiguous, device):
    rows, cols = shape
    launch = plan(kernel, shape, dtype, device, formula=formula_of(kernel), contiguous=contiguous)
    if rows * cols == 0:
        assert launch.empty
        return
    x, y, _ = launch.grid
    assert 1 <= x <= MAX_GRID_X
    assert 1 <= y <= MAX_GRID_Y
    assert launch.block == (32, 8, 1)
    pack = 16 // BYTES[dtype]
    width = launch.join * cols if contiguous else cols
    assert x * 32 * pack >= width + (0 if contiguous else pack - 1), "some columns have no thread"
    if contiguous:
        assert width % pack == 0, "joined rows must keep the alignment of the first"
    # Each of the y blocks takes ceil(all / y) rows or more (include/strip.cuh), so any y covers.
    partial_rows, partial_cols = launch.partial
    assert partial_cols == cols
    assert partial_rows == y * (1 if contiguous and x == 1 else max(1, launch.join))
    assert partial_rows * cols <= max(64 * pack * cols, rows * cols // 8 + 64 * pack * cols)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("shape", MATRICES[2:], ids=str)
def test_blocks_of_a_strip_take_whole_steps_and_at_most_one_takes_nothing(shape, contiguous):
    launch = plan("column_sum", shape, "f32", H200, contiguous=contiguous)
    long_rows = (
        -(-(shape[0] * shape[1] + 3) // (launch.join * shape[1])) if contiguous else shape[0]
    )
    chunks = launch.grid[1]
    taken = rows_of_a_block(long_rows, chunks)
    assert taken % 32 == 0 or launch.grid[0] * chunks <= 2 * 132 + launch.grid[0]
    assert taken * chunks >= long_rows > taken * (chunks - 1)


@pytest.mark.parametrize(
    ("shape", "blocks"), [((128, 512), 64), ((256, 512), 128), ((2048, 512), 256), ((64, 10), 1)]
)
def test_a_small_matrix_is_spread_over_the_card(shape, blocks):
    """128 rows of 512 are a pack of four for each thread of 64 blocks."""
    x, y, _ = plan("activation_backward", shape, "f32", H200, formula="relu").grid
    assert x * y >= blocks


def test_a_column_of_many_partial_sums_has_few_batches_of_loads():
    for rows, cols in ((1057, 16), (1057, 64), (130, 4096), (5, 3), (257, 1)):
        x, y, _ = plan("column_sum_finish", (rows, cols), "f32", H200).block
        assert -(-rows // (8 * y)) <= 3
        assert x >= min(8, cols)


@pytest.mark.parametrize("cols", [1, 2, 3, 5, 7, 10, 16, 31, 100, 128, 1000, 1001, 50257])
@pytest.mark.parametrize("pack", [2, 4, 8])
def test_joined_rows_are_whole_packs_and_fill_a_strip_where_rows_are_narrow(cols, pack):
    width = join_rows(cols, pack) * cols
    assert width % pack == 0
    assert width <= max(32 * pack, pack * cols)
    assert (
        width > 16 * pack
        or cols > 16 * pack
        or width + join_rows(cols, pack) * cols > 32 * pack
        or (width + cols * pack > 32 * pack)
    )


@pytest.mark.parametrize("shape", MATRICES, ids=str)
@pytest.mark.parametrize("kernel", ["pointwise_loss", "gather_rows"])
def test_row_kernels_stay_within_the_limits(kernel, shape):
    formula = "f32" if kernel == "gather_rows" else formula_of(kernel)
    launch = plan(kernel, shape, "float32", H200, formula=formula)
    assert launch.empty == (0 in shape if kernel == "gather_rows" else shape[0] == 0)
    x, y, _ = launch.block
    assert x * y == 256 or (launch.empty and x * y >= 1)
    assert x & (x - 1) == 0, "a group of threads must be a power of two"
    assert y == 1 or x <= 32
    assert launch.grid[0] <= MAX_GRID_X
    assert launch.grid[1] <= MAX_GRID_Y
    # rows in turn: every grid covers; but none may be larger than there are rows to take
    assert launch.grid[0] <= max(1, -(-shape[0] // y))


@pytest.mark.parametrize("count", [0, 1, 1000, 2**32 + 5, 2**36])
def test_flat_kernels_stay_within_the_limits(count):
    for kernel, dtype, formula in (
        ("update", "f32", "adam"),
        ("sum_of_squares", "bf16", ""),
        ("row_weights", "f32", "i64"),
    ):
        launch = plan(kernel, (count,), dtype, H200, formula=formula)
        assert launch.empty == (count == 0)
        assert launch.grid[0] <= 132 * 32
        if kernel == "sum_of_squares":
            assert launch.partial == (2, launch.grid[0])
            assert launch.grid[0] <= 1024, "the finish has one thread for each"


@pytest.mark.parametrize("chunks", [0, 1, 2**31 - 1, 2**31])
def test_a_table_of_tensors_has_a_block_for_each_chunk(chunks):
    if chunks > MAX_GRID_X:
        with pytest.raises(OptionError, match="more than one launch covers"):
            plan("update_table", (chunks,), "f32", H200, formula="adam")
        return
    launch = plan("update_table", (chunks,), "f32", H200, formula="adam")
    assert launch.empty == (chunks == 0)
    assert launch.grid == (chunks, 1, 1)


@pytest.mark.parametrize("cols", [1, 2, 3, 16, 31, 32, 33, 50257, 2**31])
def test_the_second_stage_has_a_thread_for_every_column(cols):
    launch = plan("column_sum_finish", (1000, cols), "f32", H200)
    assert launch.grid[0] * launch.block[0] >= cols
    assert launch.block[0] * launch.block[1] == 512
    assert launch.block[1] & (launch.block[1] - 1) == 0


def test_more_columns_than_a_grid_covers_are_refused():
    with pytest.raises(OptionError, match="more than one launch covers"):
        plan("column_sum", (1, 2**40), "f32", H200)


@pytest.mark.parametrize(
    ("kernel", "formula", "dtype"),
    [("nonsense", "", "f32"), ("update", "adm", "f32"), ("affine_epilogue", "relu", "i64"),
     ("gather_rows", "i32", "f32"), ("accumulate", "", "f16")],
)  # fmt: skip
def test_an_entry_that_does_not_exist_is_an_error(kernel, formula, dtype):
    with pytest.raises(OptionError, match="no kernel"):
        plan(kernel, (4, 4), dtype, H200, formula=formula)


def test_dtypes_have_one_spelling():
    import ml_dtypes

    spellings = {
        np.float64: "f64", "float32": "f32", np.dtype(np.float16): "f16",
        ml_dtypes.bfloat16: "bf16", "bf16": "bf16", "f32_bf16": "f32_bf16",
    }  # fmt: skip
    assert {dtype: suffix_of(dtype) for dtype in spellings} == spellings


@pytest.mark.skipif(bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-")
def test_the_table_names_exactly_the_entries_that_the_sources_hold():
    """Registry, table and CUDA lists agree: an activation without its struct shows here."""
    in_sources = {
        (path.name, entry) for path in sorted(SOURCES.glob("*.cu")) for entry in signatures(path)
    }
    launched = {(source, entry) for source, entry, _ in entries()}
    assert in_sources - launched == {(first_rung.SOURCE, first_rung.ENTRY)}
    assert launched <= in_sources


@pytest.mark.skipif(bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-")
def test_the_macros_of_an_entry_leave_it_and_at_most_its_second_stage():
    last = {source: (source, entry, defines) for source, entry, defines in entries()}
    assert len(last) > 10
    for source, entry, defines in last.values():
        names = signatures(SOURCES / source, dict(defines))
        assert entry in names
        assert len(names) <= 2


def test_no_cuda_header_is_included_and_ptx_stands_in_one_file():
    for path in sorted(SOURCES.rglob("*.cu*")):
        text = path.read_text()
        assert not re.search(r"#\s*include\s*<", text), f"{path.name} includes a system header"
        if path.name != "ptx.cuh":
            assert not re.search(r"\basm\b", text), f"{path.name} has inline PTX"


def test_every_kernel_says_what_it_moves_and_whether_it_was_measured():
    for path in sorted(SOURCES.glob("*.cu")):
        head = path.read_text().partition("#include")[0]
        assert "moves " in head, path.name
        assert "measured: not measured on a GPU" in head or re.search(
            r"measured: .*results/", head
        ), path.name


def test_the_constants_agree_with_the_sources():
    strip = (SOURCES / "include" / "strip.cuh").read_text()
    assert (
        f"STRIP_COLUMNS = {cupy_launch.STRIP_COLUMNS}, STRIP_ROWS = {cupy_launch.STRIP_ROWS}"
        in strip
    )
    assert f"STRIP_UNROLL = {cupy_launch.STRIP_UNROLL};" in strip
    column = (SOURCES / "column_sum.cu").read_text()
    assert (
        f"FINISH_THREADS = {cupy_launch.FINISH_THREADS}, "
        f"FINISH_UNROLL = {cupy_launch.FINISH_UNROLL};" in column
    )
    rows = (SOURCES / "include" / "rows.cuh").read_text()
    assert f"ROW_THREADS = {cupy_launch.ROW_THREADS};" in rows
    table = (SOURCES / "update_table.cu").read_text()
    assert (
        f"THREADS = {cupy_launch.FLAT_THREADS}, CHUNK = {cupy_launch.TABLE_CHUNK}, SETTINGS"
        in table
    )
    squares = (SOURCES / "sum_of_squares.cu").read_text()
    assert (
        f"THREADS = {cupy_launch.FLAT_THREADS}, FINISH_THREADS = {cupy_launch.MAX_PARTIAL_BLOCKS};"
        in squares
    )
