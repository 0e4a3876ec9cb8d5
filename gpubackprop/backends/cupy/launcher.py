"""The launching of kernels: they are compiled at first use, and every argument is checked.

CuPy checks nothing of a raw kernel's arguments, and passes any view as the pointer to its first
element. Therefore each launch fills the record that `arguments` declares, and an array that does
not fit is an error here instead of a wrong number on the GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from gpubackprop.backends.cupy.arguments import Layout, fits, layout_of
from gpubackprop.backends.cupy.compiling import Entry, compile_together, compiled
from gpubackprop.backends.cupy.library import explained
from gpubackprop.backends.cupy_launch import DeviceProperties, Launch, plan
from gpubackprop.errors import DeviceUnavailable, DtypeError, OptionError, ShapeError


def row_stride(array: Any) -> int:
    """Return the elements from one row of a matrix to the next; for one row, the row's length."""
    if array is None:
        return 0
    if array.shape[0] < 2:
        return int(array.shape[1])
    return int(array.strides[0]) // int(array.itemsize)


def dense(*arrays: Any) -> bool:
    """Return whether every matrix (None aside) has its rows one after another without gaps."""
    return all(a is None or row_stride(a) == a.shape[1] for a in arrays)


class Launcher:
    """Launches entries on one device.

    Parameters
    ----------
    cupy : module
        CuPy.
    index : int
        Number of the device.
    """

    def __init__(self, cupy: Any, index: int) -> None:
        self.cupy, self.index = cupy, index
        self._with_all_shared: set[str] = set()
        device = cupy.cuda.Device(index)
        attributes, capability = device.attributes, str(device.compute_capability)  # "90", "120"
        self.properties = DeviceProperties(
            int(attributes["MultiProcessorCount"]),
            int(attributes["MaxSharedMemoryPerBlockOptin"]),
            (int(capability[:-1]), int(capability[-1])),
        )

    def plan(self, kernel: str, shape: tuple[int, ...], dtype: Any, **options: Any) -> Launch:
        return plan(kernel, shape, dtype, self.properties, **options)

    def bind(self, launch: Launch, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return (grid, block, arguments) for the entry: the checked record of `values`."""
        layout = layout_of(launch.entry, launch.defines)
        return launch.grid, launch.block, (layout.record(values, self._address),)

    def _allow_shared(self, entry: Any, launch: Launch) -> None:
        """Ask for all shared memory that an entry may have.

        CUDA gives an entry more than 48 KiB, its static shared memory included, only if that was
        asked for. Asking for all of it never undoes the wish of another backend.
        """
        if launch.entry in self._with_all_shared:
            return
        with (
            explained(self.cupy, f"shared memory for {launch.entry}"),
            self.cupy.cuda.Device(self.index),
        ):
            most = self.properties.shared_bytes - int(entry.shared_size_bytes)
            entry.max_dynamic_shared_size_bytes = most
        self._with_all_shared.add(launch.entry)

    def entry(self, launch: Launch) -> Any:
        """Return the compiled kernel, which takes what `bind` returns."""
        with explained(self.cupy, f"compiling {launch.entry}"), self.cupy.cuda.Device(self.index):
            entry = compiled(self.cupy, self.index, _entry(launch))
        if not launch.shared_bytes:
            return entry
        self._allow_shared(entry, launch)
        return partial(entry, shared_mem=launch.shared_bytes)

    def compile_together(self, launches: Iterable[Launch]) -> None:
        """Compile the entries that were never used, several at a time."""
        entries = {_entry(launch) for launch in launches}
        what = "compiling " + ", ".join(sorted(name for _, name, _ in entries))
        with explained(self.cupy, what), self.cupy.cuda.Device(self.index):
            compile_together(self.cupy, self.index, entries)

    def _address(self, layout: Layout, name: str, array: Any) -> int:
        """Return the address of an array that may stand in field `name`."""
        if not isinstance(array, self.cupy.ndarray):
            raise DtypeError(
                f"{layout.entry} wants a device array as {name} but got a "
                f"{type(array).__name__}; move it with backend.asarray"
            )
        element = layout.element(layout.kinds[name])
        if not fits(array.dtype, element):
            raise DtypeError(
                f"{layout.entry} wants {element} as {name} but got {array.dtype}; convert it with "
                f".astype"
            )
        if int(array.device.id) != self.index:
            raise DeviceUnavailable(
                f"{layout.entry}: {name} lies on cuda:{array.device.id} but the work is done on "
                f"cuda:{self.index}; move it there first"
            )
        address = int(array.data.ptr)
        if array.size:
            _check_layout(layout.entry, name, array, address)
        return address


def _entry(launch: Launch) -> Entry:
    return launch.source, launch.entry, launch.defines


def _check_layout(entry: str, name: str, array: Any, address: int) -> None:
    itemsize = int(array.itemsize)
    if address % itemsize:
        raise OptionError(
            f"{entry}: {name} starts at an address that is no multiple of {itemsize} bytes, its "
            f"element size; copy it into an array of its own"
        )
    last = array.strides[-1] if array.ndim else itemsize
    if array.ndim > 2 or (array.shape and array.shape[-1] > 1 and last != itemsize):
        raise ShapeError(
            f"{entry}: {name} has shape {array.shape} and strides {array.strides}; the elements "
            f"of a row must be neighbours: use cupy.ascontiguousarray"
        )
    if array.ndim == 2 and array.shape[0] > 1 and array.strides[0] < array.shape[1] * itemsize:
        raise ShapeError(
            f"{entry}: the rows of {name} overlap or run backwards (strides {array.strides}); use "
            f"cupy.ascontiguousarray"
        )
