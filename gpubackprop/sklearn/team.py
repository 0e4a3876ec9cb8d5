"""A fit on several devices: each, in a thread of its own, computes its rows of every batch.

What decides (orders, stopping, scores, checkpoints) is the estimator's alone, in the caller's
thread. The other devices do an epoch's updates with it, and wait for nothing else.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scipy import sparse

from gpubackprop.backends import Backend
from gpubackprop.distributed.contract import Communicator
from gpubackprop.distributed.nccl import on_device
from gpubackprop.distributed.threads import Group, Threads, run_ranks
from gpubackprop.network import MLP
from gpubackprop.passes import emit_step
from gpubackprop.sklearn.host import SparseSource, host_backend
from gpubackprop.sklearn.session import Session
from gpubackprop.training.batches import Batches
from gpubackprop.training.gather import StepBatch
from gpubackprop.training.gradient_sum import GradientSum
from gpubackprop.training.shared_step import Share, SharedSource
from gpubackprop.training.step import StepOptions, TrainStep

Array = Any
IDLE: dict[
    tuple[str, ...], list[list[Threads]]
] = {}  # ranks of fits that have ended: NCCL knows them


class SharedSparse(SharedSource, SparseSource):
    """CSR rows whose batches are shares."""


class RankStep(TrainStep):
    """One rank's part of the update from a batch; each row is recorded where its rank is.

    Parameters
    ----------
    ranks : Communicator
        The ranks, for arrays of the network's device.
    *made_from : object
        As for `TrainStep`.
    """

    def __init__(self, ranks: Communicator, *made_from: Any) -> None:
        self.ranks, self.parts = ranks, ranks.size
        super().__init__(*made_from)
        self.sum = GradientSum(ranks, self.gradient, self.network.layout)

    def own_rows(self, start: int, stop: int) -> slice:
        """Return this rank's rows of the batch from row `start` to `stop` of an epoch."""
        part = self.ranks.part(stop - start)
        return slice(start + part.start, start + part.stop)

    def update(
        self, rows: Array, lr: float, weights: Array | None = None, l2: float | None = None
    ) -> StepBatch:
        """Train on this whole batch; weights are those of all its rows. All ranks call this."""
        part = self.ranks.part(len(rows))
        idle = part.stop == part.start
        own = rows[:1] if idle else rows[part]
        weights = None if weights is None or idle else weights[part]
        return super().update(Share(own, None, len(rows)), lr, weights, l2)

    def _plan(self, rows: int) -> StepBatch:
        backend, part = self.network.backend, self.ranks.part(rows)
        own = part.stop - part.start
        batch = self._batch.first_rows(max(1, own), backend)
        batch.record = batch.logits
        if batch.record is None:
            batch.record = batch.result["row_loss"].reshape(-1, 1)
        if not own:
            batch.upstream = 0.0
        elif not self.options.weighted:
            batch.upstream = 1.0 / rows
        units = batch.units
        units.dropout = [each and replace(each, first_row=part.start) for each in units.dropout]
        batch.replay = backend.plan(lambda recorder: self._emit(recorder, batch))
        return batch

    def _emit(self, backend: Backend, batch: StepBatch) -> None:
        """Issue the step. A rank without a row computes another's, whose delta is times 0."""
        weights = self.network.parameters[: self.network.layout.weights_end]
        backend.sum_of_squares(weights, self.squares)
        self.source.emit(backend, batch)

        together, final = self.sum.emitters()
        gradient = self.grad_W, self.grad_b
        emit_step(
            backend, self.loss, batch, self.parameters, gradient, self.updater, together, final
        )
        self._emit_rounding(backend)


class TeamSession(Session):
    """A session on several devices. The first one's network and step are the session's own.

    Parameters
    ----------
    devices : tuple of str
        Their names.
    rows : callable
        ``rows(network)`` returns the training rows on the network's device.
    rounded : callable
        ``rounded(network)``: see `stored.rounded_views`.
    *made_from : object
        As for `Session`.
    **options : object
        Likewise, without `rounded`.
    """

    def __init__(
        self,
        devices: tuple[str, ...],
        rows: Callable[[MLP], Batches],
        rounded: Callable[[MLP], list[tuple[Array, Array]]],
        *made_from: Any,
        **options: Any,
    ) -> None:
        idle = IDLE.setdefault(devices, [])
        self._devices, self._rows, self._rounded = devices, rows, rounded
        group = Group(len(devices))
        self.ranks = idle.pop() if idle else [Threads(group, rank) for rank in range(group.size)]
        self._returned = weakref.finalize(self, idle.append, self.ranks)
        super().__init__(*made_from, **options, rounded=rounded(made_from[1]))

    def _make_steps(
        self, data: Batches, options: StepOptions, epoch: Array | None
    ) -> list[TrainStep]:
        if self.network.backend.asynchronous:
            self.way = "no resident training: several devices share each batch"

        loss = self.objective.loss("none")

        def make(ranks: Communicator) -> TrainStep:
            network, rows, rounded = self.network, data, options.rounded
            if ranks.rank:
                network = _twin(network, self._devices[ranks.rank])
                rows, rounded = self._rows(network), self._rounded(network)
            source = (SharedSparse if sparse.issparse(rows.x) else SharedSource)(network, rows)
            own = replace(options, rounded=rounded)
            there = on_device(ranks, network.backend)
            return RankStep(there, network, loss, source, *self._rest, own)

        steps = self._together(make)
        del self._rows, self._rounded  # they hold the data of the first call
        return steps

    def train(self, work: Callable[[int], None]) -> None:
        if self.differ:
            state, parameters = self.step.snapshot(), self.network.parameters
            own = self.network.backend.to_host(parameters)
            for step in self.steps[1:]:
                step.network.backend.from_host(own, step.network.parameters)
                step.go_on_from(state)
            self.differ = False
        self._together(lambda ranks: work(ranks.rank))

    def _together(self, work: Callable[[Communicator], Any]) -> list[Any]:
        """Return ``work(ranks)`` of each rank; after an error the ranks serve no other fit."""
        group = Group(len(self.ranks))  # that of an epoch which Ctrl-C has ended is of no more use
        for rank in self.ranks:
            rank.group = group
        try:
            return run_ranks(self.ranks, work)
        except BaseException:
            self._returned.detach()
            raise


def _twin(network: MLP, device: str) -> MLP:
    """Return a copy of the network on another device, with the backend of these estimators."""
    twin = network.copy(device)
    if not twin.backend.asynchronous:
        twin.backend = host_backend(device)
    return twin
