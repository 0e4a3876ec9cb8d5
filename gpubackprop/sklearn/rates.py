"""The optimizer of a fit, and its learning rate from epoch to epoch as scikit-learn changes it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop import optimizers
from gpubackprop.errors import ShapeError
from gpubackprop.formulas import UPDATES
from gpubackprop.layout import ParameterLayout
from gpubackprop.network import MLP
from gpubackprop.optimizers import Optimizer
from gpubackprop.schedules import Progress, Schedule, schedule
from gpubackprop.sklearn.arrays import to_host
from gpubackprop.sklearn.parameters import SKLEARN_RATES
from gpubackprop.sklearn.stored import moved
from gpubackprop.training.step import TrainStep

Array = Any
SMALLEST_RATE = 1e-6  # below it, an adaptive rate is not divided further


def chosen_optimizer(estimator: Any) -> Optimizer:
    """Return update formula, learning rate and hyperparameters that an estimator's parameters name.

    "adam" and "sgd" are scikit-learn's; every other name is one of `gpubackprop.optimizers`.
    """
    e = estimator
    if isinstance(e.solver, Optimizer):
        return e.solver
    if e.solver == "adam":
        decay = {"beta1": e.beta_1, "beta2": e.beta_2, "eps": e.epsilon}
        return Optimizer(UPDATES["adam_epsilon_hat"], float(e.learning_rate_init), decay)
    if e.solver == "sgd":
        formula = UPDATES["nesterov" if e.nesterovs_momentum else "momentum"]
        return Optimizer(formula, float(e.learning_rate_init), {"momentum": float(e.momentum)})
    return optimizers.optimizer(e.solver, lr=float(e.learning_rate_init))


class SolverState:
    """The state that a solver keeps between calls of `partial_fit`: formula, rate, steps, slots.

    Attributes
    ----------
    learning_rate : float
        Learning rate of the next step, without a library schedule's factor.
    steps : int
        Updates done.
    slots : list of arrays
        Flat arrays of the optimizer; they are the step's own.
    widths : tuple of int, or None
        Widths of the network to which they belong; None in older pickles.
    random : (2,) uint64 array or None
        {seed, updates done} of dropout, on the same device; None if no seed was drawn yet.
    """

    widths: tuple[int, ...] | None = None

    def __init__(self, estimator: Any, network: MLP) -> None:
        self.optimizer = chosen_optimizer(estimator)
        self.learning_rate_init = self.learning_rate = self.optimizer.lr
        rate, self.power_t = estimator.learning_rate, float(estimator.power_t)
        self.policy = "constant"  # of scikit-learn's policies; Adam follows none
        self.schedule: Schedule | None = None
        if isinstance(rate, Schedule) or rate not in SKLEARN_RATES:
            self.schedule = copy.deepcopy(schedule(rate))  # it learns from this fit
        elif estimator.solver != "adam":
            self.policy = rate
        self.steps = 0
        self.random: Array | None = None
        self.widths = network.widths
        self.slots: list[Array] = []  # those of the first step

    def rate(self, epoch: int, total_steps: int) -> float:
        """Return the learning rate of the next step."""
        if self.schedule is None:
            return self.learning_rate
        return self.learning_rate * self.schedule.factor(Progress(self.steps, epoch, total_steps))

    def epoch_ends(self, samples_seen: int, monitored: float) -> None:
        """Change the rate after an epoch; `monitored` is the loss that should fall."""
        if self.policy == "invscaling":
            self.learning_rate = self.learning_rate_init / (samples_seen + 1) ** self.power_t
        if self.schedule is not None:
            self.schedule.observe(monitored)

    def stops(self, message: str, verbose: Any) -> bool:
        """Return whether training ends, when the loss has stopped improving.

        With learning_rate="adaptive" the rate is divided by 5 instead, until it falls below 1e-6.
        """
        stop = True
        if self.policy != "adaptive":
            message += " Stopping."
        elif self.learning_rate <= SMALLEST_RATE:
            message += " Learning rate too small. Stopping."
        else:
            stop = False
            self.learning_rate /= 5.0
            message += f" Setting learning rate to {self.learning_rate:f}"
        if verbose:
            print(message)
        return stop

    def bind(self, step: TrainStep) -> None:
        """Go on in the arrays of `step`, on its device and in its dtype."""
        network = step.network
        for slot, array in zip(self.slots, step.slots, strict=bool(self.slots)):
            self._write(self._in_dtype(slot, network), array, network)
        if step.random is not None:
            self._write(self.random, step.random, network)
            self.random = step.random
        self.slots = list(step.slots)
        step.restored(self.steps)

    def go_on(self, step: TrainStep) -> None:
        """Bind to `step` again if another step has gone on from this state since.

        A shallow copy of the estimator shares the state and has a step of its own.
        """
        ours = all(slot is array for slot, array in zip(self.slots, step.slots, strict=True))
        if not ours or step.steps != self.steps:
            self.bind(step)

    def _write(self, array: Array, out: Array, network: MLP) -> None:
        if network.backend.is_device_array(array):
            network.backend.copy(array, out)
        else:
            network.backend.from_host(to_host(array), out)

    def _in_dtype(self, slot: Array, network: MLP) -> Array:
        o = self.optimizer
        if slot.dtype == network.dtype:
            return slot
        fill = o.hyperparameters[o.formula.initial] if o.formula.initial else 0.0
        return moved(to_host(slot), self.widths or network.widths, network, fill)

    def fits(self, dtype: np.dtype) -> bool:
        """Return whether the slots' numbers, if they are finite now, are finite in `dtype`."""
        largest = np.finfo(dtype).max
        return all(
            slot.dtype.itemsize <= dtype.itemsize or bool((np.abs(to_host(slot)) <= largest).all())
            for slot in self.slots
        )

    def check_widths(self, widths: Sequence[int]) -> None:
        """Raise ShapeError, naming the layer, unless the slots belong to a network of `widths`."""
        if self.widths in (None, tuple(widths)):
            return
        own = ParameterLayout(self.widths or widths, np.dtype(np.float64))
        try:
            own.check_shapes(ParameterLayout(widths, np.dtype(np.float64)))
        except ShapeError as error:
            raise ShapeError(
                f"coefs_ were replaced and the optimizer's state does not fit them: {error}; fit "
                f"anew, or with warm_start=True, which begins with a fresh optimizer"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickle, with the arrays on the host."""
        slots = [to_host(slot) for slot in self.slots]
        return self.__dict__ | {"slots": slots, "random": to_host(self.random)}
