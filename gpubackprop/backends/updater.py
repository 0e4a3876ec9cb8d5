"""The optimizer as plain numbers, and the interface of an updater."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from gpubackprop.backends.memory import Array
from gpubackprop.formulas import Update


@dataclass(frozen=True)
class LossScaling:
    """The factor of the loss with which float16 holds the gradients; the update divides by it.

    Attributes
    ----------
    scale : float
        The first factor, or the fixed one.
    growth_interval : int
        The scale doubles after so many updates in a row, and halves if a gradient is not finite; 0
        keeps it fixed. In either case a step whose gradient is not finite is skipped.
    """

    scale: float = 2.0**16
    growth_interval: int = 2000


STEPS, SKIPPED, SCALE, SINCE = range(4)  # indices into an updater's state; see `Updater`


@dataclass(frozen=True)
class UpdateRule:
    """An optimizer with the regularisation that is folded into its update.

    Attributes
    ----------
    formula : Update
        The optimizer's formula.
    hyperparameters : mapping
        The optimizer's hyperparameters.
    lr : float
        The optimizer's learning rate.
    weight_decay : float
        Coupled or decoupled, as formula.decay says; 0 is none.
    l2 : float
        The term l2 * p is added to the gradient of parameters[:penalized].
    clip_norm : float or None
        The largest global norm of the gradient, penalty included.
    penalized : int
        Number of parameters with a penalty.
    scaling : LossScaling or None
        The scaling of the loss.
    stochastic : bool
        Whether the 16-bit copy of the parameters is rounded stochastically.
    part : slice or None
        The elements that are updated, if the slots are of so many and the gradient is known there
        alone; None is all. See `Updater.agree_by`.
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
    part: slice | None = None

    def of_part(
        self, penalized: int, parameters: Array, gradient: Array, half_copy: Array | None
    ) -> tuple[int, Array, Array, Array | None]:
        """Return what of these belongs to `part`, which is not None."""
        part = self.part
        assert part is not None
        count = max(0, min(penalized, part.stop) - part.start)
        copy = None if half_copy is None else half_copy[part]
        return count, parameters[part], gradient[part], copy


B_contra = TypeVar("B_contra", contravariant=True)


class Updater(Protocol[B_contra]):
    """An optimizer on flat buffers.

    Values that change from step to step are in arrays of the device, so that a plan reads them.

    Attributes
    ----------
    rule : UpdateRule
        What it computes.
    state : (4,) float64 array
        {updates done, updates skipped, loss scale, updates since the scale changed}. The host keeps
        it only if the loss is scaled.
    """

    rule: UpdateRule
    state: Array

    @property
    @abstractmethod
    def upstream(self) -> Array | None:
        """The factor of the loss's gradient, a 0-d array; None for 1."""

    @abstractmethod
    def emit(self, backend: B_contra) -> None:
        """Issue the norm and the clipping factor, if they are wanted, and the update.

        If the loss is scaled, an update whose gradient is not finite is skipped and counted.
        """

    @abstractmethod
    def penalty(self, backend: B_contra, divisor: float) -> tuple[Array, Array | float] | None:
        """Issue the sum of the squared weights.

        Returns
        -------
        tuple or None
            What `Backend.accumulate` takes: the sum, and l2 / divisor; None without L2.
        """

    @abstractmethod
    def agree_by(self, norm: Array, agree: Callable[[Any], None]) -> None:
        """Take norm and finite test from several ranks, of which each has a part of the gradient.

        Parameters
        ----------
        norm : (2,) array
            Receives {sum of squares, 1 if an element is not finite} of `rule.part`, if they are
            wanted. float64 on the host, the compute dtype on a GPU.
        agree : callable
            ``agree(backend)`` issues the sum of `norm` over the ranks. `emit` calls it once,
            between the norm and the update.
        """

    @abstractmethod
    def set(self, lr: float, step: int) -> None:
        """Set learning rate and number (from 1) of the next update."""

    @abstractmethod
    def set_l2(self, l2: float) -> None:
        """Set the penalty factor of the next updates; only for a rule whose l2 is not 0."""

    @abstractmethod
    def restored(self, next_step: int) -> None:
        """Take over `state` after it was written; the next update is number `next_step`."""

    @abstractmethod
    def counts(self) -> tuple[int, int]:
        """Return how many updates were done and skipped; the host counts if the loss is scaled."""

    @abstractmethod
    def skipped(self) -> int:
        """Return how many updates were skipped because the gradient was not finite. This waits."""
