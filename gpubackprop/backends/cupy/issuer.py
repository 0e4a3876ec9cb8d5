"""The issuing of kernels on a device, and two basic operations: rows and column sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from gpubackprop.backends.base import Backend
from gpubackprop.backends.cupy import elementwise, gathers
from gpubackprop.backends.cupy.launcher import Launcher, dense, row_stride
from gpubackprop.backends.cupy.library import check_device, explained, import_cupy
from gpubackprop.backends.cupy.memory import DeviceMemory, WorkingMemory
from gpubackprop.backends.cupy.products import Products
from gpubackprop.backends.cupy.recorded_calls import RecordedCalls
from gpubackprop.backends.cupy_launch import Launch
from gpubackprop.backends.memory import Array, RowCursor
from gpubackprop.dtypes import compute_dtype
from gpubackprop.errors import ShapeError


class Issuer(DeviceMemory, Backend):
    """The part of `CupyBackend` that issues kernels on a device, or records them.

    Its layers, losses and updates stand on it.

    Attributes
    ----------
    memory : WorkingMemory
        Scratch arrays, and the flag for labels out of range.
    launcher : Launcher
        Compiles and binds entries, on this device.
    """

    def __init__(self, index: int) -> None:
        self.cupy, self.index, self.device = import_cupy(), index, f"cuda:{index}"
        check_device(self.cupy, index)
        self.memory = WorkingMemory(self.cupy, index)
        self.launcher = Launcher(self.cupy, index)
        self._recorded: RecordedCalls | None = None
        self._labels = [
            False
        ]  # whether labels are unchecked since the last wait; recorders share it

    products: Products
    _epilogues: Any = None  # see `gpubackprop.backends.cupy.layers`
    _last_update: Any = None  # of a recorder: see `gpubackprop.backends.cupy.updates`

    @property
    def _place(self) -> int:
        """Number of the calls that are recorded."""
        return 0 if self._recorded is None else len(self._recorded.calls)

    def with_memory(self, memory: WorkingMemory) -> Self:
        """Return this backend with another `memory`, for a recording or a capture."""
        twin = object.__new__(type(self))
        twin.__dict__ |= self.__dict__
        twin.memory = memory
        return twin

    def _recorder(self) -> Self:
        """Return this backend with its operations recorded, and working memory that is kept."""
        recorder = self.with_memory(WorkingMemory(self.cupy, self.index, keeps_scratch=True))
        recorder._recorded = RecordedCalls()
        recorder.memory.flags = self.memory.flags
        recorder.memory.first_row = self.memory.first_row
        recorder._labels = [False]
        return recorder

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        if self._recorded is not None:
            self._recorded.obstacle = self._recorded.obstacle or "a function of the host"
        self._issue(function, *args)

    def enqueue(self, function: Callable[..., Any], *args: Any) -> None:
        """Issue a function that only queues work on the current stream, so that a graph holds it.

        Parameters
        ----------
        function : callable
            It neither waits nor allocates.
        *args : object
            Its arguments.
        """
        self._issue(function, *args)

    def _issue(self, function: Callable[..., Any], *args: Any) -> None:
        if self._recorded is not None:
            self._recorded(function, *args)
            return
        name = getattr(function, "__name__", "a call")
        with explained(self.cupy, name), self.cupy.cuda.Device(self.index):
            function(*args)

    def launch(
        self,
        kernel: str,
        shape: tuple[int, ...],
        dtype: Any,
        arguments: Callable[[Launch], dict[str, Any]],
        *,
        formula: str = "",
        contiguous: bool = True,
    ) -> None:
        """Issue one entry of the launch table; issue nothing for an empty array.

        Parameters
        ----------
        kernel : str
            As in `gpubackprop.backends.cupy_launch.plan`.
        shape : tuple of int
            As in `gpubackprop.backends.cupy_launch.plan`.
        dtype : dtype or str
            As in `gpubackprop.backends.cupy_launch.plan`.
        arguments : callable
            Returns, for the planned launch, the fields of its record by name
            (`gpubackprop.backends.cupy.arguments.ARGUMENTS`).
        formula : str
            As in `gpubackprop.backends.cupy_launch.plan`.
        contiguous : bool
            As in `gpubackprop.backends.cupy_launch.plan`.
        """
        launch = self.launcher.plan(kernel, shape, dtype, formula=formula, contiguous=contiguous)
        if not launch.empty:
            self.issue(launch, arguments(launch))

    def elementwise(self, name: str, *args: Any) -> None:
        """Issue one of the kernels of `gpubackprop.backends.cupy.elementwise`."""
        self._issue(elementwise.kernel(self.cupy, name), *args)

    def issue(self, launch: Launch, arguments: dict[str, Any]) -> None:
        """Issue one planned launch with the fields of its record."""
        call = self.launcher.bind(launch, arguments)
        if self._recorded is not None:
            self._recorded.launch(launch, *call)
        else:
            self._issue(self.launcher.entry(launch), *call)

    # -- rows -------------------------------------------------------------------------------------

    def on_device(self, host: np.ndarray | None, dtype: Any) -> Array | None:
        """Return a copy of an array that does not change any more, such as class weights."""
        return None if host is None else self.asarray(host, dtype)

    def converted(self, array: Array | None, dtype: Any, name: str) -> Array | None:
        """Return `array`, or its conversion to `dtype` in scratch memory of that name."""
        if array is None or array.dtype == dtype:
            return array
        out = self.memory.scratch(name, array.shape, dtype)
        self.gather_rows(array, None, out)
        return out

    def gather_rows(self, source: Array, rows: Array | None, out: Array) -> None:
        if rows is None and source.shape != out.shape:
            raise ShapeError(f"no conversion of {source.shape} to {out.shape}")
        gathers.gather_rows(self, source, rows, out)

    def gather_batch(self, pairs: Sequence[tuple[Array, Array]], rows: Array | RowCursor) -> None:
        gathers.gather_batch(self, pairs, rows)

    def standardize(self, raw: Array, mean: Array, scale: Array, out: Array) -> None:
        sixteen_bit = out.dtype.itemsize == 2  # CuPy's own kernels do not all take bfloat16
        wide = self.memory.scratch("standardized", out.shape, np.float32) if sixteen_bit else out
        self.elementwise("standardize", raw, mean, scale, wide)
        if sixteen_bit:
            self.gather_rows(wide, None, out)

    def divide(self, x: Array, divisor: float, out: Array) -> None:
        self.elementwise("divide", x, np.float64(divisor), out)

    # -- column sums ------------------------------------------------------------------------------

    def column_sum(self, delta: Array, out: Array) -> None:
        """Set out[j] = sum_i delta[i, j], in an order that the shapes alone decide."""
        self.sum_columns(delta, out)

    def sum_columns(
        self, x: Array, out: Array, divisor: Array | float = 1.0, empty_is_zero: bool = False
    ) -> None:
        """Compute `column_sum`, divided by `divisor`, a number or an array ().

        Divided by 0 it is NaN, or 0 if `empty_is_zero`.
        """
        rows, columns = x.shape
        partial: list[Array] = []

        def arguments(launch: Launch) -> dict[str, Any]:
            partial.append(self._partial(launch.partial, x.dtype))
            return {
                "x": x, "partial": partial[0], "rows": rows, "cols": columns, "join": launch.join,
                "stride": row_stride(x),
            }  # fmt: skip

        self.launch("column_sum", x.shape, x.dtype, arguments, contiguous=dense(x))
        self._finish(partial[0] if partial else None, out, divisor, empty_is_zero)

    def _partial(self, shape: tuple[int, int] | None, dtype: Any) -> Array:
        return self.memory.scratch("partial", shape or (0, 0), compute_dtype(dtype))

    def _finish(
        self,
        partial: Array | None,
        out: Array,
        divisor: Array | float = 1.0,
        empty_is_zero: bool = False,
    ) -> None:
        columns = out.shape[0]
        rows = 0 if partial is None else partial.shape[0]
        if partial is not None and partial.shape[1] != columns:
            raise ShapeError(f"out has shape {out.shape} but there are {partial.shape[1]} columns")
        self.launch(
            "column_sum_finish", (rows, columns), out.dtype,
            lambda launch: {
                "partial": partial, "out": out, "rows": rows, "cols": columns, "divisor": divisor,
                "empty_is_zero": empty_is_zero,
            },
        )  # fmt: skip
