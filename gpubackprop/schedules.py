"""Learning-rate schedules: a factor on the optimizer's learning rate for each step.

``schedule.factor(progress)`` is called before each step. A schedule that counts epochs changes
between epochs, as PyTorch's schedulers do if they are stepped once an epoch.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from gpubackprop.errors import OptionError
from gpubackprop.formulas import lookup
from gpubackprop.ops.checks import choice, number


@dataclass
class Progress:
    """How far a training is.

    Parameters
    ----------
    step : int
        Number of updates done so far.
    epoch : int
        Number of epochs done so far.
    total_steps : int
        Number of updates that the whole training will do.

    Examples
    --------
    >>> Exponential(gamma=0.5).factor(Progress(step=20, epoch=2, total_steps=100))
    0.25
    """

    step: int
    epoch: int
    total_steps: int


class Schedule:
    """Base of the schedules: `factor` for the next step, `observe` for a finished epoch.

    A schedule of your own is a dataclass that derives from it and has a `name` and a `factor`.

    Attributes
    ----------
    name : str
        Name in the registry `SCHEDULES`.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Halved(Schedule):
    ...     name = "halved"
    ...
    ...     def factor(self, progress):
    ...         return 1.0 if 2 * progress.step < progress.total_steps else 0.5
    >>> Halved().factor(Progress(step=70, epoch=7, total_steps=100))
    0.5
    """

    name = ""

    def factor(self, progress: Progress) -> float:
        """Return the factor on the learning rate of the next step.

        Parameters
        ----------
        progress : Progress
            How far the training is.

        Returns
        -------
        float
            The factor.

        Raises
        ------
        NotImplementedError
            A class derived from `Schedule` has no `factor` of its own.
        """
        raise NotImplementedError

    def observe(self, metric: float) -> None:
        """Note the metric of a finished epoch. Most schedules ignore it.

        Parameters
        ----------
        metric : float
            The validation loss, or the training loss without validation data.
        """

    def state(self) -> dict[str, Any]:
        """Return what `observe` has learned, for checkpoints.

        Returns
        -------
        dict
            JSON values.
        """
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Set what `state` returned.

        Parameters
        ----------
        state : dict
            JSON values.
        """

    def config(self) -> dict[str, Any]:
        """Return name and options, for checkpoints.

        Returns
        -------
        dict
            JSON values: "name", and each option by its name.
        """
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def copy(self) -> Schedule:
        """Return a schedule of the same state that goes on independently of this one.

        Returns
        -------
        Schedule
            The copy.
        """
        return copy.copy(self)


@dataclass
class Constant(Schedule):
    """No schedule: factor = 1.

    Examples
    --------
    >>> Constant().factor(Progress(step=5, epoch=0, total_steps=10))
    1.0
    """

    name = "constant"

    def factor(self, progress: Progress) -> float:
        return 1.0


@dataclass
class StepDecay(Schedule):
    """Decay every few epochs: factor = gamma^floor(epoch / step_epochs).

    Parameters
    ----------
    step_epochs : int
        Number of epochs between two decays, at least 1.
    gamma : float
        Factor of one decay, at least 0.

    Raises
    ------
    OptionError
        A value is out of range.

    References
    ----------
    `torch.optim.lr_scheduler.StepLR`.

    Examples
    --------
    >>> StepDecay(step_epochs=10, gamma=0.5).factor(Progress(step=250, epoch=25, total_steps=300))
    0.25
    """

    step_epochs: int = 10
    gamma: float = 0.1
    name = "step"

    def __post_init__(self) -> None:
        if int(number(self.step_epochs, "step_epochs", 1)) != self.step_epochs:
            raise OptionError(f"step_epochs is {self.step_epochs} but must be a whole number")
        number(self.gamma, "gamma", 0.0)

    def factor(self, progress: Progress) -> float:
        return self.gamma ** (progress.epoch // self.step_epochs)


@dataclass
class Exponential(Schedule):
    """Decay every epoch: factor = gamma^epoch.

    Parameters
    ----------
    gamma : float
        Factor of one epoch, at least 0.

    Raises
    ------
    OptionError
        `gamma` is out of range.

    References
    ----------
    `torch.optim.lr_scheduler.ExponentialLR`.

    Examples
    --------
    >>> Exponential(gamma=0.5).factor(Progress(step=30, epoch=3, total_steps=100))
    0.125
    """

    gamma: float = 0.95
    name = "exponential"

    def __post_init__(self) -> None:
        number(self.gamma, "gamma", 0.0)

    def factor(self, progress: Progress) -> float:
        return self.gamma**progress.epoch


@dataclass
class Cosine(Schedule):
    """Linear warm-up over `warmup_steps`, then half a cosine down to `final`.

    In the warm-up, factor = (step + 1) / warmup_steps. Then factor = final + (1 - final) (1 +
    cos(pi s)) / 2, where s in [0, 1] is the share of the remaining steps that is done.

    Parameters
    ----------
    warmup_steps : int
        Number of updates of the warm-up, at least 0.
    final : float
        The last factor, in [0, 1].

    Raises
    ------
    OptionError
        A value is out of range.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017.

    Examples
    --------
    >>> cosine = Cosine(warmup_steps=10)
    >>> [cosine.factor(Progress(step, 0, total_steps=110)) for step in (0, 9, 60, 110)]
    [0.1, 1.0, 0.5, 0.0]
    """

    warmup_steps: int = 0
    final: float = 0.0
    name = "cosine"

    def __post_init__(self) -> None:
        number(self.warmup_steps, "warmup_steps", 0)
        number(self.final, "final", 0.0, 1.0)

    def factor(self, progress: Progress) -> float:
        if progress.step < self.warmup_steps:
            return (progress.step + 1) / self.warmup_steps
        span = max(1, progress.total_steps - self.warmup_steps)
        share = min(1.0, (progress.step - self.warmup_steps) / span)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass
class InverseScaling(Schedule):
    """A power of the step or epoch: factor = 1 / (done + 1)^power.

    Parameters
    ----------
    power : float
        At least 0.
    unit : {"step", "epoch"}
        What is counted as done.

    Raises
    ------
    OptionError
        A value is out of range.

    References
    ----------
    scikit-learn's ``learning_rate="invscaling"``.

    Examples
    --------
    >>> InverseScaling(power=0.5).factor(Progress(step=3, epoch=0, total_steps=10))
    0.5
    """

    power: float = 0.5
    unit: str = "step"
    name = "inverse_scaling"

    def __post_init__(self) -> None:
        number(self.power, "power", 0.0)
        choice(self.unit, "unit", ("step", "epoch"))

    def factor(self, progress: Progress) -> float:
        done = progress.step if self.unit == "step" else progress.epoch
        return 1.0 / (done + 1) ** self.power


@dataclass
class ReduceOnPlateau(Schedule):
    """Multiply by `gamma` when the metric has not fallen for more than `patience` epochs.

    The metric has fallen if it is below best * (1 - threshold).

    Parameters
    ----------
    gamma : float
        Above 0 and below 1.
    patience : int
        Number of epochs without a fall after which the next one reduces the factor.
    threshold : float
        Relative fall that counts, in [0, 1].
    minimum : float
        The factor goes no lower.

    Raises
    ------
    OptionError
        A value is out of range.

    References
    ----------
    `torch.optim.lr_scheduler.ReduceLROnPlateau` with its defaults.

    Examples
    --------
    >>> plateau = ReduceOnPlateau(gamma=0.5, patience=0)
    >>> for loss in (1.0, 0.9, 0.9):
    ...     plateau.observe(loss)
    >>> plateau.factor(Progress(step=30, epoch=3, total_steps=100))
    0.5
    """

    gamma: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    minimum: float = 0.0
    name = "reduce_on_plateau"
    _seen: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 < number(self.gamma, "gamma", 0.0, 1.0) < 1.0:
            raise OptionError(f"gamma is {self.gamma} but must be above 0 and below 1")
        number(self.patience, "patience", 0)
        number(self.threshold, "threshold", 0.0, 1.0)
        number(self.minimum, "minimum", 0.0)
        self._seen = {"best": math.inf, "bad_epochs": 0, "factor": 1.0}

    def __copy__(self) -> ReduceOnPlateau:
        twin: ReduceOnPlateau = object.__new__(type(self))
        vars(twin).update(vars(self) | {"_seen": dict(self._seen)})
        return twin

    def factor(self, progress: Progress) -> float:
        return self._seen["factor"]

    def observe(self, metric: float) -> None:
        seen = self._seen
        # If best is negative, best * (1 - threshold) lies above it; PyTorch computes the same.
        if metric < seen["best"] * (1.0 - self.threshold) or seen["best"] == math.inf > metric:
            seen["best"], seen["bad_epochs"] = metric, 0
            return
        seen["bad_epochs"] += 1
        if seen["bad_epochs"] > self.patience:
            seen["factor"] = max(seen["factor"] * self.gamma, self.minimum)
            seen["bad_epochs"] = 0

    def state(self) -> dict[str, Any]:
        return {key: "inf" if value == math.inf else value for key, value in self._seen.items()}

    def restore(self, state: dict[str, Any]) -> None:
        self._seen = {key: float(value) for key, value in state.items()}

    def config(self) -> dict[str, Any]:
        values = super().config()
        values.pop("_seen")
        return values


SCHEDULES: dict[str, type[Schedule]] = {
    cls.name: cls
    for cls in (Constant, StepDecay, Exponential, Cosine, InverseScaling, ReduceOnPlateau)
}


def schedule(spec: str | Schedule | None, **options: Any) -> Schedule:
    """Return the schedule that `spec` names, with `options`.

    Parameters
    ----------
    spec : str, Schedule or None
        A name of `SCHEDULES`; None is the constant one; a `Schedule` is returned as it is.
    **options : object
        Arguments of the schedule's class.

    Returns
    -------
    Schedule
        The schedule.

    Raises
    ------
    OptionError
        The name is unknown, or the schedule does not have an option or its value.

    Examples
    --------
    >>> schedule("cosine", warmup_steps=100)
    Cosine(warmup_steps=100, final=0.0)
    """
    if isinstance(spec, Schedule):
        return spec
    cls = lookup(SCHEDULES, "constant" if spec is None else spec, "schedule")
    try:
        return cls(**options)
    except TypeError as error:
        raise OptionError(f"schedule {spec!r}: {error}") from None
