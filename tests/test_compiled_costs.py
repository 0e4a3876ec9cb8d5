"""Compiled kernels executed on the CPU: values, instructions, dependent round trips, bytes in flight.

It needs NVRTC (or nvcc) and nvdisasm, and no GPU.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks import model
from gpubackprop.backends.cupy_launch import DeviceProperties
from tests.emulator import compilers, missing_compiler
from tests.emulator.arrays import Guarded
from tests.emulator.cupy_stub import Launched
from tests.emulator.module import HERE, Module
from tests.emulator.operations import DTYPES, SMALL, Operations, run_now
from tests.emulator.sass_run import Warp, program, run, run_values
from tools.counted_cases import loss
from tools.counts import counted

MISSING = (
    missing_compiler()
    or (compilers.compiler() is None and compilers.NONE_FOUND)
    or (compilers.disassembler() is None and compilers.NO_DISASSEMBLER)
)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")
COSTS = str(HERE / "costs.cu")
ONE = DeviceProperties(1, 232_448, (9, 0))


def warps(entry: str, threads: int = 32, n: int = 3) -> tuple[list[Warp], np.ndarray]:
    """Execute one block of costs.cu; return what its warps cost and what it wrote."""
    x, y, expected = (Guarded().put(np.zeros(1024, np.float32)) for _ in range(3))
    x[:] = np.arange(1024)[::-1]
    parameters = np.array([x.ctypes.data, y.ctypes.data, n], np.uint64).tobytes()
    result = run_values(program(COSTS, entry, ()), (1,), (threads,), parameters, (x, y))
    Module(COSTS)(entry, (1,), (threads,), (x, expected, np.int64(n)))
    assert np.array_equal(y, expected)
    return result, y


@pytest.mark.parametrize(
    ("entry", "trips", "flight"),
    [
        ("trips_1_of_two_loads", 1, [256]),
        ("trips_2_by_an_address", 2, [128, 128]),
        ("trips_2_by_a_predicate", 2, [128, 128]),
        ("trips_2_by_a_wait", 2, [128, 128]),
        ("trips_n_of_a_chain", 3, [128, 128, 128]),
        ("trips_3_by_a_lane", 3, [4, 4, 128]),
        ("trips_2_by_a_copy", 2, [128, 128]),
        ("four_packs_in_flight", 1, [32 * 64]),
    ],
)
def test_round_trips_and_bytes_in_flight_of_a_warp_are_those_counted_by_hand(entry, trips, flight):
    (warp,), _ = warps(entry)
    assert (warp.trips, warp.flight) == (trips, flight)


def test_warps_wait_at_a_barrier_for_the_round_trips_of_another():
    (first, second), _ = warps("trips_3_by_a_barrier", threads=64)
    assert (first.trips, second.trips) == (3, 3)
    assert (first.flight, second.flight) == ([0, 0, 128], [4, 4, 128])


@pytest.mark.parametrize(
    ("entry", "stride", "wavefronts"), [("banks_4", 8, 8), ("banks_16", 2, 8), ("banks_copy", 2, 8)]
)
def test_compiled_accesses_to_shared_memory_cost_the_wavefronts_of_the_emulators_count(
    entry, stride, wavefronts
):
    (warp,), _ = warps(entry, n=stride)
    assert [(a.requests, a.cost) for a in warp.shared] == [(1, wavefronts)] * 2


def test_votes_are_those_of_all_lanes():
    _, y = warps("votes")  # x is 1023, 1022, ...: 1000 is in lane 23, three lanes are above 1020
    assert (y[:32] == 1 + 2 + 4 * 0b111).all()


def test_a_warps_requests_to_memory_cost_their_sectors():
    (warp,), _ = warps("four_packs_in_flight")
    assert {(a.opcode.partition(".")[0], a.width, a.requests, a.cost, a.least) for a in warp.memory} == {
        ("LDG", 16, 1, 16, 16), ("STG", 16, 1, 16, 16)
    }  # fmt: skip
    assert warp.mix["LDG"] == warp.mix["STG"] == 4
    (warp,), _ = warps("trips_2_by_an_address", n=0)
    assert sum(a.cost for a in warp.memory) == 3 * 4, "32 words are four sectors, in any order"


class Compared(Operations):
    """Executes each launch in the compiled code, and holds what it writes to the emulator's."""

    def __init__(self, device: DeviceProperties = SMALL) -> None:
        super().__init__(self._compare, device)
        self.entries: list[str] = []

    def _compare(self, launched: Launched) -> None:
        code = program(launched.source, launched.entry, launched.defines)
        (record,) = launched.arguments
        before = {name: array.copy() for name, array in record.arrays.items()}
        cluster = re.search(r"cluster(\d)", launched.entry)
        size = int(cluster[1]) if cluster else 1
        run(code, launched, range(launched.grid[0] * launched.grid[1] // size), size)
        compiled = {name: array.copy() for name, array in record.arrays.items()}
        for name, array in record.arrays.items():
            array[...] = before[name]
        run_now(launched)
        for name, array in record.arrays.items():
            assert array.dtype == compiled[name].dtype
            np.testing.assert_allclose(
                compiled[name].astype(np.float64), array.astype(np.float64),
                rtol=2e-2 if array.itemsize == 2 else 1e-5, atol=1e-5,
            )  # fmt: skip
        self.entries.append(launched.entry)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_executed_code_computes_what_the_emulator_computes(dtype):
    """So what it counts is on the path that real numbers take."""
    rng, kind = np.random.default_rng(0), DTYPES[dtype]

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(kind)

    compared = Compared()
    for classes in (10, 300):
        z, result = normal(5, classes), {"row_loss": np.empty(5, np.float32)}
        result["delta"] = np.empty_like(z)
        compared.softmax_cross_entropy(z, np.arange(5) * 2, result)
    compared.activation_backward(
        normal(40, 24), normal(40, 24), normal(40, 24), "tanh", 0.0, normal(24)
    )
    compared.affine_epilogue(normal(9, 24), normal(24), None, normal(9, 24), "gelu")
    compared.sum_of_squares(normal(900), np.empty(2, np.float32))
    compared.gather_rows(
        rng.integers(0, 255, (8, 50)).astype(np.uint8), np.arange(8)[::-1].copy(), normal(8, 50)
    )
    clustered = Compared(DeviceProperties(2, 232_448, (9, 0)))
    z, result = normal(2, 3000), {"row_loss": np.empty(2, np.float32), "delta": normal(2, 3000)}
    clustered.softmax_cross_entropy(z, np.arange(2), result, cluster=2)
    assert len(compared.entries) >= 7
    assert "cluster2" in clustered.entries[0]


def executed(dtype: str, cols: int) -> list[Warp]:
    """Execute a block of pairs of rows, 256 rows of random logits; return its warps."""
    memory, found = Guarded(1), []

    def counting(launched: Launched) -> None:
        assert "pairs" in launched.entry
        found.extend(run(program(launched.source, launched.entry, launched.defines), launched))

    z = memory.normal((256, cols), DTYPES[dtype])
    result = {"delta": memory.empty(z.shape, z.dtype), "row_loss": np.empty(256, np.float32)}
    labels = memory.put(np.arange(256) % cols)
    Operations(counting, ONE).softmax_cross_entropy(z, labels, result)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "cols"),
    [("f32", 3), ("f32", 6), ("f32", 8), ("f32", 10), ("f32", 16), ("f32", 24), ("f32", 32),
     ("bf16", 5), ("bf16", 6), ("bf16", 12), ("bf16", 16), ("bf16", 32)],
)  # fmt: skip
def test_pairs_of_rows_meet_in_no_bank(dtype, cols):
    """The label's own logit and gradient, of one element, are where the data say."""
    for warp in executed(dtype, cols):
        pieces = [a for a in warp.shared if a.width > DTYPES[dtype].itemsize]
        assert {a.opcode.partition(".")[0] for a in pieces} >= {"LDS", "STS"}
        assert [a for a in pieces if a.cost > a.least] == []


@pytest.mark.parametrize(("dtype", "most"), [("bf16", 21.6), ("f16", 20.9)])
def test_what_a_row_of_16_bits_in_registers_executes(dtype, most):
    """With all that a row costs a warp, of 32 elements a thread; two rows a block, and four.

    16 are wanted. A path through the loop over rows had 15.7; what is executed was 21.4 then.
    """
    launches = [loss(rows * 264, 8192, dtype)().launches[0] for rows in (2, 4)]
    two, four = (launch.instructions / 8 for launch in launches)  # of a warp
    assert (four - two) / 2 / 32 <= most


@pytest.mark.slow
def test_a_row_of_ten_float32_takes_at_most_eight_warp_instructions():
    """All of the launch over its rows, by 32: what an element takes, times ten. It was 54, then 20."""
    case = counted("softmax_cross_entropy/f32/1048576x10")
    (launch,) = case.launches
    instructions = launch.instructions * launch.blocks + launch.end_instructions
    assert instructions / (case.elements / 10) <= 8
    assert model.share(case.launches, case.bytes) > 0.88


@pytest.mark.slow
def test_pairs_of_rows_compute_what_the_emulator_computes():
    compared = Compared(ONE)
    rng = np.random.default_rng(0)
    for dtype, cols in (("f32", 10), ("f32", 8), ("bf16", 5), ("f16", 12)):
        memory = Guarded(2)
        z = memory.normal((90, cols), DTYPES[dtype], scale=3)
        z[7, 1] = -np.inf
        result = {
            "delta": memory.empty(z.shape, z.dtype), "row_loss": np.empty(90, np.float32),
            "loss": np.empty((), np.float32), "correct_rows": np.empty((), np.int64),
        }  # fmt: skip
        y = memory.put(rng.integers(0, cols, 90))
        y[40] = y[7] = 0
        compared.softmax_cross_entropy(z, y, result, ignore_index=0, weigh=2)
    assert all("pairs" in entry for entry in compared.entries)
