"""The state of NVIDIA's driver, read from libcuda by ctypes; CuPy is not needed."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# CUdevice_attribute of cuda.h
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76

# The values of CUresult (cuda.h) that a user meets in cuInit: name, what to do.
_NO_DEVICE = 100
_CAUSES = {
    3: (
        "CUDA_ERROR_NOT_INITIALIZED",
        'the process was forked after CUDA started: start workers with "spawn"',
    ),
    34: (
        "CUDA_ERROR_STUB_LIBRARY",
        "the toolkit's stub of libcuda was loaded: take its stubs/ folder out of LD_LIBRARY_PATH",
    ),
    _NO_DEVICE: (
        "CUDA_ERROR_NO_DEVICE",
        "run nvidia-smi to see whether the driver lists a card; a container needs --gpus all",
    ),
    802: (
        "CUDA_ERROR_SYSTEM_NOT_READY",
        "start the nvidia-fabricmanager service",
    ),
    803: (
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "the driver was updated while it ran: restart the machine",
    ),
    804: (
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "take the forward-compatibility libcuda out of LD_LIBRARY_PATH, or update the driver",
    ),
    999: (
        "CUDA_ERROR_UNKNOWN",
        "reload the nvidia_uvm kernel module or restart the machine",
    ),
}


@dataclass(frozen=True)
class Gpu:
    """One visible CUDA device."""

    index: int
    name: str
    total_bytes: int
    compute_capability: tuple[int, int]


@dataclass(frozen=True)
class DriverReport:
    """State of NVIDIA's driver.

    Attributes
    ----------
    status : {"absent", "failed", "no device", "ready"}
        "absent" means that there is no libcuda, "failed" that it gave an error.
    problem : str
        One clause for a message; empty if the driver is ready.
    remedy : str
        What to do about it; empty if the driver is ready.
    cuda_version : (major, minor) or None
        The newest CUDA that the driver serves.
    gpus : tuple of Gpu
        The visible devices.
    """

    status: Literal["absent", "failed", "no device", "ready"]
    problem: str = ""
    remedy: str = ""
    cuda_version: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()


class _DriverError(Exception):
    def __init__(self, function: str, code: int) -> None:
        super().__init__(function, code)
        self.function, self.code = function, code


def load_library(name: str) -> Any:
    """Return the shared library `name`; raise OSError if it does not load. Tests replace this."""
    if sys.platform == "win32":
        return ctypes.WinDLL(name)
    return ctypes.CDLL(name)


def probe_driver() -> DriverReport:
    """Ask the driver for its version and its devices.

    This starts the driver in this process (cuInit) but creates no context. If CUDA was started
    before a fork, it does not work in the child: probe after forking, or start workers with
    "spawn".
    """
    try:
        library = load_library(LIBRARY)
    except OSError:
        return DriverReport(
            "absent",
            f"no NVIDIA driver found ({LIBRARY} does not load)",
            "install the NVIDIA driver, after which nvidia-smi lists the card",
        )
    version = None
    try:
        # The version needs no cuInit, so it is known even if cuInit fails.
        version = _driver_version(library)
        _call(library, "cuInit", ctypes.c_uint(0))
        gpus = _devices(library)
    except _DriverError as error:
        return _failure(error, version)
    except AttributeError as error:
        return DriverReport(
            "failed", f"{LIBRARY} is no NVIDIA driver ({error})", "reinstall the NVIDIA driver"
        )
    if not gpus:
        return _failure(_DriverError("cuDeviceGetCount", _NO_DEVICE), version)
    return DriverReport("ready", cuda_version=version, gpus=gpus)


def _failure(error: _DriverError, version: tuple[int, int] | None) -> DriverReport:
    name, remedy = _CAUSES.get(
        error.code, ("see CUresult in cuda.h", "check that nvidia-smi works on this machine")
    )
    if error.code != _NO_DEVICE:
        problem = f"the NVIDIA driver failed: {error.function} returned {error.code} ({name})"
        return DriverReport("failed", problem, remedy, version)
    problem = "the NVIDIA driver sees no CUDA device"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        problem += f" with CUDA_VISIBLE_DEVICES={visible!r}"
        remedy = f"unset CUDA_VISIBLE_DEVICES, or {remedy}"
    return DriverReport("no device", problem, remedy, version)


def _call(library: Any, function: str, *arguments: Any) -> None:
    code = getattr(library, function)(*arguments)
    if code != 0:
        raise _DriverError(function, code)


def _driver_version(library: Any) -> tuple[int, int]:
    version = ctypes.c_int()
    _call(library, "cuDriverGetVersion", ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


def _devices(library: Any) -> tuple[Gpu, ...]:
    count = ctypes.c_int()
    _call(library, "cuDeviceGetCount", ctypes.byref(count))
    return tuple(_device(library, index) for index in range(count.value))


def _device(library: Any, index: int) -> Gpu:
    device = ctypes.c_int()
    _call(library, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
    name = ctypes.create_string_buffer(256)
    _call(library, "cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    total = ctypes.c_size_t()
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(total), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, attribute in (
        (major, _COMPUTE_CAPABILITY_MAJOR),
        (minor, _COMPUTE_CAPABILITY_MINOR),
    ):
        _call(library, "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
    capability = (major.value, minor.value)
    return Gpu(index, name.value.decode(errors="replace"), total.value, capability)
