"""Kernels of a CUDA graph that may start before the one in front of them has ended.

With programmatic dependent launch (compute capability 9.0) a grid is placed on the card while the
grid in front of it still runs, and waits there. So its start costs no time of its own. CuPy 14 has
no such launch: it calls cuLaunchKernel. Here ctypes calls cuLaunchKernelEx for the function that
CuPy has loaded. That takes the host longer than CuPy's call, so it is done in a capture alone, once
for a plan; the graph keeps it (docs/decisions/2026-11-28-dependent-launch.md).

Only a kernel that waits for the grid in front before all else may be launched so, and only behind a
kernel of ours. GPUBACKPROP_DEPENDENT_LAUNCH=0 launches every kernel as usual.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any

from gpubackprop.backends import cuda_driver
from gpubackprop.backends.cupy_launch import Launch

# Files whose entries all begin with ptx::follow_the_grid_in_front().
FOLLOWING = frozenset(
    f"{name}.cu"
    for name in (
        "accumulate", "activation_backward", "affine_epilogue", "column_sum", "gather_rows",
        "one_hot", "pointwise_loss", "prepare_update", "sum_of_squares", "update", "update_table",
    )
)  # fmt: skip
CAPABILITY = (9, 0)
PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CUlaunchAttributeID of cuda.h


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute of cuda.h: a number, and a union of 64 bytes."""

    _fields_ = (
        ("id", ctypes.c_uint), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int * 16),
    )  # fmt: skip


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("attribute_count", ctypes.c_uint),
    )  # fmt: skip


def driver() -> Any:
    """Return the driver's library. The stand-in for CuPy replaces this."""
    return cuda_driver.load_library(cuda_driver.LIBRARY)


def followers(launches: Mapping[int, Launch], capability: tuple[int, int]) -> frozenset[int]:
    """Return the places of launches that may start early: they wait, and are behind another launch.

    Parameters
    ----------
    launches : mapping
        The launches of our kernels among recorded calls, by place.
    capability : (major, minor)
        The card's.
    """
    if capability < CAPABILITY or os.environ.get("GPUBACKPROP_DEPENDENT_LAUNCH") == "0":
        return frozenset()
    return frozenset(
        place
        for place, launch in launches.items()
        if launch.source in FOLLOWING and place - 1 in launches and not launch.shared_bytes
    )


def launch_behind(cupy: Any, kernel: Any, grid: Any, block: Any, arguments: tuple[Any]) -> None:
    """Launch a kernel on the current stream so that it may start before its turn.

    Parameters
    ----------
    cupy : module
        CuPy.
    kernel : RawKernel
        Begins with ptx::follow_the_grid_in_front().
    grid, block : tuple of int
        The launch.
    arguments : tuple
        The record; its bytes are copied.

    Raises
    ------
    RuntimeError
        The driver refuses, or it is older than CUDA 12 and has no cuLaunchKernelEx.
    """
    (record,) = arguments
    attribute = LaunchAttribute(PROGRAMMATIC_STREAM_SERIALIZATION)
    attribute.value[0] = 1
    stream = cupy.cuda.get_current_stream().ptr
    three = [(*shape, 1, 1)[:3] for shape in (grid, block)]
    config = LaunchConfig(
        (ctypes.c_uint * 3)(*three[0]), (ctypes.c_uint * 3)(*three[1]), 0, stream,
        ctypes.pointer(attribute), 1,
    )  # fmt: skip
    parameters = (ctypes.c_void_p * 1)(record.ctypes.data)
    try:
        launch = driver().cuLaunchKernelEx
    except AttributeError as error:
        raise RuntimeError(f"the driver has no cuLaunchKernelEx: {error}") from None
    function = ctypes.c_void_p(kernel.kernel.ptr)
    code = launch(ctypes.byref(config), function, parameters, None)
    if code != 0:
        raise RuntimeError(f"cuLaunchKernelEx returned {code} (CUresult of cuda.h)")
