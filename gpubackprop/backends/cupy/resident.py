"""The launches of resident training: many networks, a block or a cluster of blocks to each.

One launch has the networks of one number of blocks (`kernels/resident_training.cu`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.issuer import Issuer
from gpubackprop.backends.cupy_launch import (
    KERNELS,
    Launch,
    entry_defines,
    entry_name,
    resident_kernel,
)
from gpubackprop.backends.resident_cost import ResidentPlan, in_company
from gpubackprop.backends.resident_plan import (
    ADDRESSES,
    WORDS,
    layers_of,
    table_of,
)
from gpubackprop.errors import DeviceUnavailable, DtypeError, ShapeError

KERNEL, SUFFIX, THREADS = "resident_training", "f32", 256
DTYPES: dict[str, tuple[Any, ...]] = dict.fromkeys(ADDRESSES, (np.float32,)) | {
    **dict.fromkeys(("state", "totals", "clip_norm"), (np.float64,)),
    "random": (np.uint64,), "order": (np.int64,), "targets": (np.int64, np.float32),
}  # fmt: skip


@dataclass
class ResidentNetwork:
    """What the kernel reads and writes of one network.

    Attributes
    ----------
    plan : ResidentPlan
        Its layout in shared memory.
    arrays : mapping
        Arrays of the device, by the names of `ADDRESSES`; a name that is not there is null.
    numbers : mapping
        What the plan's numbers lack of `WORDS`; a name that is not there is 0.
    layers : sequence of mapping
        What the plan's layers lack of `LAYER_FIELDS`.
    """

    plan: ResidentPlan
    arrays: Mapping[str, Any]
    numbers: Mapping[str, float]
    layers: Sequence[Mapping[str, float]] = field(repr=False)

    def words(self, backend: Issuer, first_layer: int) -> dict[str, Any]:
        """Return a value for each of `WORDS`."""
        words: dict[str, Any] = dict.fromkeys(WORDS, 0)
        words |= self.plan.numbers | dict(self.numbers) | {"first_layer": first_layer}
        return words | {
            name: _address(backend, name, array)
            for name, array in self.arrays.items()
            if array is not None
        }


def resident_training(backend: Issuer, networks: Sequence[ResidentNetwork]) -> None:
    """Issue one launch that trains all networks, or one for each entry that they want.

    An entry is for networks of one number of blocks, and of one kind of products.

    Which networks get a cluster depends on all of them; what becomes of each does not.

    Parameters
    ----------
    backend : Issuer
        The backend whose device has all the arrays.
    networks : sequence of ResidentNetwork
        Any number of networks; none is no launch.

    Raises
    ------
    DtypeError, ShapeError, DeviceUnavailable
        An array has another dtype, has gaps, or lies elsewhere.
    """
    if not networks:
        return
    plans = in_company(
        [network.plan for network in networks],
        [int(network.numbers["steps"]) for network in networks],
        backend.launcher.properties.multiprocessors,
    )
    chosen = [replace(network, plan=plan) for network, plan in zip(networks, plans, strict=True)]
    for kind in sorted({(plan.blocks, plan.tf32) for plan in plans}, reverse=True):
        same = [n for n in chosen if (n.plan.blocks, n.plan.tf32) == kind]
        _launch(backend, same, *kind)


def _launch(
    backend: Issuer, networks: Sequence[ResidentNetwork], blocks: int, tf32: bool
) -> None:  # fmt: skip
    """Issue the launch of networks of so many blocks each, all in TF32 or none."""
    firsts = np.cumsum([0, *(len(network.layers) for network in networks)])
    table = table_of(
        [n.words(backend, first) for n, first in zip(networks, firsts[:-1], strict=True)]
    )
    layers = layers_of(
        [
            [planned | dict(more) for planned, more in zip(n.plan.layers, n.layers, strict=True)]
            for n in networks
        ]
    )
    kernel = resident_kernel(blocks, tf32)
    launch = Launch(
        KERNELS[kernel].source, entry_name(kernel, "", SUFFIX),
        (*KERNELS[kernel].defines, *entry_defines("", SUFFIX)),
        (blocks * len(networks), 1, 1), (THREADS, 1, 1),
        shared_bytes=max(network.plan.shared_bytes for network in networks),
    )  # fmt: skip
    backend.issue(launch, {"table": backend.asarray(table), "layers": backend.asarray(layers)})


def _address(backend: Issuer, name: str, array: Any) -> int:
    if not backend.is_device_array(array) or array.dtype not in DTYPES[name]:
        kinds = " or ".join(np.dtype(kind).name for kind in DTYPES[name])
        raise DtypeError(
            f"{KERNEL} wants a device array of {kinds} as {name} but got {array.dtype} in a "
            f"{type(array).__name__}; convert it with backend.asarray"
        )
    if not array.flags.c_contiguous:
        raise ShapeError(f"{KERNEL}: {name} has gaps; use cupy.ascontiguousarray")
    if int(array.device.id) != backend.index:
        raise DeviceUnavailable(
            f"{KERNEL}: {name} lies on cuda:{array.device.id} but the work is done on "
            f"cuda:{backend.index}; move it there first"
        )
    return int(array.data.ptr)
