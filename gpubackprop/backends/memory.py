"""The memory of a backend: the operations with which arrays are made, moved and read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray


class Staging(Protocol):
    """Brings arrays of the host to a device, one after another; see `Memory.staging`."""

    @abstractmethod
    def put(self, fill: Callable[[np.ndarray], None], out: Array) -> None:
        """Set out = what ``fill(host)`` writes.

        On a GPU `out` is set in its turn on the current stream, while the host goes on. The host
        waits only for the copy of the array before the last one.

        Parameters
        ----------
        fill : callable
            Called once, now, with an array of the host like `out`.
        out : array
            An array of the device, not larger than `Memory.staging` was told, of its dtype.
        """


class RowCursor(Protocol):
    """Where `Backend.gather_batch` finds a batch's row numbers; see `Memory.row_cursor`.

    On a GPU it is an address in the device's memory, which a call leaves behind the numbers that it
    has read. So batches that lie one after another need nothing of the host between them.
    """

    @abstractmethod
    def put(self, rows: Array) -> None:
        """Let the next call read these numbers.

        Parameters
        ----------
        rows : (N,) int64 array
            On the device, without gaps. The cursor keeps it.
        """

    @abstractmethod
    def done(self) -> None:
        """Note that a call has read the numbers that were put last."""


class Memory(Protocol):
    """Arrays of one device, and the host's arrays on their way there and back.

    Attributes
    ----------
    asynchronous : bool
        Whether an operation returns before its result is there, so that reading it waits.
    converts_rows : bool
        Whether `gather_rows` to another dtype takes no temporary array.
    """

    asynchronous: bool
    converts_rows: bool

    @abstractmethod
    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """Return an array of the device that is not filled, aligned to at least 128 bytes."""

    @abstractmethod
    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """Return an array of the device that holds 0."""

    @abstractmethod
    def asarray(self, array: Any, dtype: Any = None) -> Array:
        """Return `array` as a C-contiguous array of the device.

        Parameters
        ----------
        array : array-like
            Anything that NumPy takes, or that shows memory of the device.
        dtype : dtype or None
            Dtype of the result; None is that of `array`.

        Returns
        -------
        array
            `array` itself or a view if it is that already, else a copy.

        Raises
        ------
        DtypeError
            It is no array of numbers.
        DeviceUnavailable
            It is on another GPU.
        """

    @abstractmethod
    def inputs(self, x: Any, dtype: Any) -> Array:
        """Return `x` on the device, in that dtype, for a matrix product."""

    @abstractmethod
    def place(self, array: Array | None, dtype: Any) -> Array:
        """Return targets, weights or row numbers where `gather_rows` reads them; None for None.

        Parameters
        ----------
        array : (N,) or (N, K) array, or None
            An array of the host or the device.
        dtype : dtype
            The dtype that a GPU's kernels read; the host takes arrays as they are.
        """

    @abstractmethod
    def place_inputs(self, x: Array, dtype: Any) -> Array:
        """Return all rows of `x` where `gather_rows` reads them.

        Parameters
        ----------
        x : (N, D) array
            Rows.
        dtype : dtype
            The dtype to which a GPU converts them if it cannot read the dtype of `x`.
        """

    @abstractmethod
    def has_room(self, nbytes: int) -> bool:
        """Return whether an array of so many bytes leaves room for a training beside it."""

    @abstractmethod
    def staging(self, shape: tuple[int, ...], dtype: Any) -> Staging:
        """Return what brings arrays of the host to the device, one after another.

        Parameters
        ----------
        shape : tuple of int
            Of the largest array; others have fewer rows.
        dtype : dtype
            Of all arrays.
        """

    @abstractmethod
    def row_cursor(self) -> RowCursor:
        """Return a new cursor for the row numbers of batches."""

    @abstractmethod
    def is_device_array(self, array: Any) -> bool:
        """Return whether `array` is on a GPU; the host has none."""

    @abstractmethod
    def to_host(self, array: Array) -> np.ndarray:
        """Return the values as a NumPy array: the host's own, or a copy of a GPU's. This waits.

        Raises
        ------
        TargetRangeError
            A loss has met a label out of range since the last wait.
        """

    @abstractmethod
    def from_host(self, host: np.ndarray, out: Array) -> None:
        """Set out = host; `host` may change when this returns. Not for the recorder of a plan."""

    @abstractmethod
    def copy(self, source: Array, out: Array) -> None:
        """Set out = source, of one shape and dtype. Not for the recorder of a plan."""

    @abstractmethod
    def fill(self, array: Array, value: float) -> None:
        """Set every element of `array` to value. Not for the recorder of a plan."""

    @abstractmethod
    def all_finite(self, x: Array) -> bool:
        """Return whether no element of the flat `x` is NaN or infinite. This waits."""

    @abstractmethod
    def check_labels(self) -> None:
        """Report labels out of range that the device has met. This waits if there may be some.

        Raises
        ------
        TargetRangeError
            A loss has met a label outside [0, K). The host checks labels beforehand.
        """

    # -- for `gpubackprop.ops` --------------------------------------------------------------------
    # The host's operations compute 16-bit types in float32 copies, and take any strides. A GPU's
    # kernels take 16-bit types as they are, but want the elements of a row side by side.

    @abstractmethod
    def new(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """Return a result for the caller, which is not filled and has no particular alignment."""

    @abstractmethod
    def as_ndarray(self, values: Any, dtype: Any = None) -> Array:
        """Return `values` as an ndarray of this memory, in which they are.

        Parameters
        ----------
        values : array-like
            Values that `backend_for` found here.
        dtype : dtype or None
            Dtype for the host; a GPU's arrays keep theirs.

        Returns
        -------
        array
            `values` or a view; the host copies what is no array or has another dtype.
        """

    @abstractmethod
    def is_ndarray(self, x: Any) -> bool:
        """Return whether `x` is an ndarray of this memory's library (NumPy, CuPy)."""

    @abstractmethod
    def overlap(self, a: Array, b: Array) -> bool:
        """Return whether the ranges of memory of both meet."""

    @abstractmethod
    def same_start(self, a: Array, b: Array) -> bool:
        """Return whether both begin at one address."""

    @abstractmethod
    def values(self, array: Array, check: bool) -> np.ndarray | None:
        """Return the values if they may be read, else None.

        The host's may always be read. Those of a GPU must be waited for, and are read only with
        `check`.
        """

    @abstractmethod
    def source(self, array: Array, dtype: Any) -> Array:
        """Return `array` (N, D) as an operation reads it: itself, or a copy.

        Parameters
        ----------
        array : (N, D) array
            Values.
        dtype : dtype
            Compute dtype, to which the host converts.
        """

    @abstractmethod
    def target(self, out: Array, source: Array) -> Array:
        """Return the array into which an operation writes for `out`.

        It is `out` itself or other memory; on the host that is `source`, if this is a copy. `store`
        brings it to `out`.
        """

    @abstractmethod
    def store(self, work: Array, out: Array) -> None:
        """Set out = work, converted; do nothing if they are one array."""

    @abstractmethod
    def factor(self, array: Array) -> Array:
        """Return `array` as `matmul` reads it: itself, or a copy."""

    @abstractmethod
    def summand(self, array: Array, dtype: Any) -> Array:
        """Return `array` (N, D) as `column_sum` reads it, itself or a copy; see `source`."""

    @abstractmethod
    def loss_inputs(self, dtype: Any, logits: Array, targets: Array, *weights: Any) -> Any:
        """Return logits, targets and weights as `softmax_cross_entropy` reads them, in this order.

        Parameters
        ----------
        dtype : dtype
            The compute dtype.
        logits : (N, K) array
            Logits.
        targets : (N,) or (N, K) array
            Labels or probabilities.
        *weights : array, float or None
            Vectors (N,) or numbers.
        """

    @abstractmethod
    def loss_outputs(self, rows: int, dtype: Any) -> dict[str, Array]:
        """Return the arrays that `softmax_cross_entropy` wants beside results, called at once."""

    @abstractmethod
    def count(self, flags: Array) -> Array:
        """Return how many of (N,) bool are true, a 0-d integer."""
