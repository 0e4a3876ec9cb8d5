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
    VECTOR_BYTES,
    DeviceProperties,
    Launch,
    ceil_division,
    entry_defines,
    entry_name,
    power_of_two,
    suffix_of,
)
from gpubackprop.dtypes import BY_SUFFIX, BYTES
from gpubackprop.errors import OptionError

# Bytes of a row that a thread holds in registers, in the labels form (include/row_packs.cuh).
HELD_BYTES = {suffix: 32 if row.sixteen_bit else 64 for suffix, row in BY_SUFFIX.items()}
GROUP_THREADS = 256  # threads of a block that works on one row, or of a block of warps
SHORT_THREADS, SHORT_VALUES = 128, 8  # constants of softmax_cross_entropy_short.cu
SHORT_COLUMNS = 32 * SHORT_VALUES
TILE_BYTES = 8192
CLUSTERS = (2, 4, 8)  # more than 8 is not portable
STATIC_SHARED = 2048  # bytes beside the row: the warps' statistics, and the driver's share
# Three blocks should fit a multiprocessor, so that one reads while another computes or writes.
BLOCKS_AT_ONCE = 3
# A part of a row deserves a block of its own if it fills one set of registers.
MAX_PARTS = 1024


def plan_softmax(
    rows: int,
    cols: int,
    dtype: Any,
    device: DeviceProperties,
    *,
    general: bool = False,
    contiguous: bool = True,
    aligned: bool = False,
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
    contiguous : bool
        Whether neither matrix has gaps between its rows.
    aligned : bool
        Whether every row of the logits starts on 16 bytes.
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
    if contiguous and cols <= SHORT_COLUMNS and cluster is None:
        return (_short(rows, cols, suffix, kind),)
    pack = VECTOR_BYTES // BYTES[suffix]
    packs = ceil_division(cols + (0 if aligned else pack - 1), pack)
    in_registers = HELD_BYTES[suffix] // VECTOR_BYTES
    held = 0 if general else in_registers
    if packs <= 32 * in_registers and cluster is None:
        blocks = min(ceil_division(rows, GROUP_THREADS // 32), MAX_GRID_X)
        shared = ceil_division(packs, 32) - held
        block = (32, GROUP_THREADS // 32)
        return (_launch(f"rows_{kind}", suffix, (blocks, 1), block, shared_packs=max(0, shared)),)
    most = max(0, device.shared_bytes - STATIC_SHARED) // (GROUP_THREADS * VECTOR_BYTES)
    size = cluster or _cluster(packs, held, most, device)
    alone = 2 * rows * size <= device.multiprocessors and packs > 4 * GROUP_THREADS * in_registers
    if cluster is None and (alone or cols >= 2**31):  # a block counts its elements in 32 bits
        return _in_parts(rows, packs, in_registers, suffix, kind, device)
    each = ceil_division(packs, size)
    threads = max(32, power_of_two(ceil_division(each, in_registers), GROUP_THREADS))
    shared = min(most, ceil_division(max(0, each - threads * held), threads))
    form = f"cluster{size}_{kind}" if size > 1 else f"rows_{kind}"
    groups = min(rows, MAX_GRID_X // size)
    return (_launch(form, suffix, (groups * size, 1), (threads, 1), shared_packs=shared),)


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


def _short(rows: int, cols: int, suffix: str, kind: str) -> Launch:
    """Give each row as many lanes as keep at most SHORT_VALUES elements each."""
    lanes = power_of_two(ceil_division(cols, SHORT_VALUES), 32)
    groups = SHORT_THREADS // lanes
    tile = TILE_BYTES // BYTES[suffix] // cols // groups * groups  # rows, as the kernel has them
    blocks = min(ceil_division(rows, tile), MAX_GRID_X)
    return _launch(kind, suffix, (blocks, 1), (lanes, groups), kernel="softmax_cross_entropy_short")


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
