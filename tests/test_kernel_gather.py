"""Gathering rows with conversion, and the conversions themselves, emulated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpubackprop.backends.cupy_launch import KERNELS, DeviceProperties
from tests import emulator
from tests.emulator.arrays import Guarded
from tests.emulator.operations import DTYPES, Operations, collect, record
from tests.emulator.sanitizers import PointerTable

pytestmark = [
    pytest.mark.skipif(
        bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
    ),
    # NumPy warns where a signalling NaN is converted
    pytest.mark.filterwarnings("ignore:invalid value encountered in cast"),
]
PAIRS = KERNELS["gather_rows"].pairs


@pytest.mark.parametrize(("source", "out"), PAIRS)
def test_every_gather_entry_takes_the_rows_and_rounds_once(source, out):
    memory = Guarded(1)
    raw = memory.rng.standard_normal((50, 37)) * (100 if source in ("u8", "i32", "i64") else 1)
    table = memory.put(np.abs(raw).astype(DTYPES[source]), shift=1, gap=1)
    rows = memory.rng.integers(0, 50, 80)
    result = memory.empty((80, 37), DTYPES[out], shift=1, gap=2)
    Operations().gather_rows(table, rows, result)
    memory.check()
    assert np.array_equal(result, table[rows].astype(DTYPES[out]))


@pytest.mark.parametrize(
    "shape", [(0, 4), (5, 0), (1, 1), (1000, 1), (3, 784), (2, 9000), (70, 5)], ids=str
)
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_gather_of_any_shape(shape, shift):
    memory = Guarded(2)
    count, cols = shape
    table = memory.put(memory.rng.integers(0, 256, (20, cols)).astype(np.uint8), shift=shift)
    rows = memory.rng.integers(0, 20, count)
    out = memory.empty(shape, np.float32, shift=shift)
    Operations().gather_rows(table, rows, out)
    memory.check()
    assert np.array_equal(out, table[rows].astype(np.float32))


def test_blocks_take_rows_in_turn_where_the_grid_is_smaller_than_the_batch():
    memory = Guarded(3)
    table, rows = memory.normal((50, 200), np.float32), memory.rng.integers(0, 50, 1000)
    out = memory.empty((1000, 200), np.float32)
    Operations(device=DeviceProperties(multiprocessors=1)).gather_rows(table, rows, out)
    memory.check()
    assert np.array_equal(out, table[rows])


def test_row_numbers_outside_are_clipped_as_in_numpy():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows, out = np.array([-1, 4, 2**40, -(2**62), 2]), np.empty((5, 3), np.float32)
    Operations().gather_rows(table, rows, out)
    assert np.array_equal(out, table.take(rows, 0, mode="clip"))


NARROW = [("f32", ()), ("i64", ()), ("f32", (3,))]  # beside wide rows: weights, labels, targets


def batch(memory: Guarded, count: int) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    pairs = [(memory.normal((50, 37), np.float32), memory.empty((count, 37), np.float32))]
    for dtype, shape in NARROW:
        raw = 100 * memory.rng.standard_normal((50, *shape))
        pairs.append(
            (memory.put(raw.astype(DTYPES[dtype])), memory.empty((count, *shape), DTYPES[dtype]))
        )
    return pairs, memory.rng.integers(0, 50, count)


@pytest.mark.parametrize("count", [1, 8, 9, 80, 700])
def test_narrow_rows_are_copied_beside_wide_ones_and_no_row_more(count):
    memory = Guarded(count)
    pairs, rows = batch(memory, count)
    Operations(device=DeviceProperties(multiprocessors=1)).gather_batch(pairs, rows)
    memory.check()
    for source, out in pairs:
        assert np.array_equal(out, source[rows])


@pytest.mark.parametrize("mode", ["address", "thread"])
def test_no_finding_of_the_sanitizers_in_narrow_rows(mode):
    launches: list[emulator.Launch] = []
    Operations(collect(launches)).gather_batch(*batch(Guarded(), 80))
    launches = [replace(launch, grid=(2, *launch.grid[1:])) for launch in launches]
    assert len(launches) == 1
    assert emulator.run_sanitized(launches, mode) == ""


def test_the_last_block_moves_the_row_numbers_on_after_all_threads_have_read_where_they_are():
    """In any block there are threads that read the address later than the one with the ticket.

    Blocks of two threads: ThreadSanitizer remembers four readers.
    """
    memory = Guarded()
    rows, cols = np.arange(9), 37
    cursor = np.array([rows.ctypes.data], np.uint64).view(PointerTable)
    cursor.arrays = (rows,)
    arguments = record(
        "gather_rows_f32_f32", source=memory.normal((9, cols), np.float32), cursor=cursor,
        out=np.empty((9, cols), np.float32), counter=np.zeros(1, np.int32), count=9, cols=cols,
        source_rows=9, stride_source=cols, stride_out=cols,
    )  # fmt: skip
    launch = emulator.Launch("gather_rows.cu", "gather_rows_f32_f32", (2,), (2, 1), [arguments])
    assert emulator.run_sanitized([launch], "thread") == ""


def convert(values: np.ndarray, out: str) -> np.ndarray:
    result = np.empty((1, values.size), DTYPES[out])
    Operations().gather_rows(values.reshape(1, -1), None, result)
    return result[0]


def same_bits(got: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal, NaN for NaN, and zeros of the same sign."""
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    return np.array_equal(got, wanted, equal_nan=True) and np.array_equal(
        np.signbit(got) & ~np.isnan(got), np.signbit(wanted) & ~np.isnan(wanted)
    )


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_all_16_bit_patterns_widen_exactly_and_return(kind):
    patterns = np.arange(65536, dtype=np.uint16).view(DTYPES[kind])
    floats = convert(patterns, "f32")
    assert same_bits(floats, patterns.astype(np.float32))
    assert same_bits(convert(floats, kind), patterns)


def around_all_edges(kind: str) -> np.ndarray:
    """float64: every number of the type, the midpoints between them, and both sides of each."""
    exact = np.arange(65536, dtype=np.uint16).view(DTYPES[kind]).astype(np.float64)
    exact = np.unique(exact[np.isfinite(exact)])
    middle = (exact[1:] + exact[:-1]) / 2
    top = exact[-1] + (exact[-1] - exact[-2]) / 2  # from here on infinity
    points = np.concatenate(
        [exact, middle, [top, -top, np.inf, -np.inf, np.nan, 1e300, -1e300, 5e-324, -0.0]]
    )
    return np.concatenate([points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf)])


def nearest_even(values: np.ndarray, kind: str) -> np.ndarray:
    """By search among all numbers of the type; ties go to the even pattern. No cast is trusted."""
    patterns = np.arange(0x7C01 if kind == "f16" else 0x7F81, dtype=np.uint16)
    grid = patterns.view(DTYPES[kind]).astype(np.float64)
    step = grid[-2] - grid[-3]
    grid[-1] = grid[-2] + step  # infinity stands where the next number would
    size = np.minimum(np.abs(values), grid[-1])
    above = np.clip(np.searchsorted(grid, np.nan_to_num(size)), 1, len(grid) - 1)
    low, high = size - grid[above - 1], grid[above] - size
    index = np.where((low < high) | ((low == high) & ((above - 1) % 2 == 0)), above - 1, above)
    result = patterns[index].view(DTYPES[kind]).astype(np.float64)
    return np.where(np.isnan(values), np.nan, np.copysign(result, values))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_float64_is_rounded_once_to_16_bits(kind):
    values = around_all_edges(kind)
    assert same_bits(convert(values, kind), nearest_even(values, kind))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_float32_is_rounded_to_nearest_even(kind):
    values = around_all_edges(kind)
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    values = np.concatenate(
        [
            values,
            np.nextafter(values, np.float32(np.inf)),
            np.nextafter(values, np.float32(-np.inf)),
        ]
    )
    assert same_bits(convert(values, kind), nearest_even(values.astype(np.float64), kind))
