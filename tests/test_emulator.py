"""The emulator finds what it is there to find: each fault planted in faults.cu by its checker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import emulator
from tests.emulator import EmulatorError, Launch, Module, count_traffic, run_sanitized
from tests.emulator.arrays import Guarded
from tests.emulator.module import HERE

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
FAULTS, PROBE = str(HERE / "faults.cu"), str(HERE / "ptx_probe.cu")


def arguments(count: int = 128) -> tuple[np.ndarray, np.ndarray, np.int64]:
    return np.arange(count, dtype=np.float32), np.zeros(count, np.float32), np.int64(count)


def sanitized(entry: str, mode: str, threads: int = 128, shared: int = 0, clusters: int = 1) -> str:
    grid = (clusters * Module(FAULTS, load=False).clusters[entry],)
    return run_sanitized([Launch(FAULTS, entry, grid, (threads,), arguments(), shared)], mode)


def test_a_kernel_without_fault_computes_and_passes_all_checkers():
    x, y, n = arguments()
    Module(FAULTS)("doubled", (2,), (64,), (x, y, n))
    assert np.array_equal(y, 2 * x)
    assert sanitized("doubled", "address") == ""
    assert sanitized("barrier_in_place", "thread") == ""
    assert sanitized("lanes_in_order", "thread", 32) == ""
    assert sanitized("blocks_apart", "thread", 64, clusters=2) == ""


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("reads_past_the_end", "heap-buffer-overflow"),
        ("writes_before_the_start", "heap-buffer-overflow"),
        ("misaligned", "misaligned address"),
        ("shared_overrun", "index 32 out of bounds"),
        ("dynamic_overrun", "use-after-poison"),
        ("shift_too_far", "shift exponent"),
        ("distributed_overrun", "use-after-poison"),
        ("ends_while_read", "use-after-poison"),
        ("copy_past_the_end", "heap-buffer-overflow"),
    ],
)
def test_address_mode_finds(entry, said):
    threads = {"reads_past_the_end": 129, "ends_while_read": 32}.get(entry, 64)
    report = sanitized(entry, "address", threads, shared=32)
    assert said in report
    assert "faults.cu" in report, "the report must name the line"


@pytest.mark.parametrize(
    ("entry", "threads"),
    [
        ("missing_barrier", 128),
        ("missing_second_barrier", 128),
        ("missing_last_barrier", 128),
        ("lanes_without_barrier", 32),
        ("missing_second_syncwarp", 32),
        ("shuffle_for_a_barrier", 32),
        ("no_barrier_after_copies", 128),
        ("no_cluster_barrier", 32),
        ("missing_second_cluster_barrier", 32),
        ("ends_while_read", 32),
    ],
)
def test_thread_mode_finds_a_missing_barrier_at_its_line(entry, threads):
    report = sanitized(entry, "thread", threads)
    assert "data race" in report
    assert "faults.cu" in report


@pytest.mark.parametrize("entry", ["blocks_in_turn", "blocks_that_write_one_place"])
def test_thread_mode_knows_that_blocks_run_at_the_same_time(entry):
    report = sanitized(entry, "thread", 64, clusters=2)
    assert "data race" in report
    assert "faults.cu" in report


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("half_the_block_waits", "deadlock in block (0, 0, 0)"),
        ("half_the_block_waits", "waits in __shfl_xor_sync"),
        ("one_block_waits", "thread (5, 0, 0) of block (0, 0, 0) waits in cluster_wait"),
        ("waits_without_arrival", "cluster_wait without cluster_arrive"),
        ("no_cluster_to_wait_for", "cluster_arrive in a kernel without a cluster"),
        ("no_cluster_to_read_from", "shared_of_rank in a kernel without a cluster"),
        ("no_such_rank", "shared memory of rank 2 in a cluster of 2"),
        ("rank_of_global_memory", "outside the block's own shared memory"),
        ("misaligned_copy", "asynchronous copy of 8 bytes between misaligned addresses"),
        ("copy_to_global_memory", "outside the block's shared memory"),
        ("source_changes_in_flight", "the source of an asynchronous copy changed before its wait"),
        (
            "destination_changes_in_flight",
            "the destination of an asynchronous copy was written before its wait",
        ),
    ],
)
def test_what_no_card_allows_ends_the_process_with_the_threads_name(entry, said):
    program = (
        "from tests.test_emulator import *; x, y, n = arguments(); module = Module(FAULTS);"
        f"module({entry!r}, (module.clusters[{entry!r}],), (64,), (x, y, n))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=HERE.parents[1]
    )
    assert result.returncode != 0
    assert said in result.stderr


def test_shared_memory_that_was_never_written_is_nan():
    x, y, n = arguments()
    Module(FAULTS)("unwritten_shared", (1,), (64,), (x, y, n), shared=256)
    assert np.isnan(y[:64]).all()


@pytest.mark.parametrize("entry", ["no_wait_for_copies", "waits_for_the_group_before"])
def test_what_a_copy_brings_is_nan_before_its_wait(entry):
    x, y, n = arguments()
    Module(FAULTS)(entry, (1,), (128,), (x, y, n))
    assert np.isnan(y).all()


def test_shared_memory_of_a_block_that_ended_is_nan():
    x, y, n = arguments()
    Module(FAULTS)("ends_while_read", (2,), (32,), (x, y, n))
    assert np.isnan(y[32:63]).all(), "of block 0, which ended before most of block 1 read"


def test_clusters_and_copies_without_fault_pass_the_sanitizers():
    x, y, n = np.ones((2, 101), np.float32), np.zeros(256, np.float32), np.int64(101)
    launches = [
        Launch(PROBE, f"cluster_of_{blocks}", (2 * blocks,), (64,), (x, y, n), shared=4 * 64)
        for blocks in (2, 8)
    ]
    launches.append(Launch(PROBE, "copies", (1,), (128,), (np.ones(256, np.float32), y, n)))
    launches.append(Launch(FAULTS, "cluster_in_order", (4,), (32,), arguments()))
    assert run_sanitized(launches, "address") == ""
    assert run_sanitized(launches, "thread") == ""


def test_a_grid_that_is_no_multiple_of_the_cluster_is_refused():
    with pytest.raises(EmulatorError, match="no multiple of its clusters of 8"):
        Module(PROBE)("cluster_of_8", (12,), (64,), (*arguments()[:2], np.int64(1)))


def test_a_cluster_that_not_every_card_can_run_is_refused(tmp_path):
    source = tmp_path / "wide.cu"
    source.write_text(
        'extern "C" __global__ void __cluster_dims__(16, 1, 1) wide(float* y) { y[0] = 1; }'
    )
    with pytest.raises(EmulatorError, match="from 1 to 8"):
        Module(source)


def test_another_order_of_threads_shows_what_depends_on_it():
    x, y, n = arguments()
    results = set()
    for rotation in (0, 1, 6):
        Module(FAULTS)("in_order_of_threads", (1,), (64,), (x, y, n), rotation=rotation)
        results.add(float(y[0]))
    assert len(results) > 1


def test_traffic_counts_bytes_and_sectors():
    module = Module(FAULTS, "traffic")
    x, y = (Guarded().normal((128,), np.float32) for _ in range(2))  # on a sector's start
    read, written, _ = count_traffic(module, "doubled", (2,), (64,), (x, y, np.int64(128)))
    assert (read.reads, read.writes, written.reads, written.writes) == (1, 0, 0, 1)
    assert read.sectors_per_minimum == written.sectors_per_minimum == 1
    _, apart, _ = count_traffic(
        module,
        "strided",
        (1,),
        (16,),
        (*arguments(16)[:1], np.zeros(128, np.float32), np.int64(16)),
    )
    assert apart.sectors_per_minimum == 8, "each store touches a sector of its own"
    again, _, _ = count_traffic(module, "twice", (1,), (128,), arguments())
    assert again.reads == 2


def test_traffic_refuses_an_access_outside_the_buffers():
    with pytest.raises(EmulatorError, match="just outside a buffer"):
        count_traffic(Module(FAULTS, "traffic"), "reads_past_the_end", (1,), (129,), arguments())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y, n: (x, y), "takes 3 arguments"),
        (lambda x, y, n: (x, y, 128), "wants numpy.int64, got int"),
        (lambda x, y, n: (x, y, np.int32(128)), "wants numpy.int64, got int32"),
        (lambda x, y, n: (x, 1.0, n), "wants an array"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(change, said):
    with pytest.raises(EmulatorError, match=said):
        Module(FAULTS)("doubled", (1,), (64,), change(*arguments()))


@pytest.mark.parametrize(
    ("grid", "block"), [((0,), (64,)), ((1, 65536), (64,)), ((1,), (1025,)), ((1,), (64, 32))]
)
def test_a_launch_that_no_card_takes_is_refused(grid, block):
    with pytest.raises(EmulatorError, match=r"no valid launch|more than 1024"):
        Module(FAULTS)("doubled", grid, block, arguments())


def test_all_libraries_of_a_process_share_the_stacks_of_their_threads():
    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    x, y, n = arguments(4096)
    Module(FAULTS)("doubled", (1,), (1024,), (x, y, n))
    before = mappings()
    Module(PROBE)("streams", (1,), (1024,), (x, np.zeros(8192, np.float32), np.int64(1024)))
    assert mappings() - before < 100, "a stack and its guard are two mappings; a process has 65,530"


def test_an_edited_header_is_compiled_again(tmp_path):
    (tmp_path / "factor.cuh").write_text("#define FACTOR 2")
    source = tmp_path / "scale.cu"
    source.write_text(
        '#include "factor.cuh"\n'
        'extern "C" __global__ void scale(float* y) { y[threadIdx.x] *= FACTOR; }'
    )
    y = np.ones(4, np.float32)
    Module(source)("scale", (1,), (4,), (y,))
    (tmp_path / "factor.cuh").write_text("#define FACTOR 5")
    from tests.emulator.module import _preprocess

    _preprocess.cache_clear()
    Module(source)("scale", (1,), (4,), (y,))
    assert (y == 10).all()


def test_a_source_that_does_not_compile_says_where(tmp_path):
    source = tmp_path / "broken.cu"
    source.write_text('extern "C" __global__ void broken(float* y) { y[0] = nothing; }')
    with pytest.raises(EmulatorError, match=r"broken\.cu:1"):
        Module(source)
