"""Learning-rate schedules: a factor on the optimizer's learning rate for each step.

A schedule is called as ``schedule.factor(progress)`` before each step. Those that count epochs
change between epochs as PyTorch's do when stepped once an epoch.
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
    """Where training stands.

    Attributes
    ----------
    step : updates done so far. epoch : epochs done so far.
    total_steps : updates that the whole training will do.
    """

    step: int
    epoch: int
    total_steps: int


class Schedule:
    """Base: `factor` for the next step; `observe` the metric of a finished epoch."""

    name = ""

    def factor(self, progress: Progress) -> float:
        raise NotImplementedError

    def observe(self, metric: float) -> None:
        """Told the validation loss (or training loss) after each epoch."""

    def state(self) -> dict[str, Any]:
        """What `observe` has learned, as JSON values; for checkpoints."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Set it again."""

    def config(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def copy(self) -> Schedule:
        """One that learns for itself from here on."""
        return copy.copy(self)


@dataclass
class Constant(Schedule):
    """factor = 1."""

    name = "constant"

    def factor(self, progress: Progress) -> float:
        return 1.0


@dataclass
class StepDecay(Schedule):
    """factor = gamma^floor(epoch / step_epochs) (PyTorch's StepLR)."""

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
    """factor = gamma^epoch (PyTorch's ExponentialLR)."""

    gamma: float = 0.95
    name = "exponential"

    def __post_init__(self) -> None:
        number(self.gamma, "gamma", 0.0)

    def factor(self, progress: Progress) -> float:
        return self.gamma**progress.epoch


@dataclass
class Cosine(Schedule):
    """Linear warm-up over `warmup_steps`, then half a cosine down to `final`.

    factor = (step + 1) / warmup_steps in the warm-up, then
    final + (1 - final) (1 + cos(pi * share of the remaining steps done)) / 2.
    Source: Loshchilov & Hutter 2017.
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
    """factor = 1 / (step + 1)^power, or of the epoch (scikit-learn's "invscaling" form)."""

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

    Falling means below best * (1 - threshold), as PyTorch's ReduceLROnPlateau with its defaults.
    """

    gamma: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    minimum: float = 0.0
    name = "reduce_on_plateau"
    _seen: dict[str, float] = field(default_factory=dict, repr=False)

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
        # For a negative best, (1 - threshold) would raise the bar; PyTorch does the same.
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
    """The schedule that `spec` names, with `options`; None is the constant one."""
    if isinstance(spec, Schedule):
        return spec
    cls = lookup(SCHEDULES, "constant" if spec is None else spec, "schedule")
    try:
        return cls(**options)
    except TypeError as error:
        raise OptionError(f"schedule {spec!r}: {error}") from None
