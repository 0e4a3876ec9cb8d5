"""Launch shapes of the CUDA kernels: one table, and `plan`, a pure function of sizes.

Nothing here needs a GPU or CuPy, so the arithmetic (limits of the grid, 64-bit counts, the scratch
memory of two-stage sums) is tested on any machine. The constants are first choices, each with its
reason; not measured on a GPU. Values never depend on them, except for the order in which sums are
added, which is fixed for one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.dtypes import BY_SUFFIX, BYTES, SIXTEEN_BIT, STORAGES, SUFFIXES
from gpubackprop.dtypes import COMPUTE as COMPUTE_NAMES
from gpubackprop.errors import OptionError
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, UPDATES

VECTOR_BYTES = 16  # widest access of a thread
STRIP_COLUMNS, STRIP_ROWS = 32, 8  # threads of a strip, as in include/strip.cuh
FLAT_THREADS, FINISH_THREADS, ROW_THREADS = 256, 512, 256
MAX_GRID_X, MAX_GRID_Y = 2**31 - 1, 65535  # limits of every card since sm_30

# Eight blocks of 256 threads fill a multiprocessor (2048 threads); with the registers that strips
# take, two or three run at once. Flat kernels get four times as many, so that one slow block does
# not hold up the end.
BLOCKS_PER_MULTIPROCESSOR = 8
FLAT_WAVES = 4
# A strip's block takes at least four rows for each thread: four loads are in flight at once, and
# the partial sums (one row for each chunk) stay below 1/30 of what is read.
MIN_CHUNK_ROWS = 4 * STRIP_ROWS
MAX_PARTIAL_BLOCKS = 1024  # threads of sum_of_squares_finish
WIDE_ROW = 1024  # elements from which a row gets a block and not a warp

FLOATS = tuple(BY_SUFFIX)
COMPUTE = tuple(STORAGES[name].suffix for name in COMPUTE_NAMES)
_SIXTEEN_BIT = tuple(STORAGES[name].suffix for name in SIXTEEN_BIT)


@dataclass(frozen=True)
class DeviceProperties:
    """What a plan needs to know of a card.

    Attributes
    ----------
    shared_bytes : of dynamic shared memory that one block may have (opted in for).
    capability : (major, minor); thread-block clusters came with (9, 0).
    """

    multiprocessors: int
    shared_bytes: int = 49_152
    capability: tuple[int, int] = (7, 5)


@dataclass(frozen=True)
class Launch:
    """How to launch one entry.

    Attributes
    ----------
    source : file below kernels/. entry : the symbol. defines : macros that leave this entry alone
        in the file. grid, block : dimensions. shared_bytes : dynamic shared memory. shared_packs :
        the argument of that name of a softmax kernel.
    join : the `join` argument of a strip kernel (include/strip.cuh).
    partial : shape of the scratch array of a two-stage sum; its rows are the `rows` argument of
        column_sum_finish, its second dimension the `blocks` argument of sum_of_squares_finish.
    """

    source: str
    entry: str
    defines: tuple[tuple[str, str], ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0
    join: int = 0
    shared_packs: int = 0
    partial: tuple[int, int] | None = None

    @property
    def empty(self) -> bool:
        """Nothing to do: the launcher must not launch (CUDA refuses a grid of 0)."""
        return 0 in self.grid


@dataclass(frozen=True)
class Kernel:
    """One row of the table.

    Attributes
    ----------
    source : file below kernels/. shape_of : gives (grid, block, join, partial).
    formulas : what may stand in the entry's name before the dtype; ("",) for none.
    dtypes : what may stand at its end; `pairs` overrides both where not all combinations exist.
    defines : macros that choose this kernel's entries in a file that has another's too.
    """

    source: str
    shape_of: Callable[..., tuple[Any, ...]]
    formulas: tuple[str, ...] = ("",)
    dtypes: tuple[str, ...] = FLOATS
    pairs: tuple[tuple[str, str], ...] = ()
    defines: tuple[tuple[str, str], ...] = ()

    def combinations(self) -> tuple[tuple[str, str], ...]:
        return self.pairs or tuple((f, d) for f in self.formulas for d in self.dtypes)


def plan(
    kernel: str,
    shape: tuple[int, ...],
    dtype: Any,
    device: DeviceProperties,
    *,
    formula: str = "",
    contiguous: bool = True,
) -> Launch:
    """Entry, grid and block of `kernel` for arrays of `shape` and `dtype`.

    Parameters
    ----------
    kernel : key of `KERNELS`. shape : (rows, columns), or (count,) for flat kernels.
    dtype : storage type of the logits, of the parameters or of the output: a NumPy dtype, or the
        suffix itself ("bf16", "f32_bf16").
    formula : activation, loss, update, or type of the labels or of the gather's source.
    contiguous : False where a row stride is larger than the row.

    Raises
    ------
    OptionError : no such entry, or a matrix of more columns than a grid covers (beyond 2^38).

    >>> launch = plan("update", (1000,), "float32", DeviceProperties(132), formula="adam")
    >>> launch.entry, launch.grid, launch.block
    ('update_adam_f32', (1, 1, 1), (256, 1, 1))
    """
    row = KERNELS.get(kernel)
    suffix = suffix_of(dtype)
    source_formula = SUFFIXES.get(formula, formula)
    if row is None or (source_formula, suffix) not in row.combinations():
        raise OptionError(f"no kernel {kernel!r} with formula {formula!r} and dtype {suffix!r}")
    itemsize = BYTES[suffix.split("_")[0]]
    grid, block, join, partial = row.shape_of(shape, itemsize, device, contiguous)
    if grid[0] > MAX_GRID_X or grid[1] > MAX_GRID_Y:
        raise OptionError(f"{kernel}: {shape} is more than one launch covers (grid {grid})")
    return Launch(
        row.source,
        entry_name(kernel, source_formula, suffix),
        (*row.defines, *entry_defines(source_formula, suffix)),
        (*grid, 1),
        (*block, 1),
        join=join,
        partial=partial,
    )


def suffix_of(dtype: Any) -> str:
    """The name of a storage type in entries: float32 -> f32."""
    if isinstance(dtype, str) and dtype not in SUFFIXES:
        return dtype
    return SUFFIXES.get(str(np.dtype(dtype).name) if not isinstance(dtype, str) else dtype, "")


def entry_name(kernel: str, formula: str, suffix: str) -> str:
    return "_".join(part for part in (kernel, formula, suffix) if part)


def entry_defines(formula: str, suffix: str) -> tuple[tuple[str, str], ...]:
    """Macros with which a source file holds this one entry (include/entries.cuh)."""
    named = (("ONLY_FORMULA", formula),) if formula else ()
    return (*named, ("ONLY_DTYPE", suffix))


def entries() -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
    """(source, entry, defines) of every entry that exists."""
    return [
        (
            row.source,
            entry_name(name, formula, suffix),
            (*row.defines, *entry_defines(formula, suffix)),
        )
        for name, row in KERNELS.items()
        for formula, suffix in row.combinations()
    ]


def join_rows(cols: int, pack: int) -> int:
    """How many contiguous rows a strip kernel takes as one.

    A multiple of what makes the joined row a whole number of packs, so that every joined row starts
    on 16 bytes where the first does; and, for narrow matrices, as many as fill a strip's 32 lanes.
    """
    whole = pack // math.gcd(cols, pack)
    return whole * max(1, STRIP_COLUMNS * pack // (whole * cols))


def ceil_division(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int, most: int) -> int:
    """Smallest power of two that is at least n, but no more than `most`."""
    return min(most, 1 << max(0, n - 1).bit_length())


def _strip(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    """Strips of 32 packs along the columns (x) times chunks of rows (y)."""
    rows, cols = shape
    pack = VECTOR_BYTES // itemsize
    block = (STRIP_COLUMNS, STRIP_ROWS)
    if rows == 0 or cols == 0:
        return (0, 0), block, 0, (0, cols)
    join = join_rows(cols, pack) if contiguous else 0
    head = pack - 1  # elements by which the grid of packs may have to start earlier
    if join:
        width = join * cols
        strips, long_rows = (
            ceil_division(width, STRIP_COLUMNS * pack),
            ceil_division(rows * cols + head, width),
        )
    else:
        strips, long_rows = ceil_division(cols + head, STRIP_COLUMNS * pack), rows
    wanted = ceil_division(BLOCKS_PER_MULTIPROCESSOR * device.multiprocessors, strips)
    chunks = max(1, min(wanted, ceil_division(long_rows, MIN_CHUNK_ROWS), MAX_GRID_Y))
    folded = join > 0 and strips == 1
    partial_rows = chunks if folded else chunks * max(join, 1)
    return (strips, chunks), block, join, (partial_rows, cols)


def _column_finish(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    """All threads of a block on at most 32 columns; shape is that of the partial sums."""
    x = power_of_two(shape[1], 32)
    return (ceil_division(shape[1], x), 1), (x, FINISH_THREADS // x), 0, None


def _rows(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    """A group of threads to a row; blocks take rows in turn."""
    rows, cols = shape
    x = ROW_THREADS if cols > WIDE_ROW else power_of_two(cols, 32)
    y = ROW_THREADS // x
    most = FLAT_WAVES * BLOCKS_PER_MULTIPROCESSOR * device.multiprocessors
    return (min(ceil_division(rows, y), most), 1), (x, y), 0, None


def _flat(elements_per_thread: int) -> Callable[..., tuple[Any, ...]]:
    """Blocks take parts of a flat array in turn. 0 elements per thread: as many as 16 bytes of the
    compute type hold."""

    def shape_of(
        shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
    ) -> tuple[Any, ...]:
        pack = elements_per_thread or VECTOR_BYTES // max(itemsize, 4)
        count = math.prod(shape)
        most = FLAT_WAVES * BLOCKS_PER_MULTIPROCESSOR * device.multiprocessors
        blocks = ceil_division(count + pack - 1, FLAT_THREADS * pack) if count else 0
        return (min(blocks, most), 1), (FLAT_THREADS, 1), 0, None

    return shape_of


def _squares(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    count, pack = math.prod(shape), VECTOR_BYTES // itemsize
    most = min(BLOCKS_PER_MULTIPROCESSOR * device.multiprocessors, MAX_PARTIAL_BLOCKS)
    blocks = min(ceil_division(count + pack - 1, FLAT_THREADS * pack), most) if count else 0
    return (blocks, 1), (FLAT_THREADS, 1), 0, (2, blocks)


def _gather(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    """Threads along a row of `out`, one for each pack; long rows are cut where rows are few."""
    rows, cols = shape
    pack = VECTOR_BYTES // itemsize
    if rows == 0 or cols == 0:
        return (0, 0), (1, 1), 0, None
    packs = ceil_division(cols + pack - 1, pack)
    x = power_of_two(packs, 32)
    y = FLAT_THREADS // x
    most = FLAT_WAVES * BLOCKS_PER_MULTIPROCESSOR * device.multiprocessors
    blocks = min(ceil_division(rows, y), most)
    parts = max(1, min(ceil_division(packs, 4 * x), most // blocks, MAX_GRID_Y))
    return (blocks, parts), (x, y), 0, None


def _one(block: int) -> Callable[..., tuple[Any, ...]]:
    def shape_of(
        shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
    ) -> tuple[Any, ...]:
        return (1, 1), (block, 1), 0, None

    return shape_of


def _elsewhere(*_: Any) -> tuple[Any, ...]:
    raise OptionError("the softmax kernels are planned by plan_softmax")


SOFTMAX_FORMS = tuple(
    f"{form}_{kind}"
    for form in ("rows", "cluster2", "cluster4", "cluster8", "parts", "finish")
    for kind in ("labels", "general")
)
# Dtypes of the parameters, the gradient and the 16-bit copy of an update. In a name of two parts
# the second part is the type of gradient and copy.
UPDATE_STORAGE = (
    *COMPUTE,
    *(f"f32_{short}" for short in _SIXTEEN_BIT),
    *(f"f32_f32_{short}" for short in _SIXTEEN_BIT),
    *_SIXTEEN_BIT,
)
# Elements of a chunk of update_table.cu, four packs for each thread: tensors of a few thousand
# elements, of which models have many, are then one block each.
TABLE_CHUNK = 4096


def _chunks(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    """A block for each chunk of a table of tensors."""
    return (shape[0], 1), (FLAT_THREADS, 1), 0, None


def _each(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    """A thread for each tensor of a table."""
    return (ceil_division(shape[0], FLAT_THREADS), 1), (FLAT_THREADS, 1), 0, None


# What the optimizers of PyTorch need of the registry.
TABLE_UPDATES = (
    "gradient_descent", "sgd", "sgd_nesterov", "adam", "adamw", "adam_amsgrad", "adamw_amsgrad",
)  # fmt: skip
_GATHER_PAIRS = (
    *((source, out) for source in ("u8", *FLOATS) for out in FLOATS),
    ("i32", "i32"), ("i64", "i64"), ("i32", "i64"),
)  # fmt: skip
_DROPOUT = (("ONLY_DROPOUT", "1"),)
# Of a layer and of its product; of one, it stands for both.
LAYER_STORAGE = (*FLOATS, *(f"{short}_f32" for short in _SIXTEEN_BIT))

KERNELS: dict[str, Kernel] = {
    "affine_epilogue": Kernel("affine_epilogue.cu", _strip, tuple(ACTIVATIONS), LAYER_STORAGE),
    "affine_epilogue_dropout": Kernel(
        "affine_epilogue.cu", _strip, tuple(ACTIVATIONS), LAYER_STORAGE, defines=_DROPOUT
    ),
    "activation_backward": Kernel("activation_backward.cu", _strip, tuple(ACTIVATIONS)),
    "activation_backward_dropout": Kernel(
        "activation_backward.cu", _strip, tuple(ACTIVATIONS), defines=_DROPOUT
    ),
    "column_sum": Kernel("column_sum.cu", _strip),
    "column_sum_finish": Kernel("column_sum.cu", _column_finish),
    "pointwise_loss": Kernel("pointwise_loss.cu", _rows, tuple(POINTWISE_LOSSES)),
    # Planned by gpubackprop.backends.softmax_plan.
    "softmax_cross_entropy": Kernel("softmax_cross_entropy.cu", _elsewhere, SOFTMAX_FORMS),
    "softmax_cross_entropy_short": Kernel(
        "softmax_cross_entropy_short.cu", _elsewhere, ("labels", "general")
    ),
    "row_weights": Kernel("row_weights.cu", _flat(1), ("u8", "i32", "i64"), COMPUTE),
    "update": Kernel("update.cu", _flat(0), tuple(UPDATES), UPDATE_STORAGE),
    "prepare_update": Kernel("prepare_update.cu", _one(32), tuple(UPDATES), COMPUTE),
    "update_table": Kernel("update_table.cu", _chunks, TABLE_UPDATES),
    "prepare_table": Kernel("update_table.cu", _each, TABLE_UPDATES),
    "sum_of_squares": Kernel("sum_of_squares.cu", _squares),
    "sum_of_squares_finish": Kernel("sum_of_squares.cu", _one(1024), dtypes=COMPUTE),
    "gather_rows": Kernel("gather_rows.cu", _gather, pairs=_GATHER_PAIRS),
    "accumulate": Kernel("accumulate.cu", _one(FLAT_THREADS), dtypes=COMPUTE),
}
