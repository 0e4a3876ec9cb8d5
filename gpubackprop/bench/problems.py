"""What the operations compute: inputs, float64 oracle, bytes, flops, and the calls that do it.

A problem is defined once for all who compare or time it: `gpubackprop check --device cuda`, the
benchmarks, and the tests of the CUDA backend on emulated kernels (`cases.py` lists the shapes).
Large inputs are a block of random rows over and over, so that the oracle works on the block alone
while every row of a result is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.bench.shapes import Case, products
from gpubackprop.dtypes import STORAGES, compute_dtype
from gpubackprop.errors import MissingDependencyError

Array = np.ndarray
Arrays = dict[str, Any]  # of NumPy or CuPy
Emit = Callable[[Backend], None]
BLOCK_ELEMENTS = 1 << 20
COMPARED_ROWS = 1 << 16  # at a time, so that the comparison takes little memory
# Largest error, relative to the largest magnitude of that result: some tens of units in the last
# place; sums over many rows, which libraries add in their own order, ten times that.
TOLERANCES = {"float64": 1e-9, "float32": 3e-5, "float16": 4e-3, "bfloat16": 3e-2}
SUM_FACTOR = 10.0
# What passes beside the NumPy backend, in units: the mathematical functions of CUDA are good to 2
# or 3, one rounding more for each step of a formula. A sum adds in another order than NumPy.
ELEMENTWISE, SUM = 4.0, 16.0
SHAPES = ((7, 33), (129, 5), (1, 1), (5, 400))  # rows, columns; the short list takes the first


class Unsupported(Exception):  # noqa: N818 (it is no error)
    """A provider cannot do this case; the text says why."""


def storage(case: Case) -> np.dtype:
    """The case's dtype; bfloat16 is ml_dtypes'."""
    try:
        return STORAGES[case.dtype].numpy()
    except MissingDependencyError as error:
        raise Unsupported(str(error)) from None


def compute(case: Case) -> np.dtype:
    return compute_dtype(case.dtype)


@dataclass(frozen=True)
class Tiling:
    """`rows` rows that repeat a block of `block` rows."""

    rows: int
    block: int

    def tile(self, block: Array) -> Array:
        """(block, ...) -> (rows, ...)."""
        return np.resize(block, (self.rows, *block.shape[1:]))

    def total(self, block: Array) -> Any:
        """The sum over all rows of what the block has per row."""
        times, rest = divmod(self.rows, self.block)
        whole, part = (rows.sum(0, dtype=np.longdouble) for rows in (block, block[:rest]))
        return (times * whole + part).astype(np.float64)

    def product(self, x: Array, y: Array) -> Array:
        """x' y over all rows."""
        times, rest = divmod(self.rows, self.block)
        product: Array = times * (x.T @ y) + x[:rest].T @ y[:rest]
        return product


class Problem:
    """One operation.

    Attributes
    ----------
    limit : what bounds it: "copy" (read and write), "read", "products", or "" where none is
        measured.
    shared : inputs that are not per row. sums : results that are sums over rows.
    variants : what is compared with the NumPy backend and measured.
    compared_only : variants of which a time would say nothing.
    awkward : shapes on which variants are compared; of none it is not compared at all.
    units : error that passes beside the NumPy backend's own (`parity.compare`).
    sixteen_bit : whether kernels take float16 and bfloat16.
    """

    limit: ClassVar[str] = "copy"
    shared: ClassVar[tuple[str, ...]] = ()
    sums: ClassVar[tuple[str, ...]] = ()
    variants: ClassVar[tuple[str, ...]] = ("",)
    compared_only: ClassVar[tuple[str, ...]] = ()
    awkward: ClassVar[tuple[tuple[int, ...], ...]] = SHAPES
    units: ClassVar[float] = SUM
    sixteen_bit: ClassVar[bool] = True

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        """Inputs of `rows` rows in float64 (or integers); the storage type rounds them."""
        raise NotImplementedError

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        """Results from the block's inputs in float64: per row of the block, or whole."""
        raise NotImplementedError

    def results(self, case: Case) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of what `emitter` fills."""
        raise NotImplementedError

    def more_results(self, case: Case) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """What `emitter` fills as well where it is asked for: it is compared, and not timed."""
        return {}

    def optional(self, case: Case) -> tuple[str, ...]:
        """Results of the oracle that a provider need not give."""
        return ()

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        """``emit(backend)``: this library's calls, on either backend."""
        raise NotImplementedError

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        """The same as array expressions of NumPy or CuPy (`xp`), one pass for each: the results."""
        raise NotImplementedError

    def bytes(self, case: Case) -> int:
        """Least that must move between processor and memory."""
        raise NotImplementedError

    def flops(self, case: Case) -> int:
        """Floating-point operations; a transcendental function counts as one."""
        raise NotImplementedError

    def measured(self, device: str, elements: int) -> tuple[int, ...]:
        """The shape at which a variant is measured that `cases.py` does not name."""
        return (elements // 1024, 1024)

    def compared(self, variant: str, *, short: bool) -> tuple[tuple[int, ...], ...]:
        """The shapes on which that variant is compared with the NumPy backend."""
        return self.awkward[:1] if short else self.awkward

    # -- what all share ---------------------------------------------------------------------------

    def tiling(self, case: Case) -> Tiling:
        rows = case.shape[0]
        columns = max(1, int(np.prod(case.shape[1:2])))
        block = min(rows, max(1, BLOCK_ELEMENTS // columns))
        return Tiling(rows, block if block == rows else (block - 1) | 1)

    def host_block(self, case: Case, rows: int = 0, seed: int = 0) -> Arrays:
        """Inputs of `rows` rows, or of the block, as the storage type holds them."""
        rows = rows or self.tiling(case).block
        found = self.block(case, np.random.default_rng(seed), rows)
        with np.errstate(all="ignore"):  # infinities are among the values that are compared
            return {
                name: array if array.dtype.kind in "iu" else array.astype(self.dtype_of(case, name))
                for name, array in found.items()
            }

    def dtype_of(self, case: Case, name: str) -> np.dtype:
        return storage(case)

    def inputs(self, case: Case) -> Arrays:
        """All rows on the host."""
        tiling = self.tiling(case)
        return {
            name: array if name in self.shared else tiling.tile(array)
            for name, array in self.host_block(case).items()
        }

    def check(self, case: Case, found: Arrays) -> tuple[float, float]:
        """Worst error of the results over its tolerance, and the worst error; NaN is infinite."""
        tiling = self.tiling(case)
        inputs = {
            name: array.astype(np.float64) if array.dtype.kind not in "iu" else array
            for name, array in self.host_block(case).items()
        }
        ratio = worst = 0.0
        optional = self.optional(case)
        for name, wanted in self.oracle(case, inputs, tiling).items():
            if name in optional and name not in found:
                continue
            wanted = np.asarray(wanted, np.float64)
            rows = None if name in self.sums else tiling
            error = largest_error(np.asarray(found[name]), wanted, rows)
            tolerance = TOLERANCES[np.asarray(found[name]).dtype.name]
            tolerance *= SUM_FACTOR if name in self.sums else 1.0
            ratio, worst = max(ratio, error / tolerance), max(worst, error)
        return ratio, worst


def largest_error(found: Array, wanted: Array, tiling: Tiling | None) -> float:
    """max |found - wanted| / max |wanted|; infinite where a number is not finite or missing.

    `wanted` is per row of the block of `tiling`, or whole where that is None.
    """
    shape = wanted.shape if tiling is None else (tiling.rows, *wanted.shape[1:])
    if found.shape != shape:
        return float("inf")
    size = float(np.abs(wanted).max(initial=0.0)) or 1.0
    error = 0.0
    for part, rows in _parts(found, wanted, tiling.block if tiling else None):
        difference = np.abs(np.asarray(part, np.float64) - rows).max(initial=0.0)
        error = max(error, float(difference) if np.isfinite(difference) else float("inf"))
    return error / size


def _parts(found: Array, wanted: Array, block: int | None) -> Iterator[tuple[Any, Any]]:
    if found.ndim == 0:
        yield found, wanted
        return
    step = block or COMPARED_ROWS
    for start in range(0, len(found), step):
        part = found[start : start + step]
        yield part, wanted[: len(part)] if block else wanted[start : start + step]


def count(case: Case) -> int:
    return int(np.prod(case.shape, dtype=np.int64))


def product_bytes(case: Case) -> int:
    """Each operand of each product read once, each result written once."""
    itemsize = storage(case).itemsize
    return itemsize * sum(m * k + k * n + m * n for m, k, n in products(case))


def product_flops(case: Case) -> int:
    return sum(2 * m * k * n for m, k, n in products(case))
