"""The plan of resident training: whether a network fits into a block or a cluster, and where.

A pure function of sizes, which needs neither a GPU nor CuPy. One block trains one network, or a
cluster of 2, 4 or 8 blocks (`kernels/resident_training.cu`): parameters, gradients and optimizer
slots stay in the blocks' shared memory, beside the units of a tile of rows. The plan of a network
does not depend on what else is in a launch, so its sums have one order. The constants are first
choices, each with its reason; they were not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from gpubackprop.backends.cupy_launch import DeviceProperties, ceil_division
from gpubackprop.backends.precision import has_tf32
from gpubackprop.backends.resident_cost import CLUSTERS, ResidentPlan, cycles_of_step, preferred
from gpubackprop.errors import OptionError
from gpubackprop.formulas import Activation, Update

FLOAT = 4  # bytes
# Words of 4 bytes in Layer, and names of the words of a network, of kernels/include/resident.cuh.
LAYER_WORDS = 16
ADDRESSES = (
    "parameters", "slot_0", "slot_1", "slot_2", "state", "random", "totals", "coefficient_table",
    "clip_norm", "step_losses", "x", "targets", "sample_weight", "class_weight", "order",
)  # fmt: skip
WORDS = (
    *ADDRESSES, "steps", "start", "epoch_rows", "batch_rows", "data_rows", "tile_rows", "update",
    "slots", "clips", "loss", "first_layer", "layers", "shares", "weights_at", "weights_end",
    "count", "slice", "x_at", "x_stride", "targets_at", "targets_stride", "row_weights_at",
    "has_labels", "has_ignore_index", "ignore_index", "reduction", "empty_is_zero",
    "counts_correct", "weights_by_order", "one_minus_eps", "eps_over_k", "z_loss", "soft_cap",
    "loss_parameter", "probability_eps",
)  # fmt: skip
LAYER_FIELDS = (
    "inputs", "outputs", "weights_from", "biases_from", "weights", "stride", "biases", "units",
    "units_stride", "slopes", "activation", "threshold", "parameter", "scale",
)  # fmt: skip
STATIC_SHARED = (
    2048  # bytes beside the dynamic ones: words, progress, sums of warps; driver's share
)
# Rows of a tile. More make fewer barriers; 256 rows give each thread one of the smallest layers.
MOST_ROWS = 256
STAGES = 2  # inputs of two tiles: one is on its way while the other is worked on


def plan_resident(
    widths: Sequence[int],
    activations: Sequence[Activation],
    formula: Update,
    batch_size: int,
    device: DeviceProperties,
    *,
    dropout: Sequence[float] | None = None,
    has_labels: bool = True,
    weighted: bool = False,
    blocks: int | None = None,
    tf32: bool = False,
) -> ResidentPlan:
    """Lay out a network in the shared memory of one block, or of each block of a cluster.

    Parameters
    ----------
    widths : sequence of int
        Numbers of inputs, hidden units of each layer, and outputs.
    activations : sequence of Activation
        One for each hidden layer.
    formula : Update
        The optimizer's formula, whose slots lie beside the parameters.
    batch_size : int
        The most rows of a batch.
    device : DeviceProperties
        The card; clusters came with compute capability 9.0.
    dropout : sequence of float or None
        Rate of each hidden layer.
    has_labels : bool
        Whether targets are class indices; else they are a number for each output.
    weighted : bool
        Whether rows have weights.
    blocks : {1, 2, 4, 8} or None
        Overrules the choice of the cluster.
    tf32 : bool
        Whether products are those of tensor cores in TF32; the layout is the same.

    Returns
    -------
    ResidentPlan
        The layout, or the reason why there is none.

    Raises
    ------
    OptionError
        `blocks` is another number, or more than 1 on a card without clusters; or the card has no
        TF32.

    Examples
    --------
    >>> from gpubackprop.formulas import ACTIVATIONS, UPDATES
    >>> card = DeviceProperties(132, shared_bytes=232_448, capability=(9, 0))
    >>> relu, adam = ACTIVATIONS["relu"], UPDATES["adam"]
    >>> print(plan_resident((64, 128, 10), (relu,), adam, 200, card))
    resident training: a cluster of 8 blocks, 123,424 of 230,400 bytes, tiles of 28 rows
    >>> print(plan_resident((64, 128, 10), (relu,), adam, 200, card, blocks=1))
    resident training: one block, 221,824 of 230,400 bytes, tiles of 52 rows
    >>> print(plan_resident((784, 512, 10), (relu,), adam, 128, card))
    no resident training: 3,682,272 bytes of parameters, gradients and slots in each of 8 blocks, \
230,400 there
    """
    network = NetworkSizes(
        tuple(widths), tuple(activations), tuple(dropout or [0.0] * len(activations)),
        len(formula.slots), batch_size, has_labels, weighted,
        max(0, device.shared_bytes - STATIC_SHARED), tf32,
    )  # fmt: skip
    check_tf32(device, tf32)
    there = CLUSTERS if device.capability >= (9, 0) else (1,)
    if blocks not in (None, *there):
        raise OptionError(f"blocks is {blocks!r} but must be {', '.join(map(str, there))} or None")
    plans = [lay_out(network, n, n) for n in ([blocks] if blocks else there)]
    plan = preferred(plans)
    if plan.blocks == 1:
        return plan
    alone = lay_out(network, plan.blocks, 1)
    return replace(plan, in_one_block=alone if alone.fits else None)


@dataclass(frozen=True)
class NetworkSizes:
    """The sizes that a layout is made of; `available` are the bytes of a block."""

    widths: tuple[int, ...]
    activations: tuple[Activation, ...]
    dropout: tuple[float, ...]
    slots: int
    batch_size: int
    has_labels: bool
    weighted: bool
    available: int
    tf32: bool = False


def check_tf32(device: DeviceProperties, tf32: bool) -> None:
    """Raise OptionError if products are to be in TF32 on a card that has none."""
    major, minor = device.capability
    if tf32 and not has_tf32(10 * major + minor):
        raise OptionError(
            f"tf32 is True but a card of compute capability {major}.{minor} has no TF32"
        )


def lay_out(network: NetworkSizes, shares: int, blocks: int) -> ResidentPlan:
    """Lay out a network whose batches are cut into `shares`, in as many blocks or in one.

    One block adds up the tiles of a batch as a cluster adds up its blocks: a share is one tile.

    Parameters
    ----------
    network : NetworkSizes
        The sizes.
    shares : int
        Shares of a batch.
    blocks : int
        The same, or 1.

    Returns
    -------
    ResidentPlan
        The layout of each block, or the reason why there is none.
    """
    layers, available = _layers(network), network.available
    count = _place_parameters(layers)
    part = _up(ceil_division(count, shares), 4)  # of the flat parameters, with a share's slots
    state = 2 * count + network.slots * (part if blocks > 1 else count)
    fixed, row = LAYER_WORDS * len(layers) + state, _row(layers, network)
    least, rows = FLOAT * (fixed + 4 * row), ceil_division(network.batch_size, shares)
    most = (available // FLOAT - fixed) // row // 4 * 4
    reason, each = "", f" in each of {blocks} blocks" if blocks > 1 else ""
    if FLOAT * fixed > available:
        reason = (
            f"{FLOAT * state:,} bytes of parameters, gradients and slots{each}, {available:,} there"
        )
    elif most == 0:
        reason = f"{least:,} bytes with four rows of units{each}, {available:,} there"
    elif blocks < shares and min(most, MOST_ROWS) < rows:
        reason = f"a share of {rows} rows is more than one tile"
    if reason:
        return ResidentPlan(reason, least, available, blocks, tf32=network.tf32)
    tiles = ceil_division(rows, min(most, MOST_ROWS))
    tile_rows = _up(ceil_division(rows, tiles), 4)
    numbers = _place_rows(layers, network, tile_rows, fixed)
    numbers |= {"tile_rows": tile_rows, "layers": len(layers), "slots": network.slots}
    numbers |= {"weights_at": LAYER_WORDS * len(layers), "count": count}
    numbers |= {"shares": shares, "slice": part}
    numbers["weights_end"] = layers[0]["biases"] - numbers["weights_at"]
    cycles = cycles_of_step(
        network.widths, [min(tile_rows, rows)] * tiles * (shares // blocks), count, network.slots,
        blocks, network.tf32,
    )  # fmt: skip
    return ResidentPlan(
        "", FLOAT * (fixed + tile_rows * row), available, blocks, tile_rows, cycles, numbers,
        tuple(layers), tf32=network.tf32,
    )  # fmt: skip


def _up(number: int, step: int) -> int:
    return ceil_division(number, step) * step


def row_stride(width: int) -> int:
    """Return floats from a row to the next: four times an odd number.

    Eight neighbouring rows' packs of 16 bytes at one column then lie in all 32 banks.
    """
    return 4 * (ceil_division(width, 4) | 1)


def _layers(network: NetworkSizes) -> list[dict[str, int]]:
    layers = [
        {
            "inputs": inputs, "outputs": outputs, "stride": row_stride(inputs),
            "units_stride": row_stride(outputs), "slopes": 0,
        }
        for inputs, outputs in pairwise(network.widths)
    ]  # fmt: skip
    for layer, act, rate in zip(layers, network.activations, network.dropout, strict=False):
        # The slope is kept if it is no function of h as the next layer reads it.
        layer["slopes"] = int(act.saved == "a" or rate > 0)
    return layers


def _place_parameters(layers: list[dict[str, int]]) -> int:
    """Place weights, then biases, behind the layers' numbers; return how many floats they are."""
    begin = place = LAYER_WORDS * len(layers)
    for layer in layers:
        layer["weights"] = place
        place += layer["outputs"] * layer["stride"]
    for layer in layers:
        layer["biases"] = place
        place += _up(layer["outputs"], 4)
    return place - begin


def _row(layers: list[dict[str, int]], network: NetworkSizes) -> int:
    """Return the floats that a row of a tile takes."""
    widths, targets = network.widths, 2 if network.has_labels else row_stride(network.widths[-1])
    return STAGES * (row_stride(widths[0]) + targets + network.weighted) + sum(
        layer["units_stride"] * (2 if layer["slopes"] else 1) for layer in layers
    )


def _place_rows(
    layers: list[dict[str, int]], network: NetworkSizes, rows: int, place: int
) -> dict[str, int]:
    """Place what belongs to the rows of a tile from `place` on."""
    widths, weighted = network.widths, network.weighted
    numbers = {"x_stride": row_stride(widths[0]), "has_labels": int(network.has_labels)}
    numbers["targets_stride"] = 2 if network.has_labels else row_stride(widths[-1])
    for name, each in (
        ("x_at", numbers["x_stride"]),
        ("targets_at", numbers["targets_stride"]),
        ("row_weights_at", int(weighted)),
    ):
        numbers[name] = place
        place += STAGES * rows * each
    for layer in layers:
        layer["units"] = place
        place += rows * layer["units_stride"]
        if layer["slopes"]:
            layer["slopes"] = place
            place += rows * layer["units_stride"]
    return numbers


def table_of(networks: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the kernel's table, (networks, words) uint64, of a value for each of `WORDS`.

    Addresses and whole numbers stand as they are, a float by its bits in float32.
    """
    table = np.zeros((len(networks), len(WORDS)), np.uint64)
    for row, values in zip(table, networks, strict=True):
        if values.keys() != set(WORDS):
            raise TypeError(
                f"a network has {sorted(values.keys() ^ set(WORDS))} too many or too few"
            )
        row[:] = [_bits(values[name]) for name in WORDS]
    return table


def layers_of(networks: Sequence[Sequence[dict[str, Any]]]) -> np.ndarray:
    """Return the layers of all networks, (layers, LAYER_WORDS) int32."""
    rows = [layer for network in networks for layer in network]
    table = np.zeros((len(rows), LAYER_WORDS), np.uint32)
    for row, values in zip(table, rows, strict=True):
        row[: len(LAYER_FIELDS)] = [_bits(values[name]) for name in LAYER_FIELDS]
    return table.view(np.int32)


def _bits(value: Any) -> int:
    if isinstance(value, (float, np.floating)):
        return int(np.float32(value).view(np.uint32))
    return int(value) % 2**64
