"""What a training is asked about, each as a section of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubackprop.plots import count_pairs
from gpubackprop.report import page
from gpubackprop.report.importance import Importance
from gpubackprop.report.svg import Line, curves, number, residuals, scatter

Array = npt.NDArray[Any]
MOST_CLASSES = 20  # of a confusion matrix; with more, the frequent confusions are listed
MOST_TARGETS = 4  # that have drawings
# Figures by their names in summary.json, in the order of the table.
FIGURES = {
    "loss": "loss", "log_loss": "log loss", "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy", "label_accuracy": "right labels", "f1": "F1",
    "auc": "AUC", "rmse": "rmse", "mae": "mean absolute error", "r2": "R²",
}  # fmt: skip
PARTS = ("train", "validation", "test")


def figure(name: str, value: Any) -> str:
    """Return a figure as text: shares with four digits behind the point."""
    if not isinstance(value, (int, float)):
        return "–"
    shares = ("accuracy", "balanced_accuracy", "label_accuracy", "f1", "auc", "r2")
    return f"{value:.4f}" if name in shares else number(float(value))


def figures(summary: Mapping[str, Any]) -> str:
    """Return the table of all figures of each part, beside the baseline."""
    parts = [part for part in PARTS if f"{part}_loss" in summary]
    base = summary.get("baseline") or {}
    rows = []
    for name, shown in FIGURES.items():
        values = [summary.get(f"{part}_{name}") for part in parts]
        if any(value is not None for value in values):
            cells = [
                figure(name, value) for value in [*values, *([base.get(name)] if base else [])]
            ]
            rows.append([shown, *cells])
    for target in summary.get(f"{parts[-1]}_rmse_by_target", {}) if parts else ():
        found = [summary[f"{part}_rmse_by_target"][target] for part in parts]
        rows.append(
            [f"rmse of {target}", *(figure("rmse", v) for v in found), *(["–"] if base else [])]
        )
    head = ["", *parts, *(["baseline"] if base else [])]
    note = f"Baseline: always {_says(base['says'])}." if "says" in base else ""
    return page.section("Figures", page.table(head, rows), page.text(note) if note else "")


def _says(says: Any) -> str:
    if isinstance(says, (list, tuple, np.ndarray)):
        return ", ".join(number(float(value)) for value in says)
    return str(says)


def learning_curves(rows: Sequence[Mapping[str, Any]], best: int | None, loss_label: str) -> str:
    """Return loss and accuracy over the epochs; the kept epoch is marked."""
    if not rows:
        return ""
    epochs, drawn = [row["epoch"] for row in rows], []
    for name, label in (("loss", loss_label), ("accuracy", "accuracy")):
        lines = [
            Line(what, kind, epochs, [row.get(column, np.nan) for row in rows])
            for what, column, kind in
            (("training", name, "first"), ("validation", f"val_{name}", "second"))
            if any(column in row for row in rows)
        ]  # fmt: skip
        if not lines:
            continue
        svg = curves(lines, f"{label} over the epochs", "epoch", label, best)
        legend = page.key((line.kind, line.name) for line in lines)
        kept = f" The dotted line is the kept epoch, {best}." if best else ""
        drawn.append((svg, f"{escape(label)}: {legend}.{kept}"))
    return page.section("Learning curves", page.charts(*drawn))


# -- predictions ----------------------------------------------------------------------------------


def classes(true: Array, predicted: Array, names: Sequence[str], about: str) -> str:
    """Return the confusions and a line for each class.

    Parameters
    ----------
    true, predicted : (N,) int arrays
        Class indices.
    names : sequence of str
        Names of the classes.
    about : str
        Which rows these are.
    """
    counts = count_pairs(true, predicted, len(names))
    few = len(names) <= MOST_CLASSES
    confusion = _matrix(counts, names) if few else _confusions(counts, names)
    rows = []
    for k, name in enumerate(names):
        others = counts[k].copy()
        others[k] = 0
        taken = f"{names[int(others.argmax())]} ({others.max():,})" if others.any() else "–"
        rows.append([name, *_rates(counts[k, k], counts[k].sum(), counts[:, k].sum()), taken])
    head = ["class", "rows", "precision", "recall", "F1", "most often taken for"]
    return page.section("Confusions", page.text(about), confusion) + page.section(
        "Classes", page.folded(f"{len(rows)} classes", page.table(head, rows), many=len(rows) > 40)
    )


def _rates(right: int, true: int, said: int) -> list[str]:
    """Return rows, precision, recall and F1 as text."""
    shares = [(right, said), (right, true), (2 * right, true + said)]
    return [f"{true:,}", *(f"{a / b:.3f}" if b else "–" for a, b in shares)]


def _matrix(counts: Array, names: Sequence[str]) -> str:
    """Return a table of counts; the diagonal is blue, mistakes are orange, by share of the row."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    lines = [f'<thead><tr><th scope="col">true \\ predicted</th>{heads}</tr></thead>']
    for i, name in enumerate(names):
        cells = "".join(
            _shaded(int(counts[i, j]), float(share[i, j]), i == j) for j in range(len(names))
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return f'<div class="wide"><table class="confusion">{"".join(lines)}</table></div>'


def _shaded(count: int, share: float, right: bool) -> str:
    if not count:
        return "<td></td>"
    color = "0,114,178" if right else "213,94,0"
    depth = 0.12 + 0.88 * share**0.5  # a mistake of one row in a hundred shows
    ink = ";color:#fff" if depth > 0.8 else ""
    return (
        f'<td style="background:rgba({color},{depth:.2f}){ink}" title="{share:.1%}">{count:,}</td>'
    )


def _confusions(counts: Array, names: Sequence[str], most: int = 20) -> str:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
    rows = [[names[i], names[j], f"{wrong[i, j]:,}", f"{counts[i].sum():,}"] for i, j in pairs]
    return page.table(["true", "predicted", "rows", "of the class"], rows) or page.text("None.")


def labels(true: Array, yhat: Array, names: Sequence[str], about: str) -> str:
    """Return a line for each label of a multilabel model."""
    said, applies = yhat > 0.5, true > 0.5
    rows = [
        [
            name,
            *_rates(
                int((said & applies)[:, k].sum()), int(applies[:, k].sum()), int(said[:, k].sum())
            ),
        ]
        for k, name in enumerate(names)
    ]
    return page.section(
        "Labels", page.text(about), page.table(["label", "rows", "precision", "recall", "F1"], rows)
    )


def numbers(true: Array, yhat: Array, names: Sequence[str], about: str) -> str:
    """Return predicted against true values and the errors, for each of the first targets."""
    drawn = []
    for k, name in enumerate(names[:MOST_TARGETS]):
        t, p = true[:, k], yhat[:, k]
        against = f"{escape(name)}, predicted against true. On the line they are equal."
        errors = f"{escape(name)}, errors. A shape that is no band says what is missed."
        drawn.append((scatter(t, p, f"predicted against true {name}", name), against))
        drawn.append((residuals(t, p, f"errors of {name}", name), errors))
    more = (
        f" The first {MOST_TARGETS} of {len(names)} targets." if len(names) > MOST_TARGETS else ""
    )
    return page.section("Predictions", page.text(about + more), page.charts(*drawn))


# -- inputs and surroundings ----------------------------------------------------------------------


def importances(found: Mapping[str, Importance], score: str, about: str, most: int = 20) -> str:
    """Return bars of permutation importance."""
    if not found:
        return page.section("Importance of the columns", page.text(about)) if about else ""
    widest = max(max(abs(value.mean) for value in found.values()), 1e-12)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{value.mean:.4f}</td>'
        f'<td class="number">± {value.deviation:.4f}</td>'
        f'<td class="bar"><i style="width:{100 * max(value.mean, 0) / widest:.1f}%"></i></td></tr>'
        for name, value in list(found.items())[:most]
    )
    left = len(found) - most
    note = f" {left} further columns matter less." if left > 0 else ""
    text = f"By how much the {score} falls if the values of a column are shuffled. {about}{note}"
    return page.section(
        "Importance of the columns", page.text(text),
        f'<div class="wide"><table class="bars"><tbody>{rows}</tbody></table></div>',
    )  # fmt: skip


def columns(report: Mapping[str, str] | None) -> str:
    """Return what was done to each column."""
    if not report:
        return ""
    body = page.pairs(report.items())
    return page.section(
        "What was done to the columns",
        page.folded(f"{len(report)} columns", body, many=len(report) > 60),
    )


def environment(summary: Mapping[str, Any]) -> str:
    """Return network, settings, device, versions and the command."""
    network = summary["network"]
    widths = "-".join(map(str, network["widths"]))
    acts = ", ".join(dict.fromkeys(network["activation"])) or "no hidden layer"
    count = f"{summary['parameters']:,} parameters"
    where = f"{summary['device']} ({summary['device_reason']})"
    rows = [
        ("network", f"{widths}, {acts}, output {network['output']}; {count}"),
        ("loss", _settings(summary["loss"])),
        ("optimizer", _settings(summary["optimizer"])),
        ("schedule", _settings(summary["schedule"])),
        ("batch", f"{summary['batch_size']:,} rows"),
        ("seed", str(summary["options"].get("seed", "–"))),
        ("numbers", f"{summary['dtype']}, products in {summary['precision']}"),
        ("device", f"{where}; {summary['blas']}, threads: {summary['threads']}"),
        ("versions", ", ".join(f"{name} {v}" for name, v in summary["versions"].items())),
    ]
    command = " ".join(map(str, summary["command"]))
    return page.section("How it was made", page.pairs(rows), f"<pre>{escape(command)}</pre>")


def _settings(config: Any) -> str:
    if not isinstance(config, Mapping):
        return str(config)
    shown = {key: value for key, value in config.items() if key not in ("name", "formula")}
    name = config.get("name", config.get("formula", ""))
    nothing: tuple[Any, ...] = (None, [], {}, False)
    rest = ", ".join(
        f"{key} {value}" for key, value in shown.items() if value not in nothing and value == value
    )
    return f"{name}: {rest}" if name and rest else str(name or rest)
