"""Where each layer's weights and biases lie in the one flat parameter buffer, and how they are
written there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.backends.arrays import as_cupy, on_gpu
from gpubackprop.backends.numpy.blocks import ALIGNMENT
from gpubackprop.errors import DtypeError, ReadOnlyError, ShapeError

Array = np.ndarray


class ParameterLayout:
    """All weights, then all biases, each start aligned to 128 bytes; the gaps hold zeros.

    Weights come first so that what concerns weights alone (the L2 penalty) is one range. The
    gradient and every optimizer slot have the same layout, so an update is one pass, a gradient
    norm one reduction, a checkpoint one write.

    Attributes
    ----------
    size : elements of the flat buffer. weights_end : end of the weights' range.
    count : parameters, without the gaps. gaps : slices of the flat buffer between them.
    """

    def __init__(self, widths: Sequence[int], dtype: np.dtype) -> None:
        self.shapes = list(zip(widths[1:], widths[:-1], strict=True))
        step = ALIGNMENT // np.dtype(dtype).itemsize

        def place(start: int, sizes: list[int]) -> tuple[list[int], int]:
            starts = []
            for size in sizes:
                starts.append(start)
                start += -(-size // step) * step
            return starts, start

        self._weights, self.weights_end = place(
            0, [rows * columns for rows, columns in self.shapes]
        )
        self._biases, self.size = place(self.weights_end, [rows for rows, _ in self.shapes])
        self.count = sum(rows * columns + rows for rows, columns in self.shapes)
        sizes = [rows * columns for rows, columns in self.shapes] + [r for r, _ in self.shapes]
        starts = [*self._weights, *self._biases]
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        following = [*starts[1:], self.size]
        pairs = zip(ends, following, strict=True)
        self.gaps = [slice(end, start) for end, start in pairs if end < start]

    def views(self, flat: Array) -> tuple[list[Array], list[Array]]:
        """(W, b): for each layer a (D_l, D_{l-1}) and a (D_l,) view into `flat` (size,)."""
        W = [
            flat[start : start + rows * columns].reshape(rows, columns)
            for start, (rows, columns) in zip(self._weights, self.shapes, strict=True)
        ]
        b = [
            flat[start : start + rows]
            for start, (rows, _) in zip(self._biases, self.shapes, strict=True)
        ]
        return W, b


class LayerArrays(tuple[Array, ...]):
    """For each layer a view into a flat buffer; ``arrays[l] = values`` writes into the view.

    ``arrays[:] = [...]`` and ``arrays[...] = [...]`` write into several. Nothing is written unless
    all of it fits. A copy or a pickle is a tuple of arrays with memory of their own.
    """

    name: str
    backend: Any

    @classmethod
    def of(cls, views: Sequence[Array], name: str, backend: Any) -> LayerArrays:
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


def write(backend: Any, names: list[str], views: Sequence[Array], values: Sequence[Any]) -> None:
    """Each view = its values, converted to its dtype, wherever they lie; all or nothing.

    Raises
    ------
    ShapeError, DtypeError : a value does not fit; `names` are theirs.
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


def _copied(backend: Any, name: str, view: Array, value: Any) -> Array:
    """A copy of `value` as `view` takes it: it may be a part of what is overwritten."""
    if on_gpu(value):
        value = as_cupy(value)
        if not backend.is_device_array(view):
            value = value.get()
    else:
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise DtypeError(f"{name} was assigned no array of numbers: {error}") from None
    if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16":
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


class Fixed:
    """An attribute that its object's constructor sets, and nothing else.

    Parameters
    ----------
    advice : what to do instead; ends the error's message.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        try:
            return instance.__dict__[self.name]
        except KeyError:
            raise AttributeError(f"{type(instance).__name__} has no {self.name} yet") from None

    def __set__(self, instance: Any, value: Any) -> None:
        if self.name in instance.__dict__:
            self._refuse(instance)
        instance.__dict__[self.name] = value

    def __delete__(self, instance: Any) -> None:
        self._refuse(instance)

    def _refuse(self, instance: Any) -> None:
        raise ReadOnlyError(
            f"{type(instance).__name__}.{self.name} cannot be changed; {self.advice}"
        )
