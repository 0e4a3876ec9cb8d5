"""The four ways in which operations, networks and training are tested: the fixture `way`.

==============  ==================================================================================
numpy           the NumPy backend
native          the host's backend with the compiled kernels of this machine
cuda-emulated   the CUDA backend's own code on `emulator.cupy_stub` and emulated kernels
cuda            the CUDA backend on a GPU, through CuPy
==============  ==================================================================================

A file takes part by importing the operations, `MLP` and `make` from here and not from the package,
and by ``pytestmark = pytest.mark.usefixtures("way")``. Its tests then run once each way, with NumPy
arrays in and out: the way moves them, keeping strides and overlaps, and brings the results back. A
test that concerns one path alone says so: ``@pytest.mark.ways("numpy", reason="threads")``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import gpubackprop
from gpubackprop import backends, ops
from gpubackprop.backends import devices
from gpubackprop.backends.native import HostPath, host_path, library
from tests import emulator
from tests.emulator import cupy_stub

WAYS = ("numpy", "native", "cuda-emulated", "cuda")
HOSTS = ("numpy", "native", "host")


class Way:
    """One way of computing: it moves arrays to its device and back.

    Attributes
    ----------
    name : str
        One of `WAYS`.
    device : str
        The device with which a network of this way is built.
    """

    name, device = "host", "cpu"

    @property
    def backend(self) -> Any:
        return backends.get(self.device)

    def call(self, function: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
        """Return ``function(*args, **options)`` with NumPy arrays in and out."""
        return function(*args, **options)


class _Numpy(Way):
    name, device = "numpy", "cpu:numpy"


class _Native(Way):
    name = "native"


class _Cuda(Way):
    device = "cuda:0"

    def call(self, function: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
        moved = _Moved(self)
        args = [moved.there(value) for value in args]
        options = {name: moved.there(value) for name, value in options.items()}
        if function in _CHECKED:  # bad values must raise at once, as they do on the host
            options.setdefault("check", True)
        return moved.back(function(*args, **options))

    def share(self, array: np.ndarray) -> Any:
        """Return a device array of the same values, dtype and strides."""
        raise NotImplementedError

    def settle(self) -> None:
        """Bring what was written into shared arrays back to the host."""


class _Emulated(_Cuda):
    name = "cuda-emulated"

    def share(self, array: np.ndarray) -> Any:
        return cupy_stub.ndarray(array, 0)  # the stand-in's device memory is host memory

    def settle(self) -> None:
        cupy_stub.STATE.run_all()


class _Gpu(_Cuda):
    """A GPU. Each block of host memory is copied once, so that views of one block stay views of one."""

    name = "cuda"

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[np.ndarray, Any]] = {}

    def share(self, array: np.ndarray) -> Any:
        import cupy

        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        if not (base.flags.c_contiguous or base.flags.f_contiguous) or not array.size:
            return cupy.asarray(array)
        flat = base.T if base.flags.f_contiguous else base
        raw = np.ndarray(flat.nbytes, np.uint8, flat.data.cast("B") if flat.nbytes else b"")
        if id(base) not in self._blocks:
            self._blocks[id(base)] = raw, cupy.asarray(raw)
        there = self._blocks[id(base)][1]
        offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        return cupy.ndarray(array.shape, array.dtype, there.data + offset, array.strides)

    def settle(self) -> None:
        for raw, there in self._blocks.values():
            if raw.flags.writeable:
                raw[...] = there.get()
        self._blocks.clear()


class _Moved:
    """The arrays of one call: an object here always has the same object there, and back."""

    def __init__(self, way: _Cuda) -> None:
        self.way = way
        self._there: dict[int, Any] = {}
        self._here: dict[int, Any] = {}

    def there(self, value: Any) -> Any:
        if isinstance(value, list):
            try:
                value = np.asarray(value)
            except ValueError:  # the rows have unequal lengths
                return value
        if isinstance(value, tuple):
            return tuple(map(self.there, value))
        if not isinstance(value, np.ndarray) or not can_be_moved(value):
            return value
        if id(value) not in self._there:
            array = self.way.share(value)
            self._there[id(value)], self._here[id(array)] = array, (value, array)
        return self._there[id(value)]

    def back(self, result: Any) -> Any:
        self.way.settle()
        return self._back(result)

    def _back(self, result: Any) -> Any:
        if isinstance(result, tuple):
            parts = tuple(map(self._back, result))
            return type(result)(*parts) if hasattr(result, "_fields") else parts
        if id(result) in self._here:
            return self._here[id(result)][0]
        return host(result)


def can_be_moved(array: np.ndarray) -> bool:
    """Return whether CuPy has such arrays: numbers in the machine's byte order, no long double."""
    number = array.dtype.kind in "fiubc" or array.dtype.name == "bfloat16"
    return (
        number
        and array.dtype.isnative
        and array.dtype.itemsize <= 16
        and (array.dtype.name not in ("longdouble", "float128"))
    )


def skip_unless_moved(*values: Any) -> None:
    """Skip a case on CUDA if CuPy cannot hold its arrays: it is about the host's checks."""
    if on_host():
        return
    for value in values:
        try:
            array = np.asarray(value)
        except ValueError:
            pytest.skip("only the host has lists of unequal lengths")
        if isinstance(value, (list, tuple, np.ndarray)) and not can_be_moved(array):
            pytest.skip(f"CuPy has no arrays of dtype {array.dtype}")


def skip_if_large(*shape: int) -> None:
    """Skip a case that takes seconds in the emulator, which has one fiber for each CUDA thread."""
    if is_emulated() and math.prod(shape) > EMULATED_ELEMENTS:
        pytest.skip(f"more than {EMULATED_ELEMENTS:,} elements take the emulator too long")


def on_host() -> bool:
    """Return whether the current way computes on the CPU."""
    return CURRENT[-1].name in HOSTS


def is_emulated() -> bool:
    return CURRENT[-1].name == "cuda-emulated"


def by_way(numpy: float, cuda: float) -> float:
    """Return the known shortfall (`tests/tolerances.py`) of the current way."""
    return numpy if on_host() else cuda


CURRENT: list[Way] = [Way()]
EMULATED_ELEMENTS = 30_000
_CHECKED = (ops.softmax_cross_entropy, ops.linear_cross_entropy, ops.pointwise_loss)


def _on_the_way(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return CURRENT[-1].call(function, args, options)

    return call


activation_backward = _on_the_way(ops.activation_backward)
activation_forward = _on_the_way(ops.activation_forward)
affine_backward = _on_the_way(ops.affine_backward)
affine_forward = _on_the_way(ops.affine_forward)
column_sum = _on_the_way(ops.column_sum)
linear_cross_entropy = _on_the_way(ops.linear_cross_entropy)
pointwise_loss = _on_the_way(ops.pointwise_loss)
log_softmax = _on_the_way(ops.log_softmax)
softmax = _on_the_way(ops.softmax)
softmax_cross_entropy = _on_the_way(ops.softmax_cross_entropy)


def verb(name: str, *args: Any, **options: Any) -> None:
    """Call the operation of that name of the current way's backend, on NumPy arrays."""
    CURRENT[-1].call(getattr(CURRENT[-1].backend, name), args, options)


def MLP(*args: Any, **options: Any) -> gpubackprop.MLP:
    """Build a network on the device of the current way."""
    return gpubackprop.MLP(*args, **{"device": CURRENT[-1].device, **options})


def host(value: Any) -> Any:
    """Return the same as NumPy arrays: an array, a tuple, a list, or a dataclass of arrays."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(host, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: host(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if value is None or isinstance(value, (np.ndarray, np.generic, int, float, str)):
        return value
    array = value.get()
    return array if array.ndim else array[()]


def put(array: Any, values: Any) -> None:
    """Set array[...] = values, for an array of the current way."""
    if isinstance(array, np.ndarray):
        array[...] = values
        return
    whole = np.broadcast_to(np.asarray(values, array.dtype), array.shape)
    CURRENT[-1].backend.from_host(whole, array)


@contextmanager
def taken(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    """Make the way `name` the current one within the context; skip if it cannot be taken.

    "host" is the CPU as it computes by itself.
    """
    if name == "cuda-emulated" and emulator.missing_compiler():
        pytest.skip(emulator.missing_compiler())
    if name == "cuda":
        device, reason = devices.choose("auto")
        if device == "cpu":
            pytest.skip(f"needs a GPU: {reason}")
    if name == "native" and host_path().library is None:
        pytest.skip(host_path().reason)
    kinds = {"numpy": _Numpy, "native": _Native, "cuda-emulated": _Emulated, "cuda": _Gpu}
    way = kinds.get(name, Way)()
    CURRENT.append(way)
    try:
        if name == "numpy":  # operations on NumPy arrays name no device
            off = HostPath(None, "the test takes NumPy's way")
            monkeypatch.setattr(library, "_path", off)
        if name == "cuda-emulated":
            monkeypatch.setattr(devices, "choose", _choose_emulated)
            with cupy_stub.installed():
                yield way
        else:
            yield way
    finally:
        CURRENT.pop()


def _choose_emulated(device: str) -> tuple[str, str]:
    index = device.partition(":")[2] or "0"
    return ("cpu", "asked for") if device == "cpu" else (f"cuda:{index}", "emulated")


def parameter(name: str) -> Any:
    """Return one way as a parameter of the fixture, with its marks."""
    marks = {"cuda-emulated": pytest.mark.emulated, "cuda": pytest.mark.gpu}.get(name, ())
    return pytest.param(name, id=name, marks=marks)
