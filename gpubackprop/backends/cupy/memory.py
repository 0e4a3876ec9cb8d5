"""Arrays of the device: they are made, copied there from any memory, and read back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends.arrays import ANYWHERE, as_cupy, as_host, on_gpu
from gpubackprop.backends.cupy.gathers import DeviceRows
from gpubackprop.backends.cupy.library import explained
from gpubackprop.backends.cupy.staging import PinnedStaging
from gpubackprop.backends.memory import Array, Memory, RowCursor, Staging
from gpubackprop.dtypes import STORAGES, compute_dtype, is_number
from gpubackprop.errors import DeviceUnavailable, DtypeError, ShapeError, TargetRangeError

DATA_SHARE = 0.75  # of the free memory that a data set may take
INPUT_DTYPES = (*STORAGES, "uint8")  # gather_rows reads them


class Filled:
    """An array that is filled once, on one stream, and read on any.

    Parameters
    ----------
    cupy : module
        CuPy.
    array : array
        Its fill is queued on the current stream of its device.

    Attributes
    ----------
    address : int
        Where it lies.
    """

    def __init__(self, cupy: Any, array: Any) -> None:
        self._cupy, self._array, self.address = cupy, array, int(array.data.ptr)
        self._stream = cupy.cuda.get_current_stream()  # kept, so that its number is not reused
        self._event: Any = None
        if not self._stream.is_capturing():
            self._event = cupy.cuda.Event(disable_timing=True)
            self._event.record(self._stream)

    def array(self) -> Any:
        """The array, for calls on the current stream, which waits for the fill if it must."""
        if self._event is not None:
            stream = self._cupy.cuda.get_current_stream()
            if self._event.done:
                self._event = None
            elif stream != self._stream:
                stream.wait_event(self._event)
        return self._array


class WorkingMemory:
    """The scratch arrays of one device, and its sticky flag for labels out of range.

    Parameters
    ----------
    cupy : module
        CuPy.
    index : int
        Number of the device.
    keeps_scratch : bool
        Whether working memory is kept and shared by the calls of a plan.

    Attributes
    ----------
    bad_label : (2,) int64 array
        {row, label} of a label out of range, on the device. The row is -1 if there was none, and -2
        while a kernel writes. There is one for each `first_row`.
    first_row : int
        Number of the first row of the next loss in its batch, for messages.
    """

    def __init__(self, cupy: Any, index: int, *, keeps_scratch: bool = False) -> None:
        self.cupy, self.index, self._keeps_scratch = cupy, index, keeps_scratch
        self._scratch: dict[tuple[str, np.dtype], Any] = {}
        self.first_row, self.flags = 0, dict[int, Filled]()
        self._counters: dict[int, tuple[Any, Any]] = {}  # by stream, which is kept

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Any:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        wanted = math.prod(map(int, shape)) * dtype.itemsize
        with (
            explained(self.cupy, f"an array of shape {shape} and {dtype}", wanted),
            self.cupy.cuda.Device(self.index),
        ):
            return self.cupy.empty(shape, dtype)  # CuPy's pool aligns to 512 bytes

    def full(self, shape: int | tuple[int, ...], value: Any, dtype: Any) -> Any:
        array = self.empty(shape, dtype)
        with self.cupy.cuda.Device(self.index):
            array.fill(value)
        return array

    def _filled(self, array: Any) -> Filled:
        with self.cupy.cuda.Device(self.index):
            return Filled(self.cupy, array)

    def scratch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return working memory for one operation.

        In a plan it is valid until the same name is asked for again, since the calls follow one
        another; an outgrown buffer stays alive in the launches that were recorded with it.
        Otherwise it is new each time, from CuPy's pool, because the caller may use several streams.
        """
        if not self._keeps_scratch:
            return self.empty(shape, dtype)
        count, key = math.prod(map(int, shape)), (name, np.dtype(dtype))
        if key not in self._scratch or self._scratch[key].size < count:
            self._scratch[key] = self.empty(count, dtype)
        return self._scratch[key][:count].reshape(shape)

    def counter(self) -> Any:
        """Return the counter of blocks for the next launch: (1,) int32, 0 before and after it.

        Launches that follow one another share it: those of a plan, and those of a stream. A launch
        that a stream captures gets one of its own, which the graph fills.
        """
        with self.cupy.cuda.Device(self.index):
            stream = self.cupy.cuda.get_current_stream()
            if not self._keeps_scratch and stream.is_capturing():
                return self.full(1, 0, np.int32)
            key = 0 if self._keeps_scratch else int(stream.ptr)
            if key not in self._counters:
                self._counters[key] = stream, self.full(1, 0, np.int32)
            return self._counters[key][1]

    @property
    def scratch_bytes(self) -> int:
        """Of the working memory that is kept."""
        return sum(int(array.nbytes) for array in self._scratch.values())

    def write(self, host: np.ndarray, out: Any) -> None:
        """Set out = host, queued on the current stream; `host` may be changed at once."""
        if out.size == 0:
            return
        with explained(self.cupy, "a copy to the GPU"), self.cupy.cuda.Device(self.index):
            source = np.ascontiguousarray(host, out.dtype).reshape(out.shape)
            out.set(source, stream=self.cupy.cuda.get_current_stream())

    def read(self, array: Any) -> np.ndarray:
        """Return a copy on the host; wait for the device."""
        with explained(self.cupy, "reading from the GPU"), self.cupy.cuda.Device(self.index):
            return np.asarray(array.get())

    # -- labels out of range ----------------------------------------------------------------------

    def _flag(self) -> Filled:
        if self.first_row not in self.flags:
            self.flags[self.first_row] = self._filled(self.full(2, -1, np.int64))
        return self.flags[self.first_row]

    @property
    def flag_address(self) -> int:
        """Address of `bad_label`, for which no stream waits."""
        return self._flag().address

    @property
    def bad_label(self) -> Any:
        with self.cupy.cuda.Device(self.index):
            return self._flag().array()

    @bad_label.setter
    def bad_label(self, array: Any) -> None:
        self.flags[self.first_row] = self._filled(array)

    def raise_bad_label(self) -> None:
        """Raise TargetRangeError if a kernel met a label out of range; wait for the device."""
        found = None
        for first, filled in self.flags.items():
            with self.cupy.cuda.Device(self.index):
                flag = filled.array()
            row, label = (int(number) for number in self.read(flag))
            if row >= 0:
                found = found or (first + row, label)
                with self.cupy.cuda.Device(self.index):
                    flag.fill(-1)
        if found is None:
            return
        row, label = found
        raise TargetRangeError(
            f"targets[{row}] of a batch was {label}, which is no class index of the network: loss "
            f"and gradient of that row are NaN; check the labels before they go to the GPU"
            + ("" if label >= 0 else "; to leave rows out pass ignore_index")
        )


class DeviceMemory(Memory):
    """The memory operations of `CupyBackend`."""

    asynchronous = True  # reading a result waits for the device
    converts_rows = True  # gather_rows converts on the way

    cupy: Any
    index: int
    memory: WorkingMemory
    sum_of_squares: Callable[[Array, Array], None]
    _issue: Callable[..., None]
    _labels: list[bool]

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        return self.memory.empty(shape, dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        return self.memory.full(shape, 0, dtype)

    def asarray(self, array: Any, dtype: Any = None) -> Array:
        cupy = self.cupy
        known = isinstance(array, cupy.ndarray)
        if not known and not on_gpu(array):
            return self._upload(array, dtype)
        with explained(cupy, "an array of the device"), cupy.cuda.Device(self.index):
            array = array if known else as_cupy(array)
            if int(array.device.id) != self.index:
                raise DeviceUnavailable(
                    f"the array lies on cuda:{array.device.id} but the work is done on "
                    f"cuda:{self.index}; copy it there, or use "
                    f'device="cuda:{array.device.id}"'
                )
            if not array.flags.c_contiguous:  # CuPy's function turns 0 dimensions into one
                array = cupy.ascontiguousarray(array)
            return array if dtype is None else array.astype(dtype, copy=False)

    def _upload(self, array: Any, dtype: Any) -> Array:
        if hasattr(array, "__dlpack__") and not isinstance(array, np.ndarray):
            array = np.from_dlpack(array)
        try:
            host = np.ascontiguousarray(array, dtype)
        except (TypeError, ValueError) as error:
            raise DtypeError(f"no array of numbers: {error}") from None
        if not is_number(host.dtype):
            raise DtypeError(f"an array of dtype {host.dtype} cannot be moved to the GPU")
        host = host.astype(host.dtype.newbyteorder("="), copy=False).reshape(np.shape(array))
        out = self.empty(host.shape, host.dtype)
        self.memory.write(host, out)
        return out

    def inputs(self, x: Any, dtype: Any) -> Array:
        return self.asarray(x, dtype)

    def place(self, array: Any, dtype: Any) -> Array:
        return None if array is None else self.asarray(array, dtype)

    def place_inputs(self, x: Any, dtype: Any) -> Array:
        return self.asarray(x, None if x.dtype.name in INPUT_DTYPES else dtype)

    def has_room(self, nbytes: int) -> bool:
        with self.cupy.cuda.Device(self.index):
            free, _ = self.cupy.cuda.runtime.memGetInfo()
            kept = self.cupy.get_default_memory_pool().free_bytes()  # by CuPy, for whoever comes
        return bool(nbytes <= DATA_SHARE * (free + kept))

    def staging(self, shape: tuple[int, ...], dtype: Any) -> Staging:
        return PinnedStaging(self.cupy, self.index, shape, dtype)

    def row_cursor(self) -> RowCursor:
        return DeviceRows(self)

    def is_device_array(self, array: Any) -> bool:
        return on_gpu(array)

    def to_host(self, array: Array) -> np.ndarray:
        host = self.memory.read(array)
        self.check_labels()
        return host

    def from_host(self, host: np.ndarray, out: Array) -> None:
        self.memory.write(host, out)

    def fill(self, array: Array, value: float) -> None:
        self._issue(array.fill, value)

    def copy(self, source: Array, out: Array) -> None:
        if source.shape != out.shape or source.dtype != out.dtype or not source.size:
            if source.shape != out.shape or source.dtype != out.dtype:
                raise ShapeError(
                    f"a copy from {source.dtype} {source.shape} to {out.dtype} {out.shape}"
                )
            return
        self._issue(out.data.copy_from_device_async, source.data, source.nbytes)

    def all_finite(self, x: Array) -> bool:
        out = self.memory.scratch("finite", (2,), compute_dtype(x.dtype))
        self.sum_of_squares(x, out)
        return bool(self.to_host(out)[1] == 0)

    def labels_used(self) -> None:
        self._labels[0] = True

    def check_labels(self) -> None:
        if self._labels[0]:
            self._labels[0] = False
            self.memory.raise_bad_label()

    # -- what `gpubackprop.ops` asks --------------------------------------------------------------

    def new(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        return self.memory.empty(shape, dtype)

    def as_ndarray(self, values: Any, dtype: Any = None) -> Array:
        # A number becomes an array of the host; its shape does not fit.
        return as_host(values, dtype) if isinstance(values, ANYWHERE) else as_cupy(values)

    def is_ndarray(self, x: Any) -> bool:
        return isinstance(x, self.cupy.ndarray)

    def overlap(self, a: Array, b: Array) -> bool:
        return bool(self.cupy.may_share_memory(a, b))

    def same_start(self, a: Array, b: Array) -> bool:
        return int(a.data.ptr) == int(b.data.ptr)

    def values(self, array: Array, check: bool) -> np.ndarray | None:
        return self.to_host(array) if check else None

    def source(self, array: Array, dtype: Any) -> Array:
        return array if _rows_lie_dense(array) else self.asarray(array)

    def target(self, out: Array, source: Array) -> Array:
        return out if _rows_lie_dense(out) else self.empty(out.shape, out.dtype)

    def store(self, work: Array, out: Array) -> None:
        if work is not out:
            with self.cupy.cuda.Device(self.index):
                out[...] = work

    def factor(self, array: Array) -> Array:
        whole = array.flags.c_contiguous or array.flags.f_contiguous
        return array if whole else self.asarray(array)

    def summand(self, array: Array, dtype: Any) -> Array:
        return self.source(array, dtype)

    def loss_inputs(self, dtype: Any, logits: Array, targets: Array, *weights: Any) -> Any:
        if targets.ndim == 1:
            kept = targets.dtype in (np.uint8, np.int32)  # the kernels read these, and int64
            targets = self.asarray(targets, None if kept else np.int64)
        else:
            targets = self.source(targets, targets.dtype)
        vectors = (w if isinstance(w, float) else self.place(w, dtype) for w in weights)
        return self.source(logits, dtype), targets, *vectors

    def loss_outputs(self, rows: int, dtype: Any) -> dict[str, Array]:
        return {"loss": self.empty((), dtype)}

    def count(self, flags: Array) -> Array:
        with self.cupy.cuda.Device(self.index):
            return self.cupy.sum(flags)


def _rows_lie_dense(array: Array) -> bool:
    """Return whether a kernel takes the matrix: rows one after another, each without gaps."""
    if array.flags.c_contiguous:
        return True
    rows, columns = array.strides
    return bool(
        (columns == array.itemsize or array.shape[1] == 1)
        and rows >= array.shape[1] * array.itemsize
        and rows % array.itemsize == 0
    )
