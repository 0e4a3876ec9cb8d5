"""The cases of `tools.counts`: launches that the backend plans for an H200, executed in part."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.model import Counts
from gpubackprop.backends.cupy.updates import COEFFICIENTS, PROCEED
from gpubackprop.backends.cupy_launch import DeviceProperties
from gpubackprop.backends.loss import LossOptions
from gpubackprop.formulas import UPDATES
from tests.emulator import compilers
from tests.emulator.cupy_stub import Launched
from tests.emulator.operations import DTYPES, Operations, on_device
from tests.emulator.sass_run import Warp, program, run

H200 = DeviceProperties(132, 232_448, (9, 0))
ARCHITECTURE = 90


class Counting(Operations):
    """Counts launches instead of executing them.

    Attributes
    ----------
    counted : list of Counts
        The launches so far.
    also : tuple of arrays
        Those to which a table among the arguments points.
    """

    def __init__(self) -> None:
        super().__init__(self._count, H200)
        self.counted: list[Counts] = []
        self.also: tuple[np.ndarray, ...] = ()

    def _count(self, launched: Launched) -> None:
        code = program(launched.source, launched.entry, launched.defines, ARCHITECTURE)
        cluster = re.search(r"cluster(\d)", launched.entry)
        size = int(cluster[1]) if cluster else 1
        clusters = launched.grid[0] * launched.grid[1] // size
        warps = run(code, launched, (clusters // 2,), size, self.also)
        last: list[Warp] = []
        (record,) = launched.arguments
        for name, array in record.arrays.items():
            if "counter" in name:  # the last block of all finds that the others are done
                array[...] = clusters * size - 1
                last = run(code, launched, (clusters - 1,), size, self.also)
        self.counted.append(_counts(launched, size, warps, last))


def _counts(launched: Launched, size: int, warps: list[Warp], last: list[Warp]) -> Counts:
    compiler = compilers.compiler()
    if compiler is None:
        raise compilers.CompileError(compilers.NONE_FOUND)
    _, report = compiler.compile(launched.source, ARCHITECTURE, launched.defines)
    resources = compilers.resources(report)[launched.entry]
    blocks, threads = int(np.prod(launched.grid)), int(np.prod(launched.block))
    instructions, trips = _instructions(warps) / size, max(warp.trips for warp in warps)
    return Counts(
        launched.entry, blocks, threads, resources.registers, resources.shared + launched.shared,
        instructions,
        sum(access.cost for warp in warps for access in warp.shared) / size,
        sum(access.least for warp in warps for access in warp.shared) / size,
        trips,
        32.0 * blocks / size * sum(access.cost for warp in warps for access in warp.memory),
        sum(max(warp.flight, default=0) for warp in warps) / (threads * size),
        max(0.0, _instructions(last) / size - instructions) if last else 0.0,
        max(0, max(warp.trips for warp in last) - trips) if last else 0,
    )  # fmt: skip


def _instructions(warps: list[Warp]) -> int:
    return sum(warp.instructions for warp in warps)


@dataclass
class Case:
    """One line of the table.

    Attributes
    ----------
    name : str
        As in the benchmarks, where they have the case.
    elements : int
        Of the matrix, or parameters.
    bytes : int
        The least that must move.
    launches : list of Counts
        What was counted.
    """

    name: str
    elements: int
    bytes: int
    launches: list[Counts] = field(default_factory=list)


def _zeros(*shape: int, dtype: str = "f32") -> np.ndarray:
    """Return an array on 256 bytes, as a device's. Only pages that a block touches exist."""
    kind = DTYPES[dtype]
    size = math.prod(shape) * kind.itemsize
    memory = np.zeros(size + 256, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + size].view(kind).reshape(shape)


def loss(rows: int, classes: int, dtype: str, **options: Any) -> Callable[[], Case]:
    def count() -> Case:
        z, delta = _zeros(rows, classes, dtype=dtype), _zeros(rows, classes, dtype=dtype)
        result = {"delta": delta, "loss": _zeros(1).reshape(())}  # as ops.softmax_cross_entropy
        labels, operations = np.arange(rows) % classes, Counting()
        with operations._installed() as backend:
            backend.softmax_cross_entropy(
                on_device(z), on_device(labels), LossOptions(**options), on_device(result)
            )
        return Case("", z.size, 2 * z.nbytes + labels.nbytes, operations.counted)

    return count


def _backward(rows: int, columns: int, dtype: str = "f32") -> Callable[[], Case]:
    def count() -> Case:
        g, a, delta = (_zeros(rows, columns, dtype=dtype) for _ in range(3))
        operations = Counting()
        operations.activation_backward(g, a, delta, "relu", 0.0, _zeros(columns, dtype=dtype))
        return Case("", g.size, 3 * g.nbytes, operations.counted)

    return count


def _epilogue(rows: int, columns: int, dtype: str = "f32") -> Callable[[], Case]:
    def count() -> Case:
        product, operations = _zeros(rows, columns, dtype=dtype), Counting()
        operations.affine_epilogue(product, _zeros(columns, dtype=dtype), None, product, "relu")
        return Case("", product.size, 2 * product.nbytes, operations.counted)

    return count


def _column_sum(rows: int, columns: int) -> Callable[[], Case]:
    def count() -> Case:
        x, operations = _zeros(rows, columns), Counting()
        operations.column_sum(x, _zeros(columns))
        return Case("", x.size, x.nbytes, operations.counted)

    return count


def _adam(count_: int, copy: str | None = None) -> Callable[[], Case]:
    def count() -> Case:
        p, g, m, v = (_zeros(count_) for _ in range(4))
        c, operations = np.zeros(COEFFICIENTS, np.float32), Counting()
        c[PROCEED] = 1
        half = None if copy is None else _zeros(count_, dtype=copy)
        operations.update("adam", p, g, (m, v), c, half)
        return Case(
            "", p.size, 7 * p.nbytes + (half.nbytes if half is not None else 0), operations.counted
        )

    return count


def _table(tensors: int, each: int) -> Callable[[], Case]:
    def count() -> Case:
        rows: list[dict[str, Any]] = [
            {"p": _zeros(each), "g": _zeros(each), "slots": (_zeros(each), _zeros(each)),
             "step": np.ones(1, np.float32), "group": 0}
            for _ in range(tensors)
        ]  # fmt: skip
        own = list(UPDATES["adam"].hyperparameters.values())
        settings = np.array([[0.1, 0.0, 1.0, *own, *[0.0] * (5 - len(own))]])
        operations = Counting()
        operations.also = tuple(
            a for row in rows for a in (row["p"], row["g"], *row["slots"], row["step"])
        )
        operations.update_table("adam", rows, settings)
        return Case("", tensors * each, 28 * tensors * each, operations.counted)

    return count


def _pointwise(rows: int, columns: int) -> Callable[[], Case]:
    def count() -> Case:
        a, targets, delta = (_zeros(rows, columns) for _ in range(3))
        operations = Counting()
        operations.pointwise_loss(
            a, targets, "squared_error", {"row_loss": _zeros(rows), "delta": delta}
        )
        return Case("", a.size, 3 * a.nbytes, operations.counted)

    return count


def _squares(count_: int) -> Callable[[], Case]:
    def count() -> Case:
        x, operations = _zeros(count_), Counting()
        operations.sum_of_squares(x, _zeros(2))
        return Case("", x.size, x.nbytes, operations.counted)

    return count


def _gather(rows: int, columns: int) -> Callable[[], Case]:
    def count() -> Case:
        source, out, operations = _zeros(rows, columns), _zeros(rows, columns), Counting()
        operations.gather_rows(source, np.arange(rows), out)
        return Case("", out.size, 2 * out.nbytes, operations.counted)

    return count


CASES: dict[str, Callable[[], Case]] = {
    "softmax_cross_entropy/bf16/8192x128256": loss(8192, 128_256, "bf16"),
    "softmax_cross_entropy/f32/4096x1000": loss(4096, 1000, "f32"),
    "softmax_cross_entropy/ignore_index/f32/4096x1000": loss(4096, 1000, "f32", ignore_index=-100),
    "softmax_cross_entropy/f32/256x50257": loss(256, 50_257, "f32"),
    "softmax_cross_entropy/f32/209715x320": loss(209_715, 320, "f32"),
    "softmax_cross_entropy/f32/1048576x128": loss(1 << 20, 128, "f32"),
    "softmax_cross_entropy/f32/1048576x100": loss(1 << 20, 100, "f32"),
    "softmax_cross_entropy/f32/1048576x64": loss(1 << 20, 64, "f32"),
    "softmax_cross_entropy/f32/1048576x32": loss(1 << 20, 32, "f32"),
    "softmax_cross_entropy/f32/1048576x10": loss(1 << 20, 10, "f32"),
    "softmax_cross_entropy/bf16/1048576x256": loss(1 << 20, 256, "bf16"),
    "softmax_cross_entropy/bf16/1048576x100": loss(1 << 20, 100, "bf16"),
    "softmax_cross_entropy/bf16/1048576x10": loss(1 << 20, 10, "bf16"),
    "activation_backward/relu/f32/8192x4096": _backward(8192, 4096),
    "activation_backward/relu/bf16/8192x4096": _backward(8192, 4096, "bf16"),
    "activation_backward/relu/f32/1048576x16": _backward(1 << 20, 16),
    "activation_backward/relu/f32/128x512": _backward(128, 512),
    "affine_epilogue/relu/f32/8192x4096": _epilogue(8192, 4096),
    "affine_epilogue/relu/bf16/8192x4096": _epilogue(8192, 4096, "bf16"),
    "column_sum/f32/65536x1024": _column_sum(65_536, 1024),
    "update/adam/f32/67108864": _adam(1 << 26),
    "update/adam/f32_bf16/67108864": _adam(1 << 26, "bf16"),
    "update_many/adam/f32/4096000": _table(1000, 4096),
    "pointwise_loss/squared_error/f32/65536x1024": _pointwise(65_536, 1024),
    "sum_of_squares/f32/67108864": _squares(1 << 26),
    "gather_rows/f32/85598x784": _gather(85_598, 784),
}  # fmt: skip
