"""The plan of batches of many rows of a narrow network: the rows are spread over the whole card.

A pure function of sizes, as `resident_plan`. A batch is cut into shares, whose number follows from
its rows alone. Each block of one launch (`kernels/spread_gradient.cu`) has a copy of the parameters
in shared memory and takes a share there, forward and backward; a second launch adds up the shares'
gradients in their order. The update is that of any step. So units never reach the device's memory,
and the gradient's bits do not depend on the number of multiprocessors.

The constants are first choices, each with its reason; they were not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gpubackprop.backends.cupy_launch import DeviceProperties, ceil_division
from gpubackprop.backends.resident_cost import (
    WORTH_IT,
    ResidentPlan,
    cycles_of_tile,
    products_of,
)
from gpubackprop.backends.resident_plan import STATIC_SHARED, NetworkSizes, check_tf32, lay_out
from gpubackprop.formulas import Activation

SHARE_ROWS = 64  # at least: eight warps have work in a layer of 64 units
# Fewer shares do not fill a card. Networks that train together would then be quicker in clusters.
LEAST_SHARES = 128
MOST_SHARES = 512  # four turns of 132 blocks; more are more partial gradients
# Cycles of an H200 at 1.98 GHz: of the launches of a step, and bytes that the card moves in one.
LAUNCHES, CARD_BYTES = 7 * 4_000, 2_000
OWN_BYTES = 64  # a cycle, from the second-level cache to a block
# Wavefronts of a tile by the emulator's count, to what `cycles_of_tile` knows of; by tensor cores.
ALL_WAVEFRONTS = {False: 1.09, True: 1.05}
# Where the two are predicted about alike, rows are spread: that takes no memory for units.
ALIKE = 1.2
# What the products of the graph path reach: FMA a cycle of a multiprocessor (of 128); in TF32 (of
# 1,024, assumed) so many that memory is the limit of most.
PRODUCT_FMA = {False: 77, True: 300}
FLOAT = 4  # bytes


SPREAD, GRAPH = "spread", "graph"


@dataclass(frozen=True)
class SpreadPlan:
    """The answer of `plan_spread`.

    Attributes
    ----------
    way : {"spread", "graph", ""}
        The quickest way of a step: rows spread over the card, or products of matrices; "" leaves
        it to the plan of resident training.
    reason : str
        Why the rows are not spread; "" if they are.
    layout : ResidentPlan
        Places in the memory of each block, `tile_rows` and `shared_bytes`.
    shares : int
        Parts of a batch, each a block's.
    cycles : int
        What a step is predicted to take; 0 if it does not fit.
    graph_cycles : int
        What it is predicted to take by products and kernels of the graph path.
    sizes : NetworkSizes
        What it was made of.
    """

    way: str
    reason: str
    layout: ResidentPlan = field(repr=False)
    shares: int
    cycles: int
    graph_cycles: int
    sizes: NetworkSizes = field(repr=False)

    def __str__(self) -> str:
        if self.reason:
            return f"rows are not spread over the card: {self.reason}"
        layout = self.layout
        return (
            f"rows are spread over the card: {self.shares} blocks, {layout.shared_bytes:,} of "
            f"{layout.available:,} bytes, tiles of {layout.tile_rows} rows, and a launch that adds "
            f"up their gradients{products_of(layout)}"
        )


def shares_of(rows: int) -> int:
    """Return the parts into which a batch is cut; a power of two, so that large cards are full.

    Parameters
    ----------
    rows : int
        Rows of the batch, at least 1.

    Returns
    -------
    int
        From 1 to `MOST_SHARES`.

    Examples
    --------
    >>> [shares_of(rows) for rows in (1, 200, 8192, 10_000, 1 << 20)]
    [1, 2, 128, 128, 512]
    """
    most = max(1, min(MOST_SHARES, rows // SHARE_ROWS))
    return 1 << (most.bit_length() - 1)


def plan_spread(
    widths: Sequence[int],
    activations: Sequence[Activation],
    batch_size: int,
    device: DeviceProperties,
    *,
    dropout: Sequence[float] | None = None,
    has_labels: bool = True,
    weighted: bool = False,
    resident: ResidentPlan | None = None,
    tf32: bool = False,
) -> SpreadPlan:
    """Say whether a network's batches are spread over the card, and lay out a block.

    Parameters
    ----------
    widths : sequence of int
        Numbers of inputs, hidden units of each layer, and outputs.
    activations : sequence of Activation
        One for each hidden layer.
    batch_size : int
        The most rows of a batch.
    device : DeviceProperties
        The card.
    dropout : sequence of float or None
        Rate of each hidden layer.
    has_labels : bool
        Whether targets are class indices; else they are a number for each output.
    weighted : bool
        Whether rows have weights.
    resident : ResidentPlan or None
        The network's plan in one block or one cluster, which is to be beaten if it fits.
    tf32 : bool
        Whether products are those of tensor cores in TF32.

    Returns
    -------
    SpreadPlan
        The layout, or the reason why rows are not spread.

    Examples
    --------
    >>> from gpubackprop.formulas import ACTIVATIONS
    >>> card, relu = DeviceProperties(132, 232_448, (9, 0)), ACTIVATIONS["relu"]
    >>> print(plan_spread((64, 64, 64, 64, 10), (relu,) * 3, 1 << 20, card))
    rows are spread over the card: 512 blocks, 225,696 of 230,400 bytes, tiles of 80 rows, and a \
launch that adds up their gradients
    >>> print(plan_spread((64, 128, 10), (relu,), 200, card))
    rows are not spread over the card: batches of 200 rows, and 8,192 fill it
    """
    sizes = NetworkSizes(
        tuple(widths), tuple(activations), tuple(dropout or [0.0] * len(activations)), 0,
        batch_size, has_labels, weighted, max(0, device.shared_bytes - STATIC_SHARED),
        tf32,
    )  # fmt: skip
    check_tf32(device, tf32)
    shares, layout = shares_of(batch_size), layout_of(sizes)
    graph = _graph_cycles(widths, batch_size, device.multiprocessors, tf32)
    cycles = _cycles(layout, sizes, shares, device.multiprocessors) if layout.fits else 0
    cluster = resident.cycles if resident is not None and resident.fits else 0
    way, reason = "", layout.reason
    if shares < LEAST_SHARES:
        reason = f"batches of {batch_size} rows, and {LEAST_SHARES * SHARE_ROWS:,} fill it"
    elif cluster and WORTH_IT * min(graph, cycles or graph) > cluster:
        reason = "a cluster is predicted to be as quick"
    elif reason or cycles > ALIKE * graph:
        way, reason = GRAPH, reason or "products of matrices are predicted to be quicker"
    else:
        way = SPREAD
    return SpreadPlan(way, reason, layout, shares, cycles, graph, sizes)


def layout_of(sizes: NetworkSizes) -> ResidentPlan:
    """Return the layout of a block for batches of ``sizes.batch_size`` rows.

    Parameters
    ----------
    sizes : NetworkSizes
        The network, without slots, and the batch's rows.

    Returns
    -------
    ResidentPlan
        The layout, or the reason why there is none.
    """
    shares = shares_of(sizes.batch_size)
    return lay_out(sizes, shares, shares)


def _cycles(
    layout: ResidentPlan, sizes: NetworkSizes, shares: int, multiprocessors: int
) -> int:  # fmt: skip
    """Return the cycles of a step: shares in turns, parameters in, gradients out, their sum."""
    rows, tile = ceil_division(sizes.batch_size, shares), layout.tile_rows
    whole, rest = divmod(rows, tile)
    tiles = [tile] * whole + [rest] * (rest > 0)
    share = int(
        ALL_WAVEFRONTS[sizes.tf32]
        * sum(cycles_of_tile(sizes.widths, one, sizes.tf32) for one in tiles)
    )
    partial = FLOAT * layout.numbers["count"]
    share += 2 * partial // OWN_BYTES
    turns = ceil_division(shares, multiprocessors)
    return turns * share + 2 * shares * partial // CARD_BYTES + LAUNCHES


def _graph_cycles(
    widths: Sequence[int], rows: int, multiprocessors: int, tf32: bool
) -> int:  # fmt: skip
    """Return the cycles of a step by products over whole matrices, each as FMA or bytes allow."""
    cycles = LAUNCHES * len(widths) // 2  # more layers are more launches
    cycles += 3 * FLOAT * rows * widths[0] // CARD_BYTES  # x is gathered, and read again
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        compute = rows * inputs * outputs // (PRODUCT_FMA[tf32] * multiprocessors)
        moved = FLOAT * rows * (inputs + outputs) // CARD_BYTES
        cycles += max(compute, moved) * (2 if number == 0 else 3)
        if number > 0:  # activation_backward
            cycles += 3 * FLOAT * rows * inputs // CARD_BYTES
    return cycles + 3 * FLOAT * rows * widths[-1] // CARD_BYTES
