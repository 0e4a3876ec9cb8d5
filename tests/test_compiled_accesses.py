"""Compiled kernels on aligned arrays, executed on the CPU: the width of every access to memory, the
loads of a thread that are in flight together, and the wavefronts in shared memory.

The compiler's work is looked at, and not the source's promise: a store that the compiler splits, or a
load that it moves behind a branch, shows here. It needs NVRTC (or nvcc) and nvdisasm, and no GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends.cupy.updates import COEFFICIENTS, PROCEED
from gpubackprop.backends.cupy_launch import KERNELS, TABLE_CHUNK, DeviceProperties, entries
from gpubackprop.dtypes import compute_dtype
from gpubackprop.formulas import UPDATES, Dropout
from gpubackprop.formulas.dropout import random_state
from tests.emulator import compilers, missing_compiler
from tests.emulator.arrays import Guarded
from tests.emulator.cupy_stub import Launched
from tests.emulator.operations import DTYPES, Operations, pointer_table, record
from tests.emulator.sass_run import Warp, program, run

MISSING = (
    missing_compiler()
    or (compilers.compiler() is None and compilers.NONE_FOUND)
    or (compilers.disassembler() is None and compilers.NO_DISASSEMBLER)
)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")
SHAPE = (64, 256)  # packs for each thread of two strips, and four rows for each
Streams = list[tuple[str, np.ndarray, int]]  # LDG or STG, the array, elements of a pack


class Compiled(Operations):
    """Executes each launch in the compiled code; keeps what the warps were charged, by entry."""

    def __init__(self, also: tuple[np.ndarray, ...] = ()) -> None:
        super().__init__(self._execute, DeviceProperties(1))
        self.warps: dict[str, list[Warp]] = {}
        self.launched: dict[str, Launched] = {}
        self.also = also

    def _execute(self, launched: Launched) -> None:
        code = program(launched.source, launched.entry, launched.defines)
        blocks = range(launched.grid[0] * launched.grid[1])
        self.launched[launched.entry] = launched
        self.warps[launched.entry] = run(code, launched, blocks, also=self.also)

    def only(self, kernel: str) -> Launched:
        """Return the launch of that kernel."""
        (launched,) = [one for name, one in self.launched.items() if name.startswith(kernel)]
        return launched


def moved(warps: list[Warp]) -> Counter[tuple[str, int]]:
    """Return bytes by instruction and width.

    Left out are numbers that all lanes of a warp share, and what a request has in one sector.
    """
    bytes_of: Counter[tuple[str, int]] = Counter()
    for warp in warps:
        for access in warp.memory:
            if access.cost >= access.least > access.requests:
                name = access.opcode.partition(".")[0]
                bytes_of[name, access.width] += access.least * 32
    return bytes_of


def promised(streams: Streams) -> Counter[tuple[str, int]]:
    """Return what `moved` is to be: each array in accesses of 16 bytes, or of its whole pack."""
    bytes_of: Counter[tuple[str, int]] = Counter()
    for name, array, pack in streams:
        bytes_of[name, min(16, pack * array.itemsize)] += array.nbytes
    return bytes_of


# -- one function for each kernel: its launch on aligned arrays, and their streams ------------------


def epilogue(verbs: Compiled, memory: Guarded, formula: str, dtype: str, drop: Any) -> Streams:
    kind, *product_kind = (DTYPES[part] for part in dtype.split("_"))
    product = memory.normal(SHAPE, (product_kind or [kind])[0])
    a, h, bias = memory.empty(SHAPE, kind), memory.empty(SHAPE, kind), memory.normal((256,), kind)
    verbs.affine_epilogue(product, bias, a, h, formula, 0.5, drop)
    pack = 16 // kind.itemsize
    rows = 8 * verbs.only("affine_epilogue").grid[1]  # of threads: each reads all of the bias
    biases = np.tile(bias, rows)
    return [("LDG", product, pack), ("LDG", biases, pack), ("STG", a, pack), ("STG", h, pack)]


def backward(verbs: Compiled, memory: Guarded, formula: str, dtype: str, drop: Any) -> Streams:
    kind = DTYPES[dtype]
    grad, saved = memory.normal(SHAPE, kind), memory.normal(SHAPE, kind)
    delta = memory.empty(SHAPE, kind)
    verbs.activation_backward(grad, saved, delta, formula, 0.5, None, drop)
    pack = 16 // kind.itemsize
    reads = [("LDG", saved, pack)] if formula != "identity" else []
    return [("LDG", grad, pack), *reads, ("STG", delta, pack)]


def sums(verbs: Compiled, memory: Guarded, formula: str, dtype: str, drop: Any) -> Streams:
    kind = DTYPES[dtype]
    x = memory.normal(SHAPE, kind)
    verbs.column_sum(x, memory.empty(SHAPE[1:], kind))
    partial = verbs.launched[f"column_sum_{dtype}"].arguments[0].arrays["partial"]
    return [("LDG", x, 16 // kind.itemsize), ("STG", partial, 1)]


def pointwise(verbs: Compiled, memory: Guarded, formula: str, dtype: str, drop: Any) -> Streams:
    kind = DTYPES[dtype]
    a, delta = memory.normal(SHAPE, kind), memory.empty(SHAPE, kind)
    targets = memory.put(memory.rng.random(SHAPE).astype(compute_dtype(kind)))
    result = {"row_loss": memory.empty(SHAPE[:1], targets.dtype), "delta": delta}
    verbs.pointwise_loss(a, targets, formula, result)
    pack = 16 // kind.itemsize
    return [("LDG", a, pack), ("LDG", targets, pack), ("STG", delta, pack)]


def squares(verbs: Compiled, memory: Guarded, formula: str, dtype: str, drop: Any) -> Streams:
    x = memory.normal((8192,), DTYPES[dtype])
    verbs.sum_of_squares(x, memory.empty((2,), compute_dtype(x.dtype)))
    return [("LDG", x, 16 // x.itemsize)]


def gather(verbs: Compiled, memory: Guarded, formula: str, dtype: str, drop: Any) -> Streams:
    source, out = (
        memory.put(np.ones((8, 1024), DTYPES[formula])),
        memory.empty((8, 1024), DTYPES[dtype]),
    )
    verbs.gather_rows(source, memory.rng.permutation(8), out)
    pack = 16 // out.itemsize
    return [("LDG", source, pack), ("STG", out, pack)]


def parameters(memory: Guarded, count: int, formula: str, dtype: str) -> tuple[Any, ...]:
    first, *rest = (DTYPES[part] for part in dtype.split("_"))
    p, g = memory.normal((count,), first), memory.normal((count,), (rest or [first])[0])
    compute = compute_dtype(first)
    slots = tuple(
        memory.put(memory.rng.random(count).astype(compute)) for _ in UPDATES[formula].slots
    )
    copy = memory.empty((count,), rest[-1]) if rest else None
    return p, g, slots, copy, 16 // compute.itemsize


def update(verbs: Compiled, memory: Guarded, formula: str, dtype: str, drop: Any) -> Streams:
    p, g, slots, copy, pack = parameters(memory, 2048, formula, dtype)
    c = np.full(COEFFICIENTS, 0.5, compute_dtype(p.dtype))
    verbs.update(formula, p, g, slots, c, copy)
    written = [p, *slots] if copy is None else [p, *slots, copy]
    return [*(("LDG", x, pack) for x in (p, g, *slots)), *(("STG", x, pack) for x in written)]


def table(verbs: Compiled, memory: Guarded, formula: str, dtype: str, drop: Any) -> Streams:
    p, g, slots, _, pack = parameters(memory, TABLE_CHUNK, formula, dtype)
    tensor = {"p": p, "g": g, "slots": slots, "step": np.ones(1, np.float32), "group": 0}
    words, owner = pointer_table([tensor])
    c = np.full((1, COEFFICIENTS), 0.5, compute_dtype(p.dtype))
    c[0, PROCEED] = 1
    entry = f"update_table_{formula}_{dtype}"
    arguments = record(entry, table=words, owner=owner, c=c)
    verbs.also = (p, g, *slots)
    (place,) = [(source, defines) for source, name, defines in entries() if name == entry]
    verbs._execute(Launched(place[0], entry, place[1], (1, 1, 1), (256, 1, 1), (arguments,), 0))
    return [*(("LDG", x, pack) for x in (p, g, *slots)), *(("STG", x, pack) for x in (p, *slots))]


LAUNCHES: dict[str, Callable[..., Streams]] = {
    "affine_epilogue": epilogue, "affine_epilogue_dropout": epilogue,
    "activation_backward": backward, "activation_backward_dropout": backward,
    "column_sum": sums, "pointwise_loss": pointwise, "sum_of_squares": squares,
    "gather_rows": gather, "update": update, "update_table": table,
}  # fmt: skip


def execute(kernel: str, formula: str, dtype: str) -> tuple[list[Warp], Streams]:
    verbs, drop = Compiled(), None
    if kernel.endswith("_dropout"):
        drop = Dropout(0.5, 0, random_state(1, 2))
    streams = LAUNCHES[kernel](verbs, Guarded(), formula, dtype, drop)
    name = "_".join(part for part in (kernel, formula, dtype) if part)
    return verbs.warps[name], streams


EVERY = [
    (kernel, formula, dtype)
    for kernel in LAUNCHES
    for formula, dtype in KERNELS[kernel].combinations()
]


@pytest.mark.slow
@pytest.mark.sweep(keep=16)
@pytest.mark.parametrize(("kernel", "formula", "dtype"), EVERY)
def test_every_access_of_an_entry_to_aligned_arrays_is_as_wide_as_promised(kernel, formula, dtype):
    warps, streams = execute(kernel, formula, dtype)
    assert moved(warps) == promised(streams)


def trips(warps: list[Warp]) -> int:
    return max(warp.trips for warp in warps)


def test_a_thread_of_a_strip_has_its_rows_in_flight_together_and_a_tail_too():
    """Four packs of two matrices. 27 rows are three steps of eight and three more: no trip more."""
    for rows in (31, 27):
        verbs, memory = Compiled(), Guarded()
        grad, h, delta = (memory.normal((rows, 256), np.float32) for _ in range(3))
        verbs.activation_backward(grad, h, delta, "tanh")
        warps = verbs.warps["activation_backward_tanh_f32"]
        assert trips(warps) == 1
        assert warps[0].flight == [32 * 2 * 4 * 16]
        verbs.column_sum(grad, memory.empty((256,), np.float32))
        assert trips(verbs.warps["column_sum_f32"]) == 1


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_bias_is_loaded_in_packs_with_the_rows(dtype):
    verbs, memory, kind = Compiled(), Guarded(), DTYPES[dtype]
    columns = 1024 // kind.itemsize  # two strips
    product, bias = memory.normal((31, columns), kind), memory.normal((columns,), kind)
    verbs.affine_epilogue(product, bias, None, product, "relu")
    warps = verbs.warps[f"affine_epilogue_relu_{dtype}"]
    assert trips(warps) == 1
    assert warps[0].flight == [32 * (4 * 16 + 16)]


def test_the_second_stage_of_a_column_sum_has_eight_terms_in_flight():
    verbs, memory = Compiled(), Guarded()
    partial, out = memory.normal((512, 8), np.float32), memory.empty((8,), np.float32)
    entry, macros = "column_sum_finish_f32", (("ONLY_DTYPE", "f32"),)
    arguments = record(entry, partial=partial, out=out, divisor=1.0, rows=512, cols=8)
    verbs._execute(Launched("column_sum.cu", entry, macros, (1, 1, 1), (8, 64, 1), (arguments,), 0))
    assert trips(verbs.warps[entry]) == 1
    assert verbs.warps[entry][0].flight == [32 * 8 * 4]
    assert np.allclose(out, partial.sum(0), atol=1e-4)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
def test_column_totals_meet_no_bank_twice(dtype):
    """But for the sums of two columns that a warp folds into one."""
    warps, _ = execute("column_sum", "", dtype)
    for access in (access for warp in warps for access in warp.shared):
        assert access.cost == access.least


def test_an_update_asks_for_its_coefficients_once_and_at_once():
    """Eleven numbers, then the packs of Adam's four arrays: two round trips, whatever the rest."""
    warps, _ = execute("update", "adam", "f32_bf16")
    assert trips(warps) == 2
    assert warps[0].flight == [32 * 11 * 4, 32 * (3 * 16 + 8)]


def test_a_block_of_a_table_finds_its_tensor_by_one_load():
    """The chunk's tensor; its addresses and coefficients; then four packs of each array in turn."""
    warps, _ = execute("update_table", "adam", "f32")
    assert trips(warps) == 2 + TABLE_CHUNK // (256 * 4)
    assert warps[0].flight[2:] == [32 * 4 * 16] * 4


def test_flat_kernels_have_four_packs_in_flight():
    x, norm = Guarded().normal((256 * 4 * 4,), np.float32), np.empty(2, np.float32)
    verbs = Compiled()
    verbs.sum_of_squares(x, norm)
    assert trips(verbs.warps["sum_of_squares_f32"]) == 1
    source, out = np.ones((8, 2040), np.uint8), Guarded().empty((8, 2040), np.float32)
    verbs.gather_rows(source, np.arange(8), out)
    warps = verbs.warps["gather_rows_u8_f32"]
    assert (trips(warps), warps[0].flight[1]) == (2, 32 * 4 * 4)


def test_a_row_of_a_pointwise_loss_has_two_packs_of_both_matrices_in_flight():
    warps, _ = execute("pointwise_loss", "squared_error", "f32")
    assert trips(warps) == 1
    assert warps[0].flight == [32 * 2 * 2 * 16]
