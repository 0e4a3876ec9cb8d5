"""The choice of the device to compute on, and what this machine has for it.

CuPy is looked for when a function here is called, never when this module is imported.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpubackprop.backends.cuda_driver import DriverReport, probe_driver
from gpubackprop.backends.host import CpuReport, probe_cpu
from gpubackprop.errors import DeviceUnavailable, OptionError, one_line

CUDA_BACKEND = "gpubackprop.backends.cupy"

# CUDA majors that have a CuPy wheel, and therefore an extra (cuda12, cuda13), newest first.
_CUDA_MAJORS = (13, 12)

NAME = re.compile(r"auto|cpu|cpu:numpy|cuda(?::(0|[1-9][0-9]{0,8}))?")  # of a device


class Missing(NamedTuple):
    """Something that the CUDA path wants and this machine lacks."""

    what: str
    remedy: str


@dataclass(frozen=True)
class CudaLibrary:
    """A CUDA library that loads: its path and, if it tells, its (major, minor) version."""

    path: str
    version: tuple[int, int] | None = None


@dataclass(frozen=True)
class CupyReport:
    """CuPy as installed: `version` is None if it is absent, `error` says why it does not import."""

    version: str | None = None
    cuda_major: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class DeviceReport:
    """All that `gpubackprop info` prints; `missing` is in the order in which to mend it."""

    cpu: CpuReport
    driver: DriverReport
    cupy: CupyReport
    nvrtc: CudaLibrary | None
    cublaslt: CudaLibrary | None
    cuda_backend: bool
    missing: tuple[Missing, ...]


def probe() -> DeviceReport:
    """Look at the CPU, the NVIDIA driver, CuPy and its libraries; nothing that is missing raises.

    If there is an NVIDIA driver, it is started in this process; see `probe_driver` on forks.
    """
    driver = probe_driver()
    cupy = _probe_cupy(load=driver.status == "ready")
    nvrtc = _probe_library("nvrtc", cupy.cuda_major)
    cublaslt = _probe_library("cublasLt", cupy.cuda_major)
    backend = has_cuda_backend()
    missing = [
        _driver_problem(driver),
        _backend_problem(backend),
        _cupy_problem(driver, cupy),
        _nvrtc_problem(driver, cupy, nvrtc),
        _cublaslt_problem(driver, cupy, cublaslt),
    ]
    return DeviceReport(
        cpu=probe_cpu(),
        driver=driver,
        cupy=cupy,
        nvrtc=nvrtc,
        cublaslt=cublaslt,
        cuda_backend=backend,
        missing=tuple(lack for lack in missing if lack is not None),
    )


def choose(device: str) -> tuple[str, str]:
    """Return the device that `device` means on this machine, and a one-line reason.

    Parameters
    ----------
    device : str
        One of "auto" (CUDA if all of it works, else the CPU), "cpu", "cpu:numpy" (the CPU without
        compiled kernels), "cuda" and "cuda:N".

    Returns
    -------
    resolved : str
        "cpu", "cpu:numpy" or "cuda:N".
    reason : str
        The reason, e.g. "NVIDIA H200, compute capability 9.0", or why "auto" fell back to the CPU.

    Raises
    ------
    OptionError
        `device` is none of these names.
    DeviceUnavailable
        CUDA was asked for by name and something of it is missing.
    """
    match = isinstance(device, str) and NAME.fullmatch(device)
    if not match:
        raise unknown(device)
    if device == "cpu":
        return "cpu", "the CPU was asked for"
    if device == "cpu:numpy":
        return device, "NumPy was asked for"
    index = int(match[1] or 0)
    driver = probe_driver()
    lack = _first_problem(driver, index)
    if lack is None:
        gpu = driver.gpus[index]
        capability = ".".join(map(str, gpu.compute_capability))
        return f"cuda:{index}", f"{gpu.name}, compute capability {capability}"
    if device == "auto":
        return "cpu", lack.what
    raise DeviceUnavailable(
        f'device="{device}" was asked for but {lack.what}; {lack.remedy}; without CUDA use '
        'device="cpu", or "auto" to fall back.'
    )


def unknown(device: Any) -> OptionError:
    """Return the error of a device that has none of the names in `NAME`."""
    return OptionError(
        f'device={device!r} is not a device; valid are "auto", "cpu", "cpu:numpy", "cuda" and '
        '"cuda:N" with N = 0, 1, ...'
    )


_CHOSEN: dict[tuple[Any, ...], tuple[str, str]] = {}


def chosen(device: str) -> tuple[str, str]:
    """Return what `choose` said of `device` when this process first asked here.

    It is for small work, which takes less time than asking the driver. Errors are not kept.
    """
    key = os.getpid(), choose, device  # tests replace `choose`
    if key not in _CHOSEN:
        _CHOSEN[key] = choose(device)
    return _CHOSEN[key]


def is_host(device: str) -> bool:
    """Return whether a device is the CPU, with compiled kernels or without."""
    return device.partition(":")[0] == "cpu"


def has_cuda_backend() -> bool:
    """Return whether this version of gpubackprop can compute on CUDA."""
    return importlib.util.find_spec(CUDA_BACKEND) is not None


def _first_problem(driver: DriverReport, index: int) -> Missing | None:
    """Return the first thing that keeps device `index` from working."""
    lack = _driver_problem(driver, index) or _backend_problem(has_cuda_backend())
    if lack is not None:
        return lack
    cupy = _probe_cupy(load=True)
    return (
        _cupy_problem(driver, cupy)
        or _nvrtc_problem(driver, cupy, _probe_library("nvrtc", cupy.cuda_major))
        or _cublaslt_problem(driver, cupy, _probe_library("cublasLt", cupy.cuda_major))
    )


def _driver_problem(driver: DriverReport, index: int = 0) -> Missing | None:
    if driver.status != "ready":
        return Missing(driver.problem, driver.remedy)
    count = len(driver.gpus)
    if index >= count:
        visible = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        return Missing(f"the visible devices are {visible}", "name one of these")
    return None


def _backend_problem(present: bool) -> Missing | None:
    if present:
        return None
    return Missing(
        "this version of gpubackprop has no CUDA backend yet",
        "update gpubackprop when one is released",
    )


def _cupy_problem(driver: DriverReport, cupy: CupyReport) -> Missing | None:
    served = driver.cuda_version
    if cupy.version is None:
        return Missing("CuPy is not installed", _install(served))
    if cupy.error is not None:
        return Missing(f"CuPy {cupy.version} does not import ({cupy.error})", _install(served))
    if served is not None and cupy.cuda_major is not None and served[0] < cupy.cuda_major:
        return Missing(
            f"the NVIDIA driver is too old: it serves CUDA {served[0]}.{served[1]} and CuPy "
            f"{cupy.version} is built for CUDA {cupy.cuda_major}",
            f"update the NVIDIA driver, or {_install(served)}",
        )
    return None


def _nvrtc_problem(
    driver: DriverReport, cupy: CupyReport, nvrtc: CudaLibrary | None
) -> Missing | None:
    what = "NVRTC, which compiles the kernels, does not load"
    if nvrtc is None:
        return Missing(what, _install_libraries(driver, cupy))
    if nvrtc.version and cupy.cuda_major and nvrtc.version[0] != cupy.cuda_major:
        return Missing(
            f"NVRTC is of CUDA {nvrtc.version[0]} ({nvrtc.path}) and CuPy of CUDA "
            f"{cupy.cuda_major}",
            _install_libraries(driver, cupy),
        )
    return None


def _cublaslt_problem(
    driver: DriverReport, cupy: CupyReport, cublaslt: CudaLibrary | None
) -> Missing | None:
    if cublaslt is not None:
        return None
    return Missing(
        "cuBLASLt, which multiplies the matrices, does not load", _install_libraries(driver, cupy)
    )


def _install(served: tuple[int, int] | None) -> str:
    """Return the command for the newest extra that a driver serving CUDA `served` can run."""
    if served is None:
        return (
            'run: pip install "gpubackprop[cuda12]" (or cuda13, for a driver that serves CUDA 13)'
        )
    majors = [major for major in _CUDA_MAJORS if major <= served[0]]
    if not majors:
        return f"update the NVIDIA driver to one that serves CUDA {min(_CUDA_MAJORS)} or newer"
    return f'run: pip install "gpubackprop[cuda{majors[0]}]"'


def _install_libraries(driver: DriverReport, cupy: CupyReport) -> str:
    return _install((cupy.cuda_major, 0) if cupy.cuda_major else driver.cuda_version)


def _probe_cupy(*, load: bool) -> CupyReport:
    """Return CuPy's version and CUDA major. It is imported, in about a second, only if `load`."""
    if importlib.util.find_spec("cupy") is None:
        return CupyReport()
    from importlib import metadata  # its import takes a quarter of this package's

    version = "of unknown version"
    major: int | None = None
    for name in ("cupy", *(f"cupy-cuda{number}x" for number in _CUDA_MAJORS)):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        wheel = re.fullmatch(r"cupy-cuda(\d+)x", name)
        major = int(wheel[1]) if wheel else None
    if not load:
        return CupyReport(version, major)
    try:
        cupy = importlib.import_module("cupy")
        major = major or cupy.cuda.driver.get_build_version() // 1000
    except Exception as error:  # a broken installation may raise anything
        return CupyReport(version, major, one_line(error))
    return CupyReport(version, major)


def _probe_library(name: str, major: int | None) -> CudaLibrary | None:
    """Return the CUDA library `name` of CUDA `major` (of any known one if None), or None."""
    loaded = load_cuda_library(name, major)
    if loaded is None:
        return None
    handle, path = loaded
    if name != "nvrtc":
        return CudaLibrary(path)
    found, minor = ctypes.c_int(), ctypes.c_int()
    if handle.nvrtcVersion(ctypes.byref(found), ctypes.byref(minor)) != 0:
        return CudaLibrary(path)
    return CudaLibrary(path, (found.value, minor.value))


def load_cuda_library(name: str, major: int | None) -> tuple[Any, str] | None:
    """Return handle and path of a CUDA library, or None. Tests replace this.

    It is found as CuPy finds it.
    """
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")  # comes with CuPy 14
        path = pathfinder.load_nvidia_dynamic_lib(name).abs_path
        return ctypes.CDLL(path), path
    except Exception:  # it is absent or fails in one of many ways: try the system's search path
        pass
    for version in (major,) if major else _CUDA_MAJORS:
        if sys.platform == "win32":
            suffix = f"64_{version}0_0.dll" if name == "nvrtc" else f"64_{version}.dll"
            file = name + suffix
        else:
            file = f"lib{name}.so.{version}"
        try:
            return ctypes.CDLL(file), file
        except OSError:
            continue
    return None
