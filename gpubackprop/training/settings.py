"""The settings of a training, such as its loss and optimizer, checked when they are assigned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpubackprop import optimizers, schedules
from gpubackprop.backends import LossScaling
from gpubackprop.distributed import Alone, Communicator, on_device
from gpubackprop.errors import OptionError
from gpubackprop.layout.fixed import Fixed, NotHeld, assignable
from gpubackprop.losses import Loss
from gpubackprop.network import MLP
from gpubackprop.ops.checks import functions, number
from gpubackprop.optimizers import Optimizer
from gpubackprop.schedules import Schedule
from gpubackprop.training.step import Regularization

_ANOTHER = "build another Trainer with it"


class Settings:
    """The base of `Trainer`: its parameters as attributes.

    An assignment is checked as the constructor checks it, and takes effect from the next epoch on.
    """

    network = Fixed[MLP](_ANOTHER)
    seed = Fixed[int](_ANOTHER)
    scaling = Fixed[LossScaling | None](_ANOTHER)  # a step's state depends on it
    stochastic_rounding = Fixed[bool](_ANOTHER)
    loss_scale = NotHeld(_ANOTHER)
    devices = NotHeld(_ANOTHER)
    distributed = NotHeld(_ANOTHER)
    regularization: Regularization
    shuffle: bool
    progress: bool | None
    shard_optimizer = False  # whether each rank has a part of the optimizer's state
    deterministic = True  # whether products have repeatable sums
    is_alone = True  # whether one process trains, without others
    _joined: Communicator = Alone()

    def joined(self, ranks: Communicator | None) -> None:
        """Train together with these ranks from now on.

        Parameters
        ----------
        ranks : Communicator or None
            The ranks; None is one process alone.
        """
        self._joined = ranks or Alone()
        self.is_alone = self._joined.size == 1

    @property
    def ranks(self) -> Communicator:
        """The ranks that train together, for arrays of the network's device."""
        return on_device(self._joined, self.network.backend)

    @assignable
    def loss(self, spec: str | Loss | None) -> Loss:
        """The loss; its reduction is "mean" or "sum"."""
        chosen = self.network.check_loss(spec)
        if chosen.options.reduction == "none":
            raise OptionError('a training loss must be one number; use reduction "mean" or "sum"')
        return chosen

    @assignable
    def optimizer(self, spec: str | Optimizer) -> Optimizer:
        """The optimizer; once training has begun, only one of the same formula may be assigned."""
        chosen = optimizers.optimizer(spec)
        before = self._trained_with()
        if before is not None and before != chosen.formula.name:
            raise OptionError(
                f"optimizer was assigned {chosen!r}, but the training has a state of {before!r} "
                f"that it cannot go on from; {_ANOTHER}"
            )
        return chosen

    def _trained_with(self) -> str | None:
        """Return the name of the update formula whose state the training has, or None."""
        return None

    @assignable
    def schedule(self, spec: str | Schedule | None) -> Schedule:
        """The learning-rate schedule, a copy of the assigned one."""
        # A schedule learns from the training, so two trainers must not share the object.
        return schedules.schedule(spec).copy()

    @assignable
    def batch_size(self, value: int) -> int:
        """Number of rows per step."""
        return int(number(value, "batch_size", 1, whole=True))

    @property
    def l2(self) -> float:
        """Factor of the L2 penalty on the weights."""
        return self.regularization.l2

    @l2.setter
    def l2(self, value: float) -> None:
        self.regularization = Regularization(number(value, "l2", 0.0), self.clip_norm)

    @property
    def clip_norm(self) -> float | None:
        """The largest global norm of the gradient, or None."""
        return self.regularization.clip_norm

    @clip_norm.setter
    def clip_norm(self, value: float | None) -> None:
        clip = None if value is None else number(value, "clip_norm", 0.0)
        self.regularization = Regularization(self.l2, clip)

    @assignable
    def metrics(self, values: Mapping[str, Any] | None) -> dict[str, Any]:
        """Functions of predictions and targets, by the names of their columns in the history."""
        try:
            chosen = dict(values or {})
        except (TypeError, ValueError):
            raise OptionError(
                f'metrics is {values!r} but must be a dictionary of functions: {{"name": f}}'
            ) from None
        functions(chosen, "metrics")
        return chosen

    @assignable
    def callbacks(self, values: Iterable[Any]) -> list[Any]:
        """Functions that are called after each epoch."""
        if not isinstance(values, Iterable):
            raise OptionError(f"callbacks is {values!r} but must be a sequence of functions: [f]")
        chosen = list(values)
        functions(dict(enumerate(chosen)), "callbacks")
        return chosen

    def planned(self) -> tuple[Any, ...]:
        """Return what the steps are planned for; if it changes, they must be planned again.

        Returns
        -------
        tuple
            The settings that a plan depends on.
        """
        return (
            self.network.activations, self.network.dropout, self.loss, self.optimizer,
            self.batch_size, self.regularization, self.deterministic,
        )  # fmt: skip

    def numerics(self) -> dict[str, Any]:
        """Return the numeric settings that a checkpoint must match, if they are not the default.

        Returns
        -------
        dict
            JSON values by the settings' names.
        """
        values: dict[str, Any] = {}
        if self.scaling is not None:
            values["loss_scale"] = [self.scaling.scale, self.scaling.growth_interval]
        if self.stochastic_rounding:
            values["stochastic_rounding"] = True
        return values
