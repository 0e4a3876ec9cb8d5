"""The state of a training: everything that a run changes and a checkpoint keeps."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.errors import OptionError
from gpubackprop.ops.checks import number
from gpubackprop.training.batches import Batches
from gpubackprop.training.history import History
from gpubackprop.training.settings import Settings
from gpubackprop.training.shared_step import SharedStep
from gpubackprop.training.step import StepOptions, StepState, TrainStep


@dataclass
class Position:
    """The position of a training.

    Attributes
    ----------
    epoch : int
        Finished epochs.
    step : int
        Steps done in the current epoch.
    first_epoch : int
        The epoch in which this call of `fit` began.
    best_loss : float
        Monitored loss of the best epoch.
    bad_epochs : int
        Number of epochs since the best one.
    seconds : float
        Training time spent in the current epoch.
    rng_state : dict
        State of the generator of the shuffles before the current epoch's order was drawn.
    """

    epoch: int = 0
    step: int = 0
    first_epoch: int = 0
    best_loss: float = math.inf
    bad_epochs: int = 0
    seconds: float = 0.0
    rng_state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FitOptions:
    """The arguments of one call of `Trainer.fit` that are no data; see there."""

    epochs: int
    patience: int | None
    min_delta: float
    restore_best: bool | None
    checkpoint: Path | None
    checkpoint_every: int | None
    checkpoint_seconds: float
    window: int = 1

    @classmethod
    def checked(
        cls, *, epochs: Any, patience: Any, min_delta: Any, restore_best: bool | None,
        checkpoint: Any, checkpoint_every: Any, checkpoint_seconds: Any, window: Any,
    ) -> FitOptions:  # fmt: skip
        """Return what a caller passed, or raise OptionError."""
        if checkpoint_every is not None:
            checkpoint_every = int(number(checkpoint_every, "checkpoint_every", 1, whole=True))
            if checkpoint is None:
                raise OptionError("checkpoint_every wants a checkpoint file; pass checkpoint=path")
        return cls(
            int(number(epochs, "epochs", 0, whole=True)),
            None if patience is None else int(number(patience, "patience", 1, whole=True)),
            number(min_delta, "min_delta", 0.0),
            restore_best,
            None if checkpoint is None else Path(checkpoint),
            checkpoint_every,
            number(checkpoint_seconds, "checkpoint_seconds", 0.0),
            int(number(window, "window", 1, whole=True)),
        )


@dataclass
class TrainingState:
    """What training changes beside the parameters of the network and its schedule.

    A copy has a state of its own. Copies and pickles have no plans and no data: their step is a
    `StepState`, from which the next step goes on.

    Attributes
    ----------
    rng : numpy.random.Generator
        Draws the order of the rows of each epoch.
    history : History
        The epochs of all calls of `fit`.
    position : Position
        The position of the training.
    step : TrainStep, StepState or None
        The last step; None before the first, and after a loss that was not finite.
    running : bool
        Whether a call of `fit` is changing it.
    """

    rng: np.random.Generator
    history: History = field(default_factory=History)
    position: Position = field(default_factory=Position)
    step: TrainStep | StepState | None = None
    running: bool = False

    def __repr__(self) -> str:
        return f"TrainingState({self.position.epoch} epochs, {self.steps} steps done)"

    @property
    def formula(self) -> str | None:
        """Name of the update formula whose state there is, or None."""
        return None if self.step is None else self.step.formula

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return 0 if self.step is None else self.step.steps

    def new_step(self, settings: Settings, data: Batches) -> TrainStep:
        """Return a step for these settings and rows that goes on from the last one."""
        made_from = (
            settings.network, settings.loss, data, settings.batch_size, settings.optimizer,
            settings.regularization,
            StepOptions(
                settings.seed, settings.scaling, settings.stochastic_rounding,
                deterministic=settings.deterministic,
            ),
        )  # fmt: skip
        if settings.is_alone:
            step = TrainStep(*made_from)
        else:
            step = SharedStep(settings.ranks, *made_from, sharded=settings.shard_optimizer)
        step.planned = settings.planned()
        if self.step is not None:
            step.go_on_from(self.step)
        self.step = step
        return step

    def __getstate__(self) -> dict[str, Any]:
        step = self.step.snapshot() if isinstance(self.step, TrainStep) else self.step
        return vars(self) | {"step": step, "running": False}

    def __copy__(self) -> TrainingState:
        twin = object.__new__(type(self))
        vars(twin).update(self.__getstate__())
        twin.rng = copy.deepcopy(self.rng)
        twin.history, twin.position = copy.copy(self.history), copy.copy(self.position)
        return twin
