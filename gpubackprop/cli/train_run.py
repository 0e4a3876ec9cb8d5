"""Training itself: resuming, Ctrl-C, a diverging loss, a full disk."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpubackprop import MLP, Ensemble, Model, Trainer
from gpubackprop.cli import train_members as members
from gpubackprop.cli.common import Say, deferred_interrupt
from gpubackprop.cli.train_claim import (
    HISTORY,
    MODEL,
    checkpoint_names,
    claim_checkpoint,
    make_directory,
    remove_checkpoint,
)
from gpubackprop.cli.train_rows import TrainingData
from gpubackprop.distributed import Communicator
from gpubackprop.errors import (
    GpubackpropError,
    ModelFileError,
    NonFiniteLossError,
    StorageError,
)
from gpubackprop.model import in_target_units

FEW_ROWS = 50  # of validation: too few to choose an epoch by its loss alone
CHECKPOINT_SECONDS = 1.0  # between two checkpoints: a kill costs so much and the present epoch


@dataclass
class Outcome:
    """The end of a training.

    Attributes
    ----------
    stopped : str
        "epochs", "patience", "interrupted" or "diverged".
    resumed : bool
        Whether it went on from a checkpoint.
    seconds : float
        Time of this process.
    model : Model
        The network to keep, or the ensemble, in the file's units.
    trainers : sequence of Trainer
        The trainer of the network, or of each member.
    error : NonFiniteLossError or None
        The error to raise when all is written.
    """

    stopped: str
    resumed: bool
    seconds: float
    model: Model
    trainers: Sequence[Trainer]
    error: NonFiniteLossError | None = field(default=None)


def train(
    args: argparse.Namespace,
    data: TrainingData,
    trainers: Sequence[Trainer],
    output: Path,
    say: Say,
    ranks: Communicator,
) -> Outcome:
    """Train the network, or all members, and write the model before anything else can go wrong.

    Raises
    ------
    StorageError
        A file could not be written; the message says what is kept.
    NonFiniteLossError
        The loss diverged before one epoch was finished.
    KeyboardInterrupt
        A second Ctrl-C came; the best weights so far are written.
    """
    first = output / checkpoint_names(args)[0]

    def claim() -> bool:
        make_directory(output)
        return claim_checkpoint(args, data, output)

    resumed = ranks.from_root(claim)
    if resumed:
        say.note(f"going on from {first}, left by an unfinished run (--no-resume: anew)")
    began, error = time.perf_counter(), None
    try:
        stopped = _fit(args, data, trainers, output, ranks)
    except NonFiniteLossError as caught:
        if not any(len(trainer.history) for trainer in trainers):
            if ranks.rank == 0:
                remove_checkpoint(output)
            raise
        stopped, error = "diverged", caught
    except (KeyboardInterrupt, StorageError):
        if ranks.rank == 0:
            _rescue(data, trainers, output, say)
        raise
    seconds = time.perf_counter() - began
    model = finished_model(data, members.kept_network(trainers))
    with deferred_interrupt():
        ranks.from_root(lambda: _save(model, output, first))
    return Outcome(stopped, resumed, seconds, model, trainers, error)


def window(data: TrainingData, epochs: int) -> int:
    """Return over how many epochs the validation loss is averaged to choose the best one."""
    few = 0 < len(data.validation) < FEW_ROWS
    return max(1, round(epochs / 10)) if few else 1


def _fit(
    args: argparse.Namespace,
    data: TrainingData,
    trainers: Sequence[Trainer],
    output: Path,
    ranks: Communicator,
) -> str:
    settings: dict[str, Any] = {
        "epochs": args.epochs,
        "rows": data.train,
        "validation": data.validation if len(data.validation) else None,
        "sample_weight": data.sample_weight,
        "patience": args.patience,
        "window": window(data, args.epochs),
        "standardizer": data.per_batch,
        "checkpoint_every": args.checkpoint_every,
        "checkpoint_seconds": CHECKPOINT_SECONDS,
    }
    try:
        if args.members is not None:
            return members.fit(args, trainers, data.x, data.targets, output, ranks, **settings)
        file = output / checkpoint_names(args)[0]
        return trainers[0].fit(data.x, data.targets, checkpoint=file, **settings).stopped
    except ModelFileError as error:
        raise ModelFileError(f"{error}; --no-resume throws it away and starts anew") from error


def _rescue(data: TrainingData, trainers: Sequence[Trainer], output: Path, say: Say) -> None:
    """Write the best weights so far after a second Ctrl-C, or if a checkpoint found no room."""
    history = members.history_of(trainers)
    if not len(history):
        return
    try:
        with deferred_interrupt():
            finished_model(data, members.kept_network(trainers)).save(output / MODEL)
            members.rows_of(trainers).to_csv(output / HISTORY)
    except (GpubackpropError, OSError) as error:
        say.note(f"{output / MODEL} could not be written ({error})")
    else:
        best = history.best_epoch or len(history)
        say.note(f"{output / MODEL} has the best weights so far, those of epoch {best}")


def finished_model(data: TrainingData, network: MLP | Ensemble) -> Model:
    """Return the trained network or ensemble, on the CPU, with everything that raw data need.

    If targets were scaled for training, y = scale (W h + b) + mean is folded into the last layer,
    so that the model's outputs are in the file's units.
    """
    if data.target_scale is None:
        network = network.copy("cpu")
    else:
        network = in_target_units(network, data.target_scale)
    return Model(
        network, data.standardizer, data.feature_names, data.target_names, data.classes,
        data.preprocessor,
    )  # fmt: skip


def _save(model: Model, output: Path, checkpoint: Path) -> None:
    try:
        model.save(output / MODEL)
    except OSError as error:
        raise StorageError(
            f"{error}. The trained weights are kept in {checkpoint}: the same command run "
            "again writes them without training anew"
        ) from error
