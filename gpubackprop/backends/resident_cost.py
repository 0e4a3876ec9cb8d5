"""A plan of resident training: what a step costs by it, and how many blocks that is worth.

Cycles are predicted from sizes alone, with the numbers of `kernels/resident_training.cu` and of an
H200 below. They choose between plans and are not a claim: nothing here was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gpubackprop.backends.cupy_launch import ceil_division

CLUSTERS = (1, 2, 4, 8)  # blocks of a network; more than 8 is not portable
THREADS, WARPS = 256, 8  # of a block
LANES_I, LANES_J = 8, 4  # of a warp, as in kernels/include/resident_product.cuh
# A multiprocessor moves 128 bytes a cycle from shared memory: a warp's access of 16 bytes is four.
WAVEFRONTS = 4
# Wavefronts beside the operands of products, which those of FMA hide and those of tensor cores do
# not: of 32 units (h stored, read for its slope, delta in its place; one for bias, rows and loss),
# of 32 elements of a gradient.
UNIT_WAVEFRONTS, GRADIENT_WAVEFRONTS = 4, 2
# Cycles of a dependent round trip: to the own shared memory with the arithmetic behind it, and to
# that of another block of the cluster; of a barrier of the block and one of the cluster.
OWN_TRIP, OTHER_TRIP, BARRIER, CLUSTER_BARRIER = 60, 250, 40, 400
OTHER_BYTES = 32  # a cycle, from the blocks of a cluster or to them
# More blocks have to make a step shorter by so much: with many networks each block is missing
# elsewhere.
WORTH_IT = 1.3


@dataclass(frozen=True)
class ResidentPlan:
    """The answer of `plan_resident`.

    Attributes
    ----------
    reason : str
        Why the network does not fit; "" if it does.
    shared_bytes : int
        Dynamic shared memory of a block; the least that would do if the network does not fit.
    available : int
        What a block of the card may have.
    blocks : int
        Blocks of the network's cluster; 1 for a block without a cluster.
    tile_rows : int
        Rows of a batch that a block works on at once.
    cycles : int
        What a step is predicted to take, for comparisons of plans (`resident_cost`).
    numbers : dict
        Places in the block's memory, in floats, by the names of `WORDS`.
    layers : tuple of dict
        The same for each layer, by the names of `LAYER_FIELDS`.
    in_one_block : ResidentPlan or None
        If there is a cluster: the same training by one block, with the same bits, for a launch of
        many networks. None if it does not fit.
    tf32 : bool
        Whether products are those of tensor cores in TF32, and not of FMA in float32.
    """

    reason: str
    shared_bytes: int
    available: int
    blocks: int = 1
    tile_rows: int = 0
    cycles: int = 0
    numbers: dict[str, int] = field(default_factory=dict, repr=False)
    layers: tuple[dict[str, int], ...] = field(default=(), repr=False)
    in_one_block: ResidentPlan | None = field(default=None, repr=False)
    tf32: bool = False

    @property
    def fits(self) -> bool:
        return not self.reason

    def __str__(self) -> str:
        if not self.fits:
            return f"no resident training: {self.reason}"
        blocks = "one block" if self.blocks == 1 else f"a cluster of {self.blocks} blocks"
        return (
            f"resident training: {blocks}, {self.shared_bytes:,} of {self.available:,} bytes, "
            f"tiles of {self.tile_rows} rows{products_of(self)}"
        )


def products_of(plan: ResidentPlan) -> str:
    """Return how a plan's products are named behind its numbers: not at all in float32."""
    return ", products by tensor cores in TF32" if plan.tf32 else ""


def cycles_of_step(
    widths: Sequence[int],
    tiles: Sequence[int],
    count: int,
    slots: int,
    blocks: int,
    tf32: bool = False,
) -> int:
    """Predict the cycles of a step in one of a network's blocks.

    Parameters
    ----------
    widths : sequence of int
        Numbers of inputs, hidden units of each layer, and outputs.
    tiles : sequence of int
        Rows of each tile that the block takes.
    count : int
        Floats of the flat parameters.
    slots : int
        Slots of the optimizer.
    blocks : int
        Blocks of the network.
    tf32 : bool
        Whether products are in TF32.

    Returns
    -------
    int
        Cycles of a multiprocessor.
    """
    cycles = sum(cycles_of_tile(widths, rows, tf32) for rows in tiles)
    turns = ceil_division(ceil_division(count, blocks), THREADS)
    cycles += turns * max(OWN_TRIP, WARPS * (3 + 2 * slots)) + 4 * BARRIER
    if blocks > 1:
        # Each reads its slice from all and writes it to all.
        cycles += 2 * CLUSTER_BARRIER + 2 * OTHER_TRIP + 2 * 4 * count // OTHER_BYTES
    return cycles


def cycles_of_tile(widths: Sequence[int], rows: int, tf32: bool = False) -> int:
    """Predict the cycles of a tile's products, and of the barriers between them.

    Parameters
    ----------
    widths : sequence of int
        Numbers of inputs, hidden units of each layer, and outputs.
    rows : int
        Rows of the tile.
    tf32 : bool
        Whether products are in TF32.

    Returns
    -------
    int
        Cycles of a multiprocessor.
    """
    cycles, product = 2 * BARRIER, _tensor_product if tf32 else _product
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        cycles += product(rows, outputs, inputs) + product(outputs, inputs, rows) + 4 * BARRIER
        if number > 0:
            cycles += product(rows, inputs, outputs) + BARRIER
        if tf32:
            cycles += UNIT_WAVEFRONTS * ceil_division(rows * outputs, 32)
            cycles += GRADIENT_WAVEFRONTS * ceil_division(inputs * outputs, 32)
    return cycles


def _product(rows: int, cols: int, depth: int) -> int:
    """Return the cycles of a product: those of its wavefronts, or of a warp that waits for each."""
    side = 4 if _tiles(rows, cols, 4) >= WARPS else 2
    tiles, turns = _tiles(rows, cols, side), ceil_division(depth, 4)
    return turns * max(tiles * 2 * side * WAVEFRONTS, ceil_division(tiles, WARPS) * OWN_TRIP)


def _tensor_product(rows: int, cols: int, depth: int) -> int:
    """Return the cycles of a product in TF32, likewise: eight k at a time, a word a lane."""
    m, n = (2, 4) if _fragments(rows, cols, 2, 4) >= WARPS else (2, 2) if rows > 16 else (1, 2)
    tiles, turns = _fragments(rows, cols, m, n), ceil_division(depth, 8)
    return turns * max(tiles * (4 * m + 2 * n), ceil_division(tiles, WARPS) * OWN_TRIP)


def _fragments(rows: int, cols: int, m: int, n: int) -> int:
    return ceil_division(rows, 16 * m) * ceil_division(cols, 8 * n)


def _tiles(rows: int, cols: int, side: int) -> int:
    return ceil_division(rows, side * LANES_I) * ceil_division(cols, side * LANES_J)


def preferred(plans: Sequence[ResidentPlan]) -> ResidentPlan:
    """Choose one of a network's plans, of more and more blocks.

    Parameters
    ----------
    plans : sequence of ResidentPlan
        At least one.

    Returns
    -------
    ResidentPlan
        The first that fits, or a later one that is worth its blocks; the last if none fits.
    """
    fitting = [plan for plan in plans if plan.fits]
    best = fitting[0] if fitting else plans[-1]
    for plan in fitting[1:]:
        if WORTH_IT * plan.cycles <= best.cycles:
            best = plan
    return best


def in_company(
    plans: Sequence[ResidentPlan], steps: Sequence[int], multiprocessors: int
) -> list[ResidentPlan]:
    """Choose for the networks of a launch between their clusters and one block each.

    Each comes to the same bits either way. A cluster makes one network quicker; one block each does
    more networks in the same time.

    Parameters
    ----------
    plans : sequence of ResidentPlan
        Of the networks.
    steps : sequence of int
        Steps of each.
    multiprocessors : int
        Of the card.

    Returns
    -------
    list of ResidentPlan
        The plan of each, or its `in_one_block`.
    """

    def cycles(chosen: Sequence[ResidentPlan]) -> float:
        each = [plan.cycles * number for plan, number in zip(chosen, steps, strict=True)]
        blocks = sum(plan.blocks * time for plan, time in zip(chosen, each, strict=True))
        return max(*each, blocks / multiprocessors)

    alone = [plan.in_one_block or plan for plan in plans]
    return alone if cycles(alone) < cycles(plans) else list(plans)
