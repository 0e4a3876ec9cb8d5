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
from gpubackprop.formulas import ACTIVATIONS, UPDATES, Dropout
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
        self.also = also

    def _execute(self, launched: Launched) -> None:
        code = program(launched.source, launched.entry, launched.defines)
        blocks = range(launched.grid[0] * launched.grid[1])
        self.warps[launched.entry] = run(code, launched, blocks, also=self.also)


def moved(warps: list[Warp]) -> Counter[tuple[str, int]]:
    """Return bytes by instruction and width, without numbers that all lanes of a warp share."""
    bytes_of: Counter[tuple[str, int]] = Counter()
    for warp in warps:
        for access in warp.memory:
            if access.cost >= access.least:
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
    rows_of_threads = memory.put(np.tile(bias, (8, 1)))  # each row of threads reads all of it
    return [("LDG", product, pack), ("STG", a, pack), ("STG", h, pack), ("LDG", rows_of_threads, pack)]


def backward(verbs: Compiled, memory: Guarded, formula: str, dtype: str, drop: Any) -> Streams:
    kind = DTYPES[dtype]
    grad, saved = memory.normal(SHAPE, kind), memory.normal(SHAPE, kind)
    delta, grad_b = memory.empty(SHAPE, kind), None
    verbs.activation_backward(grad, saved, delta, formula, 0.5, grad_b, drop)
    pack = 16 // kind.itemsize
    reads = [("LDG", saved, pack)] if formula != "identity" else []
    return [("LDG", grad, pack), *reads, ("STG", delta, pack)]


def sums(verbs: Compiled, memory: Guarded, formula: str, dtype: str, drop: Any) -> Streams:
    kind = DTYPES[dtype]
    x, partial = memory.normal(SHAPE, kind), np.empty(0)
    verbs.column_sum(x, memory.empty(SHAPE[1:], kind))
    partial = np.empty(2 * SHAPE[1], compute_dtype(kind))  # of two chunks of 32 rows
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
    source, out = memory.put(np.ones((8, 1024), DTYPES[formula])), memory.empty((8, 1024), DTYPES[dtype])
    verbs.gather_rows(source, memory.rng.permutation(8), out)
    pack = 16 // out.itemsize
    return [("LDG", source, pack), ("STG", out, pack)]


def parameters(memory: Guarded, count: int, formula: str, dtype: str) -> tuple[Any, ...]:
    first, *rest = (DTYPES[part] for part in dtype.split("_"))
    p, g = memory.normal((count,), first), memory.normal((count,), (rest or [first])[0])
    compute = compute_dtype(first)
    slots = tuple(memory.put(memory.rng.random(count).astype(compute)) for _ in UPDATES[formula].slots)
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
