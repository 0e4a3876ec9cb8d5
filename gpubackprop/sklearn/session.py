"""A network on its device with its plans: made by a fit, kept between calls of `partial_fit`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from gpubackprop.backends import devices, workload
from gpubackprop.errors import OptionError
from gpubackprop.network import MLP
from gpubackprop.sklearn.arrays import device_of
from gpubackprop.sklearn.host import host_backend, source_of
from gpubackprop.sklearn.objective import Objective
from gpubackprop.sklearn.rates import SolverState
from gpubackprop.sklearn.stored import widths_of
from gpubackprop.training.batches import Batches
from gpubackprop.training.epochs import is_resident, way_of_epochs
from gpubackprop.training.rounds import SHARED
from gpubackprop.training.step import Regularization, StepOptions, TrainStep
from gpubackprop.training.team import device_names

Array = Any


def chosen_device(estimator: Any, x: Any) -> tuple[str, str]:
    """Return (device, reason): the estimator's device, or if it leaves the choice, that of `x`.

    For an `x` of the host the amount of work decides. A `partial_fit` counts as the first of
    max_iter epochs.

    Raises
    ------
    OptionError
        `x` is sparse or on a GPU, and the estimator's device does not fit.
    """
    device, own = estimator.device, device_of(x)
    if estimator.devices is not None:
        device = device_names(estimator.devices)[0]
    if sparse.issparse(x):
        if device == "auto" or devices.is_host(device):
            return "cpu" if device == "auto" else device, "X is sparse"
        raise OptionError(
            f"device={device!r} was asked for but X is sparse, which is computed on the CPU; use "
            f'device="cpu" (or "auto"), or pass X.toarray()'
        )
    if own == "cpu" and device == "auto":
        device, reason = workload.choose(_training(estimator, x))
        return (device if devices.is_host(device) else SHARED.next_device(device)), reason
    if own == "cpu" and device == "cuda" and estimator.devices is None:
        return SHARED.next_device(device), ""
    if own == "cpu" or device == own:
        return device, ""
    if device == "auto" or (device == "cuda" and own == "cuda:0"):
        return own, "X lies there"
    raise OptionError(f'device={device!r} was asked for but X lies on {own}; use device="{own}"')


def check_devices(estimator: Any, x: Any) -> None:
    """Raise OptionError if several devices cannot train this, DeviceUnavailable without a GPU."""
    e, names = estimator, device_names(estimator.devices)
    if e.device not in ("auto", names[0]):
        raise OptionError(
            f"device={e.device!r} was asked for but devices begin with {names[0]!r}; leave one of "
            f"the two out"
        )
    if e.solver == "lbfgs" and len(names) > 1:
        raise OptionError(
            f'solver="lbfgs" computes on one device, and devices={e.devices!r} are {len(names)}; '
            f'use solver="adam" or "sgd", or leave devices out'
        )
    if sparse.issparse(x) and not devices.is_host(names[0]):
        raise OptionError(
            f"devices={e.devices!r} was asked for but X is sparse, which is computed on the CPU; "
            f"leave devices out, or pass X.toarray()"
        )
    if len(names) > 1 and device_of(x) != "cpu":
        raise OptionError(
            f"devices={e.devices!r} was asked for but X lies on {device_of(x)} alone; pass X as an "
            f"array of the host, from which each device takes its own"
        )


def _training(estimator: Any, x: Any) -> workload.Training:
    e, rows = estimator, x.shape[0]
    batch = rows
    if e.solver != "lbfgs" and e.batch_size != "full":
        batch = min(rows, 200 if e.batch_size == "auto" else e.batch_size)
    itemsize = np.dtype(e.precision or x.dtype).itemsize
    widths = widths_of(e.coefs_)
    return workload.Training.of_epochs(widths, rows, batch, e.max_iter, max(4, itemsize))


def make_network(estimator: Any, output: str, dtype: np.dtype, device: str, reason: str) -> MLP:
    """Return a network of the estimator's architecture on that device; the parameters are 0.

    Raises
    ------
    DeviceUnavailable
        The estimator's device is a GPU and something is missing.
    OptionError
        There is no such device, or it does not fit `x`.
    """
    activation = estimator.activation
    network = MLP(
        widths_of(estimator.coefs_),
        activation if isinstance(activation, str) else list(activation),
        output=output,
        initializer="zeros",
        dtype=dtype.name,
        device=device,
        dropout=estimator.dropout,
    )
    reason = reason or network.backend.reason
    if not network.backend.asynchronous:
        network.backend = host_backend(network.device)
    network.backend.reason = reason
    return network


def initial_factor(activation: Any) -> float:
    """Return 6, or 2 before logistic units, as scikit-learn does."""
    names = {activation} if isinstance(activation, str) else set(activation)
    return 2.0 if names == {"logistic"} else 6.0


def draw_parameters(
    random_state: np.random.RandomState, units: list[int], factor: float, dtype: np.dtype
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Draw coefs_ and intercepts_ ~ U(-r, r), r = sqrt(factor / (fan_in + fan_out)), in float64.

    The order is scikit-learn's: layer by layer, weights before biases (Glorot & Bengio 2010).
    """
    coefs, intercepts = [], []
    for fan_in, fan_out in pairwise(units):
        bound = np.sqrt(factor / (fan_in + fan_out))
        coefs.append(random_state.uniform(-bound, bound, (fan_in, fan_out)))
        intercepts.append(random_state.uniform(-bound, bound, fan_out))
    return [c.astype(dtype, copy=False) for c in coefs], [
        b.astype(dtype, copy=False) for b in intercepts
    ]


def _why_by_row(epoch: Array | None, objective: Objective) -> str:
    """Say why an epoch's losses are recorded row by row, where they are."""
    if epoch is None:
        return "a call of partial_fit is an epoch by itself"
    return f"the reported loss of {objective.out_activation} outputs is not a sum over the rows"


class Session:
    """A network and the step that trains it, with batches of up to `batch_rows` rows.

    Parameters
    ----------
    key : tuple
        What it was made for.
    network : MLP
        The network.
    objective : Objective
        Its loss.
    state : SolverState
        The solver's state, which goes on in the step's arrays.
    data : Batches
        The rows.
    batch_rows : int
        The most rows of a batch.
    weighted : bool
        Whether rows have weights.
    alpha : float
        Penalty of the weights; 0 is none, otherwise each update has its own.
    rounded : list
        See `stored.rounded_views`.
    epoch : (M,) int array or None
        Numbers of the rows to learn from, if whole epochs are trained, which on a GPU may be one
        launch.

    Attributes
    ----------
    steps : list of TrainStep
        The step of each device; `step` is the first.
    resident : bool
        Whether an epoch is one launch. The step then adds up losses and records no rows.
    way : str
        On a GPU: the plan of whole epochs, or why there is none; else "".
    differ : bool
        Whether others than `train` have written the parameters or the state of `step`.
    """

    differ = True

    def __init__(
        self,
        key: tuple[Any, ...],
        network: MLP,
        objective: Objective,
        state: SolverState,
        data: Batches,
        batch_rows: int,
        *,
        weighted: bool,
        alpha: float,
        rounded: list[tuple[Array, Array]],
        epoch: Array | None = None,
    ) -> None:
        self.key, self.network, self.objective, self.state = key, network, objective, state
        self._rest: Any = batch_rows, state.optimizer, Regularization(alpha)
        self.resident, self.way = False, ""
        options = StepOptions(record=objective.record, weighted=weighted, rounded=rounded)
        self.steps = self._make_steps(data, options, epoch)
        self.step = self.steps[0]
        state.bind(self.step)

    def _make_steps(
        self, data: Batches, options: StepOptions, epoch: Array | None
    ) -> list[TrainStep]:
        """Return the step of each device."""
        network, objective = self.network, self.objective
        choices = [("none", data, options)]
        if network.backend.asynchronous:
            self.way = f"no resident training: {_why_by_row(epoch, objective)}"
            if epoch is not None and objective.is_total:
                choices.insert(0, ("mean", data.select(epoch), replace(options, record="")))
        for reduction, rows, chosen in choices:
            loss, source = objective.loss(reduction), source_of(network, rows)
            made_from: Any = loss, source, *self._rest, chosen
            step = TrainStep(network, *made_from)
            if not chosen.record:
                self.resident, self.way = is_resident(step), way_of_epochs(step)
            if self.resident:
                break
        return [step]

    def load(self, rows: Callable[[MLP], Batches]) -> None:
        """Take the batches from ``rows(network)`` from now on, on each device."""
        for step in self.steps:
            step.load(rows(step.network))

    def release(self) -> None:
        """Drop the references to data on the host, until the next `load`."""
        for step in self.steps:
            step.source.release()

    def train(self, work: Callable[[int], None]) -> None:
        """Call ``work(number)`` with the number of each step, on all devices at the same time."""
        work(0)
