"""CuPy, a library that may be absent: its import, its devices, and its errors on one line."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpubackprop.errors import DeviceUnavailable, GpubackpropError, OutOfMemory, one_line

GIB = 1 << 30


def import_cupy() -> Any:
    """Return the module `cupy`.

    Raises
    ------
    DeviceUnavailable
        It is not installed, or does not import.
    """
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise DeviceUnavailable(
            f"the CUDA backend needs CuPy, which does not import ({one_line(error)}); run: pip "
            f'install "gpubackprop[cuda13]" (or cuda12), or use device="cpu"'
        ) from None


def check_device(cupy: Any, index: int) -> None:
    """Raise DeviceUnavailable unless CUDA starts and has a device of this number."""
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceUnavailable(
            f"CUDA does not start ({one_line(error)}); `gpubackprop info` says what is missing; "
            f'use device="cpu", or "auto" to fall back'
        ) from None
    if index >= count:
        raise DeviceUnavailable(
            f'device="cuda:{index}" was asked for but there are {count} CUDA devices, cuda:0 to '
            f"cuda:{count - 1}; name one of these"
        )


@contextmanager
def explained(cupy: Any, what: str, wanted: int | None = None) -> Iterator[None]:
    """Raise CuPy's errors as `DeviceUnavailable`, with one line that says what to do.

    Parameters
    ----------
    cupy : module
        CuPy.
    what : str
        What was being done.
    wanted : int
        Bytes asked for, if it is an allocation.
    """
    try:
        yield
    except (GpubackpropError, NotImplementedError):
        raise
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise _out_of_memory(cupy, what, wanted, error) from None
    except cupy.cuda.compiler.CompileException as error:
        raise DeviceUnavailable(
            f"{what}: NVRTC refused the source ({one_line(error)}); the CUDA version of NVRTC and "
            f"the kernels do not fit: please report it with the output of `gpubackprop info`"
        ) from error
    except (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError) as error:
        raise DeviceUnavailable(
            f"{what}: {one_line(error)}; after an error of CUDA the process must be restarted; "
            f"`gpubackprop info` shows driver and libraries"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        if type(error).__name__ == "CUBLASError":
            raise DeviceUnavailable(f"{what}: cuBLAS failed ({one_line(error)})") from error
        if not _is_missing_library(error):
            raise
        raise DeviceUnavailable(
            f"{what}: a CUDA library does not load ({one_line(error)}); run: pip install "
            f'"gpubackprop[cuda13]" (or cuda12), which brings NVRTC and cuBLAS'
        ) from error


def _out_of_memory(cupy: Any, what: str, wanted: int | None, error: BaseException) -> OutOfMemory:
    size = one_line(error) if wanted is None else f"{wanted / GIB:.3g} GiB were wanted"
    free, room = 0, ""
    try:
        free, total = cupy.cuda.runtime.memGetInfo()
        room = f" and {free / GIB:.3g} of {total / GIB:.3g} GiB are free"
    except Exception:  # a device out of memory may not answer any more
        pass
    return OutOfMemory(
        f"{what}: the GPU is out of memory: {size}{room}; use a smaller batch_size or network, x "
        f'from np.load(..., mmap_mode="r"), which stays on the host, or device="cpu"',
        int(free),
    )


def _is_missing_library(error: BaseException) -> bool:
    """Return whether the error says that NVRTC or cuBLAS is missing.

    CuPy loads them at their first use; the kind of its error depends on how.
    """
    text = f"{type(error).__name__} {error}".lower()
    return any(sign in text for sign in ("dynamiclib", "failed to load", "cannot open", "dlopen"))
