"""``report.html`` of ``gpubackprop train``: what a training did, for people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import Trainer
from gpubackprop.cli.train_members import history_of
from gpubackprop.cli.train_rows import TrainingData, batches
from gpubackprop.cli.train_run import Outcome
from gpubackprop.data.classes import as_text
from gpubackprop.data.coded import CodedInputs, stacked
from gpubackprop.report import page, sections
from gpubackprop.report.importance import Importance, permutation_importance
from gpubackprop.scores import number_scores
from gpubackprop.tensorfile import write_atomically

Array = np.ndarray
MOST_COLUMNS = 200  # that are shuffled; a picture's pixels mean nothing one by one
MOST_ROWS = 2000  # that importance is measured on
SECONDS = 2.0


def write_report(
    file: Path,
    data: TrainingData,
    trainer: Trainer,
    outcome: Outcome,
    summary: dict[str, Any],
    loss_label: str,
) -> None:
    """Write the report; `summary` is what summary.json has.

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    part, rows = data.judged
    what = ", ".join(data.target_names or ()) or "targets"
    title = f"{data.name}: {what}"
    lead = f"{data.source}, {data.task}"
    lead += f", because {data.why}" if data.why else ""
    about = f"{len(rows):,} {part} rows."
    history = history_of(outcome.trainers)
    parts = [
        page.cards(_cards(summary, part)),
        *(page.text(note) for note in summary.get("notes") or ()),
        sections.figures(summary),
        sections.learning_curves(history.rows, history.best_epoch, loss_label),
        _predictions(data, outcome, rows, about),
        _importance(data, outcome, rows, part),
        sections.columns(_columns(data, summary)),
        sections.environment(summary),
    ]
    write_atomically(file, page.page(title, lead, parts).encode("utf-8", "backslashreplace"))


def _cards(summary: dict[str, Any], part: str) -> list[tuple[str, str]]:
    metric = "accuracy" if f"{part}_accuracy" in summary else "rmse"
    base = (summary.get("baseline") or {}).get(metric)
    found = [(f"{part} {metric}", sections.figure(metric, summary[f"{part}_{metric}"]))]
    if folds := summary.get("folds"):
        mean, spread = (sections.figure(metric, folds[key][metric]) for key in ("mean", "std"))
        found.insert(0, (f"{metric} of {folds['count']} folds", f"{mean} ± {spread}"))
    if base is not None:
        found.append(("baseline", sections.figure(metric, base)))
    table = summary["data"]
    found.append(("training rows", f"{table['train_rows']:,}"))
    found.append(("inputs of the network", f"{table['features']:,}"))
    best = summary["best_epoch"]
    found.append((f"epochs, {best} kept" if best else "epochs", f"{summary['epochs']:,}"))
    found.append(("seconds of training", f"{summary['seconds']:.1f}"))
    return found


def _predictions(data: TrainingData, outcome: Outcome, rows: Array, about: str) -> str:
    true = data.original_targets()[rows]
    network = outcome.model.network
    yhat = np.concatenate([network.predict(b) for b in batches(data, rows, network.dtype)])
    if data.classes is not None:
        names = [as_text(label) for label in data.classes]
        return sections.classes(true, yhat.argmax(1), names, about)
    names = list(data.target_names or (f"target {k}" for k in range(1, yhat.shape[1] + 1)))
    if data.task == "multilabel":
        return sections.labels(true, yhat, names, about)
    return sections.numbers(true, yhat, names, about)


# -- importance -----------------------------------------------------------------------------------


def _importance(data: TrainingData, outcome: Outcome, rows: Array, part: str) -> str:
    groups = _groups(data)
    if len(groups) > MOST_COLUMNS:
        return sections.importances(
            {}, "", f"Not measured: {len(groups):,} columns are more than {MOST_COLUMNS}."
        )
    picked = np.random.default_rng(0).permutation(rows)[:MOST_ROWS]
    network = outcome.model.network
    x = stacked([*batches(data, picked, network.dtype)])
    name, score = _score(data, outcome, data.original_targets()[picked])
    if isinstance(x, CodedInputs):
        places, coded = x.packed_columns(), x
        groups = {of: sorted({places[j] for j in group}) for of, group in groups.items()}
        found = permutation_importance(
            lambda rows: score(coded.unpacked(rows)), x.packed(), groups, seconds=SECONDS
        )
    else:
        found = permutation_importance(score, x, groups, seconds=SECONDS)
    if not found:
        return sections.importances({}, "", "Not measured: it would take too long.")
    return sections.importances(_shown(found), name, f"Of {len(picked):,} {part} rows.")


def _groups(data: TrainingData) -> dict[str, list[int]]:
    """Return the columns of x that each column of the table became."""
    if data.preprocessor is None:
        names = data.feature_names or [f"column {k}" for k in range(1, data.x.shape[1] + 1)]
        return {str(name): [k] for k, name in enumerate(names)}
    groups, first = {}, 0
    for plan in data.preprocessor.columns:
        groups[plan.name] = [*range(first, first + len(plan.outputs))]
        first += len(plan.outputs)
    return groups


def _score(data: TrainingData, outcome: Outcome, true: Array) -> tuple[str, Callable[[Any], float]]:
    """Return scikit-learn's score of the task, and its name."""
    predict = outcome.model.network.predict
    if data.classes is not None:
        return "accuracy", lambda x: float(np.mean(predict(x).argmax(1) == true))
    if data.task == "multilabel":
        return "share of right labels", lambda x: float(np.mean((predict(x) > 0.5) == (true > 0.5)))
    return "R²", lambda x: number_scores(predict(x), true).get("r2", 0.0)


def _shown(found: dict[str, Importance]) -> dict[str, Importance]:
    return {name.encode("utf-8", "backslashreplace").decode(): v for name, v in found.items()}


def _columns(data: TrainingData, summary: dict[str, Any]) -> dict[str, str] | None:
    """Return what was done to each column of a table, or of an array."""
    if summary.get("columns"):
        return dict(summary["columns"])
    scale = data.standardizer
    if scale is None:
        return None
    if len(scale.mean) > MOST_COLUMNS:
        return {"all columns": f"{len(scale.mean):,} numbers, standardised"}
    return {
        name: f"standardised: mean {scale.mean[k]:.5g}, deviation {scale.scale[k]:.5g}"
        for name, (k, *_) in _groups(data).items()
    }
