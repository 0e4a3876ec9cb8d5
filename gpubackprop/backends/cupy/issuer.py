"""What the losses and updates of the CUDA backend ask of it, beside the operations of all backends.

They stand in files of their own, which `CupyBackend` calls: this is how they see it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from gpubackprop.backends.base import Array, Backend
from gpubackprop.backends.cupy.launcher import Launcher
from gpubackprop.backends.cupy.memory import WorkingMemory
from gpubackprop.backends.cupy_launch import Launch


class Issuer(Backend, Protocol):
    """A backend that issues kernels.

    Attributes
    ----------
    memory : scratch arrays, and the flag for labels out of range.
    launcher : what compiles and binds entries, on this device.
    """

    memory: WorkingMemory
    launcher: Launcher

    @abstractmethod
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
        """Issue one entry of the launch table; nothing where it is empty.

        Parameters
        ----------
        kernel, shape, dtype, formula, contiguous : as in `gpubackprop.backends.cupy_launch.plan`.
        arguments : of the launch that was planned, the fields of its record, by name
            (`gpubackprop.backends.cupy.arguments.ARGUMENTS`).
        """

    @abstractmethod
    def issue(self, launch: Launch, arguments: dict[str, Any]) -> None:
        """Issue one planned launch with the fields of its record."""

    @abstractmethod
    def elementwise(self, name: str, *args: Any) -> None:
        """Issue one of the kernels of `gpubackprop.backends.cupy.elementwise`."""

    @abstractmethod
    def on_device(self, host: np.ndarray | None, dtype: Any) -> Array | None:
        """A copy that does not change any more, such as class weights."""

    @abstractmethod
    def converted(self, array: Array | None, dtype: Any, name: str) -> Array | None:
        """`array`, or its conversion to `dtype` in scratch memory of that name."""

    @abstractmethod
    def sum_columns(
        self, x: Array, out: Array, divisor: Array | float = 1.0, empty_is_zero: bool = False
    ) -> None:
        """`column_sum`, divided by `divisor`, a number or an array ().

        Divided by 0 it is NaN, or 0 where `empty_is_zero`.
        """

    @abstractmethod
    def labels_used(self) -> None:
        """Note that a loss has read labels: the next wait looks at the flag."""
