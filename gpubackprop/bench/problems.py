"""The operations as problems: inputs, float64 oracle, bytes, flops, and the calls that solve them.

A problem is defined once. `gpubackprop check --device cuda`, the benchmarks, and the tests of the
CUDA backend on emulated kernels all use it (`cases.py` lists the shapes). Large inputs repeat a
block of random rows. So the oracle computes the block alone, and every row of a result is compared.
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
Arrays = dict[str, Any]  # arrays of NumPy or CuPy
Emit = Callable[[Backend], None]
BLOCK_ELEMENTS = 1 << 20
COMPARED_ROWS = 1 << 16  # compared at a time, to save memory
# The largest error that passes, relative to the result's largest magnitude: some tens of units in
# the last place. Libraries add many rows in different orders, so their sums may be off ten times
# that.
TOLERANCES = {"float64": 1e-9, "float32": 3e-5, "float16": 4e-3, "bfloat16": 3e-2}
SUM_FACTOR = 10.0
# The error in units that passes beyond the NumPy backend's. CUDA's mathematical functions are good
# to 2 or 3 units, and each step of a formula rounds once more. A sum adds in another order.
ELEMENTWISE, SUM = 4.0, 16.0
SHAPES = ((7, 33), (129, 5), (1, 1), (5, 400))  # rows, columns; the short list has the first only


class Unsupported(Exception):  # noqa: N818 (it is no error)
    """The provider cannot do this case; the text says why."""


def storage(case: Case) -> np.dtype:
    """Return the case's dtype; bfloat16 comes from ml_dtypes."""
    try:
        return STORAGES[case.dtype].numpy()
    except MissingDependencyError as error:
        raise Unsupported(str(error)) from None


def compute(case: Case) -> np.dtype:
    return compute_dtype(case.dtype)


@dataclass(frozen=True)
class Tiling:
    """A matrix of `rows` rows that repeat a block of `block` rows."""

    rows: int
    block: int

    def tile(self, block: Array) -> Array:
        """Repeat a block: (block, ...) -> (rows, ...)."""
        return np.resize(block, (self.rows, *block.shape[1:]))

    def total(self, block: Array) -> Any:
        """Return the sum over all rows; `block` has the values of the block's rows."""
        times, rest = divmod(self.rows, self.block)
        whole, part = (rows.sum(0, dtype=np.longdouble) for rows in (block, block[:rest]))
        return (times * whole + part).astype(np.float64)

    def product(self, x: Array, y: Array) -> Array:
        """Return x' y over all rows."""
        times, rest = divmod(self.rows, self.block)
        product: Array = times * (x.T @ y) + x[:rest].T @ y[:rest]
        return product


class Problem:
    """One operation.

    Attributes
    ----------
    limit : what bounds it: "copy" (read and write), "read", "products", or "" if no limit is
        measured.
    shared : names of the inputs that are not per row.
    sums : names of the results that are sums over rows.
    variants : variants that are compared with the NumPy backend and measured.
    compared_only : variants that are compared only, because their time would say nothing.
    awkward : shapes on which variants are compared; without any, nothing is compared.
    units : error that passes beyond the NumPy backend's own (`parity.compare`).
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
        """Return inputs of `rows` rows in float64 (or integers); the storage type rounds them."""
        raise NotImplementedError

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        """Compute the results from the block's inputs in float64: per row of the block, or
        whole."""
        raise NotImplementedError

    def results(self, case: Case) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Return the shape and dtype of each array that `emitter` fills."""
        raise NotImplementedError

    def more_results(self, case: Case) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Return results that `emitter` fills on request only: they are compared and not timed."""
        return {}

    def optional(self, case: Case) -> tuple[str, ...]:
        """Return the names of the oracle's results that a provider may omit."""
        return ()

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        """Return ``emit(backend)``, which makes this library's calls on either backend."""
        raise NotImplementedError

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        """Compute the results by array expressions of NumPy or CuPy (`xp`), one pass for each."""
        raise NotImplementedError

    def bytes(self, case: Case) -> int:
        """Return the least bytes that must move between processor and memory."""
        raise NotImplementedError

    def flops(self, case: Case) -> int:
        """Return the floating-point operations; a transcendental function counts as one."""
        raise NotImplementedError

    def measured(self, device: str, elements: int) -> tuple[int, ...]:
        """Return the shape for measuring a variant that `cases.py` does not name."""
        return (elements // 1024, 1024)

    def compared(self, variant: str, *, short: bool) -> tuple[tuple[int, ...], ...]:
        """Return the shapes on which that variant is compared with the NumPy backend."""
        return self.awkward[:1] if short else self.awkward

    # -- what all share ---------------------------------------------------------------------------

    def tiling(self, case: Case) -> Tiling:
        rows = case.shape[0]
        columns = max(1, int(np.prod(case.shape[1:2])))
        block = min(rows, max(1, BLOCK_ELEMENTS // columns))
        return Tiling(rows, block if block == rows else (block - 1) | 1)

    def host_block(self, case: Case, rows: int = 0, seed: int = 0) -> Arrays:
        """Return inputs of `rows` rows, or of the block, as the storage type holds them."""
        rows = rows or self.tiling(case).block
        found = self.block(case, np.random.default_rng(seed), rows)
        with np.errstate(all="ignore"):  # some of the compared values are infinite
            return {
                name: array if array.dtype.kind in "iu" else array.astype(self.dtype_of(case, name))
                for name, array in found.items()
            }

    def dtype_of(self, case: Case, name: str) -> np.dtype:
        return storage(case)

    def inputs(self, case: Case) -> Arrays:
        """Return all rows on the host."""
        tiling = self.tiling(case)
        return {
            name: array if name in self.shared else tiling.tile(array)
            for name, array in self.host_block(case).items()
        }

    def check(self, case: Case, found: Arrays) -> tuple[float, float]:
        """Return the largest error over its tolerance, and the largest error; NaN counts as inf."""
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
    """Return max |found - wanted| / max |wanted|; inf if a number is missing or not finite.

    `wanted` is per row of the block of `tiling`, or whole if `tiling` is None.
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
    """Return the bytes of the case's products: each operand is read once, each result written
    once."""
    itemsize = storage(case).itemsize
    return itemsize * sum(m * k + k * n + m * n for m, k, n in products(case))


def product_flops(case: Case) -> int:
    return sum(2 * m * k * n for m, k, n in products(case))
