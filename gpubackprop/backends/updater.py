"""What an updater is told, the optimizer as plain numbers, and what it offers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gpubackprop.backends.memory import Array
from gpubackprop.formulas import Update


@dataclass(frozen=True)
class LossScaling:
    """What the gradients are multiplied by so that float16 holds them, taken out in the update.

    Attributes
    ----------
    scale : the first, or the fixed one.
    growth_interval : the scale doubles after so many updates in a row, and halves where a gradient
        is not finite; 0: it stays. A step whose gradient is not finite is skipped in either case.
    """

    scale: float = 2.0**16
    growth_interval: int = 2000


STEPS, SKIPPED, SCALE, SINCE = range(4)  # of an updater's state: updates done and skipped


@dataclass(frozen=True)
class UpdateRule:
    """An optimizer with the regularisation that is folded into its update.

    Attributes
    ----------
    formula, hyperparameters, lr : the optimizer's.
    weight_decay : coupled or decoupled as formula.decay says; 0 for none.
    l2 : l2 * p is added to the gradient of parameters[:penalized].
    clip_norm : largest global norm of the gradient, penalty included, or None.
    scaling : of the loss, or None.
    stochastic : the 16-bit copy of the parameters is rounded stochastically.
    """

    formula: Update
    hyperparameters: Mapping[str, float]
    lr: float
    weight_decay: float = 0.0
    l2: float = 0.0
    clip_norm: float | None = None
    penalized: int = 0
    scaling: LossScaling | None = None
    stochastic: bool = False


B_contra = TypeVar("B_contra", contravariant=True)


class Updater(Protocol[B_contra]):
    """An optimizer on flat buffers. What changes from step to step lives in arrays of the device,
    so that a plan reads it.

    Attributes
    ----------
    rule : see `UpdateRule`.
    state : (4,) float64 {updates done, skipped, loss scale, updates since it changed}. The host
        keeps it only where the loss is scaled.
    """

    rule: UpdateRule
    state: Array

    @property
    @abstractmethod
    def upstream(self) -> Array | None:
        """What the gradient of the loss is to be multiplied by, a 0-d array; None for 1."""

    @abstractmethod
    def emit(self, backend: B_contra) -> None:
        """Issue the norm and the clipping factor, where they are wanted, and the update.

        Where the loss is scaled, an update whose gradient is not finite is skipped and counted.
        """

    @abstractmethod
    def penalty(self, backend: B_contra, divisor: float) -> tuple[Array, Array | float] | None:
        """Issue the sum of the squared weights.

        Returns
        -------
        What `Backend.accumulate` takes: the sum, and l2 / divisor; None without L2.
        """

    @abstractmethod
    def set(self, lr: float, step: int) -> None:
        """Learning rate and number (from 1) of the next update."""

    @abstractmethod
    def set_l2(self, l2: float) -> None:
        """Penalty factor of the next updates; only for a rule whose l2 is not 0."""

    @abstractmethod
    def restored(self, next_step: int) -> None:
        """To be called after `state` was written: the next update is number `next_step`."""

    @abstractmethod
    def counts(self) -> tuple[int, int]:
        """How many updates were done and skipped. The host counts where the loss is scaled."""

    @abstractmethod
    def skipped(self) -> int:
        """How many updates were skipped because the gradient was not finite. Waits."""
