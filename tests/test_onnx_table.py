"""A model with a `TablePreprocessor` as an ONNX graph: one input for each column of the table."""

from __future__ import annotations

import csv
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Model
from gpubackprop.data import TablePreprocessor
from gpubackprop.onnx.graph import OnnxGraph
from gpubackprop.onnx.table import table_inputs
from tests.cli_runs import QUICK, ok, read_table
from tests.test_onnx import assert_close, session

EPOCH = datetime.datetime(1970, 1, 1)


def table(rows: int = 200, seed: int = 0) -> dict[str, list[Any]]:
    """Columns of every kind; all but two have gaps."""
    rng = np.random.default_rng(seed)

    def with_gaps(values: Any) -> list[Any]:
        return [None if rng.random() < 0.1 else value for value in values]

    minutes = rng.integers(0, 24 * 60, rows).tolist()
    return {
        "age": with_gaps(rng.normal(50, 9, rows).tolist()),
        "rooms": rng.integers(1, 6, rows).tolist(),
        "colour": with_gaps(rng.choice(["red", "blue", "Grün"], rows).tolist()),
        "town": [f"town {place}" for place in (rng.pareto(1, rows) * 3).astype(int)],
        "open": with_gaps((rng.random(rows) < 0.5).tolist()),
        "day": with_gaps(
            EPOCH + datetime.timedelta(seconds=s) for s in rng.uniform(-9e8, 9e9, rows)
        ),
        "at": with_gaps(datetime.time(minute // 60, minute % 60) for minute in minutes),
    }


def seconds(value: Any) -> float:
    """A value as the graph takes it."""
    if isinstance(value, datetime.datetime):
        return (value - EPOCH).total_seconds()
    if isinstance(value, datetime.time):
        return value.hour * 3600 + value.minute * 60
    return np.nan if value is None else float(value)


def feed(running: Any, columns: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """The columns by the names and in the types of the graph's inputs."""
    fed = {}
    for wanted in running.get_inputs():
        values, kind = columns[wanted.name], wanted.type.removeprefix("tensor(").rstrip(")")
        if kind == "string":
            array = np.array([value or "" for value in values], dtype=object)
        else:
            array = np.array([seconds(value) for value in values], kind.replace("double", "f8"))
        fed[wanted.name] = array.astype("f4")[:, None] if kind == "float" else array[:, None]
    return fed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("standardize", [True, False])
def test_a_table_of_every_kind_of_column_gives_the_models_predictions(dtype, standardize):
    columns = table()
    prepared = TablePreprocessor.fit(columns, standardize=standardize, max_categories=4)
    network = MLP([len(prepared.output_names), 9, 3], "tanh", dtype=dtype, seed=1)
    model = Model(network, classes=["a", "b", "c"], preprocessor=prepared)
    running = session(model.to_onnx())
    types = {value.name: value.type for value in running.get_inputs()}
    assert list(types) == prepared.input_names
    assert types["colour"] == types["town"] == "tensor(string)"
    assert types["day"] == types["at"] == "tensor(double)"
    for columns in (table(), table(seed=5)):  # the second has towns that training had not
        label, found = running.run(None, feed(running, columns))
        assert_close(found, model.predict(columns))
        assert label.tolist() == model.predict_labels(columns).tolist()


def encoded(prepared: TablePreprocessor, columns: dict[str, list[Any]]) -> np.ndarray:
    graph = OnnxGraph(np.dtype(np.float64))
    value = table_inputs(graph, prepared, np.dtype(np.float64))
    graph.output(value, "out", np.float64, ["N", len(prepared.output_names)])
    running = session(graph.model("the encoding alone", {}))
    return running.run(["out"], feed(running, columns))[0]


def test_the_place_in_the_year_is_right_at_both_ends_of_every_year():
    last = datetime.timedelta(seconds=1)
    starts = [datetime.datetime(year, 1, 1) for year in range(1890, 2110)]
    days = [moment for start in starts for moment in (start - last, start)]
    days += [
        datetime.datetime(year, month, 29, 12) for year in (1904, 2000, 2096) for month in (2, 6)
    ]
    prepared = TablePreprocessor.fit({"day": days})
    assert "day: sin of year" in prepared.output_names
    np.testing.assert_allclose(
        encoded(prepared, {"day": days}), prepared.encode({"day": days}), rtol=0, atol=1e-9
    )


def test_unseen_and_missing_categories_are_no_category_where_training_had_none():
    prepared = TablePreprocessor.fit({"kind": ["a", "b"] * 5})
    found = encoded(prepared, {"kind": ["a", "b", "new", None]})
    assert found.tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]


def test_metadata_say_what_was_done_to_each_column():
    columns = table()
    prepared = TablePreprocessor.fit(columns, drop=["town"])
    model = Model(MLP([len(prepared.output_names), 2]), preprocessor=prepared)
    values = {entry.key: json.loads(entry.value) for entry in model.to_onnx().metadata_props}
    assert values["columns"] == prepared.report()
    assert values["columns"]["town"] == "left out: dropped"


TABLES = Path(__file__).parent / "tables"


@pytest.mark.parametrize(
    ("name", "target"), [("survey", "Age"), ("chile", "vote"), ("seattle_weather", "weather")]
)
def test_a_real_file_trained_and_exported_gives_what_predict_writes(name, target, tmp_path):
    """The graph is fed from the file's texts, by rules that stand here."""
    source = TABLES / f"{name}.csv"
    ok("train", source, "--target", target, *QUICK, "--output", tmp_path, "--quiet")
    ok("export", tmp_path, tmp_path / "out.onnx", "--quiet")
    options = [] if target == "Age" else ["--probabilities"]
    wanted = read_table(ok("predict", tmp_path, source, *options).out)
    running = session(str(tmp_path / "out.onnx"))
    with open(source, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def value(text: str, kind: str) -> Any:
        if kind == "tensor(string)":
            return "" if text == "NA" else text
        if "/" in text:
            return (datetime.datetime.strptime(text, "%Y/%m/%d") - EPOCH).total_seconds()
        return np.nan if text in ("", "NA") else float(text)

    fed = {}
    for column in running.get_inputs():
        values = [value(row[column.name], column.type) for row in rows]
        dtype = {"tensor(string)": object, "tensor(float)": np.float32}.get(column.type, np.float64)
        fed[column.name] = np.array(values, dtype)[:, None]
    found = dict(zip([o.name for o in running.get_outputs()], running.run(None, fed), strict=True))
    if "label" in found:
        assert found["label"].tolist() == wanted["prediction"]
        figures = [v for k, v in wanted.items() if k.startswith("probability_")]
        assert_close(found["probabilities"], np.array(figures, np.float32).T)
    else:
        assert_close(found["predictions"], np.array([wanted["prediction"]], np.float32).T)
