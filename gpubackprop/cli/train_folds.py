"""``gpubackprop train --folds``: networks that are scored on rows which they have not seen."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop import History, Trainer, fit_many
from gpubackprop.cli import train_members as members
from gpubackprop.cli import train_options as options
from gpubackprop.cli.common import Device, Say, metric_text
from gpubackprop.cli.train_data import prepare
from gpubackprop.cli.train_output import figures
from gpubackprop.cli.train_rows import TrainingData, batches
from gpubackprop.cli.train_run import finished_model, window
from gpubackprop.distributed import Communicator
from gpubackprop.distributed.contract import agreed

TEST, VALIDATION = 0.2, 0.1


def settle(args: argparse.Namespace) -> None:
    """Set the shares that are held out where they were not given; with --folds they are 0.

    Wrong usage is reported (exit 2).
    """
    if args.folds is not None:
        if args.test is not None and not isinstance(args.test, str):
            args.parser.error(
                "--folds scores every row once, so there is no --test SHARE; leave it out, or pass "
                "--test FILE with another table"
            )
        if args.validation_last is not None:
            args.parser.error(
                "--folds and --validation-last split the rows in two ways; choose one"
            )
    args.test = _or(args.test, 0.0 if args.folds else TEST)
    args.validation = _or(args.validation, 0.0 if args.folds else VALIDATION)


def _or(value: Any, default: float) -> Any:
    return default if value is None else value


def score_folds(
    args: argparse.Namespace, device: Device, build: members.Build, say: Say, ranks: Communicator
) -> dict[str, Any] | None:
    """Train a network for each fold, on the rows of the others, and score it on the fold's.

    With --members it is an ensemble. Each rank trains its share of all networks.

    Columns, standardisation and scaling of the targets are learnt from the training rows of each.

    Returns
    -------
    dict or None
        What summary.json says of the folds; None without --folds.

    Raises
    ------
    KeyboardInterrupt
        Ctrl-C ended a training; nothing has been written.
    GpubackpropError
        A training failed; the message names the fold.
    """
    if args.folds is None:
        return None
    apart = copy.copy(args)
    apart.distributed = "none"

    def build_all() -> tuple[list[TrainingData], list[list[Trainer]]]:
        parts = [prepare(_of_fold(args, fold)) for fold in range(args.folds)]
        return parts, [members.build_members(apart, each, device, build, ranks) for each in parts]

    parts, folds = ranks.all_succeed(build_all)
    _train(args, parts, folds, ranks)
    rows = [_score(data, trainers) for data, trainers in zip(parts, folds, strict=True)]
    summary = summed_up(rows, [len(data.test) for data in parts])
    say.line(f"folds      {line(summary)}")
    return summary


def _train(
    args: argparse.Namespace,
    parts: Sequence[TrainingData],
    folds: Sequence[Sequence[Trainer]],
    ranks: Communicator,
) -> None:
    """Train the networks of all folds in one call: one each, or with --members several."""
    flat = [trainer for trainers in folds for trainer in trainers]
    of_each = [data for data, trainers in zip(parts, folds, strict=True) for _ in trainers]
    epochs = [
        options.epochs(args, len(data.train), trainer.batch_size)
        for data, trainer in zip(of_each, flat, strict=True)
    ]
    found = fit_many(
        flat,
        [data.x for data in of_each],
        [data.targets for data in of_each],
        n_jobs=args.jobs,
        distributed=ranks,
        return_errors=True,
        epochs=epochs,
        rows=[data.train for data in of_each],
        validation=[data.validation if len(data.validation) else None for data in of_each],
        sample_weight=[data.sample_weight for data in of_each],
        patience=args.patience,
        window=[window(data, most) for data, most in zip(of_each, epochs, strict=True)],
        standardizer=[data.per_batch for data in of_each],
    )
    for place, result in enumerate(found):
        if not isinstance(result, History):
            fold = place // len(folds[0]) + 1
            result.args = (f"fold {fold} of {len(folds)}: {result}", *result.args[1:])
            raise result
        if result.stopped == "interrupted":
            raise agreed(KeyboardInterrupt())


def _of_fold(args: argparse.Namespace, fold: int) -> argparse.Namespace:
    own = copy.copy(args)
    own.fold, own.quiet = fold, True
    own.test = 0.0  # another table is for the model of all rows
    return own


def _score(data: TrainingData, trainers: Sequence[Trainer]) -> dict[str, Any]:
    """Return the figures of a fold's own rows, in the units of the file."""
    network = finished_model(data, members.kept_network(trainers)).network
    yhat = [network.predict(batch) for batch in batches(data, data.test, network.dtype)]
    return figures(data, np.concatenate(yhat), data.original_targets()[data.test])


def summed_up(rows: list[dict[str, Any]], sizes: list[int]) -> dict[str, Any]:
    """Return each figure of the folds with its mean and its standard deviation over the folds."""
    names = [name for name, value in rows[0].items() if isinstance(value, float | int)]
    scores = {name: [float(row[name]) for row in rows] for name in names}
    return {
        "count": len(rows),
        "rows": sizes,
        "metric": "accuracy" if "accuracy" in scores else "rmse",
        "scores": scores,
        "mean": {name: float(np.mean(values)) for name, values in scores.items()},
        "std": {name: float(np.std(values)) for name, values in scores.items()},
    }


def line(folds: dict[str, Any]) -> str:
    """Return mean, spread and the score of each fold in words."""
    metric = folds["metric"]
    each = ", ".join(metric_text(metric, value) for value in folds["scores"][metric])
    return f"{score(folds)} ({each})"


def score(folds: dict[str, Any]) -> str:
    """Return the mean of the folds' scores and their standard deviation in words."""
    metric = folds["metric"]
    mean, spread = (metric_text(metric, folds[key][metric]) for key in ("mean", "std"))
    return f"{metric} of {folds['count']} folds: {mean} ± {spread}"
