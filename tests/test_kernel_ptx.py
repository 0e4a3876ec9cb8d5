"""kernels/include/ptx.cuh: each group of wrappers through its entry in emulator/ptx_probe.cu."""

from __future__ import annotations

import numpy as np
import pytest

from tests import emulator
from tests.emulator import Module, count_traffic
from tests.emulator.arrays import Guarded
from tests.emulator.module import HERE

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
PROBE = str(HERE / "ptx_probe.cu")


def test_asynchronous_copies_arrive_group_by_group_and_count_as_reads():
    x, y = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    Module(PROBE)("copies", (1,), (128,), (x, y, np.int64(256)))
    assert np.array_equal(y, x[np.arange(256) ^ 64])
    source = Guarded().normal((256,), np.float32)
    read, *_ = count_traffic(
        Module(PROBE, "traffic"), "copies", (1,), (128,), (source, y, np.int64(256))
    )
    assert (read.reads, read.widest, read.sectors_per_minimum) == (1, 16, 1)


@pytest.mark.parametrize("blocks", [2, 8])
@pytest.mark.parametrize("rotation", [0, 1, 6])
def test_blocks_of_a_cluster_share_sums_through_distributed_memory(blocks, rotation):
    rows, cols = 3, 101
    x = np.arange(rows * cols, dtype=np.float32).reshape(rows, cols)
    y = np.zeros(rows, np.float32)
    launch = f"cluster_of_{blocks}", (rows * blocks,), (64,), (x, y, np.int64(cols))
    Module(PROBE)(*launch, shared=4 * 64, rotation=rotation)
    assert np.array_equal(y, x.sum(1))
    if rotation:
        return
    read, written, _ = count_traffic(Module(PROBE, "traffic"), *launch, shared=4 * 64)
    assert (read.reads, written.writes) == (1, 1), "distributed shared memory is no global memory"


def test_streams_and_exponentials_equal_their_plain_forms():
    x, y = (Guarded().normal((size,), np.float32) for size in (128, 256))
    Module(PROBE)("streams", (1,), (32,), (x, y, np.int64(32)))
    assert np.array_equal(y, np.tile(x, 2))
    x[:6] = -126.5, -149, -150, np.inf, np.nan, -126
    Module(PROBE)("exponentials", (1,), (128,), (x, y, np.int64(128)))
    want = np.exp2(x.astype(np.float64)).astype(np.float32)
    tiny = np.finfo(np.float32).tiny
    np.testing.assert_array_max_ulp(y[6:128], want[6:], 1)
    assert np.array_equal(y[:6], want[:6], equal_nan=True)
    assert np.array_equal(y[128:134], np.where(want[:6] < tiny, 0, want[:6]), equal_nan=True)


@pytest.mark.parametrize("rotation", [0, 5])
def test_one_thread_publishes_two_words_that_belong_together(rotation):
    words = np.zeros(2, np.uint64)
    Module(PROBE)("publishing", (1,), (64,), (words,), rotation=rotation)
    assert words[1] == words[0] + 98
    assert 2 <= words[0] < 66
    was = words.copy()
    Module(PROBE)("publishing", (1,), (64,), (words,))
    assert np.array_equal(words, was)
