"""The memory of a backend: what every one of them offers to make, move and look at arrays."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray


class Memory(Protocol):
    """Arrays of one device, and the host's arrays on their way there and back.

    Attributes
    ----------
    asynchronous : True where an operation returns before its result is there: reading waits.
    converts_rows : True where `gather_rows` to another dtype takes no temporary array.
    """

    asynchronous: bool
    converts_rows: bool

    @abstractmethod
    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """An array of the device that is not filled, aligned to 128 bytes at least."""

    @abstractmethod
    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """An array of the device that holds 0."""

    @abstractmethod
    def asarray(self, array: Any, dtype: Any = None) -> Array:
        """`array` as a C-contiguous array of the device.

        Parameters
        ----------
        array : what NumPy takes, or what shows memory of the device.
        dtype : of the result; None for that of `array`.

        Returns
        -------
        `array` itself or a view where it is that already, else a copy.

        Raises
        ------
        DtypeError : no array of numbers.
        DeviceUnavailable : it lies on another GPU.
        """

    @abstractmethod
    def inputs(self, x: Any, dtype: Any) -> Array:
        """`x` on the device, in that dtype, for a matrix product."""

    @abstractmethod
    def place(self, array: Array | None, dtype: Any) -> Array:
        """Targets, weights or row numbers where `gather_rows` reads them; None for None.

        Parameters
        ----------
        array : (N,) or (N, K) of the host or the device, or None.
        dtype : what a GPU's kernels read; the host takes them as they are.
        """

    @abstractmethod
    def place_inputs(self, x: Array, dtype: Any) -> Array:
        """All rows of `x` where `gather_rows` reads them.

        Parameters
        ----------
        x : (N, D).
        dtype : what a GPU converts them to where it cannot read the dtype of `x`.
        """

    @abstractmethod
    def is_device_array(self, array: Any) -> bool:
        """Whether `array` lies on a GPU; the host has none."""

    @abstractmethod
    def to_host(self, array: Array) -> np.ndarray:
        """The values as a NumPy array: of the host itself, of a GPU a copy. Waits for the device.

        Raises
        ------
        TargetRangeError : a loss has met a label out of range since the last wait.
        """

    @abstractmethod
    def from_host(self, host: np.ndarray, out: Array) -> None:
        """out = host; `host` may be changed when this returns. Not for the recorder of a plan."""

    @abstractmethod
    def copy(self, source: Array, out: Array) -> None:
        """out = source, of one shape and dtype on this device. Not for the recorder of a plan."""

    @abstractmethod
    def fill(self, array: Array, value: float) -> None:
        """Every element of `array` = value. Not for the recorder of a plan."""

    @abstractmethod
    def all_finite(self, x: Array) -> bool:
        """Whether no element of the flat `x` is NaN or infinite. Waits for the device."""

    @abstractmethod
    def check_labels(self) -> None:
        """Report labels out of range that the device has met. Waits where there may be some.

        Raises
        ------
        TargetRangeError : a loss has met a label outside [0, K). The host checks labels before.
        """

    # -- what `gpubackprop.ops` asks --------------------------------------------------------------
    # The host's operations compute 16-bit types in float32 copies, and take any strides. A GPU's
    # kernels take 16-bit types as they are, but want the elements of a row side by side.

    @abstractmethod
    def new(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """A result for the caller: not filled, of no particular alignment."""

    @abstractmethod
    def as_ndarray(self, values: Any, dtype: Any = None) -> Array:
        """`values` as an ndarray of this memory, in which they lie.

        Parameters
        ----------
        values : what `backend_for` found here.
        dtype : for the host; a GPU's arrays keep theirs.

        Returns
        -------
        `values` or a view; the host copies what is no array, or of another dtype.
        """

    @abstractmethod
    def is_ndarray(self, x: Any) -> bool:
        """Whether `x` is an ndarray of the library (NumPy, CuPy) whose arrays these are."""

    @abstractmethod
    def overlap(self, a: Array, b: Array) -> bool:
        """Whether the ranges of memory of both meet."""

    @abstractmethod
    def same_start(self, a: Array, b: Array) -> bool:
        """Whether both begin at one address."""

    @abstractmethod
    def values(self, array: Array, check: bool) -> np.ndarray | None:
        """What can be looked at: the host's values always; those of a GPU, which must be waited
        for, only with `check`, else None."""

    @abstractmethod
    def source(self, array: Array, dtype: Any) -> Array:
        """`array` (N, D) as an operation reads it: itself, or a copy.

        Parameters
        ----------
        dtype : its compute dtype, to which the host converts.
        """

    @abstractmethod
    def target(self, out: Array, source: Array) -> Array:
        """What an operation writes into for `out`: itself, or memory of its own, which on the host
        is `source` where that is a copy. `store` brings it to `out`."""

    @abstractmethod
    def store(self, work: Array, out: Array) -> None:
        """out = work, converted; nothing where they are one."""

    @abstractmethod
    def factor(self, array: Array) -> Array:
        """`array` as `matmul` reads it: itself, or a copy."""

    @abstractmethod
    def summand(self, array: Array, dtype: Any) -> Array:
        """`array` (N, D) as `column_sum` reads it: itself, or a copy; `dtype` as for `source`."""

    @abstractmethod
    def loss_inputs(self, dtype: Any, logits: Array, targets: Array, *weights: Any) -> Any:
        """Logits, targets and weights as `softmax_cross_entropy` reads them.

        Parameters
        ----------
        dtype : the compute dtype.
        logits : (N, K).
        targets : (N,) labels or (N, K) probabilities.
        *weights : vectors, numbers or None.

        Returns
        -------
        All of them, in this order.
        """

    @abstractmethod
    def loss_outputs(self, rows: int, dtype: Any) -> dict[str, Array]:
        """What `softmax_cross_entropy`, called at once, must be given beside its results."""

    @abstractmethod
    def count(self, flags: Array) -> Array:
        """How many of (N,) bool are true, a 0-d integer."""
