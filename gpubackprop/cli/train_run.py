"""Training itself: resuming, Ctrl-C, a loss that diverges, a disk that is full.

The checkpoint is written by the trainer. Beside it stands checkpoint.json with the options and the
data that it belongs to, so that a run with others does not go on from it by mistake.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import MLP, Model, Trainer
from gpubackprop.cli.common import Say, deferred_interrupt, to_json
from gpubackprop.cli.train_data import TrainingData
from gpubackprop.errors import (
    GpubackpropError,
    ModelFileError,
    NonFiniteLossError,
    OptionError,
    StorageError,
)
from gpubackprop.model import in_target_units
from gpubackprop.tensorfile import write_atomically

CHECKPOINT, CHECKPOINT_OPTIONS = "checkpoint.safetensors", "checkpoint.json"
CHECKPOINT_SECONDS = 1.0  # between two; what a kill can cost, apart from the epoch it falls in
MODEL = "model.safetensors"
# Options that may change between a run and the one that goes on from its checkpoint.
_FREE = {
    "argv", "checkpoint_every", "command", "device", "epochs", "json", "output", "parser",
    "patience", "quiet", "resume", "run", "threads", "traceback",
}  # fmt: skip


@dataclass
class Outcome:
    """How training ended.

    Attributes
    ----------
    stopped : "epochs", "patience", "interrupted" or "diverged".
    resumed : it went on from a checkpoint. seconds : of this process.
    model : the network to keep, in the file's units. error : what to raise when all is written.
    """

    stopped: str
    resumed: bool
    seconds: float
    model: Model
    error: NonFiniteLossError | None = field(default=None)


def train(
    args: argparse.Namespace, data: TrainingData, trainer: Trainer, output: Path, say: Say
) -> Outcome:
    """Train, and write the model before anything else can go wrong.

    Raises
    ------
    StorageError : says what is kept. NonFiniteLossError : before one epoch was finished.
    KeyboardInterrupt : a second Ctrl-C; the best weights so far are written.
    """
    make_directory(output)
    resumed = _claim_checkpoint(args, data, output)
    if resumed:
        say.note(
            f"going on from {output / CHECKPOINT}, left by an unfinished run (--no-resume: anew)"
        )
    began, error = time.perf_counter(), None
    try:
        stopped = _fit(args, data, trainer, output)
    except NonFiniteLossError as caught:
        if not len(trainer.history):
            remove_checkpoint(output)
            raise
        stopped, error = "diverged", caught
    except (KeyboardInterrupt, StorageError) as caught:
        _rescue(data, trainer, output, caught, say)
        raise
    seconds = time.perf_counter() - began
    model = finished_model(data, trainer.network)
    with deferred_interrupt():
        _save(model, output)
    return Outcome(stopped, resumed, seconds, model, error)


def _fit(args: argparse.Namespace, data: TrainingData, trainer: Trainer, output: Path) -> str:
    try:
        history = trainer.fit(
            data.x,
            data.targets,
            epochs=args.epochs,
            rows=data.train,
            validation=(data.validation if len(data.validation) else None),
            patience=args.patience,
            standardizer=data.per_batch,
            checkpoint=output / CHECKPOINT,
            checkpoint_every=args.checkpoint_every,
            checkpoint_seconds=CHECKPOINT_SECONDS,
        )
    except ModelFileError as error:
        raise ModelFileError(f"{error}; --no-resume throws it away and starts anew") from error
    return history.stopped


def _rescue(
    data: TrainingData, trainer: Trainer, output: Path, cause: BaseException, say: Say
) -> None:
    """Write the best weights so far after a second Ctrl-C or a checkpoint that found no room."""
    if not len(trainer.history):
        return
    try:
        with deferred_interrupt():
            finished_model(data, trainer.network).save(output / MODEL)
            trainer.history.to_csv(output / "history.csv")
    except (GpubackpropError, OSError) as error:
        say.note(f"{output / MODEL} could not be written ({error})")
    else:
        best = trainer.history.best_epoch or len(trainer.history)
        say.note(f"{output / MODEL} has the best weights so far, those of epoch {best}")


def finished_model(data: TrainingData, network: MLP) -> Model:
    """The trained network, on the CPU, with everything that raw data need.

    Where targets were scaled for training, y = scale (W h + b) + mean is folded into the last
    layer, so that the model's outputs are in the file's units.
    """
    if data.target_scale is None:
        network = network.copy("cpu")
    else:
        network = in_target_units(network, data.target_scale)
    return Model(network, data.standardizer, data.feature_names, data.target_names, data.classes)


def _save(model: Model, output: Path) -> None:
    try:
        model.save(output / MODEL)
    except OSError as error:
        raise StorageError(
            f"{error}. The trained weights are kept in {output / CHECKPOINT}: the same command run "
            "again writes them without training anew"
        ) from error


# -- the output directory and the checkpoint ------------------------------------------------------


def make_directory(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the output directory {output} cannot be made ({error.strerror or error}); choose "
            "another one with --output"
        ) from error


def _claim_checkpoint(args: argparse.Namespace, data: TrainingData, output: Path) -> bool:
    """Whether a checkpoint is there to go on from; leaves checkpoint.json for this run.

    Raises
    ------
    OptionError : the checkpoint belongs to other options or data; names them.
    """
    if not args.resume:
        remove_checkpoint(output)
    mine = json.loads(to_json({"options": _binding_options(args), "data": _data_sign(data)}))
    there = (output / CHECKPOINT).exists()
    if there:
        _compare(_read_options(output), mine, output)
    try:
        write_atomically(output / CHECKPOINT_OPTIONS, to_json(mine).encode())
    except OSError as error:
        raise StorageError(f"{error} with --output") from error
    return there


def _binding_options(args: argparse.Namespace) -> dict[str, Any]:
    options = {key: value for key, value in vars(args).items() if key not in _FREE}
    options["data"] = None if args.data is None else str(Path(args.data).resolve())
    return options


def _data_sign(data: TrainingData) -> Any:
    """What tells other contents of the same file: a checksum, or the size of a memory map."""
    if data.per_batch is not None or isinstance(data.x, np.memmap):
        return [*data.x.shape, str(data.x.dtype)]
    return [*data.x.shape, zlib.crc32(np.ascontiguousarray(data.x).data)]


def _read_options(output: Path) -> dict[str, Any]:
    try:
        values = json.loads((output / CHECKPOINT_OPTIONS).read_text(encoding="utf-8"))
        return {"options": dict(values["options"]), "data": values["data"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"{output / CHECKPOINT} is there but {CHECKPOINT_OPTIONS}, which tells what run it "
            f"belongs to, cannot be read ({error}); start anew with --no-resume, or choose another "
            "--output"
        ) from error


def _compare(theirs: dict[str, Any], mine: dict[str, Any], output: Path) -> None:
    keys = sorted({*theirs["options"], *mine["options"]})
    pairs = {key: (theirs["options"].get(key), mine["options"].get(key)) for key in keys}
    differing = [
        f"--{key.replace('_', '-')} {old!r} there, {new!r} now"
        for key, (old, new) in pairs.items()
        if old != new
    ]
    if not differing and theirs["data"] != mine["data"]:
        differing = ["the data have changed since"]
    if differing:
        raise OptionError(
            f"{output} has the checkpoint of an unfinished run with other settings: "
            f"{'; '.join(differing)}. Run with the old ones to finish it, start anew with "
            "--no-resume, or choose another --output"
        )


def remove_checkpoint(output: Path) -> None:
    """The checkpoint first: what stays behind after a kill in between claims nothing."""
    for name in (CHECKPOINT, CHECKPOINT_OPTIONS):
        (output / name).unlink(missing_ok=True)
