"""Launch shapes of the CUDA kernels: one table, and `plan`, a pure function of sizes.

Nothing here needs a GPU or CuPy, so the arithmetic (limits of the grid, 64-bit counts, the scratch
memory of two-stage sums) is tested on any machine. The constants are first choices, each with its
reason; they were not measured on a GPU. Values never depend on them, except for the order in which
sums are added, which is fixed for one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends.precision import TF32_SINCE
from gpubackprop.dtypes import BY_SUFFIX, BYTES, SIXTEEN_BIT, STORAGES, SUFFIXES
from gpubackprop.dtypes import COMPUTE as COMPUTE_NAMES
from gpubackprop.errors import OptionError
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, UPDATES

VECTOR_BYTES = 16  # the widest access of a thread
STRIP_COLUMNS, STRIP_ROWS = 32, 8  # threads of a strip, as in include/strip.cuh
STRIP_UNROLL = 4  # rows of a strip's thread whose loads are in flight together
FLAT_THREADS, FINISH_THREADS, ROW_THREADS = 256, 512, 256
MAX_GRID_X, MAX_GRID_Y = 2**31 - 1, 65535  # limits of every card since sm_30

# Eight blocks of 256 threads fill a multiprocessor (2048 threads); with the registers that strips
# take, two or three run at once. Flat kernels get four times as many, so that one slow block does
# not hold up the end.
BLOCKS_PER_MULTIPROCESSOR = 8
FLAT_WAVES = 4
# Two blocks of a strip run on a multiprocessor at once. A matrix with fewer blocks than that, each
# with four rows for each of its threads, is spread thinner, down to one row for each thread.
STRIP_BLOCKS = 2
# column_sum_finish has so many terms of a column in flight; more of them come one batch after
# another.
FINISH_UNROLL = 8
ROWS_IN_FLIGHT = 4  # of a thread of row_weights
MAX_PARTIAL_BLOCKS = 1024  # sum_of_squares_finish has so many threads
TILE_COLUMNS, TILE_UNITS = 8, 32  # threads of a block of one_hot_backward: whole sectors of grad_W
WIDE_ROW = 1024  # a row of at least so many elements gets a block and not a warp

FLOATS = tuple(BY_SUFFIX)
COMPUTE = tuple(STORAGES[name].suffix for name in COMPUTE_NAMES)
_SIXTEEN_BIT = tuple(STORAGES[name].suffix for name in SIXTEEN_BIT)


@dataclass(frozen=True)
class DeviceProperties:
    """The properties of a card that a plan reads.

    Attributes
    ----------
    multiprocessors : int
        Number of multiprocessors.
    shared_bytes : int
        Dynamic shared memory that one block may have (opted in for).
    capability : (major, minor)
        Compute capability; thread-block clusters came with (9, 0).
    """

    multiprocessors: int
    shared_bytes: int = 49_152
    capability: tuple[int, int] = (7, 5)


@dataclass(frozen=True)
class Launch:
    """The launch of one entry.

    Attributes
    ----------
    source : str
        File below kernels/.
    entry : str
        The symbol.
    defines : tuple
        Macros that leave this entry alone in the file.
    grid : tuple of int
        Blocks in each dimension.
    block : tuple of int
        Threads in each dimension.
    join : int
        The `join` argument of a strip kernel (include/strip.cuh).
    partial : tuple of int, or None
        Shape of the scratch array of a two-stage sum. Its rows are the `rows` argument of
        column_sum_finish, its second dimension the `blocks` argument of sum_of_squares_finish.
    shared_bytes : int
        Dynamic shared memory.
    shared_packs : int
        The argument of that name of a softmax kernel.
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
        """Whether there is nothing to launch; CUDA refuses a grid of 0."""
        return 0 in self.grid


@dataclass(frozen=True)
class Kernel:
    """One row of the table.

    Attributes
    ----------
    source : str
        File below kernels/.
    shape_of : callable
        Returns (grid, block, join, partial).
    formulas : tuple of str
        What may stand before the dtype in the entry's name; ("",) for none.
    dtypes : tuple of str
        What may stand at the end of the entry's name.
    pairs : tuple
        Overrides both if not all combinations exist.
    defines : tuple
        Macros that choose this kernel's entries in a file that has another kernel's too.
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
    """Return entry, grid and block of `kernel` for arrays of `shape` and `dtype`.

    Parameters
    ----------
    kernel : str
        Key of `KERNELS`.
    shape : tuple of int
        Rows and columns, or (count,) for flat kernels.
    dtype : dtype or str
        Storage type of the logits, of the parameters or of the output: a NumPy dtype, or the suffix
        itself ("bf16", "f32_bf16").
    device : DeviceProperties
        The card.
    formula : str
        Activation, loss, update, or type of the labels or of the gather's source.
    contiguous : bool
        Whether no row stride is larger than the row.

    Returns
    -------
    Launch
        The launch.

    Raises
    ------
    OptionError
        There is no such entry, or a matrix has more columns than a grid covers (beyond 2^38).

    Examples
    --------
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
    """Return the name of a storage type in entries: float32 -> f32."""
    if isinstance(dtype, str) and dtype not in SUFFIXES:
        return dtype
    return SUFFIXES.get(str(np.dtype(dtype).name) if not isinstance(dtype, str) else dtype, "")


def entry_name(kernel: str, formula: str, suffix: str) -> str:
    return "_".join(part for part in (kernel, formula, suffix) if part)


def entry_defines(formula: str, suffix: str) -> tuple[tuple[str, str], ...]:
    """Return the macros with which a source file holds this one entry (include/entries.cuh)."""
    named = (("ONLY_FORMULA", formula),) if formula else ()
    return (*named, ("ONLY_DTYPE", suffix))


def least_architecture(name: str) -> int:
    """Return the first compute capability, such as 90, that has a kernel or an entry; 0 is any.

    >>> least_architecture("resident_training_tf32_f32"), least_architecture("update_adam_f32")
    (80, 0)
    """
    return 90 if "_cluster" in name else TF32_SINCE if "_tf32" in name else 0


def entries() -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
    """Yield (source, entry, defines) of every entry that exists."""
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
    """Return how many contiguous rows a strip kernel takes as one.

    It is a multiple of the number that makes the joined row a whole number of packs, so that every
    joined row starts on 16 bytes if the first does. For narrow matrices it is also large enough to
    fill a strip's 32 lanes.
    """
    whole = pack // math.gcd(cols, pack)
    return whole * max(1, STRIP_COLUMNS * pack // (whole * cols))


def ceil_division(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int, most: int) -> int:
    """Return the smallest power of two that is at least n, but no more than `most`."""
    return min(most, 1 << max(0, n - 1).bit_length())


def _strip(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    """Lay strips of 32 packs along the columns (x), times chunks of rows (y)."""
    rows, cols = shape
    pack = VECTOR_BYTES // itemsize
    block = (STRIP_COLUMNS, STRIP_ROWS)
    if rows == 0 or cols == 0:
        return (0, 0), block, 0, (0, cols)
    join = join_rows(cols, pack) if contiguous else 0
    head = pack - 1  # the grid of packs may have to start so many elements earlier
    if join:
        width = join * cols
        strips, long_rows = (
            ceil_division(width, STRIP_COLUMNS * pack),
            ceil_division(rows * cols + head, width),
        )
    else:
        strips, long_rows = ceil_division(cols + head, STRIP_COLUMNS * pack), rows
    folded = join > 0 and strips == 1
    chunk = _strip_chunk(strips, long_rows, device.multiprocessors)
    chunks = ceil_division(long_rows, max(chunk, ceil_division(long_rows, MAX_GRID_Y)))
    partial_rows = chunks if folded else chunks * max(join, 1)
    return (strips, chunks), block, join, (partial_rows, cols)


def _strip_chunk(strips: int, long_rows: int, multiprocessors: int) -> int:
    """Return the rows of a block: a multiple of those that its threads have in flight at once.

    A matrix of fewer blocks than run at once gets a multiple of one row for each thread.
    """
    full = STRIP_ROWS * STRIP_UNROLL
    thin = ceil_division(long_rows, ceil_division(STRIP_BLOCKS * multiprocessors, strips))
    if thin <= full - STRIP_ROWS:
        return ceil_division(thin, STRIP_ROWS) * STRIP_ROWS
    wanted = ceil_division(BLOCKS_PER_MULTIPROCESSOR * multiprocessors, strips)
    return ceil_division(ceil_division(long_rows, wanted), full) * full


def _column_finish(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    """Give a column so many threads that each has one batch of loads; shape is the partial sums'.

    But a block takes at least 8 columns, whole sectors, where there are so many.
    """
    y = power_of_two(ceil_division(shape[0], FINISH_UNROLL), FINISH_THREADS // 8)
    x = power_of_two(shape[1], min(32, FINISH_THREADS // y))
    return (ceil_division(shape[1], x), 1), (x, FINISH_THREADS // x), 0, None


def _rows(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    """Give each row a group of threads; blocks take rows in turn.

    A thread has packs, or elements in rows of at most two packs (kernels/pointwise_loss.cu).
    """
    rows, cols = shape
    pack = VECTOR_BYTES // itemsize
    parts = cols if cols <= 2 * pack else ceil_division(cols + pack - 1, pack)
    x = ROW_THREADS if cols > WIDE_ROW else power_of_two(parts, 32)
    y = ROW_THREADS // x
    most = FLAT_WAVES * BLOCKS_PER_MULTIPROCESSOR * device.multiprocessors
    return (min(ceil_division(rows, y), most), 1), (x, y), 0, None


def _flat(elements_per_thread: int) -> Callable[..., tuple[Any, ...]]:
    """Let blocks take parts of a flat array in turn.

    0 elements per thread means as many as 16 bytes of the compute type hold.
    """

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
    """Put threads along a row of `out`, one for each pack; cut long rows if rows are few."""
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


def _units(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    """Give each unit of a row a thread; blocks of 8 rows and 32 units take rows in turn."""
    rows, units = shape
    parts = ceil_division(units, STRIP_COLUMNS)
    most = FLAT_WAVES * BLOCKS_PER_MULTIPROCESSOR * device.multiprocessors
    blocks = min(ceil_division(rows, STRIP_ROWS), max(1, most // max(parts, 1)))
    return (blocks, parts), (STRIP_COLUMNS, STRIP_ROWS), 0, None


def _tiles(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    """Give each column of a tile and each of 32 units a thread (kernels/one_hot.cu)."""
    tiles, units = shape
    return (tiles, ceil_division(units, TILE_UNITS)), (TILE_COLUMNS, TILE_UNITS), 0, None


def _one(block: int) -> Callable[..., tuple[Any, ...]]:
    def shape_of(
        shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
    ) -> tuple[Any, ...]:
        return (1, 1), (block, 1), 0, None

    return shape_of


def resident_kernel(blocks: int, tf32: bool) -> str:
    """Return the kernel that trains networks in clusters of so many blocks, by tensor cores or not.

    >>> resident_kernel(1, False), resident_kernel(8, True)
    ('resident_training', 'resident_training_tf32_cluster8')
    """
    product = "_tf32" if tf32 else ""
    return f"resident_training{product}" + (f"_cluster{blocks}" if blocks > 1 else "")


def spread_kernel(tf32: bool) -> str:
    """Return the kernel of the gradients of a batch's shares, likewise."""
    return "spread_gradient_tf32" if tf32 else "spread_gradient"


def _resident(blocks: int, tf32: bool) -> Kernel:
    defines = (("ONLY_TF32", "1"),) if tf32 else ()
    if blocks > 1:
        defines = (*defines, ("ONLY_CLUSTER", str(blocks)))
    return Kernel("resident_training.cu", _elsewhere, dtypes=("f32",), defines=defines)


def _elsewhere(*_: Any) -> tuple[Any, ...]:
    raise OptionError("this kernel has a planner of its own: plan_softmax, plan_resident")


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
    """Give each chunk of a table of tensors a block."""
    return (shape[0], 1), (FLAT_THREADS, 1), 0, None


def _each(
    shape: tuple[int, ...], itemsize: int, device: DeviceProperties, contiguous: bool
) -> tuple[Any, ...]:
    """Give each tensor of a table a thread."""
    return (ceil_division(shape[0], FLAT_THREADS), 1), (FLAT_THREADS, 1), 0, None


# The formulas of the registry that PyTorch's optimizers need.
TABLE_UPDATES = (
    "gradient_descent", "sgd", "sgd_nesterov", "adam", "adamw", "adam_amsgrad", "adamw_amsgrad",
)  # fmt: skip
_GATHER_PAIRS = (
    *((source, out) for source in ("u8", *FLOATS) for out in FLOATS),
    ("i32", "i32"), ("i64", "i64"), ("i32", "i64"),
)  # fmt: skip
# Bytes of an access, and the storage that has rows of a multiple of them.
LANE_PAIRS = tuple(
    (f"w{width}", suffix) for suffix in FLOATS for width in (16, 8, 4, 2) if width >= BYTES[suffix]
)
# Columns of a row that the compiler knows, and its storage.
PAIR_COLUMNS = 32
PAIR_PAIRS = tuple(
    (f"k{columns}", suffix)
    for columns in range(1, PAIR_COLUMNS + 1)
    for suffix in ("f32", *_SIXTEEN_BIT)
)
_DROPOUT = (("ONLY_DROPOUT", "1"),)
# Dtypes of (a layer, its product). A name of one part stands for both.
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
    "softmax_cross_entropy_lanes": Kernel(
        "softmax_cross_entropy_lanes.cu", _elsewhere, pairs=LANE_PAIRS
    ),
    "softmax_cross_entropy_pairs": Kernel(
        "softmax_cross_entropy_pairs.cu", _elsewhere, pairs=PAIR_PAIRS
    ),
    "softmax_cross_entropy_short": Kernel(
        "softmax_cross_entropy_short.cu", _elsewhere, ("general",)
    ),
    "row_weights": Kernel("row_weights.cu", _flat(ROWS_IN_FLIGHT), ("u8", "i32", "i64"), COMPUTE),
    "update": Kernel("update.cu", _flat(0), tuple(UPDATES), UPDATE_STORAGE),
    "prepare_update": Kernel("prepare_update.cu", _one(64), tuple(UPDATES), COMPUTE),
    "update_table": Kernel("update_table.cu", _chunks, TABLE_UPDATES),
    "prepare_table": Kernel("update_table.cu", _each, TABLE_UPDATES),
    "sum_of_squares": Kernel("sum_of_squares.cu", _squares),
    "sum_of_squares_finish": Kernel("sum_of_squares.cu", _one(1024), dtypes=COMPUTE),
    "gather_rows": Kernel("gather_rows.cu", _gather, pairs=_GATHER_PAIRS),
    "one_hot_forward": Kernel("one_hot.cu", _units, dtypes=COMPUTE),
    "one_hot_backward": Kernel("one_hot.cu", _tiles, dtypes=COMPUTE),
    "accumulate": Kernel("accumulate.cu", _one(FLAT_THREADS), dtypes=COMPUTE),
    # Planned by gpubackprop.backends.resident_plan.
    **{
        resident_kernel(blocks, tf32): _resident(blocks, tf32)
        for tf32 in (False, True)
        for blocks in (1, 2, 4, 8)
    },
    # Planned by gpubackprop.backends.spread_plan.
    spread_kernel(False): Kernel("spread_gradient.cu", _elsewhere, dtypes=("f32",)),
    spread_kernel(True): Kernel(
        "spread_gradient.cu", _elsewhere, dtypes=("f32",), defines=(("ONLY_TF32", "1"),)
    ),
    "spread_sum": Kernel("spread_gradient.cu", _elsewhere, dtypes=("f32",)),
}
