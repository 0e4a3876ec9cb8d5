"""Resident training of steps: an epoch, or several, of many small networks in one launch.

A launch continues ordinary steps: parameters, optimizer slots, totals, random state and counts of
updates are those of the `TrainStep`, read at its start and written at its end. So one epoch may be
trained here and the next one batch by batch. Not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gpubackprop import losses
from gpubackprop.backends.resident_cost import ResidentPlan
from gpubackprop.backends.resident_plan import plan_resident
from gpubackprop.backends.spread_plan import SpreadPlan, plan_spread
from gpubackprop.data.coded import CodedInputs
from gpubackprop.errors import OptionError
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, UPDATES, Dropout
from gpubackprop.training.step import TrainStep

if TYPE_CHECKING:
    from gpubackprop.backends.cupy import CupyBackend

Array = Any  # an array of the network's device
SOFTMAX = "softmax_cross_entropy"
LOSSES = (SOFTMAX, *POINTWISE_LOSSES)  # as in kernels/include/resident_loss.cuh
REDUCTIONS = ("mean", "sum", "elementwise_mean")
VARIABLE = "GPUBACKPROP_RESIDENT"  # 0: batch by batch, and layer by layer


@dataclass
class ResidentJob:
    """The batches that one step is to do.

    Attributes
    ----------
    step : TrainStep
        The step, whose `obstacle` is "".
    order : (E M,) int array
        Numbers of the rows, epoch after epoch, on the host or as `TrainStep.place` returned them; M
        is ``len(step.data)``.
    rates : (S,) float64 array
        The learning rate of each batch, on the host.
    start : int
        Number of the first batch to do.
    l2 : (S,) float64 array or None
        The penalty of each batch in place of the regularization's, on the host.
    weights : (E M,) float array or None
        Weights of the rows in the order of `order`, for a step that is weighted.
    eps : float
        If not 0, the losses in the totals, but not their gradients, are those of probabilities that
        are rounded to float32 and lie within eps and 1 - eps, as scikit-learn reports them: of
        softmax cross entropy of labels, and of binary cross entropy of targets 0 and 1.
    """

    step: TrainStep
    order: Array
    rates: np.ndarray
    start: int = 0
    l2: np.ndarray | None = None
    weights: Array | None = None
    eps: float = 0.0

    def check(self) -> None:
        """Raise OptionError if the batches are not all in `order`, or weights are missing."""
        rows, batch = len(self.step.data), self.step.batch_size
        epochs, rest = divmod(len(self.order), rows)
        there = epochs * -(-rows // batch) - self.start
        if rest or not 0 <= len(self.rates) <= there or self.start < 0:
            raise OptionError(
                f"order has {len(self.order)} row numbers of epochs of {rows} rows, which are "
                f"{there} batches from batch {self.start} on, but there are {len(self.rates)} rates"
            )
        if (self.weights is not None) != self.step.options.weighted:
            raise OptionError("a step of StepOptions(weighted=True) wants weights, no other step")
        for name, values, count in (
            ("l2", self.l2, len(self.rates)), ("weights", self.weights, len(self.order))
        ):  # fmt: skip
            if values is not None and len(values) != count:
                raise OptionError(f"{name} has {len(values)} numbers but {count} are wanted")


def plan_of(step: TrainStep) -> ResidentPlan:
    """Return the plan of a step whose network is on a GPU; it is made once.

    Parameters
    ----------
    step : TrainStep
        The step.

    Returns
    -------
    ResidentPlan
        Its layout in a block, or the reason why there is none.
    """
    return _plans_of(step)[0]


def spread_of(step: TrainStep) -> SpreadPlan:
    """Return the plan of spreading a step's rows over the card, likewise.

    Parameters
    ----------
    step : TrainStep
        The step.

    Returns
    -------
    SpreadPlan
        Which way its batches go, and the layout of a block.
    """
    return _plans_of(step)[1]


def _plans_of(step: TrainStep) -> tuple[ResidentPlan, SpreadPlan]:
    network, source = step.network, step.source
    labels = source.targets.ndim == 1
    weighted = source.sample_weight is not None or step.options.weighted
    made_for = labels, weighted, network.activations, network.dropout, network.tf32
    if step.resident_plan is None or step.resident_plan[0] != made_for:
        card = cast("CupyBackend", network.backend).launcher.properties
        options: Any = {"dropout": network.dropout, "has_labels": labels, "weighted": weighted,
                        "tf32": network.tf32}  # fmt: skip
        sizes = network.widths, network.activations
        plan = plan_resident(*sizes, step.optimizer.formula, step.batch_size, card, **options)
        spread = plan_spread(*sizes, step.batch_size, card, resident=plan, **options)
        step.resident_plan = made_for, (plan, spread)
    return step.resident_plan[1]


def obstacle(step: TrainStep) -> str:
    """Say why a step cannot be trained resident, or should not, or "".

    Parameters
    ----------
    step : TrainStep
        The step.

    Returns
    -------
    str
        A sentence without a full stop; "" if it can.
    """
    if reason := kernel_obstacle(step):
        return f"no resident training: {reason}"
    plan, spread = plan_of(step), spread_of(step)
    if spread.way:
        return f"no resident training: {spread}"
    return "" if plan.fits else str(plan)


def kernel_obstacle(step: TrainStep) -> str:
    """Say what the kernels of resident training cannot do of a step, whatever its sizes, or "".

    Parameters
    ----------
    step : TrainStep
        The step.

    Returns
    -------
    str
        The reason; "" if there is none.
    """
    network, options, loss = step.network, step.options, step.loss
    unknown = [a.name for a in network.activations if ACTIVATIONS.get(a.name) is None]
    known = UPDATES.get(step.optimizer.formula.name) is step.optimizer.formula
    reasons = {
        "the network is not on a GPU": not network.backend.asynchronous,
        f"its step is a {type(step).__name__}": type(step) is not TrainStep,
        f"its numbers are {network.precision} and not float32": network.precision != np.float32
        or network.dtype != np.float32,
        "the loss is scaled": options.scaling is not None,
        "each row's result is recorded": bool(options.record),
        "an update rounds weights": bool(options.rounded) or options.stochastic_rounding,
        "all rows are one batch, read in place": options.whole,
        "x has one-hot columns as codes": isinstance(step.source.x, CodedInputs),
        "x stays on the host": step.source.from_host,
        f"the loss {type(loss).__name__} is not among its losses": loss.name not in LOSSES
        or type(loss) is not losses.LOSSES.get(loss.name),
        f"the losses of a batch are reduced by {loss.options.reduction!r}": (
            loss.options.reduction not in REDUCTIONS
        ),
        f"the activation {''.join(unknown[:1])} is not among its activations": bool(unknown),
        f"the optimizer's formula {step.formula} is not among its updates": not known,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def train_together(jobs: Sequence[ResidentJob]) -> None:
    """Do all batches of all jobs, in one launch; nothing is waited for.

    After it each step is as after ``step.update(rows, rate)`` for each batch in turn, up to the
    rounding of sums. What else is in the launch changes no bit.

    Parameters
    ----------
    jobs : sequence of ResidentJob
        The jobs, of networks on one device, each step at most once.

    Raises
    ------
    OptionError
        A step has an obstacle, is there twice, or lies on another device; or a job has more rates
        than batches.
    """
    jobs = [job for job in jobs if len(job.rates)]
    if not jobs:
        return
    for job in jobs:
        job.check()
        if reason := obstacle(job.step):
            raise OptionError(f"{reason}; train it batch by batch, with TrainStep.update")
    backend = cast("CupyBackend", jobs[0].step.network.backend)
    if any(job.step.network.backend.device != backend.device for job in jobs):
        raise OptionError("the networks of a launch lie on one device; call once for each")
    if len({id(job.step) for job in jobs}) < len(jobs):
        raise OptionError("a step is there twice; give it one job with more epochs")
    from gpubackprop.backends.cupy.resident import resident_training

    resident_training(backend, [_network(job) for job in jobs])
    for job in jobs:
        job.step.steps += len(job.rates)
        updater: Any = job.step.updater
        updater.next_step = job.step.steps + 1


def _network(job: ResidentJob) -> Any:
    """Return what the kernel reads and writes of a job."""
    from gpubackprop.backends.cupy.resident import ResidentNetwork

    step, plan = job.step, plan_of(job.step)
    source, data, weights = step.source, step.data, step.source.sample_weight
    options, clip = step.loss.options, step.regularization.clip_norm
    backend = cast("CupyBackend", step.network.backend)
    updater: Any = step.updater
    updater.set(float(job.rates[0]), step.steps + 1)
    weights = (
        backend.place(job.weights, np.float32) if job.weights is not None else source.sample_weight
    )
    arrays = {
        "parameters": step.network.parameters,
        **{f"slot_{number}": slot for number, slot in enumerate(step.slots)},
        "state": updater.state, "random": step.random, "totals": step.totals,
        "coefficient_table": backend.asarray(_coefficients(job)),
        "clip_norm": None if clip is None else backend.asarray(np.array([clip], np.float64)),
        "x": source.inputs(), "targets": source.targets, "sample_weight": weights,
        "class_weight": backend.on_device(options.class_weight, np.float32),
        "order": backend.place(job.order, np.int64),
    }  # fmt: skip
    numbers = {
        "steps": len(job.rates), "start": job.start, "epoch_rows": len(data),
        "batch_rows": step.batch_size, "data_rows": source.x.shape[0],
        "update": list(UPDATES).index(step.formula), "clips": clip is not None,
        "counts_correct": step.running.counts_correct, "weights_by_order": job.weights is not None,
        "probability_eps": float(job.eps), **loss_numbers(step),
    }  # fmt: skip
    return ResidentNetwork(plan, arrays, numbers, layer_numbers(step))


def _coefficients(job: ResidentJob) -> np.ndarray:
    """Return what the update of each batch multiplies by, (S, 10) float32.

    They are the formula's coefficients, the decay and the penalty, as
    `gpubackprop.backends.cupy.updates` numbers them.
    """
    from gpubackprop.backends.cupy.updates import DECAY, L2

    step, optimizer = job.step, job.step.optimizer
    formula, decay = optimizer.formula, optimizer.weight_decay
    table = np.zeros((len(job.rates), L2 + 1))
    for number, (row, lr) in enumerate(
        zip(table, map(float, job.rates), strict=True), step.steps + 1
    ):
        own = formula.coefficients(optimizer.hyperparameters, lr, number)
        row[: len(own)] = own
        row[DECAY] = 1.0 - lr * decay if formula.decay == "decoupled" else decay
    table[:, L2] = step.updater.rule.l2 if job.l2 is None else job.l2
    return table.astype(np.float32)


def loss_numbers(step: TrainStep) -> dict[str, Any]:
    """Return the words of a step's loss."""
    loss, options = step.loss, step.loss.options
    eps, formula = np.float32(options.label_smoothing), getattr(loss, "formula", None)
    return {
        "loss": LOSSES.index(loss.name), "reduction": REDUCTIONS.index(options.reduction),
        "has_ignore_index": options.ignore_index is not None,
        "ignore_index": options.ignore_index or 0, "empty_is_zero": options.empty == "zero",
        "one_minus_eps": np.float32(1) - eps,
        "eps_over_k": eps / np.float32(step.network.widths[-1]),
        "z_loss": float(options.z_loss), "soft_cap": float(options.soft_cap),
        "loss_parameter": float(formula.parameter) if formula is not None else 0.0,
    }  # fmt: skip


def layer_numbers(step: TrainStep) -> list[dict[str, float]]:
    """Return what the plan does not know of the layers: places in the flat buffer, and formulas."""
    network = step.network
    rates = [*network.dropout, 0.0]
    names = list(ACTIVATIONS)
    activations = [*network.activations, ACTIVATIONS["identity"]]
    starts = zip(*network.layout.starts, activations, rates, strict=True)
    return [
        {
            "weights_from": weights, "biases_from": biases, "activation": names.index(act.name),
            "parameter": float(act.parameter), "threshold": Dropout(rate, 0, None).threshold,
            "scale": 1.0 / (1.0 - rate),
        }
        for weights, biases, act, rate in starts
    ]  # fmt: skip
