"""A stand-in for the CuPy names that the CUDA backend uses, on NumPy memory and emulated kernels.

The backend's own code runs unchanged: launch arithmetic, argument types, plans, capture. The
stand-in forbids what CuPy forbids, and makes errors of what CuPy does not notice: Python scalars as
arguments of a raw kernel, memory of another device, allocation, cuBLAS or waiting while a stream is
captured, implicit conversion to NumPy. It counts launches, products, waits and allocations.

``with installed() as counts`` puts it in the place of `cupy`.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakValueDictionary

import ml_dtypes
import numpy as np

from gpubackprop.backends import devices
from gpubackprop.backends.cupy import dependent
from gpubackprop.backends.cupy.arguments import Layout, Record, layout_named
from gpubackprop.backends.cupy.epilogues import VARIABLE as EPILOGUES
from gpubackprop.backends.kernel_sources import kernels_directory
from gpubackprop.backends.precision import round_to_tf32
from tests.emulator import cublaslt, nccl
from tests.emulator.cupy_queue import (
    STATE,
    Block,
    Counts,
    CUDARuntimeError,
    Event,
    OutOfMemoryError,
    Stream,
    alloc_pinned_memory,
    elapsed,
)
from tests.emulator.module import ByValue, Module

__all__ = ["STATE", "CUDARuntimeError", "Counts", "Event", "OutOfMemoryError", "Stream"]


class CUDADriverError(RuntimeError):
    pass


class CompileException(Exception):  # noqa: N818 (CuPy's name)
    pass


# -- arrays ---------------------------------------------------------------------------------------


class _Memory:
    """A pointer into device memory, as `ndarray.data`."""

    def __init__(self, array: ndarray) -> None:
        self._array = array

    @property
    def ptr(self) -> int:
        return int(self._array._host.__array_interface__["data"][0])

    def copy_from_device_async(self, source: _Memory, size: int, stream: Any = None) -> None:
        theirs, mine = source._array, self._array
        assert theirs.flags.c_contiguous
        assert mine.flags.c_contiguous
        assert size == theirs.nbytes == mine.nbytes
        STATE.queue(partial(np.copyto, mine._host, theirs._host), stream)


class Flags:
    """CuPy's have no `writeable` and no `aligned` (cupy/_core/flags.pyx)."""

    def __init__(self, c_contiguous: bool, f_contiguous: bool, owndata: bool) -> None:
        self.c_contiguous, self.f_contiguous, self.owndata = c_contiguous, f_contiguous, owndata


def _here(*arrays: ndarray) -> None:
    """Check that the arrays of one of CuPy's kernels are on its device.

    With an array of another device CuPy works through peer access if there is any, with a warning,
    and otherwise raises ValueError (_core/_kernel.pyx, _check_peer_access).
    """
    for array in arrays:
        if array._device != STATE.device:
            raise ValueError(
                f"The device where the array resides ({array._device}) is different from the "
                f"current device ({STATE.device}). Peer access is unavailable between these "
                f"devices."
            )


class ndarray:  # noqa: N801 (CuPy's name)
    """Device memory: NumPy sees into it only by `get`.

    `_host` is that memory itself, for what runs on the device; a test that reads it must have
    waited. `block` is its place in the pool; None if CuPy does not own the memory.
    """

    __array_priority__ = 100
    __array_ufunc__ = None

    def __init__(self, host: np.ndarray, device: int, block: Block | None = None) -> None:
        self._host, self._device, self._block = host, device, block

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    data = property(lambda self: _Memory(self))
    device = property(lambda self: Device(self._device))
    T = property(lambda self: self._view(self._host.T))

    @property
    def flags(self) -> Flags:
        flags = self._host.flags
        return Flags(flags.c_contiguous, flags.f_contiguous, self._block is not None)

    def _view(self, host: np.ndarray) -> ndarray:
        return ndarray(host, self._device, self._block)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": self.shape, "data": (self.data.ptr, False)}

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def __len__(self) -> int:
        return len(self._host)

    def __float__(self) -> float:
        return float(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __getitem__(self, key: Any) -> ndarray:
        view = self._host[... if key == () else key]  # a 0-d array stays one
        assert isinstance(view, np.ndarray), "a scalar of a device array is a 0-d array: use [...]"
        assert view.base is not None, "only views are stood in for"
        return self._view(view)

    def __setitem__(self, key: Any, value: Any) -> None:
        assert key is ..., "only whole arrays are written"
        assert isinstance(value, ndarray), "CuPy would wait for a copy from the host"
        _here(self, value)
        STATE.queue(partial(np.copyto, self._host, value._host, casting="unsafe"))

    def reshape(self, *shape: Any) -> ndarray:
        view = self._host.reshape(*shape)
        assert view.size == 0 or np.may_share_memory(view, self._host), (
            "CuPy would copy (_core/_routines_manipulation.pyx, _ndarray_reshape)"
        )
        return self._view(view)

    def fill(self, value: Any) -> None:
        _here(self)
        STATE.count_kernel("fill")
        STATE.queue(partial(self._host.fill, value))

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        """Copy from the host. CUDA stages pageable memory before it returns: `arr` may change at once.

        Pinned memory is read when the stream gets there (runtime API, "API synchronization behavior"),
        and the copy keeps neither the array nor its memory.
        """
        assert isinstance(arr, np.ndarray)
        assert arr.dtype == self.dtype
        assert arr.shape == self.shape
        assert stream is not None, "say the stream: CuPy takes the current device's otherwise"
        assert self.flags.c_contiguous or self.flags.f_contiguous, "CuPy: non-contiguous array"
        pinned = STATE.pinned_view(arr)
        if pinned is None:
            STATE.not_while_capturing("a copy from pageable memory")
        STATE.counts.uploads += 1
        STATE.queue(
            partial(np.copyto, self._host, arr.copy() if pinned is None else pinned), stream
        )

    def get(self) -> np.ndarray:
        """Copy to the host. This waits for the current stream of this device, and for no other."""
        if not self.size:  # CuPy does not go to the device (_core/core.pyx, get)
            return np.empty(self.shape, self.dtype)
        STATE.not_while_capturing("waiting for the device")
        host = np.empty(self.shape, self.dtype)
        with Device(self._device):
            STATE.queue(partial(np.copyto, host, self._host))
            STATE.stream.synchronize()
        return host

    def copy(self) -> ndarray:
        return _copied(self, empty(self.shape, self.dtype))

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        """Convert; keep the order of the dimensions in memory, as order "K" (_core/core.pyx, _astype)."""
        if not copy and self.dtype == dtype:
            return self
        axes = sorted(range(self.ndim), key=lambda axis: -abs(self.strides[axis]))
        out = empty(tuple(self.shape[axis] for axis in axes), dtype)
        return _copied(self, out._view(out._host.transpose(np.argsort(axes))))


def _copied(source: ndarray, out: ndarray) -> ndarray:
    _here(source)
    STATE.queue(partial(np.copyto, out._host, source._host, casting="unsafe"))
    return out


def empty(shape: Any, dtype: Any = float) -> ndarray:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    nbytes = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    block = STATE.allocate(nbytes)
    return ndarray(block.bytes.view(dtype).reshape(shape), STATE.device, block)


def asarray(array: Any, dtype: Any = None) -> ndarray:
    if isinstance(array, ndarray):
        return array if dtype is None else array.astype(dtype, copy=False)
    view = array.__cuda_array_interface__  # the one other use that the backend makes of it
    assert view["version"] >= 2
    return ndarray(array._host, STATE.device)


def from_dlpack(array: Any) -> ndarray:
    assert array.__dlpack_device__()[0] == 2
    return ndarray(array._host, array.__dlpack_device__()[1])


def ascontiguousarray(a: ndarray) -> ndarray:
    """Return a C-contiguous array; 0 dimensions become shape (1,) (_core/core.pyx, ascontiguousarray)."""
    if a.flags.c_contiguous:
        return a if a.ndim else a.reshape(1)
    return _copied(a, empty(a.shape, a.dtype))


def may_share_memory(a: ndarray, b: ndarray) -> bool:
    """Compare bounds alone (_core/_memory_range.pyx)."""
    return np.may_share_memory(a._host, b._host)


# -- products and elementwise work ----------------------------------------------------------------


def _no_cublas_while_capturing() -> None:
    """Raise as cupy_backends/cuda/libs/cublas.pyx, setStream, does."""
    if STATE.stream.graph is not None:
        raise NotImplementedError(
            "calling cuBLAS API during stream capture is currently unsupported"
        )


def _quietly(function: Any, *args: Any) -> None:
    with np.errstate(all="ignore"):
        function(*args)


def matmul(a: ndarray, b: ndarray, out: ndarray) -> ndarray:
    _no_cublas_while_capturing()
    for array in (a, b, out):
        assert isinstance(array, ndarray)
        _here(array)
    for operand in (a, b):
        assert operand.flags.c_contiguous or operand.flags.f_contiguous, "CuPy would copy it"
    assert out.flags.c_contiguous, "CuPy would compute into a temporary"
    assert not any(np.may_share_memory(out._host, array._host) for array in (a, b))
    STATE.count_product()
    STATE.queue(partial(_quietly, np.matmul, a._host, b._host, out._host))
    return out


CUDA_TYPES = {0: np.float32, 1: np.float64, 2: np.float16, 14: ml_dtypes.bfloat16}


def gemm_ex(
    handle: int, trans_a: int, trans_b: int, m: int, n: int, k: int, alpha: int, a: int,
    a_type: int, lda: int, b: int, b_type: int, ldb: int, beta: int, c: int, c_type: int, ldc: int,
    compute: int, algorithm: int,
) -> None:  # fmt: skip
    """cublasGemmEx: C = alpha op(A) op(B) + beta C, column by column, in float32 or float64."""
    _no_cublas_while_capturing()
    wide = np.float64 if CUDA_TYPES[a_type] == np.float64 else np.float32
    tf32 = compute == 77 and CUDA_TYPES[a_type] == np.float32
    assert (handle, algorithm) == (HANDLE, -1)
    assert tf32 or compute == (70 if wide is np.float64 else 68)
    assert _memory(alpha, 1, wide)[0] == 1
    old = _memory(beta, 1, wide)[0]
    assert old in (0, 1)
    assert a_type == b_type

    def operand(
        pointer: int, kind: int, rows: int, columns: int, ld: int, trans: int
    ) -> np.ndarray:
        stored = (columns, rows) if trans else (rows, columns)
        assert ld >= max(1, stored[0])
        flat = _memory(pointer, ld * stored[1], CUDA_TYPES[kind])
        matrix = flat.reshape(stored[1], ld)[:, : stored[0]].T
        return matrix.T if trans else matrix

    left = operand(a, a_type, m, k, lda, trans_a)
    right = operand(b, b_type, k, n, ldb, trans_b)
    STATE.count_product()
    assert ldc >= m
    out = _memory(c, ldc * n, CUDA_TYPES[c_type]).reshape(n, ldc)

    def run() -> None:
        x, y = (operand.astype(wide) for operand in (left, right))
        for operand in (x, y) if tf32 else ():
            round_to_tf32(operand.copy(), operand)
        product = (x @ y).T
        out[:, :m] = (product + out[:, :m] if old else product).astype(out.dtype)

    STATE.queue(partial(_quietly, run))


HANDLE = 7  # stands for cuBLAS's handle


def _memory(pointer: int, count: int, dtype: Any) -> np.ndarray:
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(pointer), dtype)


def _ufunc(name: str, function: Any) -> Any:
    def call(*args: ndarray) -> ndarray:
        _here(*args)
        STATE.count_kernel(name)
        STATE.queue(partial(_quietly, function, *(array._host for array in args)))
        return args[-1]

    return call


def _reduction(name: str, function: Any) -> Any:
    def call(a: ndarray, axis: int | None = None, keepdims: bool = False) -> ndarray:
        _here(a)
        STATE.count_kernel(name)
        like = np.asarray(function(np.empty(a.shape, a.dtype), axis=axis, keepdims=keepdims))
        out, host = empty(like.shape, like.dtype), a._host
        target = out._host

        def run() -> None:
            target[...] = function(host, axis=axis, keepdims=keepdims)

        STATE.queue(partial(_quietly, run))
        return out

    return call


class ElementwiseKernel:
    """One statement ``out = expression``, which is Python as well as C++."""

    def __init__(self, in_params: str, out_params: str, operation: str, name: str) -> None:
        self.inputs = [part.split() for part in in_params.split(",")]
        ((self.out_type, self.out_name),) = [part.split() for part in out_params.split(",")]
        target, _, self.expression = operation.partition(" = ")
        self.name = name
        assert target == self.out_name

    def __call__(self, *args: Any) -> None:
        *values, out = args
        assert len(values) == len(self.inputs)
        types_: dict[str, Any] = {"double": np.float64, "exp": np.exp}
        named = {}
        pairs = zip([*self.inputs, (self.out_type, self.out_name)], args, strict=True)
        for (kind, name), value in pairs:
            assert isinstance(value, (ndarray, np.generic)), f"{name} is a Python scalar"
            if isinstance(value, ndarray):
                _here(value)
            dtype = value.dtype
            if len(kind) == 1:
                assert types_.setdefault(kind, dtype.type) is dtype.type, f"{name} is no {kind}"
            else:
                assert dtype == kind, f"{name} is {dtype} and no {kind}"
            named[name] = value._host if isinstance(value, ndarray) else value
        casts = {
            key: (lambda x, to=to: np.asarray(x).astype(to)) if key != "exp" else to
            for key, to in types_.items()
        }
        STATE.count_kernel(self.name)
        target = out._host

        def run() -> None:
            np.copyto(target, eval(self.expression, casts, named))

        STATE.queue(partial(_quietly, run))


# -- raw kernels ----------------------------------------------------------------------------------

STATIC_SHARED = (
    640  # bytes; ptxas reports them for the softmax entries in float64, as a part of the 48 KiB
)
_CODE = re.compile(r'((?:#define \w+ \w+\n)*)#line 1 "([\w./-]+\.cu)"\n', re.ASCII)


@dataclass(frozen=True)
class Launched:
    """A launch whose time on the device has come.

    Attributes
    ----------
    source : Path
        The file of the entry.
    entry : str
        The entry's name.
    defines : dict
        Macros that leave the entry alone in `source`.
    grid : tuple of int
        Blocks.
    block : tuple of int
        Threads of a block.
    arguments : list
        NumPy arrays and scalars, and `ByValue`.
    shared : int
        Bytes of dynamic shared memory.
    """

    source: str
    entry: str
    defines: tuple[tuple[str, str], ...]
    grid: Sequence[int]
    block: Sequence[int]
    arguments: Sequence[Any]
    shared: int = 0


Run = Callable[[Launched], None]


@cache
def _module(source: str, defines: tuple[tuple[str, str], ...]) -> Module:
    module = Module(source, defines=dict(defines))
    assert len(module.signatures) <= 2, "only what is used is compiled, at its first use"
    return module


def execute(launched: Launched) -> None:
    module = _module(launched.source, launched.defines)
    module(
        launched.entry, launched.grid, launched.block, launched.arguments, shared=launched.shared
    )


_run: list[Run] = [execute]  # the last one is what a launch does


@contextmanager
def launches_go_to(run: Run) -> Iterator[None]:
    """Give each launch to `run` within the context; `execute` is what it does otherwise."""
    _run.append(run)
    try:
        yield
    finally:
        _run.pop()


def compile_using_nvrtc(
    source: str, options: tuple[str, ...] = (), *, cache_in_memory: bool = False
) -> tuple[bytes, None]:
    """Return what stands for machine code: the name of the source, and its macros."""
    match = _CODE.match(source)
    assert match, "the source does not start with its macros and its name"
    directory = kernels_directory()
    shipped = (directory / match[2]).read_text(encoding="utf-8")  # an absolute path stays one
    behind = source[match.end() :].removeprefix(shipped)
    assert behind != source[match.end() :], "the source is not the shipped file"
    own = not Path(match[2]).is_absolute()  # the benchmarks' kernel of read.cu takes no record
    assert own == ("static_assert(sizeof(A) ==" in behind), "what holds records to the structs?"
    assert f"-I{directory}" in options
    assert "--ftz=false" in options
    defines = [line.split()[1:] for line in match[1].splitlines()]
    return json.dumps([match[2], defines]).encode(), None


class RawModule:
    """A module from a file with machine code. CuPy compiles text only with ``-ftz=true``, so not here."""

    def __init__(self, *, path: str) -> None:
        source, defines = json.loads(Path(path).read_bytes())
        self._source, self._defines = source, tuple((name, value) for name, value in defines)

    def get_function(self, name: str) -> RawKernel:
        if _run[-1] is execute:
            assert name in _module(self._source, self._defines).signatures
        STATE.counts.compiled.append(name)
        return RawKernel(self._source, self._defines, name, STATE.device)


KERNELS_BY_HANDLE: WeakValueDictionary[int, RawKernel] = WeakValueDictionary()
RECORDS_BY_ADDRESS: WeakValueDictionary[int, Record] = WeakValueDictionary()


class Driver:
    """libcuda, as far as the backend calls it: the launch of a kernel before its turn.

    Stricter than CUDA: only in a capture, and only behind another kernel.

    Attributes
    ----------
    refuses : int
        The CUresult of every call; 0 for success.
    followed : list of str
        The entries that were launched so.
    """

    def __init__(self) -> None:
        self.refuses, self.followed = 0, []

    def cuLaunchKernelEx(self, config: Any, function: Any, parameters: Any, extra: Any) -> int:
        if self.refuses:
            return self.refuses
        launch, stream = config._obj, STATE.stream
        attribute = launch.attributes[0]
        assert (launch.attribute_count, attribute.id, attribute.value[0]) == (1, 6, 1)
        assert stream.ptr == launch.stream, "not the current stream"
        assert stream.graph is not None, "not in a capture"
        last = [node for place, node in stream.graph.nodes if place is stream][-1]
        assert isinstance(last.args[0], Launched), "not behind a kernel"
        kernel = KERNELS_BY_HANDLE[function.value]
        record = RECORDS_BY_ADDRESS[parameters[0]]
        kernel(tuple(launch.grid), tuple(launch.block), (record,), shared_mem=launch.shared)
        self.followed.append(kernel.__name__)
        return 0


class RawKernel:
    def __init__(
        self, source: str, defines: tuple[tuple[str, str], ...], name: str, device: int
    ) -> None:
        self._source, self._defines = source, defines
        self.__name__, self._device = name, device
        self.kernel = (
            self  # a RawKernel's function on the current device, of which `ptr` is the handle
        )
        self.ptr = id(self)
        KERNELS_BY_HANDLE[self.ptr] = self
        self._shared, self.shared_size_bytes = 48 * 1024 - STATIC_SHARED, STATIC_SHARED

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        assert STATE.device == self._device, "the current device's kernel would get it"
        self._shared = size

    def __call__(
        self, grid: Any, block: Any, args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        assert STATE.device == self._device, "compiled for another device"
        if shared_mem > self._shared:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        values = [
            self._by_value(value) if isinstance(value, np.ndarray) else self._value(number, value)
            for number, value in enumerate(args)
        ]
        STATE.count_kernel(self.__name__)
        launched = Launched(
            self._source, self.__name__, self._defines, grid, block, values, shared_mem
        )
        STATE.queue(partial(_run[-1], launched))

    def _by_value(self, record: np.ndarray) -> ByValue:
        """Return the argument as CuPy passes it.

        CuPy passes a NumPy array of one element by value, whatever it is (cuda/function.pyx,
        `_pointer`). cuLaunchKernel copies as many bytes as the parameter has, at once.
        """
        if record.size != 1:
            raise TypeError(
                f"You are trying to pass a numpy.ndarray of shape {record.shape} as a kernel "
                f"parameter. Only numpy.ndarrays of size one can be passed by value. If you meant "
                f"to pass a pointer to __global__ memory, you need to pass a cupy.ndarray instead."
            )
        layout = layout_named(self.__name__)
        if not isinstance(record, Record) or record.dtype != layout.dtype:
            raise TypeError(f"{self.__name__} has another record: {record.dtype}")
        arrays, values = {}, np.array(record)
        for name, kind in layout.kinds.items():
            if kind.endswith("*") or kind == "number":
                address = int(values[name]["at"] if kind == "number" else values[name])
                array = record.arrays.get(name)
                if address != (0 if array is None else array.data.ptr):
                    raise CUDARuntimeError(f"cudaErrorIllegalAddress: nothing is kept at {name}")
                if array is not None:
                    arrays[name] = self._value(0, array)
        return ByValue(values, arrays)

    def _value(self, number: int, value: Any) -> Any:
        if isinstance(value, ndarray):
            if value._device != STATE.device:
                raise CUDARuntimeError("cudaErrorIllegalAddress: memory of another device")
            return value._host
        if isinstance(value, np.uintp) and value == 0:
            return None
        if not isinstance(value, np.generic):
            raise TypeError(
                f"{self.__name__}: argument {number} is a {type(value).__name__}: its bytes would "
                f"be those of a default type"
            )
        return value


# -- devices and streams --------------------------------------------------------------------------


class Device:
    def __init__(self, device: int | None = None) -> None:
        self.id = STATE.device if device is None else device
        self._before: list[int] = []

    # CuPy's dictionary has no compute capability.
    attributes = property(
        lambda self: {"MultiProcessorCount": 2, "MaxSharedMemoryPerBlockOptin": 232_448}
    )
    compute_capability = "90"

    def __enter__(self) -> Device:
        self._before.append(STATE.device)
        STATE.device = self.id
        return self

    def __exit__(self, *error: object) -> None:
        STATE.device = self._before.pop()


def _device_count() -> int:
    if not STATE.devices:
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    return STATE.devices


class MemoryPool:
    """cupy.cuda.MemoryPool, of the current device."""

    def free_bytes(self) -> int:
        pools = STATE.pools.items()
        return sum(
            raw.size for (device, _), free in pools if device == STATE.device for raw in free
        )


def get_default_memory_pool() -> MemoryPool:
    """cupy.get_default_memory_pool."""
    return MemoryPool()


@cache
def module() -> types.ModuleType:
    """Return the module that stands in for `cupy`."""
    cupy: Any = types.ModuleType("cupy")
    cupy.__spec__, cupy.__version__ = ModuleSpec("cupy", None), "14.2.0"
    for thing in (
        ndarray, empty, asarray, from_dlpack, ascontiguousarray, may_share_memory, matmul,
    ):  # fmt: skip
        setattr(cupy, thing.__name__, thing)
    cupy.ElementwiseKernel, cupy.RawModule = ElementwiseKernel, RawModule
    for name in ("subtract", "divide", "exp", "log"):
        setattr(cupy, name, _ufunc(name, getattr(np, name)))
    for name in ("amax", "argmax", "sum"):
        setattr(cupy, name, _reduction(name, getattr(np, name)))
    cupy.get_default_memory_pool = get_default_memory_pool
    cupy.cuda = types.SimpleNamespace(
        Device=Device,
        Stream=Stream,
        alloc_pinned_memory=alloc_pinned_memory,
        cublas=types.SimpleNamespace(gemmEx=gemm_ex),
        device=types.SimpleNamespace(get_cublas_handle=lambda: HANDLE),
        Event=Event,
        MemoryPool=MemoryPool,
        get_elapsed_time=elapsed,
        get_current_stream=lambda: STATE.stream,
        runtime=types.SimpleNamespace(
            getDeviceCount=_device_count,
            memGetInfo=lambda: (STATE.memory // 2, STATE.memory),
            CUDARuntimeError=CUDARuntimeError,
        ),
        driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        compiler=types.SimpleNamespace(
            CompileException=CompileException, compile_using_nvrtc=compile_using_nvrtc
        ),
        nvrtc=types.SimpleNamespace(getVersion=lambda: (0, 0)),
        nccl=nccl.module(),
    )
    return cupy


DRIVER, _record = Driver(), Layout.record


def _recorded(layout: Layout, *args: Any) -> Record:
    """Make a record that `Driver` finds by its address."""
    record = _record(layout, *args)
    RECORDS_BY_ADDRESS[record.ctypes.data] = record
    return record


@contextmanager
def installed(seed: int = 0, *, lazy: bool = True) -> Any:
    """Make the stand-in `cupy` within the context; give the counts. See `cupy_queue.Machine`."""
    before = sys.modules.get("cupy")
    sys.modules["cupy"] = module()
    in_memory = os.environ.get("CUPY_CACHE_IN_MEMORY")
    os.environ["CUPY_CACHE_IN_MEMORY"] = "1"  # the user's cache must stay as it is
    timed = os.environ.get(EPILOGUES)
    os.environ.setdefault(EPILOGUES, "never")  # what takes less time here is chance
    load = devices.load_cuda_library
    devices.load_cuda_library = lambda name, major: (
        cublaslt.load_cuda_library(name, major) or load(name, major)
    )
    STATE.reset(seed, lazy=lazy)
    DRIVER.__init__()
    try:
        with (
            patch.object(dependent, "driver", lambda: DRIVER),
            patch.object(Layout, "record", _recorded),
        ):
            yield STATE.counts
        STATE.run_all()  # a backend may be kept for the next time: its queued calls must be done
    finally:
        STATE.reset()
        devices.load_cuda_library = load
        if timed is None:
            del os.environ[EPILOGUES]
        if in_memory is None:
            del os.environ["CUPY_CACHE_IN_MEMORY"]
        else:
            os.environ["CUPY_CACHE_IN_MEMORY"] = in_memory
        if before is None:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = before
