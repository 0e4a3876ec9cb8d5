"""The results of ``gpubackprop train``: measurements, files and pictures."""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import Ensemble, Trainer, plots
from gpubackprop.cli import train_members as members
from gpubackprop.cli.common import Device, to_json, versions
from gpubackprop.cli.train_claim import (
    HISTORY,
    MODEL,
    PICTURES,
    REPORT,
    SUMMARY,
    claim_of,
    options_of,
)
from gpubackprop.cli.train_report import write_report
from gpubackprop.cli.train_rows import TrainingData, batches
from gpubackprop.cli.train_run import Outcome, window
from gpubackprop.data.classes import as_text
from gpubackprop.ensemble import members_of
from gpubackprop.errors import MissingDependencyError, StorageError
from gpubackprop.scores import class_scores, column_rmse, label_scores, number_scores
from gpubackprop.tensorfile import write_atomically

Array = np.ndarray


def measure(data: TrainingData, trainer: Trainer, outcome: Outcome) -> dict[str, Any]:
    """Return train_loss, train_accuracy, ..., test_accuracy (or rmse) of the kept weights.

    The loss of an ensemble is the mean of its members' losses.
    """
    network, targets = outcome.model.network, data.original_targets()
    meters = [
        Trainer(member, trainer.loss, batch_size=trainer.batch_size)
        for member in members_of(network)
    ]
    found: dict[str, float] = {}
    for part, rows in data.parts.items():
        each = [
            meter.evaluate(data.x, targets, standardizer=data.per_batch, rows=rows)
            for meter in meters
        ]
        values = each[0]
        if isinstance(network, Ensemble):  # the other figures are those of the mean prediction
            values = {"loss": float(np.mean([own["loss"] for own in each]))}
        scores = figures(data, predict(data, outcome, rows), targets[rows])
        found |= {f"{part}_{name}": value for name, value in (scores | values).items()}
    return found


def figures(data: TrainingData, yhat: Array, targets: Array) -> dict[str, Any]:
    """Return the figures of these predictions that belong to the task."""
    if data.classes is not None:
        return dict(class_scores(yhat, targets))
    if data.task == "multilabel":
        return dict(label_scores(yhat, targets))
    found: dict[str, Any] = dict(number_scores(yhat, targets))
    if targets.shape[1] > 1:
        names = data.target_names or [str(k) for k in range(targets.shape[1])]
        found["rmse_by_target"] = dict(zip(names, column_rmse(yhat, targets), strict=True))
    return found


def baseline(data: TrainingData) -> dict[str, Any]:
    """Return what is reached by saying the same of each row, as the training rows suggest."""
    _, rows = data.judged
    targets = data.original_targets()
    if data.classes is not None:
        counts = np.bincount(targets[data.train], minlength=data.units)
        most = int(counts.argmax())
        share = float(np.mean(targets[rows] == most))
        return {"says": as_text(data.classes[most]), "accuracy": share}
    if data.task == "multilabel":
        labels = (targets[data.train].mean(0) > 0.5).astype(int)
        right = float(np.mean((targets[rows] == labels).all(1)))
        return {"says": labels.tolist(), "accuracy": right}
    mean = targets[data.train].mean(0)
    return {
        "says": mean.tolist(),
        "rmse": number_scores(targets[rows] * 0 + mean, targets[rows])["rmse"],
    }


def predict(data: TrainingData, outcome: Outcome, rows: Array) -> Array:
    """Return yhat of these rows: (M, K)."""
    network = outcome.model.network
    parts = [network.predict(batch) for batch in batches(data, rows, network.dtype)]
    return np.concatenate(parts)


def summarize(
    args: argparse.Namespace,
    data: TrainingData,
    trainer: Trainer,
    outcome: Outcome,
    device: Device,
) -> dict[str, Any]:
    """Return everything that summary.json has, except the list of files."""
    network, history = outcome.model.network, members.history_of(outcome.trainers)
    seconds = sum(history["seconds"]) if len(history) else 0.0
    samples = len(data.train) * len(history)
    if isinstance(network, Ensemble):  # they were trained at the same time, or some of them earlier
        seconds, samples = outcome.seconds, len(data.train) * len(members.rows_of(outcome.trainers))
        samples = 0 if outcome.resumed else samples
    return {
        "device": device.name,
        "device_reason": device.reason,
        "threads": device.threads,
        "blas": device.blas,
        "dtype": trainer.network.dtype.name,
        "precision": trainer.network.products,
        "epochs": len(history),
        "stopped": outcome.stopped,
        "resumed": outcome.resumed,
        "best_epoch": history.best_epoch,
        "validation_window": window(data, args.epochs),
        **measure(data, trainer, outcome),
        **_members(args, data, outcome),
        "baseline": baseline(data),
        "seconds": seconds,
        "samples_per_second": samples / seconds if seconds and samples else None,
        "wall_seconds": outcome.seconds,
        "task": data.task,
        "task_why": data.why or None,
        "notes": list(data.notes),
        "columns": data.preprocessor.report() if data.preprocessor else None,
        "data": {
            "name": data.name,
            "source": data.source,
            "rows": len(data.targets),
            "features": data.x.shape[1],
            "train_rows": len(data.train),
            "validation_rows": len(data.validation),
            "test_rows": len(data.test),
            "classes": data.classes,
            "target_names": data.target_names,
        },
        "network": network.config(),
        "parameters": parameter_count(network.widths),
        "loss": trainer.loss.config(),
        "optimizer": trainer.optimizer.config(),
        "schedule": trainer.schedule.config(),
        "batch_size": trainer.batch_size,
        "versions": versions(),
        "command": ["gpubackprop", *args.argv],
        "options": options_of(args),
        "run": claim_of(args, data),
    }


def _members(args: argparse.Namespace, data: TrainingData, outcome: Outcome) -> dict[str, Any]:
    """Return what summary.json says of each member, with its own score; nothing of one network."""
    network = outcome.model.network
    if not isinstance(network, Ensemble):
        return {}
    found = members.described(args, outcome.trainers)
    part, rows = data.judged
    targets = data.original_targets()[rows]
    learned = [place for place, own in enumerate(found) if own["epochs"]]
    for place, member in zip(learned or range(len(found)), network.members, strict=True):
        yhat = [member.predict(batch) for batch in batches(data, rows, network.dtype)]
        scores = figures(data, np.concatenate(yhat), targets)
        metric = "accuracy" if "accuracy" in scores else "rmse"
        found[place][f"{part}_{metric}"] = scores[metric]
    return {"members": found}


def parameter_count(widths: Iterable[int]) -> int:
    """Return the number of weights and biases of a network of these widths."""
    return sum(n * (m + 1) for m, n in itertools.pairwise(widths))


def write_files(
    data: TrainingData,
    trainer: Trainer,
    outcome: Outcome,
    summary: dict[str, Any],
    output: Path,
) -> tuple[dict[str, str], str]:
    """Write all files except the model, which is written already.

    Returns
    -------
    files : dict
        What each file is, by its name.
    missing : str
        Why there are no pictures, or "".
    """
    files = {MODEL: "network, standardisation, names"}
    try:
        history = members.rows_of(outcome.trainers)
        if len(history):
            history.to_csv(output / HISTORY)
            files[HISTORY] = "loss and metrics of each epoch"
        drawn, missing = _draw(data, trainer, outcome, output)
        files |= {SUMMARY: "result, device, versions, options", **drawn}
        label = _loss_label(data, trainer)
        write_report(output / REPORT, data, trainer, outcome, summary, label)
        files[REPORT] = "all of it on one page, for a browser"
        summary["files"] = [str(output / name) for name in files]
        write_atomically(output / SUMMARY, to_json(summary).encode())
    except OSError as error:
        raise StorageError(
            f"{error}. {output / MODEL} is written; the same command run again goes on from the "
            "checkpoint and writes the rest without training anew"
        ) from error
    return files, missing


def _draw(
    data: TrainingData, trainer: Trainer, outcome: Outcome, output: Path
) -> tuple[dict[str, str], str]:
    for name in PICTURES:  # an earlier run's pictures would not show this run
        (output / name).unlink(missing_ok=True)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it reports its font cache
    drawn: dict[str, str] = {}
    try:
        history = members.history_of(outcome.trainers)
        if len(history):
            plots.learning_curve(
                history,
                output / PICTURES[0],
                title=f"{data.name}: {'-'.join(map(str, trainer.network.widths))}, "
                f"{trainer.optimizer.formula.name}",
                loss_label=_loss_label(data, trainer),
            )
            drawn[PICTURES[0]] = "loss and metric over the epochs"
        drawn |= _draw_predictions(data, outcome, output)
    except MissingDependencyError as error:
        return drawn, str(error)
    return drawn, ""


def _loss_label(data: TrainingData, trainer: Trainer) -> str:
    label = trainer.loss.name.replace("_", " ").removeprefix("softmax ")
    smoothing = getattr(trainer.loss.options, "label_smoothing", 0.0)
    if smoothing:
        label += f" (label smoothing {smoothing:g})"
    return label + (" (standardised targets)" if data.target_scale is not None else "")


def _draw_predictions(data: TrainingData, outcome: Outcome, output: Path) -> dict[str, str]:
    part, rows = data.judged
    about = f"{len(rows):,} {part} rows of {data.name}"
    true = data.original_targets()[rows]
    if data.task == "multilabel":
        return {}
    yhat = predict(data, outcome, rows)
    if data.classes is None:
        plots.predictions(
            true, yhat, output / PICTURES[2], names=data.target_names or (), title=about
        )
        return {PICTURES[2]: f"predicted against true, {part} rows"}
    right = float(np.mean(yhat.argmax(1) == true))
    plots.confusion_matrix(
        true,
        yhat.argmax(1),
        data.classes,
        output / PICTURES[1],
        title=f"{about}: {right:.2%} correct",
    )
    return {PICTURES[1]: f"true against predicted classes, {part} rows"}
