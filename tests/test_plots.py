"""The pictures: what is in the files, and what is drawn in them."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpubackprop import MLP, plots
from gpubackprop.errors import MissingDependencyError, OptionError, ShapeError
from gpubackprop.training import History
from tests.cli_runs import ENVIRONMENT

pytest.importorskip("matplotlib")


def some_history(epochs: int = 4, *, validation: bool = True, loss: float = 1.0) -> History:
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "loss": loss / epoch, "accuracy": 1 - 0.5 / epoch}
        if validation:
            row |= {"val_loss": 1.2 * loss / epoch, "val_accuracy": 1 - 0.6 / epoch}
        rows.append(row)
    history = History(rows)
    history.best_epoch = min(3, epochs)
    return history


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that are written, for a look at what is in them."""
    figures = []
    finish = plots.finish
    monkeypatch.setattr(
        plots, "finish", lambda figure, path: figures.append(figure) or finish(figure, path)
    )
    return figures


def test_pictures_are_png_files_wide_enough_for_a_slide(tmp_path):
    plots.learning_curve(some_history(), tmp_path / "curve.png")
    plots.confusion_matrix([0, 1, 1], [0, 1, 0], "ab", tmp_path / "matrix.png")
    plots.predictions([1.0, 2.0], [1.1, 1.9], tmp_path / "scatter.png")
    assert plots.DPI >= 150
    assert png_size(tmp_path / "curve.png")[0] > 1500
    assert min(*png_size(tmp_path / "matrix.png"), *png_size(tmp_path / "scatter.png")) > 600
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "curve.png",
        "matrix.png",
        "scatter.png",
    ]


def test_the_learning_curve_shows_both_losses_and_marks_the_best_epoch(tmp_path, drawn):
    plots.learning_curve(some_history(), tmp_path / "a.png", title="T", loss_label="cross entropy")
    loss, accuracy = drawn[0].axes
    assert (loss.get_xlabel(), loss.get_ylabel(), accuracy.get_ylabel()) == (
        "epoch",
        "cross entropy",
        "accuracy",
    )
    curves = {line.get_label(): line for line in loss.get_lines()}
    assert list(curves["training"].get_ydata()) == [1.0, 1 / 2, 1 / 3, 1 / 4]
    assert list(curves["validation"].get_ydata()) == [1.2, 1.2 / 2, 1.2 / 3, 1.2 / 4]
    assert curves["training"].get_color() != curves["validation"].get_color()
    best = curves["best epoch (3): 0.4"]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([3], [1.2 / 3])


def test_without_validation_the_training_curve_is_marked(tmp_path, drawn):
    plots.learning_curve(some_history(validation=False), tmp_path / "a.png")
    labels = [line.get_label() for line in drawn[0].axes[0].get_lines()]
    assert "validation" not in labels
    assert "best epoch (3): 0.3333" in labels


def test_losses_over_decades_get_a_logarithmic_axis_and_others_not(tmp_path, drawn):
    plots.learning_curve(some_history(40), tmp_path / "a.png")
    plots.learning_curve(some_history(4), tmp_path / "b.png")
    plots.learning_curve(some_history(40, loss=-1.0), tmp_path / "c.png")
    assert [figure.axes[0].get_yscale() for figure in drawn] == ["log", "linear", "linear"]


def test_a_history_of_one_epoch_and_one_with_an_infinite_loss_are_drawn(tmp_path):
    plots.learning_curve(some_history(1), tmp_path / "a.png")
    history = some_history()
    history.rows[1]["loss"] = float("inf")
    plots.learning_curve(history, tmp_path / "b.png")
    assert png_size(tmp_path / "a.png")[0] > 0
    assert png_size(tmp_path / "b.png")[0] > 0


def test_a_history_without_epochs_is_refused(tmp_path):
    with pytest.raises(ShapeError, match="no epochs"):
        plots.learning_curve(History(), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_pairs_are_counted_with_the_true_class_in_rows():
    counts = plots.count_pairs([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0], 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(ShapeError, match=r"\(2,\) and predicted \(3,\)"):
        plots.count_pairs([0, 1], [0, 1, 1], 2)


def test_cells_show_count_and_share_of_the_true_class_and_zeros_stay_empty(tmp_path, drawn):
    plots.confusion_matrix(
        [0] * 3 + [1] * 4, [0, 0, 1, 1, 1, 1, 1], ["no", "yes"], tmp_path / "a.png"
    )
    axes = drawn[0].axes[0]
    texts = {(t.get_position()[0], round(t.get_position()[1]), t.get_text()) for t in axes.texts}
    cells = {text for text in texts if not text[2].startswith("rows")}
    assert cells == {
        (0, 0, "2"),
        (0, 0, "66.7%"),
        (1, 0, "1"),
        (1, 0, "33.3%"),
        (1, 1, "4"),
        (1, 1, "100%"),
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["no", "yes"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_a_class_that_does_not_occur_divides_by_nothing(tmp_path):
    plots.confusion_matrix([0, 0], [0, 2], "abc", tmp_path / "a.png")  # warnings are errors here


def test_mistakes_and_hits_differ_in_hue_and_empty_cells_are_white():
    counts = np.array([[9, 1], [0, 5]])
    shades = plots._shades(counts, counts / counts.sum(1, keepdims=True))
    assert shades[1, 0].tolist() == [1, 1, 1]
    blue, orange = shades[0, 0], shades[0, 1]
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]


@pytest.mark.parametrize("classes", [1, 20, 21, 150])
def test_any_number_of_classes_is_drawn_and_few_are_labelled_in_full(classes, tmp_path, drawn):
    labels = np.arange(classes)
    plots.confusion_matrix(labels, labels, [f"class {i}" for i in labels], tmp_path / "a.png")
    ticks = drawn[0].axes[0].get_xticklabels()
    assert len(ticks) == classes if classes <= 25 else len(ticks) <= 25
    assert max(png_size(tmp_path / "a.png")) < 3000


def test_long_class_names_are_turned_and_shortened(tmp_path, drawn):
    plots.confusion_matrix([0, 1], [0, 1], ["a", "a very long name of a class"], tmp_path / "a.png")
    label = drawn[0].axes[0].get_xticklabels()[1]
    assert label.get_rotation() > 0
    assert label.get_text() == "a very long nam…"


def test_predictions_have_a_panel_for_each_target_with_its_error(tmp_path, drawn):
    true = np.array([[0.0, 10.0], [2.0, 30.0]])
    plots.predictions(
        true, true + np.array([1.0, -3.0]), tmp_path / "a.png", names=["speed", "height"]
    )
    first, second = drawn[0].axes
    assert (first.get_xlabel(), second.get_ylabel()) == ("true speed", "predicted height")
    assert first.get_title().startswith("rmse 1,  R² 0.000")  # 1 - (1 + 1) / (1 + 1)
    assert second.get_title().startswith("rmse 3,  R² 0.910")  # 1 - 18 / 200


def test_predictions_of_a_constant_target_have_no_r2(tmp_path, drawn):
    plots.predictions([2.0, 2.0], [2.0, 2.0], tmp_path / "a.png")
    assert "R²" not in drawn[0].axes[0].get_title()


def test_predictions_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ShapeError, match="predicted"):
        plots.predictions([1.0, 2.0], [1.0, 2.0, 3.0], tmp_path / "a.png")


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "gpubackprop\[cli\]"'):
        plots.learning_curve(some_history(), tmp_path / "a.png")


def test_a_full_disk_leaves_the_earlier_picture(tmp_path, monkeypatch):
    picture = tmp_path / "a.png"
    plots.learning_curve(some_history(), picture)
    before = picture.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        plots.learning_curve(some_history(2), picture)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_drawing_needs_no_display_and_no_pyplot(tmp_path):
    code = (
        "import sys; from gpubackprop import plots; assert 'matplotlib' not in sys.modules\n"
        f"plots.predictions([1.0, 2.0], [1.0, 2.5], {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {k: v for k, v in ENVIRONMENT.items() if k not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert png_size(tmp_path / "a.png")[0] > 0


# -- figures --------------------------------------------------------------------------------------


def test_a_plot_returns_its_figure_and_writes_only_where_a_path_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figures = [
        plots.learning_curve(some_history()),
        plots.confusion_matrix([0, 1, 1], [0, 1, 0], "ab"),
        plots.predictions([1.0, 2.0], [1.1, 1.9]),
        plots.network(MLP([2, 3, 2])),
    ]
    assert not list(tmp_path.iterdir())
    for figure in figures:
        assert figure._repr_png_()[:4] == b"\x89PNG"  # what a notebook asks for
        figure.axes[0].set_title("changed")
        assert pickle.loads(pickle.dumps(figure)).axes[0].get_title() == "changed"


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_a_network_is_drawn_with_its_values_and_the_delta_of_every_unit(tmp_path):
    net = MLP([2, 2, 1], output="linear", dtype="float64", initializer="zeros")
    net.W = [np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, -1.0]])]
    gradients = net.gradients(np.array([[9.0, 9.0], [1.0, 1.0]]), np.array([0.0, 5.0]))
    figure = plots.network(net, gradients, tmp_path / "net.png", row=1)
    forward, backward = figure.axes
    # as in test_trace: h_1 = (3, 7), yhat = -4; delta is of the mean of two rows
    assert texts(forward) == ["1.00", "1.00", "x", "3.00", "7.00", "relu", "−4.00", "linear"]
    assert texts(backward) == ["x", "−4.50", "4.50", "relu", "−4.50", "linear"]
    assert len(forward.collections[0].get_segments()) == 4
    assert png_size(tmp_path / "net.png")[0] > 600


def test_the_lines_of_a_network_are_its_weights_and_the_strongest_lies_above():
    net = MLP([1, 3], initializer="zeros")
    net.W = [np.array([[-2.0], [1.0], [0.0]])]
    (axes,) = plots.network(net).axes
    widths = axes.collections[0].get_linewidths()
    assert list(widths) == sorted(widths)
    strongest = axes.collections[0].get_colors()[-1][:3]
    assert strongest[2] > strongest[0]  # below 0 is blue
    assert texts(axes) == ["x", "softmax"]


def test_of_a_wide_layer_the_first_and_the_last_units_are_drawn():
    net = MLP([300, 2])
    axes = plots.network(net, net.gradients(np.arange(300.0)[None], np.array([0]))).axes[0]
    assert texts(axes)[:8] == ["0.00", "1.00", "2.00", "3.00", "⋮", "297", "298", "299"]


def test_gradients_of_another_network_and_a_row_that_is_not_there_are_refused():
    net = MLP([2, 3, 2])
    gradients = net.gradients(np.ones((4, 2)), np.zeros(4, int))
    with pytest.raises(ShapeError, match=r"\(3, 2\), \(2, 3\)"):
        plots.network(MLP([2, 2]), gradients)
    with pytest.raises(OptionError, match="row is 4 but the gradients are of 4 rows"):
        plots.network(net, gradients, row=4)
