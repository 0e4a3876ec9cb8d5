"""The report of a training: its figures beside scikit-learn's, its drawings, its HTML."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.inspection import permutation_importance as theirs
from sklearn.metrics import precision_recall_fscore_support

from gpubackprop.report import page, sections, svg
from gpubackprop.report.importance import Importance, permutation_importance

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed, and by its own end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: Any) -> None: ...

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def points(drawing: str, kind: str) -> list[tuple[float, float]]:
    """The places of the circles of a class in a drawing, which must be well-formed XML."""
    return [
        (float(circle.get("cx", "")), float(circle.get("cy", "")))
        for circle in ET.fromstring(drawing).iter("circle")
        if circle.get("class") == kind
    ]


# -- importance -----------------------------------------------------------------------------------


def test_importance_is_scikit_learns_up_to_the_shuffles():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    weights = np.array([3.0, 1.0, 0.0])
    y = x @ weights + rng.normal(size=400)

    def score(x: np.ndarray) -> float:
        return 1 - float(np.square(x @ weights - y).sum() / np.square(y - y.mean()).sum())

    found = permutation_importance(score, x, {"a": [0], "b": [1], "c": [2]}, repeats=60)
    stub = SimpleNamespace(fit=print, score=lambda x, y: score(x))
    wanted = theirs(stub, x, y, n_repeats=60, random_state=1)
    assert list(found) == ["a", "b", "c"]
    for value, mean, deviation in zip(
        found.values(), wanted.importances_mean, wanted.importances_std, strict=True
    ):
        assert value.mean == pytest.approx(mean, abs=4 * deviation / math.sqrt(60) + 1e-12)
        assert value.deviation == pytest.approx(deviation, rel=0.5, abs=1e-12)
    assert found["c"] == Importance(0.0, 0.0)


def test_columns_that_became_several_are_shuffled_together():
    one_hot = np.eye(4)[np.arange(40) % 4]
    seen = []

    def score(x: np.ndarray) -> float:
        seen.append(x.sum(1))
        return 0.0

    permutation_importance(score, one_hot, {"kind": [0, 1, 2, 3]}, repeats=3)
    assert len(seen) == 4
    assert all((sums == 1).all() for sums in seen)


def test_importance_is_left_out_where_it_would_take_too_long():
    x = np.zeros((5, 2))
    assert permutation_importance(lambda x: 0.0, x, {"a": [0]}, seconds=0.0) == {}
    assert permutation_importance(lambda x: 0.0, x[:1], {"a": [0]}) == {}


# -- drawings -------------------------------------------------------------------------------------


def test_curves_have_a_point_for_each_epoch_and_gaps_for_nan():
    values = [3.0, math.nan, 2.0, 1.0]
    drawing = svg.curves(
        [svg.Line("training", "first", [1, 2, 3, 4], values)], "a < b", "epoch", "loss & more", 3
    )
    places = points(drawing, "first")
    assert len(places) == 3
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted(y for _, y in places)  # the loss falls, so y grows
    assert places[-1][0] == svg.END
    assert "loss &amp; more" in drawing
    assert svg.curves([svg.Line("a", "first", [1], [math.nan])], "", "", "") == ""


@pytest.mark.parametrize(
    "values", [[0.5], [2.0, 2.0], [0.0, 0.0], [-1e-9, 1e9], [1e-6, 1.0], [1e300, 1.0]]
)
def test_curves_of_any_numbers_lie_within_the_drawing(values):
    line = svg.Line("a", "second", list(range(1, len(values) + 1)), values)
    for x, y in points(svg.curves([line], "", "epoch", "loss"), "second"):
        assert 0 <= x <= svg.WIDTH
        assert 0 <= y <= svg.HEIGHT


def test_predictions_on_the_diagonal_lie_on_its_line_and_have_no_errors():
    true = np.array([1.0, 2.0, 30.0])
    drawing = svg.scatter(true, true, "title", "name")
    line = next(e for e in ET.fromstring(drawing).iter("line") if e.get("class") == "second")
    x1, y1, x2, y2 = (float(line.get(name, "")) for name in ("x1", "y1", "x2", "y2"))
    for x, y in points(drawing, "dot"):
        assert (y - y1) / (y2 - y1) == pytest.approx((x - x1) / (x2 - x1), abs=0.01)
    drawing = svg.residuals(true, true, "title", "name")
    zero = next(e for e in ET.fromstring(drawing).iter("line") if e.get("class") == "second")
    assert {y for _, y in points(drawing, "dot")} == {float(zero.get("y1", ""))}


def test_a_drawing_has_no_more_points_than_can_be_seen():
    many = np.random.default_rng(0).normal(size=5000)
    assert len(points(svg.scatter(many, many, "", ""), "dot")) == svg.MOST_POINTS


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (svg.Scale(0, 1, 0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (svg.Scale(1, 200, 0, 1), [50, 100, 150, 200]),
        (svg.Scale(-3, 7e5, 0, 1), [0, 2e5, 4e5, 6e5]),
        (svg.Scale(0.01, 5, 0, 1, log=True), [0.01, 0.1, 1]),
        (svg.Scale(0.2, 0.9, 0, 1, log=True), [0.2, 0.5]),
    ],
)
def test_ticks_are_round_numbers(scale, ticks):
    assert scale.ticks() == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.25, "0.25"), (-0.0, "0"), (1234.5678, "1,235"), (1e6, "1,000,000"), (1e8, "1e+08"),
     (3e-5, "3e-05"), (-12.5, "-12.5"), (math.nan, "nan"), (math.inf, "inf")],
)  # fmt: skip
def test_numbers_are_written_for_people(value, text):
    assert svg.number(value) == text


# -- sections -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 30], ids=["a matrix", "a list"])
def test_the_line_of_each_class_is_scikit_learns(count):
    rng = np.random.default_rng(1)
    true = rng.integers(0, count, 500)
    predicted = np.where(rng.random(500) < 0.7, true, rng.integers(0, count, 500))
    names = [f"<class {k}>" for k in range(count)]
    read = Reader(page.page("t", "l", [sections.classes(true, predicted, names, "500 test rows.")]))
    lines = {row[0]: row for row in read.rows if len(row) == 6}
    wanted = precision_recall_fscore_support(true, predicted, zero_division=0)
    for k, name in enumerate(names):
        rows, *figures, taken = lines[name][1:]
        assert rows == str(wanted[3][k])
        assert [float(f) for f in figures] == pytest.approx([w[k] for w in wanted[:3]], abs=5e-4)
        others = np.bincount(predicted[true == k], minlength=count)
        others[k] = 0
        assert taken == f"{names[others.argmax()]} ({others.max()})"
    if count == 3:
        matrix = [row for row in read.rows if len(row) == 4][1:]
        counts = [[int(cell or 0) for cell in row[1:]] for row in matrix]
        assert counts == [
            [int(((true == i) & (predicted == j)).sum()) for j in range(3)] for i in range(3)
        ]


def test_labels_have_precision_and_recall_of_their_own():
    true = np.array([[1, 0], [1, 1], [0, 0], [1, 0]])
    yhat = np.array([[0.9, 0.1], [0.2, 0.3], [0.8, 0.2], [0.7, 0.1]])
    read = Reader(page.page("t", "l", [sections.labels(true, yhat, ["a", "b"], "")]))
    assert read.rows[1:] == [
        ["a", "3", "0.667", "0.667", "0.667"],
        ["b", "1", "–", "0.000", "0.000"],
    ]


def test_words_of_the_data_stay_words():
    evil = '<script>alert("x")</script>'
    parts = [
        sections.classes(np.array([0, 1]), np.array([0, 0]), [evil, "b"], evil),
        sections.numbers(np.ones((3, 1)), np.ones((3, 1)), [evil], evil),
        sections.importances({evil: Importance(0.5, 0.1)}, evil, evil),
        sections.columns({evil: evil}),
        sections.learning_curves([{"epoch": 1, "loss": 1.0}], 1, evil),
        page.cards([(evil, evil)]),
    ]
    text = page.page(evil, evil, parts)
    assert "<script" not in text
    read = Reader(text)
    assert evil in "".join(read.words)
    assert read.links == []
    assert not re.search(r"url\(|@import|https?:", text)


def test_parts_without_content_have_no_heading():
    assert sections.importances({}, "accuracy", "") == ""
    assert sections.columns(None) == ""
    assert sections.learning_curves([], None, "loss") == ""
