"""The launches of batches whose rows are spread over the card: gradients of shares, and their sum.

See `kernels/spread_gradient.cu` and `gpubackprop.backends.spread_plan`.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from gpubackprop.backends.base import Backend
from gpubackprop.backends.cupy.issuer import Issuer
from gpubackprop.backends.cupy.resident import THREADS, ResidentNetwork
from gpubackprop.backends.cupy_launch import (
    KERNELS,
    Launch,
    ceil_division,
    entry_defines,
    entry_name,
    spread_kernel,
)
from gpubackprop.backends.memory import Array
from gpubackprop.backends.resident_plan import layers_of, table_of

FIGURES, SUM_THREADS, SUFFIX = 4, 64, "f32"


def working_arrays(backend: Backend, shares: int, size: int) -> dict[str, Array]:
    """Return what the shares leave: ``partial`` (S, P), whose gaps stay 0, and ``figures`` (S, 4).

    Parameters
    ----------
    backend : Backend
        Allocates them.
    shares : int
        The most shares S of a batch.
    size : int
        Elements P of the flat parameters.

    Returns
    -------
    dict of arrays
        float32 arrays of the device.
    """
    return {
        "partial": backend.zeros((shares, size), np.float32),
        "figures": backend.zeros((shares, FIGURES), np.float32),
    }


def spread_gradients(
    backend: Issuer,
    network: ResidentNetwork,
    arrays: dict[str, Array | None],
    mean: dict[str, float],
) -> None:
    """Issue the two launches that compute a batch's loss and the gradient of all parameters.

    Parameters
    ----------
    backend : Issuer
        The backend whose device has all the arrays.
    network : ResidentNetwork
        The network and its batch, as `kernels/include/resident.cuh` names them.
    arrays : dict of arrays
        Those of `working_arrays`, and ``gradient`` (P,), ``loss`` () and ``correct_rows`` () or
        None, which are written.
    mean : dict
        ``divisor``, or 0 if it is what the rows count times ``units``; ``empty_is_zero``.

    Raises
    ------
    DtypeError, ShapeError, DeviceUnavailable
        An array has another dtype, has gaps, or lies elsewhere.
    """
    plan, partial = network.plan, cast(Any, arrays["partial"])
    layers = [p | dict(more) for p, more in zip(plan.layers, network.layers, strict=True)]
    shares, size = plan.numbers["shares"], partial.shape[1]
    backend.issue(
        _launch(spread_kernel(plan.tf32), shares, THREADS, plan.shared_bytes),
        {
            "table": backend.asarray(table_of([network.words(backend, 0)])),
            "layers": backend.asarray(layers_of([layers])),
            "partial": partial, "figures": arrays["figures"], "stride": size,
        },
    )  # fmt: skip
    backend.issue(
        _launch("spread_sum", ceil_division(size, SUM_THREADS), SUM_THREADS, 0),
        {"shares": shares, "count": size, "stride": size, **arrays, **mean},
    )


def _launch(kernel: str, blocks: int, threads: int, shared_bytes: int) -> Launch:
    return Launch(
        KERNELS[kernel].source, entry_name(kernel, "", SUFFIX),
        (*KERNELS[kernel].defines, *entry_defines("", SUFFIX)),
        (blocks, 1, 1), (threads, 1, 1), shared_bytes=shared_bytes,
    )  # fmt: skip
