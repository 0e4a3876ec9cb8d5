"""include/vector.cuh and include/reduce.cuh: parts of packs, and sums over groups of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpubackprop.dtypes import compute_dtype
from tests import emulator
from tests.emulator import Launch, run_sanitized
from tests.emulator.arrays import Guarded, wide
from tests.emulator.module import HERE, Module
from tests.emulator.operations import DTYPES
from tests.emulator.traffic import count_traffic

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
PROBES = str(HERE / "probes.cu")
STORAGE = ("f64", "f32", "f16", "bf16")


def run(entry: str, *arguments: Any, block: tuple[int, ...] = (1,)) -> None:
    Module(PROBES)(entry, (1,), block, arguments)


@pytest.mark.parametrize("dtype", STORAGE)
def test_a_part_of_a_pack_is_moved_and_nothing_beside_it(dtype):
    kind = DTYPES[dtype]
    elements = 16 // kind.itemsize
    parts = [(lo, hi) for hi in range(elements + 1) for lo in range(hi + 1)]
    for shift in range(elements):
        for lo, hi in parts:
            memory = Guarded()
            x, loaded, stored, words = (
                memory.normal((elements,), kind, shift=at) for at in (shift, 0, shift, shift)
            )
            want = [array.copy() for array in (loaded, stored, words)]
            want[0][...] = 0
            for array in want:
                array[lo:hi] = x[lo:hi]
            run(f"probe_part_{dtype}", x, loaded, stored, words, np.int32(lo), np.int32(hi))
            memory.check()
            for got, wanted in zip((loaded, stored, words), want, strict=True):
                assert got.tobytes() == wanted.tobytes(), (shift, lo, hi)


@pytest.mark.parametrize("dtype", STORAGE)
def test_a_whole_pack_at_a_multiple_of_16_bytes_is_one_access(dtype):
    kind = DTYPES[dtype]
    elements = 16 // kind.itemsize
    module = Module(PROBES, "traffic")
    for shift, hi in ((0, elements), (1, elements), (0, elements - 1)):
        arrays = [Guarded().normal((elements,), kind, shift=shift) for _ in range(4)]
        arguments = (*arrays, np.int32(0), np.int32(hi))
        counted = count_traffic(module, f"probe_part_{dtype}", (1,), (1,), arguments)
        widest = 16 if (shift, hi) == (0, elements) else kind.itemsize
        assert [counted[n].widest for n in (0, 2, 3)] == [widest] * 3, (shift, hi)
        assert counted[0].reads == 2 * hi / elements, "by both ways to load"
        assert counted[2].writes == counted[3].writes == hi / elements


@pytest.mark.parametrize("dtype", STORAGE)
def test_a_pack_is_rounded_to_nearest_even(dtype):
    kind, compute = DTYPES[dtype], compute_dtype(DTYPES[dtype])
    elements = 16 // kind.itemsize
    x = np.random.default_rng(0).normal(size=elements).astype(compute)
    x[:2] = 1 + 2.0**-11, 1 + 3 * 2.0**-8  # ties of float16 and of bfloat16
    for shift in (0, 1):
        rounded = Guarded().empty((elements,), kind, shift=shift)
        run(f"probe_to_storage_{dtype}", x, rounded)
        assert rounded.tobytes() == x.astype(kind).tobytes()


def test_packs_and_groups_pass_the_address_sanitizer():
    launches = []
    for dtype in STORAGE:
        kind = DTYPES[dtype]
        elements = 16 // kind.itemsize
        x, *others = (np.ones(elements, kind) for _ in range(4))
        parts = ((0, elements), (0, elements - 1), (1, elements), (1, 1))
        launches += [
            Launch(
                PROBES, f"probe_part_{dtype}", (1,), (1,),
                (x, *others, np.int32(lo), np.int32(hi)),
            )
            for lo, hi in parts
        ]  # fmt: skip
        wide_x = np.ones(elements, compute_dtype(kind))
        launches.append(Launch(PROBES, f"probe_to_storage_{dtype}", (1,), (1,), (wide_x, x)))
    groups = tuple(np.ones((2, 1, 64), np.float32) for _ in range(3))
    launches.append(Launch(PROBES, "probe_groups", (1,), (64,), groups))
    assert run_sanitized(launches, "address") == ""
    assert run_sanitized(launches[-1:], "thread") == ""


@pytest.mark.parametrize(
    "block", [(1, 64), (2, 32), (8, 8), (16, 4), (32, 2), (64, 1), (96, 1), (1024, 1)], ids=str
)
def test_each_thread_has_the_sum_and_the_maximum_of_its_group(block):
    x = np.random.default_rng(1).integers(-9, 9, (2, block[1], block[0])).astype(np.float32)
    sums, maxima = np.empty_like(x), np.empty_like(x)
    run("probe_groups", x, sums, maxima, block=block)
    assert np.array_equal(sums, np.broadcast_to(x.sum(2, keepdims=True), x.shape))
    assert np.array_equal(maxima, np.broadcast_to(x.max(2, keepdims=True), x.shape))


def test_a_group_has_no_maximum_above_its_own_and_no_nan():
    x = np.full((2, 1, 64), -np.inf, np.float32)
    x[1] = np.nan
    sums, maxima = np.empty_like(x), np.empty_like(x)
    run("probe_groups", x, sums, maxima, block=(64, 1))
    assert np.array_equal(maxima[0], x[0])
    assert np.isnan(sums[1]).all()
    x[1, 0, 3] = -7
    run("probe_groups", x, sums, maxima, block=(64, 1))
    assert (maxima[1] == -7).all()


@pytest.mark.parametrize("large_first", [True, False])
def test_a_compensated_sum_is_right_to_its_last_place(large_first):
    rng = np.random.default_rng(2)
    a, b = (rng.random(1000).astype(np.float32) for _ in range(2))
    a[0 if large_first else -1] = 2.0**20
    out = np.empty(2, np.float32)
    run("probe_compensated", a, b, np.int64(len(a)), out)
    want = np.array([wide(a).sum(), (wide(a) * wide(b)).sum()])
    np.testing.assert_array_max_ulp(out, want.astype(np.float32), 1)


def test_a_compensated_sum_of_products_keeps_what_each_product_lost():
    x, out = np.float32(1 + 2.0**-12), np.empty(2, np.float32)
    a, b = np.array([x, -1], np.float32), np.array([x, x * x], np.float32)
    run("probe_compensated", a, b, np.int64(2), out)
    assert out[1] == 2.0**-24, "x * x is 1 + 2^-11 + 2^-24, rounded 1 + 2^-11"


def test_a_compensated_sum_that_overflows_is_infinite_and_not_nan():
    out = np.empty(2, np.float32)
    large = np.full(3, 3e38, np.float32)
    run("probe_compensated", large, large, np.int64(3), out)
    assert (out == np.inf).all()


@pytest.mark.parametrize(("grid", "block"), [((1,), (32,)), ((5, 3), (16, 4)), ((70,), (256,))])
def test_the_last_block_of_a_grid_adds_the_parts_of_all_and_the_counter_is_0_again(grid, block):
    blocks, threads = int(np.prod(grid)), int(np.prod(block))
    x = np.arange(blocks * threads, dtype=np.float32)
    partial, total, counter = (
        np.empty(blocks, np.float32),
        np.empty(1, np.float32),
        np.zeros(1, "i"),
    )
    for _ in range(2):  # as in a graph that is replayed
        total[0] = np.nan
        Module(PROBES)("probe_last_block", grid, block, (x, partial, total, counter))
        assert total[0] == x.sum(dtype=np.float64)
        assert counter[0] == 0


def test_the_ticket_orders_the_blocks_for_thread_sanitizer():
    arrays = np.ones(192, np.float32), np.empty(3, np.float32), np.empty(1, "f"), np.zeros(1, "i")
    assert (
        run_sanitized([Launch(PROBES, "probe_last_block", (3,), (64,), list(arrays))], "thread")
        == ""
    )
