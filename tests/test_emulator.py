"""The emulator finds what it is there to find: each fault planted in faults.cu by its checker."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests import emulator
from tests.emulator import EmulatorError, Launch, Module, count_traffic, run_sanitized
from tests.emulator.arrays import Guarded
from tests.emulator.module import HERE

pytestmark = pytest.mark.skipif(
    bool(emulator.missing_compiler()), reason=emulator.missing_compiler() or "-"
)
FAULTS = str(HERE / "faults.cu")


def arguments(count: int = 128) -> tuple[np.ndarray, np.ndarray, np.int64]:
    return np.arange(count, dtype=np.float32), np.zeros(count, np.float32), np.int64(count)


def sanitized(entry: str, mode: str, threads: int = 128, shared: int = 0) -> str:
    return run_sanitized([Launch(FAULTS, entry, (1,), (threads,), arguments(), shared)], mode)


def test_a_kernel_without_fault_computes_and_passes_all_checkers():
    x, y, n = arguments()
    Module(FAULTS)("doubled", (2,), (64,), (x, y, n))
    assert np.array_equal(y, 2 * x)
    assert sanitized("doubled", "address") == ""
    assert sanitized("barrier_in_place", "thread") == ""


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("reads_past_the_end", "heap-buffer-overflow"),
        ("writes_before_the_start", "heap-buffer-overflow"),
        ("misaligned", "misaligned address"),
        ("shared_overrun", "index 32 out of bounds"),
        ("dynamic_overrun", "use-after-poison"),
        ("shift_too_far", "shift exponent"),
    ],
)
def test_address_mode_finds(entry, said):
    report = sanitized(
        entry, "address", threads=129 if entry == "reads_past_the_end" else 64, shared=32
    )
    assert said in report
    assert "faults.cu" in report, "the report must name the line"


@pytest.mark.parametrize("entry", ["missing_barrier", "lanes_without_barrier"])
def test_thread_mode_finds_a_missing_barrier_at_its_line(entry):
    report = sanitized(entry, "thread", threads=128 if entry == "missing_barrier" else 32)
    assert "data race" in report
    assert "faults.cu" in report


def test_a_barrier_that_half_the_threads_miss_is_a_deadlock_with_names():
    program = (
        "from tests.test_emulator import *; x, y, n = arguments();"
        "Module(FAULTS)('half_the_block_waits', (1,), (64,), (x, y, n))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=HERE.parents[1]
    )
    assert result.returncode != 0
    assert "deadlock in block (0, 0, 0)" in result.stderr
    assert "waits in __shfl_xor_sync" in result.stderr


def test_shared_memory_that_was_never_written_is_nan():
    x, y, n = arguments()
    Module(FAULTS)("unwritten_shared", (1,), (64,), (x, y, n), shared=256)
    assert np.isnan(y[:64]).all()


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
