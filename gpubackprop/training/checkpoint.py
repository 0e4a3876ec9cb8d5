"""Checkpoints: everything that training needs to go on bit for bit as if it had never stopped."""

from __future__ import annotations

import copy
import zlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.errors import ModelFileError, StorageError
from gpubackprop.network import MLP
from gpubackprop.tensorfile import (
    read_tensors,
    remove_leftovers,
    require_array,
    require_count,
    write_tensors,
)
from gpubackprop.training.batches import Batches
from gpubackprop.training.history import History
from gpubackprop.training.settings import Settings
from gpubackprop.training.state import Position, TrainingState
from gpubackprop.training.step import TrainStep

Array = np.ndarray
SAMPLED_ROWS = 64  # so many rows of x are compared on resuming; all would take too long


class CheckpointFile:
    """A file of arrays and values from which the training that wrote it goes on, and no other.

    Parameters
    ----------
    path : path
        The file.
    to_host : callable
        Brings an array to the host.
    fingerprint : dict
        JSON values that must be equal where training goes on.
    """

    kind = "checkpoint"
    version = 1

    def __init__(self, path: Any, to_host: Any, fingerprint: dict[str, Any]) -> None:
        self.path, self.to_host, self.fingerprint = Path(path), to_host, fingerprint

    def differ(self, names: list[str], found: dict[str, Any]) -> str:
        """Return the error's text for a file whose fingerprint differs in `names`."""
        key = names[0]
        return (
            f"was written by a training with {key} = {found.get(key)} but this one has "
            f"{self.fingerprint[key]}; resume with the same settings and data, or use another "
            f"checkpoint file"
        )

    def write(self, arrays: dict[str, Array], values: dict[str, Any]) -> None:
        """Replace the file; StorageError if it cannot be written, the previous one then stays."""
        own = {"kind": self.kind, "version": self.version, "fingerprint": self.fingerprint}
        on_host = {
            name: array if isinstance(array, np.ndarray) else self.to_host(array)
            for name, array in arrays.items()
        }
        write_tensors(self.path, on_host, own | values)

    def read(self, targets: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Any]] | None:
        """Return arrays and values of the file, or None if there is none.

        Raises
        ------
        ModelFileError
            The file is no checkpoint, is damaged, is of another training, or lacks an array of the
            shape and dtype of one of `targets`.
        """
        remove_leftovers(self.path)
        if not self.path.exists():
            return None
        arrays, values = read_tensors(self.path, self.kind, self.version)
        found = values.get("fingerprint")
        found = found if isinstance(found, dict) else {}
        changed = [name for name, own in self.fingerprint.items() if found.get(name) != own]
        if changed:
            raise ModelFileError(f"{self.path} {self.differ(changed, found)}")
        for name, target in targets.items():
            require_array(self.path, arrays, name, target.shape, target.dtype)
        return arrays, values


class Checkpoint(CheckpointFile):
    """One file with parameters, best parameters, optimizer slots, random state, schedule, position.

    Parameters
    ----------
    path : Path
        The file.
    settings : Settings
        The settings of the training.
    state : TrainingState
        The state of the training.
    step : TrainStep
        The step of the training.
    held_out : Batches or None
        The validation rows.
    steps_per_epoch : int
        Steps of an epoch, to check the position in a file.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        state: TrainingState,
        step: TrainStep,
        held_out: Batches | None,
        steps_per_epoch: int,
    ) -> None:
        own = fingerprint(settings, step, held_out)
        super().__init__(path, settings.network.backend.to_host, own)
        self.settings, self.state, self.step = settings, state, step
        self.steps_per_epoch = steps_per_epoch

    def save(self, position: Position, best: Array) -> None:
        """Replace the file, or raise StorageError; the previous file then stays."""
        settings, state, step = self.settings, self.state, self.step
        saved = asdict(position)
        if position.step == 0:
            saved["rng_state"] = state.rng.bit_generator.state
        values = {
            "position": saved,
            "steps": step.steps,
            "schedule": settings.schedule.state(),
            "history": state.history.rows,
            "best_epoch": state.history.best_epoch,
            "stopped": state.history.stopped,
        }
        try:
            self.write(self._arrays() | {"best": best}, values)
        except StorageError as error:
            raise StorageError(
                f"checkpoint {error}. Training ends here (step {step.steps}); the network in "
                f"memory has its best weights so far"
            ) from error

    def load(self) -> tuple[Position, Array] | None:
        """Set trainer, network and step to the file's state; return None if there is no file.

        Nothing is changed unless the whole file is right.
        """
        network, state, targets = self.settings.network, self.state, self._arrays()
        found = self.read(targets | {"best": network.parameters})
        if found is None:
            return None
        arrays, values = found
        try:
            position, steps, history = self._read(values)
        except ModelFileError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ModelFileError(f"{self.path}: its values are not readable ({error!r})") from error
        state.rng.bit_generator.state = position.rng_state
        self.settings.schedule.restore(values["schedule"])
        for name, target in targets.items():
            network.backend.from_host(arrays[name], target)
        self.step.restored(steps)
        state.history.rows[:] = history.rows
        state.history.best_epoch, state.history.stopped = history.best_epoch, history.stopped
        return position, arrays["best"]

    def _read(self, values: dict[str, Any]) -> tuple[Position, int, History]:
        """Return position, step count, history; any error means that `save` did not write them."""
        position = self._position(values["position"])
        steps = require_count(self.path, "steps", values["steps"])
        # Try them on copies first, because either may not be readable.
        copy.deepcopy(self.state.rng).bit_generator.state = position.rng_state
        copy.deepcopy(self.settings.schedule).restore(values["schedule"])
        if values["schedule"].keys() != self.settings.schedule.state().keys():
            raise ValueError(f"schedule is {values['schedule']!r}")
        rows, best_epoch = values["history"], values["best_epoch"]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ModelFileError(f"{self.path}: history is not a list of epochs")
        history = History(rows)
        if best_epoch is not None:
            history.best_epoch = require_count(self.path, "best_epoch", best_epoch)
        # A training that a callback has ended is over; one that Ctrl-C ended goes on.
        history.stopped = "callback" if values["stopped"] == "callback" else ""
        return position, steps, history

    def _arrays(self) -> dict[str, Array]:
        return {"parameters": self.settings.network.parameters} | self.step.state()

    def _position(self, found: dict[str, Any]) -> Position:
        names = {field.name for field in fields(Position)}
        if not isinstance(found, dict) or found.keys() != names:
            raise ValueError(f"position is {found!r}")
        for name in ("epoch", "first_epoch", "bad_epochs"):
            require_count(self.path, name, found[name])
        require_count(self.path, "step", found["step"], self.steps_per_epoch - 1)
        for name in ("best_loss", "seconds"):
            found[name] = float(found[name])
        return Position(**found)


def fingerprint(training: Settings, step: TrainStep, held_out: Batches | None) -> dict[str, Any]:
    """Return what must be equal for a resumed training to be the same training."""
    settings = {
        "network": training.network.config(),
        "loss": training.loss.config(),
        "optimizer": training.optimizer.config(),
        "schedule": training.schedule.config(),
        "batch_size": step.batch_size,
        "l2": training.regularization.l2,
        "clip_norm": training.regularization.clip_norm,
        "shuffle": training.shuffle,
        "seed": training.seed,
    }
    settings |= training.numerics()
    data = {
        f"{part} {name}": value
        for part, batches in (("training", step.data), ("validation", held_out))
        for name, value in _data_fingerprint(batches, training.network).items()
    }
    return settings | data


def _data_fingerprint(data: Batches | None, network: MLP) -> dict[str, str]:
    if data is None:
        return {"x": "none"}
    chosen = np.unique(np.linspace(0, len(data.x) - 1, SAMPLED_ROWS).astype(np.intp))
    fitted = data.standardizer
    return {
        "x": f"shape {data.x.shape}, {_checksum(data.sampled(network, chosen))}",
        "targets": f"shape {data.targets.shape}, {_checksum(data.targets)}",
        "rows": "all" if data.rows is None else f"{len(data.rows)}, {_checksum(data.rows)}",
        "sample_weight": "none" if data.sample_weight is None else _checksum(data.sample_weight),
        "standardizer": "none" if fitted is None else _checksum([fitted.mean, fitted.scale]),
    }


def _checksum(array: Any) -> str:
    return f"checksum {zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}"
