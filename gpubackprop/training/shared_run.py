"""One call of `Trainer.fit` by several ranks: what they agree on, and what rank 0 alone does."""

from __future__ import annotations

import platform
import sys
import zlib
from dataclasses import asdict
from typing import Any

import numpy as np

from gpubackprop.distributed import Communicator
from gpubackprop.distributed.contract import agreed, is_agreed
from gpubackprop.errors import NonFiniteLossError, one_line
from gpubackprop.losses import Loss
from gpubackprop.network import MLP
from gpubackprop.training.batches import Batches
from gpubackprop.training.checkpoint import Checkpoint, fingerprint
from gpubackprop.training.evaluation import EvaluationStep, of_predictions, predictions
from gpubackprop.training.history import History, Row
from gpubackprop.training.interrupt import InterruptGuard
from gpubackprop.training.run import Run
from gpubackprop.training.settings import Settings
from gpubackprop.training.shared_step import SharedStep, totals_of_all
from gpubackprop.training.state import FitOptions, Position, TrainingState
from gpubackprop.training.step import TrainStep

Array = Any  # an array of the network's device
ASK_EVERY = 32  # steps of a GPU between two questions whether a rank was interrupted


class SharedEvaluation(EvaluationStep):
    """An evaluation of which each rank does its part of the rows.

    Parameters
    ----------
    ranks : Communicator
        The ranks.
    network, loss, data, batch_size
        As for `EvaluationStep`.
    """

    def __init__(
        self, ranks: Communicator, network: MLP, loss: Loss, data: Batches, batch_size: int
    ) -> None:
        self.ranks = ranks
        super().__init__(network, loss, data, batch_size)

    def _own(self, order: np.ndarray) -> np.ndarray:
        return order[self.ranks.part(len(order))]

    def _totals(self) -> np.ndarray:
        return totals_of_all(self.ranks, self.read_totals())


class SharedCheckpoint(Checkpoint):
    """A checkpoint that rank 0 writes, and reads for all.

    Parameters
    ----------
    ranks : Communicator
        The ranks.
    *made_from : object
        As for `Checkpoint`.
    """

    step: SharedStep

    def __init__(self, ranks: Communicator, *made_from: Any) -> None:
        super().__init__(*made_from)
        self.ranks = ranks
        self._whole_slots: dict[str, Array] = {}  # where each rank has a part, while they are moved

    def save(self, position: Position, best: Array) -> None:
        self._whole_slots = self._slots()
        for name, whole in self._whole_slots.items():
            self.settings.network.backend.copy(self.step.state()[name], whole[self.step.part])
            self.ranks.allgather(whole, self.step.all_parts)
        save = super().save
        try:
            self.ranks.from_root(lambda: save(position, best))
        finally:
            self._whole_slots = {}

    def load(self) -> tuple[Position, Array] | None:
        self._whole_slots = self._slots()
        try:
            loaded = super().load()
            for name, whole in self._whole_slots.items() if loaded else ():
                self.settings.network.backend.copy(whole[self.step.part], self.step.state()[name])
        finally:
            self._whole_slots = {}
        return loaded

    def _slots(self) -> dict[str, Array]:
        """Return memory for each slot as a whole, if each rank has a part of it."""
        network, step = self.settings.network, self.step
        names = step.optimizer.formula.slots if step.all_parts else ()
        size = network.layout.size
        return {f"slot.{name}": network.backend.zeros(size, network.dtype) for name in names}

    def _arrays(self) -> dict[str, Array]:
        return super()._arrays() | self._whole_slots

    def read(self, targets: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Any]] | None:
        read = super().read
        return self.ranks.from_root(lambda: read(targets))


class SharedRun(Run):
    """One call of `Trainer.fit` that several ranks make together."""

    step: SharedStep

    def __init__(
        self,
        settings: Settings,
        state: TrainingState,
        step: TrainStep,
        held_out: Batches | None,
        options: FitOptions,
    ) -> None:
        self.ranks = settings.ranks
        self.ranks.require_same(_must_agree(settings, state, step, held_out, options), "training")
        super().__init__(settings, state, step, held_out, options)
        if self.ranks.rank:
            self.progress = self.speaks = False

    def run(self) -> History:
        """Train; an error that this rank alone has ends the others, which would wait for ever."""
        try:
            return super().run()
        except NonFiniteLossError as error:  # found in figures that all ranks have
            raise agreed(error) from error.__cause__
        except BaseException as error:
            if not is_agreed(error):
                self.ranks.abort(f"{type(error).__name__}: {one_line(error)}")
            raise

    def _evaluation(self, data: Batches) -> EvaluationStep:
        settings = self.settings
        return SharedEvaluation(self.ranks, self.network, settings.loss, data, settings.batch_size)

    def _checkpoint(self, path: Any) -> Checkpoint:
        return SharedCheckpoint(
            self.ranks, path, self.settings, self.state, self.step, self.held_out,
            self.steps_per_epoch,
        )  # fmt: skip

    def _asked_to_stop(self, guard: InterruptGuard) -> bool:
        """Return whether a rank was interrupted: the step before told it the others."""
        if not self.network.backend.asynchronous:
            self.step.asks_to_stop = guard.requested
            return self.step.stopped
        last = self.position.step == self.steps_per_epoch
        asked = last or self.step.steps % ASK_EVERY == 0
        return asked and self.ranks.any(guard.requested)

    def _due(self) -> bool:
        return self.ranks.from_root(super()._due)

    def _metrics(self, data: Batches) -> dict[str, float]:
        return shared_metrics(self.ranks, self.network, self.settings.metrics, data)

    def _agreed(self, row: Row) -> Row:
        """Return rank 0's row; raise an error if the ranks' weights have drifted apart."""
        weights = _checksum(self.network.backend.to_host(self.network.parameters))
        self.ranks.require_same(
            {"weights with checksum": weights, "learning rate": row["lr"]},
            f"after epoch {row['epoch']}",
        )
        return self.ranks.from_root(lambda: row)

    def _callbacks_stop(self, row: Row) -> bool:
        stop = super()._callbacks_stop
        return self.ranks.any(self.ranks.all_succeed(lambda: stop(row)))


def shared_metrics(
    ranks: Communicator, network: MLP, metrics: dict[str, Any], data: Batches
) -> dict[str, float]:
    """Compute the caller's metrics over all rows: each rank predicts its part, rank 0 measures.

    Parameters
    ----------
    ranks : Communicator
        The ranks.
    network : MLP
        The network that predicts.
    metrics : dict
        From a name to ``function(yhat, targets)``.
    data : Batches
        The rows.

    Returns
    -------
    dict
        The figures by the metrics' names, on every rank.
    """
    if not metrics:
        return {}
    order = data.order(None)
    parts = ranks.gather(predictions(network, data, order[ranks.part(len(order))]))
    yhat = np.concatenate(parts)
    return ranks.from_root(lambda: of_predictions(metrics, yhat, data.targets[order]))


def _must_agree(
    settings: Settings,
    state: TrainingState,
    step: TrainStep,
    held_out: Batches | None,
    options: FitOptions,
) -> dict[str, Any]:
    """Return what all ranks must have in common before they train together."""
    network = settings.network
    weights = network.backend.to_host(network.parameters)
    own: dict[str, Any] = {
        "gpubackprop": sys.modules["gpubackprop"].__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": network.device.partition(":")[0],
        "metrics": sorted(settings.metrics),
    }
    own |= {f"fit's {name}": str(value) for name, value in asdict(options).items()}
    own |= fingerprint(settings, step, held_out)
    own |= {
        "initial weights": f"of {_checksum(weights)} (build the network with the same seed)",
        "shard_optimizer": settings.shard_optimizer,
        "deterministic": settings.deterministic,
        "steps done": state.steps,
        "state of the shuffles": _checksum(repr(state.rng.bit_generator.state).encode()),
    }
    return own


def _checksum(data: Any) -> str:
    return f"checksum {zlib.crc32(data):08x}"
