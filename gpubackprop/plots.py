"""Pictures: of a training, of predictions, and of a network with its values and gradients.

Each function returns a matplotlib figure, which a notebook shows, and writes it as a PNG, whole or
not at all, if it is given a path.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.errors import ShapeError
from gpubackprop.figures import BLUE, DPI, GREY, ORANGE, finish, in_style, literal, new_figure
from gpubackprop.network_picture import network
from gpubackprop.training import History, Profile

__all__ = [
    "DPI",
    "confusion_matrix",
    "count_pairs",
    "learning_curve",
    "network",
    "predictions",
    "profile",
]

Array = np.ndarray
LABELLED_CLASSES = 20  # with more classes, cells are too small for numbers
_MOST_POINTS = 20_000  # in a scatter plot; more hide one another and take seconds to draw


@in_style
def learning_curve(
    history: History,
    path: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
    loss_label: str = "loss",
) -> Any:
    """Draw the loss, and a classifier's accuracy, over the epochs; the kept epoch is marked.

    Parameters
    ----------
    history : History
        A history with one finished epoch or more.
    path : path or None
        The PNG to write.
    title : str
        Above the picture.
    loss_label : str
        Name of the loss axis, e.g. "cross entropy".

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ShapeError
        No epoch was finished.
    MissingDependencyError
        matplotlib is not installed.
    StorageError
        The file cannot be written.

    Examples
    --------
    >>> from gpubackprop import MLP, Trainer
    >>> trainer = Trainer(MLP([2, 3, 2]))
    >>> history = trainer.fit(np.eye(2), np.array([0, 1]), epochs=2)
    >>> figure = learning_curve(history, "curve.png")
    >>> os.path.exists("curve.png")
    True
    """
    if not len(history):
        raise ShapeError("the history has no epochs; draw it after one epoch or more")
    columns = history.columns
    panels = [("loss", loss_label)] + [("accuracy", "accuracy")] * ("accuracy" in columns)
    figure = new_figure((1.4 + 5.6 * len(panels), 4.6), title)
    epochs = [row["epoch"] for row in history.rows]
    for i, (column, label) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        curves = [("training", column, BLUE), ("validation", f"val_{column}", ORANGE)]
        for name, key, color in curves:
            if key in columns:
                _curve(axes, epochs, history[key], name, color)
        _mark_best(axes, history, column)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _scale_loss(axes, history, column)
        axes.grid(True, which="major")
        axes.legend(loc="best")
    return finish(figure, path)


def _curve(
    axes: Any, epochs: Sequence[int], values: Sequence[float], name: str, color: str
) -> None:
    marker = "o" if len(epochs) <= 15 else None  # a single epoch would be an invisible line
    axes.plot(epochs, values, color=color, label=name, marker=marker, markersize=5)


def _mark_best(axes: Any, history: History, column: str) -> None:
    """Draw a dotted line and a dot at the epoch whose weights were kept."""
    best = history.best_epoch
    at = next((row for row in history.rows if row["epoch"] == best), None)
    if at is None:
        return
    key = f"val_{column}" if f"val_{column}" in at else column
    axes.axvline(best, color=GREY, linestyle=":", linewidth=1.5, zorder=1)
    axes.plot(
        [best], [at[key]], "o", markersize=9, markerfacecolor="white", markeredgewidth=2,
        markeredgecolor=ORANGE if key.startswith("val_") else BLUE, zorder=5,
        label=f"best epoch ({best}): {at[key]:.4g}", linestyle="none",
    )  # fmt: skip


def _scale_loss(axes: Any, history: History, column: str) -> None:
    """Take a logarithmic axis if positive losses span more than a factor of 30."""
    keys = [key for key in (column, f"val_{column}") if key in history.columns]
    values = np.array([v for key in keys for v in history[key] if math.isfinite(v)])
    positive = column != "accuracy" and len(values) > 0 and values.min() > 0
    if positive and values.max() > 30 * values.min():
        axes.set_yscale("log")


@in_style
def confusion_matrix(
    true: Any,
    predicted: Any,
    classes: Sequence[Any] | Array,
    path: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
) -> Any:
    """Draw the counts of (true class, predicted class) and their share of the true class.

    Up to 20 classes have numbers in their cells; with more, only the shade shows the share.

    Parameters
    ----------
    true : (N,) int array
        True class indices in [0, K).
    predicted : (N,) int array
        Predicted class indices in [0, K).
    classes : (K,) sequence
        Labels of rows and columns.
    path : path or None
        The PNG to write.
    title : str
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ShapeError
        `true` and `predicted` are not vectors of one length.
    MissingDependencyError
        matplotlib is not installed.
    StorageError
        The file cannot be written.

    Examples
    --------
    >>> figure = confusion_matrix([0, 1, 1], [0, 1, 0], ["no", "yes"], "confusion.png")
    >>> os.path.exists("confusion.png")
    True
    """
    names = [str(name) for name in classes]
    counts = count_pairs(true, predicted, len(names))
    total = counts.sum(1, keepdims=True)
    share = counts / np.maximum(total, 1)
    few = len(names) <= LABELLED_CLASSES
    cell = float(np.clip(7.5 / len(names), 0.62 if few else 0.075, 1.3))
    figure = new_figure((cell * len(names) + (2.4 if few else 3.6), cell * len(names) + 2.2))
    axes = figure.add_subplot()
    if few:
        axes.imshow(_shades(counts, share))
        _cell_texts(axes, counts, share)
        axes.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
        axes.grid(True, which="minor", color="#DDDDDD", linewidth=0.8)
        note = "rows, and their share of the true class"
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center"}
        axes.annotate(note, (0.5, 1.0), (0, 8), size=11, color=GREY, **place)
    else:
        image = axes.imshow(np.sqrt(share), cmap="Blues", vmin=0.0, vmax=1.0)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
        bar.set_ticks(
            [0, 0.1, 0.1**0.5, 0.5, 0.5**0.5, 1], labels=["0", "1%", "10%", "25%", "50%", "100%"]
        )
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
    _class_ticks(axes, names, cell)
    axes.set_title(literal(title), pad=28 if few else 8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0)
    return finish(figure, path)


def _class_ticks(axes: Any, names: Sequence[str], cell: float) -> None:
    """Write class names on both axes, turned if they would touch; with many classes, every n-th."""
    ticks = range(0, len(names), math.ceil(len(names) / 25))
    shown = [literal(names[i] if len(names[i]) <= 16 else names[i][:15] + "…") for i in ticks]
    turned = max(map(len, shown)) * 0.12 > 0.9 * cell * ticks.step  # inches
    how = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(ticks, shown, **how)
    axes.set_yticks(ticks, shown)


def _shades(counts: Array, share: Array) -> Array:
    """Return (K, K, 3) colours: the diagonal in blue, mistakes in orange, cells without rows white.

    The square root makes a mistake of one row in a hundred visible.
    """
    right, wrong = (
        np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for code in (BLUE, ORANGE)
    )
    hue = np.where(np.eye(len(counts), dtype=bool)[..., None], right, wrong)
    depth = np.sqrt(share)[..., None]
    return 1.0 + depth * (hue - 1.0)


def count_pairs(true: Any, predicted: Any, classes: int) -> Array:
    """Count the pairs of true and predicted class.

    Parameters
    ----------
    true : (N,) int array
        True class indices in [0, K).
    predicted : (N,) int array
        Predicted class indices in [0, K).
    classes : int
        Number of classes K.

    Returns
    -------
    (K, K) int array
        Counts; rows are the true classes.

    Raises
    ------
    ShapeError
        `true` and `predicted` are not vectors of one length.

    Examples
    --------
    >>> count_pairs([0, 1, 1], [0, 1, 0], 2)
    array([[1, 0],
           [1, 1]])
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    if true.shape != predicted.shape or true.ndim != 1:
        raise ShapeError(
            f"true has shape {true.shape} and predicted {predicted.shape}; both want (N,) class "
            "indices of the same rows"
        )
    flat = np.bincount(true * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


def _cell_texts(axes: Any, counts: Array, share: Array) -> None:
    """Write count above percentage; cells of 0 stay empty, so that the errors stand out."""
    size = 12 if len(counts) <= 12 else 9
    for i, j in np.argwhere(counts):
        color = "white" if share[i, j] > 0.6 else "black"
        percent = f"{share[i, j]:.1%}" if share[i, j] < 0.9995 else "100%"
        axes.text(j, i - 0.14, f"{counts[i, j]}", ha="center", va="center", color=color, size=size)
        axes.text(j, i + 0.24, percent, ha="center", va="center", color=color, size=size * 0.72)


@in_style
def predictions(
    true: Any,
    predicted: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    names: Sequence[str] = (),
    title: str = "",
) -> Any:
    """Draw predicted against true values, one panel for each of the first six target columns.

    Parameters
    ----------
    true : (N, K) or (N,) array
        True values.
    predicted : (N, K) or (N,) array
        Predicted values.
    path : path or None
        The PNG to write.
    names : sequence of str
        Names of the K columns.
    title : str
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ShapeError
        `true` and `predicted` have different shapes.
    MissingDependencyError
        matplotlib is not installed.
    StorageError
        The file cannot be written.

    Examples
    --------
    >>> figure = predictions([1.0, 2.0], [1.1, 1.9], "predictions.png")
    >>> os.path.exists("predictions.png")
    True
    """
    true, predicted = (np.asarray(a, np.float64) for a in (true, predicted))
    true, predicted = (a[:, None] if a.ndim == 1 else a for a in (true, predicted))
    if true.shape != predicted.shape:
        raise ShapeError(f"true has shape {true.shape} but predicted {predicted.shape}")
    count = min(true.shape[1], 6)
    across = min(count, 3)
    down = math.ceil(count / across)
    figure = new_figure((5.6 * across + 0.4, 5.0 * down + 0.4), title)
    picked = np.random.default_rng(0).permutation(len(true))[:_MOST_POINTS]
    for k in range(count):
        axes = figure.add_subplot(down, across, k + 1)
        _scatter(axes, true[:, k], predicted[:, k], picked)
        name = literal(names[k]) if k < len(names) else "value" if count == 1 else f"value {k + 1}"
        axes.set_xlabel(f"true {name}")
        axes.set_ylabel(f"predicted {name}")
    return finish(figure, path)


def _scatter(axes: Any, t: Array, p: Array, picked: Array) -> None:
    rmse = math.sqrt(float(np.mean((t - p) ** 2)))
    spread = float(np.sum((t - t.mean()) ** 2))
    about = f"rmse {float(f'{rmse:.4g}'):,g}"
    if spread:
        about += f",  R² {1 - float(np.sum((t - p) ** 2)) / spread:.3f}"
    axes.set_title(f"{about};  line: predicted = true", fontsize=11, color=GREY)
    alpha = float(np.clip(20 / math.sqrt(len(picked)), 0.1, 0.75))
    axes.scatter(t[picked], p[picked], s=22, color=BLUE, alpha=alpha, linewidths=0, zorder=3)
    low, high = (float(f(np.concatenate([t, p]))) for f in (np.min, np.max))
    margin = 0.04 * ((high - low) or 1.0)
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=ORANGE, linewidth=1.5, zorder=4)
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    axes.locator_params(nbins=6)
    axes.grid(True)


@in_style
def profile(
    measured: Profile, path: str | os.PathLike[str] | None = None, *, title: str = ""
) -> Any:
    """Draw the operations of a training step as bars, as long as their times.

    Parameters
    ----------
    measured : Profile
        What `Trainer.profile` returned.
    path : path or None
        The PNG to write.
    title : str
        Above the picture; by default the time of the step.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    StorageError
        The file could not be written.

    Examples
    --------
    >>> from gpubackprop import MLP, Trainer
    >>> trainer = Trainer(MLP([4, 8, 3]), batch_size=16)
    >>> figure = profile(trainer.profile(np.zeros((16, 4)), np.zeros(16, int)), "profile.png")
    """
    rows = measured.rows
    text = f"{1e6 * measured.step:.0f} µs a step of {measured.batch_size} rows, {measured.device}"
    figure = new_figure((9.0, 1.6 + 0.42 * len(rows)), title or text)
    axes = figure.add_subplot()
    names = [f"{row.operation}  {' x '.join(map(str, row.shape))}" for row in rows]
    times = [1e6 * row.seconds for row in rows]
    bars = axes.barh(range(len(rows)), times, color=BLUE, height=0.7)
    share = [f"{100 * row.seconds / (measured.seconds or 1.0):.0f} %" for row in rows]
    axes.bar_label(bars, share, padding=4, fontsize=11)
    axes.set_yticks(range(len(rows)), names, fontsize=11)
    axes.invert_yaxis()
    axes.set_xlabel("µs, each operation by itself")
    axes.set_xlim(0, 1.12 * max(times, default=1.0))
    axes.xaxis.grid(True)
    return finish(figure, path)
