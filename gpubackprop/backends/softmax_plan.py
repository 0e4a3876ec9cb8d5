"""The choice of the softmax kernel's form for a matrix, and its launch: a pure function.

The forms are one algorithm with different storage (kernels/softmax_cross_entropy.cu);
kernels/README.md tells the story with its bytes. Every form reads the logits once and writes the
gradient once, with two exceptions: if a row fits nowhere, its rest is read twice, and so are few
rows that are cut into parts. The thresholds are first choices, each with its reason; they were not
measured on a GPU.
"""

from __future__ import annotations

from typing import Any

from gpubackprop.backends.cupy_launch import (
    KERNELS,
    MAX_GRID_X,
    MAX_GRID_Y,
    PAIR_COLUMNS,
    VECTOR_BYTES,
    DeviceProperties,
    Launch,
    ceil_division,
    entry_defines,
    entry_name,
    power_of_two,
    suffix_of,
)
from gpubackprop.dtypes import BYTES
from gpubackprop.errors import OptionError

HELD_BYTES = (
    64  # of a row that a thread has in registers, in the labels form (include/row_packs.cuh)
)
GROUP_THREADS = 256  # threads of a block that works on one row, or of a block of warps
TILE_THREADS = 128  # of a block that works on tiles of whole rows (include/tile.cuh)
# Constants of softmax_cross_entropy_lanes.cu: bytes of a row that a lane takes into registers.
# Three tiles are there at a time, two if memory is short.
LANE_BYTES, TILES = 128, (3, 2)
# Constants of softmax_cross_entropy_pairs.cu: rows of a block's tiles.
PAIR_ROWS = 256
# Constants of softmax_cross_entropy_short.cu: elements of a row for a lane, bytes of a tile.
SHORT_VALUES, TILE_BYTES = 8, 8192
SHORT_COLUMNS = 32 * SHORT_VALUES
CLUSTERS = (2, 4, 8)  # more than 8 is not portable
STATIC_SHARED = 2048  # bytes beside the row: the warps' statistics, and the driver's share
# Three blocks should fit a multiprocessor, so that one reads while another computes or writes.
BLOCKS_AT_ONCE = 3
# A block takes rows in turn, so that what it does once (a ticket, sums over its rows) is little.
# Its registers let two blocks of 256 threads run at once. Beyond MANY_TURNS there are four such
# waves, so that a slow block does not hold up the end.
REGISTER_BLOCKS, MANY_TURNS, WAVES = 2, 16, 4
# A part of a row deserves a block of its own if it fills one set of registers.
MAX_PARTS = 1024


def plan_softmax(
    rows: int,
    cols: int,
    dtype: Any,
    device: DeviceProperties,
    *,
    general: bool = False,
    plain: bool = False,
    contiguous: bool = True,
    aligned: bool = False,
    alignment: int = VECTOR_BYTES,
    cluster: int | None = None,
) -> tuple[Launch, ...]:
    """Return the launches of softmax cross entropy over (rows, cols) logits, mostly one.

    Parameters
    ----------
    rows : int
        Number of rows N.
    cols : int
        Number of classes K.
    dtype : dtype
        Storage dtype of the logits and of the gradient.
    device : DeviceProperties
        The card.
    general : bool
        Whether the form must take probabilities, class weights together with smoothing, a soft cap,
        or log softmax; otherwise it takes class indices with the other options.
    plain : bool
        Whether it takes labels and no option of single rows or classes, save an index to ignore,
        and both matrices start on 16 bytes.
    contiguous : bool
        Whether neither matrix has gaps between its rows.
    aligned : bool
        Whether every row of the logits starts on 16 bytes.
    alignment : {16, 8, 4, 2}
        Bytes of which the address of the logits is a multiple.
    cluster : {1, 2, 4, 8} or None
        Blocks per row, in place of the planner's choice.

    Returns
    -------
    tuple of Launch
        Empty for an empty matrix. `Launch.partial` is the shape of the statistics that two launches
        share; `Launch.shared_packs` is the last argument of the entries in
        softmax_cross_entropy.cu.

    Raises
    ------
    OptionError
        `cluster` is another number.

    Examples
    --------
    >>> card = DeviceProperties(132, shared_bytes=232_448, capability=(9, 0))
    >>> plan_softmax(8192, 32_000, "bfloat16", card)[0].entry
    'softmax_cross_entropy_rows_labels_bf16'
    >>> plan_softmax(8192, 131_072, "bfloat16", card)[0].entry
    'softmax_cross_entropy_cluster4_labels_bf16'
    """
    if cluster not in (None, 1, *CLUSTERS):
        raise OptionError(f"cluster is {cluster!r} but must be 1, 2, 4, 8 or None")
    suffix = suffix_of(dtype)
    kind = "general" if general else "labels"
    if rows == 0 or cols == 0:
        return ()
    alone = contiguous and cluster is None
    if alone and general and cols <= SHORT_COLUMNS:
        return (_short(rows, cols, suffix),)
    if alone and plain and not general:
        launch = _pairs(rows, cols, suffix, device)
        if launch is not None:
            return (launch,)
    if alone and not general and cols * BYTES[suffix] <= 32 * LANE_BYTES:
        launch = _lanes(rows, cols, suffix, alignment, device)
        if launch is not None:
            return (launch,)
    pack = VECTOR_BYTES // BYTES[suffix]
    packs = ceil_division(cols + (0 if aligned else pack - 1), pack)
    in_registers = HELD_BYTES // VECTOR_BYTES
    held = 0 if general else in_registers
    if packs <= 32 * in_registers and cluster is None:
        shared = max(0, ceil_division(packs, 32) - held)
        block = (32, GROUP_THREADS // 32)
        blocks = _groups(ceil_division(rows, block[1]), GROUP_THREADS, 1, shared, device)
        return (_launch(f"rows_{kind}", suffix, (blocks, 1), block, shared_packs=shared),)
    most = max(0, device.shared_bytes - STATIC_SHARED) // (GROUP_THREADS * VECTOR_BYTES)
    size = cluster or _cluster(packs, held, most, device)
    few = 2 * rows * size <= device.multiprocessors and packs > 4 * GROUP_THREADS * in_registers
    if cluster is None and (few or cols >= 2**31):  # a block counts its elements in 32 bits
        return _in_parts(rows, packs, in_registers, suffix, kind, device)
    each = ceil_division(packs, size)
    threads = max(32, power_of_two(ceil_division(each, in_registers), GROUP_THREADS))
    shared = min(most, ceil_division(max(0, each - threads * held), threads))
    form = f"cluster{size}_{kind}" if size > 1 else f"rows_{kind}"
    groups = _groups(rows, threads, size, shared, device)
    return (_launch(form, suffix, (groups * size, 1), (threads, 1), shared_packs=shared),)


def _groups(
    rows: int, threads: int, cluster: int, shared_packs: int, device: DeviceProperties
) -> int:
    """Return the groups of `cluster` blocks for so many rows: as many as are at work at once."""
    at_once = REGISTER_BLOCKS * GROUP_THREADS // threads
    bytes_each = shared_packs * threads * VECTOR_BYTES + STATIC_SHARED
    at_once = max(1, min(at_once, (device.shared_bytes + STATIC_SHARED) // bytes_each))
    return _turns(rows, max(1, device.multiprocessors * at_once // cluster))


def _turns(units: int, at_once: int) -> int:
    """Return how many groups take `units` in turn, each as many, if so many work at once."""
    turns = ceil_division(units, at_once)
    if turns > MANY_TURNS:
        turns = ceil_division(units, WAVES * at_once)
    return min(ceil_division(units, turns), MAX_GRID_X)


def _cluster(packs: int, held: int, most: int, device: DeviceProperties) -> int:
    """Return the fewest blocks per row whose parts leave room for `BLOCKS_AT_ONCE` of them.

    If not even eight blocks leave that room, return the fewest that hold the row at all.
    """
    if device.capability < (9, 0):
        return 1
    for limit in (most // BLOCKS_AT_ONCE, most):
        for size in (1, *CLUSTERS):
            if ceil_division(packs, size) <= GROUP_THREADS * (held + limit):
                return size
    return CLUSTERS[-1]


def _in_parts(
    rows: int, packs: int, in_registers: int, suffix: str, kind: str, device: DeviceProperties
) -> tuple[Launch, Launch]:
    """Cut each of few long rows, so that every multiprocessor has a block or two."""
    wanted = ceil_division(2 * device.multiprocessors, rows)
    parts = max(1, min(wanted, ceil_division(packs, GROUP_THREADS * in_registers), MAX_PARTS))
    grid, partial = (parts, min(rows, MAX_GRID_Y)), (rows, parts)
    return (
        _launch(f"parts_{kind}", suffix, grid, (GROUP_THREADS, 1), partial=partial),
        _launch(f"finish_{kind}", suffix, grid, (GROUP_THREADS, 1), partial=partial),
    )


def _lanes(
    rows: int, cols: int, suffix: str, alignment: int, device: DeviceProperties
) -> Launch | None:
    """Give each row a few lanes, with accesses as wide as all rows allow; None if no tile fits.

    Tiles lie alike modulo 16 bytes, which four rows of an odd number of 16-bit columns do not.
    """
    row_bytes = cols * BYTES[suffix]
    lanes = power_of_two(ceil_division(row_bytes, LANE_BYTES), 32)
    groups = TILE_THREADS // lanes  # rows of a tile
    if groups * row_bytes % VECTOR_BYTES:
        return None
    width = min(VECTOR_BYTES, alignment, row_bytes & -row_bytes)
    tile = (groups * row_bytes // VECTOR_BYTES + 1) * VECTOR_BYTES
    for tiles in TILES:
        shared = tiles * tile
        if shared <= device.shared_bytes - STATIC_SHARED:
            at_once = min(4, device.shared_bytes // (shared + STATIC_SHARED))
            blocks = _turns(ceil_division(rows, groups), device.multiprocessors * at_once)
            kernel, form = "softmax_cross_entropy_lanes", f"w{width}"
            return Launch(
                KERNELS[kernel].source,
                entry_name(kernel, form, suffix),
                entry_defines(form, suffix),
                (blocks, 1, 1),
                (lanes, groups, 1),
                shared_bytes=shared,
                shared_packs=tiles,
            )
    return None


def _pairs(rows: int, cols: int, suffix: str, device: DeviceProperties) -> Launch | None:
    """Give a thread two rows, where they are short and every multiprocessor has a block of them."""
    blocks = ceil_division(rows, PAIR_ROWS)
    if cols > PAIR_COLUMNS or suffix == "f64" or blocks < device.multiprocessors:
        return None
    for tiles in TILES:
        shared = tiles * PAIR_ROWS * cols * BYTES[suffix]
        if shared <= device.shared_bytes - STATIC_SHARED:
            at_once = min(4, device.shared_bytes // (shared + STATIC_SHARED))
            kernel, form = "softmax_cross_entropy_pairs", f"k{cols}"
            return Launch(
                KERNELS[kernel].source,
                entry_name(kernel, form, suffix),
                entry_defines(form, suffix),
                (_turns(blocks, device.multiprocessors * at_once), 1, 1),
                (TILE_THREADS, 1, 1),
                shared_bytes=shared,
                shared_packs=tiles,
            )
    return None


def _short(rows: int, cols: int, suffix: str) -> Launch:
    """Give each row as many lanes as have at most SHORT_VALUES elements each."""
    lanes = power_of_two(ceil_division(cols, SHORT_VALUES), 32)
    groups = TILE_THREADS // lanes
    tile = TILE_BYTES // BYTES[suffix] // cols // groups * groups  # rows, as the kernel has them
    blocks = min(ceil_division(rows, tile), MAX_GRID_X)
    return _launch(
        "general", suffix, (blocks, 1), (lanes, groups), kernel="softmax_cross_entropy_short"
    )


def _launch(
    form: str,
    suffix: str,
    grid: tuple[int, int],
    block: tuple[int, int],
    *,
    kernel: str = "softmax_cross_entropy",
    shared_packs: int = 0,
    partial: tuple[int, int] | None = None,
) -> Launch:
    return Launch(
        KERNELS[kernel].source,
        entry_name(kernel, form, suffix),
        entry_defines(form, suffix),
        (*grid, 1),
        (*block, 1),
        shared_bytes=shared_packs * block[0] * block[1] * VECTOR_BYTES,
        shared_packs=shared_packs,
        partial=partial,
    )
