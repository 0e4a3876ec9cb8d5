"""Views into a flat buffer. Assignments write into them and never replace them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.backends.arrays import as_cupy, as_host, on_gpu
from gpubackprop.dtypes import is_number
from gpubackprop.errors import DtypeError, ShapeError

Array = np.ndarray


class LayerArrays(tuple[Array, ...]):
    """For each layer a view into a flat buffer; ``arrays[l] = values`` writes into the view.

    ``arrays[:] = [...]`` and ``arrays[...] = [...]`` write into several views. Nothing is written
    unless all of it fits. A copy or a pickle is a tuple of arrays with memory of their own.
    """

    name: str
    backend: Backend

    @classmethod
    def of(cls, views: Sequence[Array], name: str, backend: Backend) -> LayerArrays:
        """Return the views as layer arrays; errors call them `name`."""
        arrays = cls(views)
        arrays.name, arrays.backend = name, backend
        return arrays

    def __setitem__(self, key: Any, values: Any) -> None:
        numbers = range(len(self))[slice(None) if key is Ellipsis else key]
        if isinstance(numbers, int):
            numbers, values = range(numbers, numbers + 1), [values]
        elif isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
            raise ShapeError(
                f"{self.name} was assigned {type(values).__name__} but wants {len(numbers)} "
                f"arrays, one for each layer; to fill a layer write {self.name}[0][...] = value"
            )
        if len(values) != len(numbers):
            raise ShapeError(
                f"{self.name} was assigned {len(values)} arrays but has {len(numbers)} there, one "
                f"for each layer"
            )
        names = [f"{self.name}[{number}]" for number in numbers]
        write(self.backend, names, [self[number] for number in numbers], list(values))

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (list(self),)


def write(
    backend: Backend, names: list[str], views: Sequence[Array], values: Sequence[Any]
) -> None:
    """Set each view to its values, converted to its dtype, wherever they are; all or nothing.

    Raises
    ------
    ShapeError, DtypeError
        A value does not fit; the message calls it by its entry in `names`.
    """
    copies = [
        None if value is view else _copied(backend, name, view, value)
        for name, view, value in zip(names, views, values, strict=True)
    ]
    for view, fresh in zip(views, copies, strict=True):
        if isinstance(fresh, np.ndarray):
            backend.from_host(fresh, view)
        elif fresh is not None:
            backend.copy(fresh, view)


def _copied(backend: Backend, name: str, view: Array, value: Any) -> Array:
    """Return a copy of `value` as `view` takes it: the value may share the view's memory."""
    if hasattr(value, "detach"):  # a PyTorch tensor; its graph does not matter here
        value = value.detach()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    if np.ma.is_masked(value):
        raise DtypeError(
            f"{name} was assigned masked values, which are no numbers; fill them in with "
            f"values.filled(...)"
        )
    if on_gpu(value):
        value = as_cupy(value)
        if not backend.is_device_array(view):
            value = value.get()
    else:
        try:
            value = as_host(value)
        except (TypeError, ValueError) as error:
            raise DtypeError(f"{name} was assigned no array of numbers: {error}") from None
    if not is_number(value.dtype):
        raise DtypeError(f"{name} was assigned {value.dtype} but holds real numbers, {view.dtype}")
    if value.shape != view.shape:
        hint = f"; to fill it write {name}[...] = value" if value.ndim == 0 else ""
        if value.ndim == 2 and value.T.shape == view.shape:
            hint = "; pass the transpose"
        raise ShapeError(f"{name} has shape {view.shape} but was assigned {value.shape}{hint}")
    if isinstance(value, np.ndarray):
        return np.array(value, view.dtype)
    fresh = backend.empty(view.shape, view.dtype)
    backend.copy(backend.asarray(value, view.dtype), fresh)
    return fresh
