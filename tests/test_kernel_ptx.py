"""kernels/include/ptx.cuh: each group of wrappers through its entry in emulator/ptx_probe.cu."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.precision import round_to_tf32
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


def test_numbers_are_rounded_to_tf32_as_numpy_s_path_rounds_them():
    rng = np.random.default_rng(0)
    ties = (np.arange(4096, dtype=np.uint32) << 12) + np.uint32(0x3F800000)
    edges = np.uint32(
        [0, 0x80000000, 0x7F7FFFFF, 0x7F7FEFFF, 1, 0x1000, 0x1001, 0x7F800000, 0xFF800000]
    )
    bits = np.concatenate(
        [ties, ties - 1, ties + 1, edges, rng.integers(0, 2**32, 20_000, np.uint32)]
    )
    x = bits.view(np.float32)
    x = np.ascontiguousarray(x[~np.isnan(x)])
    found, wanted = np.empty(x.size, np.uint32), np.empty(x.size, np.float32)
    Module(PROBE)("tf32_of", (1,), (64,), (x, found, np.int64(x.size)))
    round_to_tf32(x, wanted)
    assert np.array_equal(found, wanted.view(np.uint32))


def test_a_nan_in_tf32_is_a_nan_whatever_bits_the_card_reads():
    x = np.uint32([0x7F800001, 0x7FC00000, 0xFFFFFFFF, 0xFF800001]).view(np.float32)
    found = np.empty(x.size, np.uint32)
    Module(PROBE)("tf32_of", (1,), (32,), (x, found, np.int64(x.size)))
    assert not (found & np.uint32(0x1FFF)).any()
    assert np.isnan(found.view(np.float32)).all()


def fragments(A: np.ndarray, B: np.ndarray, C: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return what the lanes have of A (16, 8), B (8, 8) and C (16, 8).

    By the tables of "Matrix Fragments for mma.m16n8k8" of the PTX ISA: groupID and
    threadID_in_group are a lane's number divided by 4, and the rest.
    """
    group, thread = np.divmod(np.arange(32), 4)
    a = [
        A[group, thread], A[group + 8, thread], A[group, thread + 4], A[group + 8, thread + 4]
    ]  # fmt: skip
    b = [B[thread, group], B[thread + 4, group]]
    c = [C[group + 8 * (i // 2), 2 * thread + i % 2] for i in range(4)]
    return np.stack(a, 1), np.stack(b, 1), np.stack(c, 1)


@pytest.mark.parametrize("rotation", [0, 1, 6])
def test_a_warp_multiplies_matrices_by_the_fragments_of_the_ptx_isa(rotation):
    """All numbers are different and odd, and every sum is exact."""
    A = (2 * np.arange(128, dtype=np.float32) + 1).reshape(16, 8)
    B = (2 * np.arange(64, dtype=np.float32)[::-1] - 63).reshape(8, 8)
    C = (1000 * np.arange(128, dtype=np.float32) + 7).reshape(16, 8)
    a, b, found = fragments(A, B, C)
    launch = "tensor_cores", (1,), (32,), (a.view(np.uint32), b.view(np.uint32), found)
    Module(PROBE)(*launch, rotation=rotation)
    assert np.array_equal(found, fragments(A, B, C + 2 * (A @ B))[2])


def test_what_is_not_finite_in_a_row_or_a_column_stays_there():
    rng = np.random.default_rng(1)
    A, B = (np.float32(rng.integers(-9, 10, shape)) for shape in ((16, 8), (8, 8)))
    C = np.zeros((16, 8), np.float32)
    A[5, 3], B[6, 2] = np.nan, np.inf
    A[A == 0] = 1
    with np.errstate(invalid="ignore"):
        wanted = 2 * (A @ B)
    a, b, found = fragments(A, B, C)
    Module(PROBE)("tensor_cores", (1,), (32,), (a.view(np.uint32), b.view(np.uint32), found))
    whole = fragments(A, B, wanted)[2]
    assert (np.isnan(whole).sum(), np.isinf(whole).sum()) == (8, 15)
    assert np.array_equal(found, whole, equal_nan=True)


@pytest.mark.parametrize("rotation", [0, 5])
def test_one_thread_publishes_two_words_that_belong_together(rotation):
    words = np.zeros(2, np.uint64)
    Module(PROBE)("publishing", (1,), (64,), (words,), rotation=rotation)
    assert words[1] == words[0] + 98
    assert 2 <= words[0] < 66
    was = words.copy()
    Module(PROBE)("publishing", (1,), (64,), (words,))
    assert np.array_equal(words, was)
