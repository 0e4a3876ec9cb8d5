"""TablePreprocessor: text, categories, dates and gaps of any table become a network's inputs."""

from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from gpubackprop import MLP, Model, Trainer
from gpubackprop.data import Standardizer, TablePreprocessor
from gpubackprop.data.preprocessor import Surprises
from gpubackprop.errors import DataError, ModelFileError, OptionError, ShapeError
from gpubackprop.tensorfile import read_tensors, write_tensors

COLUMNS: dict[str, list[Any]] = {
    "age": [20.0, None, 30.0, 60.0],
    "rooms": [1, 2, 3, 3],
    "colour": ["red", None, "blue", "red"],
    "open": [True, False, True, True],
    "day": [datetime.date(2024, 1, day) for day in (1, 2, 3, 14)],
}
FRAMES = {
    "mapping": lambda c: c,
    "pandas": pd.DataFrame,
    "pandas nullable": lambda c: pd.DataFrame(c).convert_dtypes(),
    "pandas arrow": lambda c: pd.DataFrame(c).convert_dtypes(dtype_backend="pyarrow"),
    "pandas categorical": lambda c: pd.DataFrame(c).astype({"colour": "category"}),
    "polars": pl.DataFrame,
    "polars enum": lambda c: pl.DataFrame(c).with_columns(
        pl.col("colour").cast(pl.Enum(["blue", "red", "x"]))
    ),
    "pyarrow": pa.table,
    "pyarrow dictionary": lambda c: pa.table(
        c | {"colour": pa.array(c["colour"]).dictionary_encode()}
    ),
    "structured array": lambda c: np.array(
        [tuple(row) for row in zip(*c.values(), strict=True)],
        dtype=[("age", "O"), ("rooms", "i4"), ("colour", "O"), ("open", "?"), ("day", "M8[D]")],
    ),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_table_of_any_library_gives_the_same_inputs(kind: str) -> None:
    wanted = TablePreprocessor.fit(COLUMNS, min_rows=1)
    found = TablePreprocessor.fit(FRAMES[kind](COLUMNS), min_rows=1)
    assert found.state() == wanted.state()
    np.testing.assert_array_equal(found.transform(FRAMES[kind](COLUMNS)), wanted.transform(COLUMNS))


def test_encoded_columns_are_those_worked_out_by_hand() -> None:
    prepared = TablePreprocessor.fit(COLUMNS, min_rows=1)
    days = [19723.0 + d for d in (0, 1, 2, 13)]  # 2024-01-01 was a Monday
    angle = 2 * np.pi * np.array([0, 1, 2, 6]) / 7
    wanted = {
        "age": [20, 30, 30, 60],  # the median of 20, 30, 60 is 30
        "age: missing": [0, 1, 0, 0],
        "rooms": [1, 2, 3, 3],
        "colour=red": [1, 0, 0, 1],
        "colour=blue": [0, 0, 1, 0],
        "colour: missing": [0, 1, 0, 0],
        "open": [1, 0, 1, 1],
        "day": np.array(days) * 86400,
        "day: sin of week": np.sin(angle),
        "day: cos of week": np.cos(angle),
    }
    assert prepared.output_names == list(wanted)
    np.testing.assert_allclose(prepared.encode(COLUMNS), np.stack(list(wanted.values()), 1))


def test_numbers_are_standardised_and_ones_and_zeros_are_not() -> None:
    prepared = TablePreprocessor.fit(COLUMNS, min_rows=1)
    x = prepared.transform(COLUMNS, np.float64)
    scaled = [name in ("age", "rooms", "open", "day") for name in prepared.output_names]
    np.testing.assert_allclose(x[:, scaled].mean(0), 0, atol=1e-7)
    np.testing.assert_allclose(x[:, scaled].std(0), 1, rtol=1e-9)
    raw = prepared.encode(COLUMNS)
    np.testing.assert_array_equal(x[:, ~np.array(scaled)], raw[:, ~np.array(scaled)])
    plain = TablePreprocessor.fit(COLUMNS, min_rows=1, standardize=False)
    np.testing.assert_array_equal(plain.transform(COLUMNS, np.float64), raw)


def test_numbers_and_categories_are_those_of_scikit_learn() -> None:
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "a": np.where(rng.random(300) < 0.1, np.nan, rng.normal(5, 3, 300)),
            "b": rng.choice(["u", "v", "w", "rare"], 300, p=[0.5, 0.3, 0.195, 0.005]),
        }
    )
    theirs = make_column_transformer(
        (
            make_pipeline(SimpleImputer(strategy="median", add_indicator=True), "passthrough"),
            ["a"],
        ),
        (OneHotEncoder(min_frequency=5, sparse_output=False), ["b"]),
    ).fit_transform(frame)
    theirs[:, :1] = StandardScaler().fit_transform(theirs[:, :1])
    ours = TablePreprocessor.fit(frame, min_rows=5)
    order = [ours.output_names.index(name) for name in (
        "a", "a: missing", "b=u", "b=v", "b=w", "b: other")]  # fmt: skip
    np.testing.assert_allclose(ours.transform(frame, np.float64)[:, order], theirs, atol=1e-12)


def test_only_the_training_rows_are_learnt_from() -> None:
    table = {"x": [1.0, 2.0, 3.0, 1e9], "c": ["a", "b", "a", "later"]}
    prepared = TablePreprocessor.fit(table, rows=[0, 1, 2], min_rows=1)
    assert prepared.standardizer is not None
    assert prepared.standardizer.mean[0] == 2.0
    assert prepared.columns[1].categories == ("a", "b")


def test_rare_categories_and_those_beyond_the_most_frequent_share_an_input() -> None:
    table = {"c": ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d"]}
    assert TablePreprocessor.fit(table).output_names == ["c=a", "c=b", "c=c", "c: other"]
    few = TablePreprocessor.fit(table, max_categories=2)
    assert few.output_names == ["c=a", "c=b", "c: other"]
    np.testing.assert_array_equal(
        few.encode({"c": ["d", "new", "b"]}), [[0, 0, 1]] * 2 + [[0, 1, 0]]
    )


def test_what_training_had_not_is_encoded_and_counted() -> None:
    prepared = TablePreprocessor.fit(COLUMNS, min_rows=1)
    later = COLUMNS | {"rooms": [None, 1, 1, None], "colour": ["red", "green", "grey", None]}
    surprises = Surprises()
    x = prepared.encode(later, surprises=surprises)
    assert surprises.missing == {"rooms": 2}
    assert surprises.unseen == {"colour": 2}
    assert "2 missing values ('rooms' 2)" in str(surprises)
    assert x[0, 2] == 2.5  # the median of rooms
    assert not x[1, 3:6].any()
    assert str(Surprises()) == ""


def test_columns_are_found_by_name_and_others_ignored() -> None:
    prepared = TablePreprocessor.fit(COLUMNS)
    turned = pd.DataFrame(COLUMNS).iloc[:, ::-1].assign(more=1)
    np.testing.assert_array_equal(prepared.transform(turned), prepared.transform(COLUMNS))
    with pytest.raises(DataError, match="column 'rooms' not among its columns"):
        prepared.transform({name: COLUMNS[name] for name in COLUMNS if name != "rooms"})
    with pytest.raises(ShapeError, match=r"x has 2 columns but the model wants 5: 'age'"):
        prepared.transform(np.ones((3, 2)))


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("name", [f"person {i}" for i in range(30)], "looks like an identifier"),
        ("row", list(range(1, 31)), "looks like an identifier"),
        ("patient_id", [(7 * i) % 31 + 100 for i in range(30)], "looks like an identifier"),
        ("same", ["a"] * 30, "the same value"),
        ("nothing", [None] * 30, "no value"),
        ("lists", [[1, 2]] * 30, "objects of the type list"),
    ],
)
def test_a_column_that_teaches_nothing_is_left_out_with_the_reason(
    name: str, values: list[Any], reason: str
) -> None:
    table = {"x": [i % 7 for i in range(30)], name: values}
    prepared = TablePreprocessor.fit(table)
    assert prepared.input_names == ["x"]
    assert reason in prepared.left_out[name]
    assert f"left out: {reason}" in prepared.report()[name]
    if "identifier" in reason:
        assert TablePreprocessor.fit(table, include=[name]).input_names == ["x", name]
        assert TablePreprocessor.fit(table, columns=[name]).input_names == [name]


@pytest.mark.parametrize(
    "values",
    [
        [1959 + i for i in range(30)],  # years
        [30.5 * i for i in range(30)],
        [(7 * i) % 31 for i in range(30)],  # distinct, but in no order
    ],
)
def test_distinct_numbers_that_count_no_rows_are_used(values: list[float]) -> None:
    assert TablePreprocessor.fit({"x": values}).input_names == ["x"]


def test_options_choose_columns_and_make_categories_of_numbers() -> None:
    prepared = TablePreprocessor.fit(COLUMNS, drop=["age"], categorical=["rooms"], min_rows=1)
    assert prepared.left_out == {"age": "dropped"}
    assert prepared.columns[0].categories == ("3", "1", "2")
    floats = prepared.encode(COLUMNS | {"rooms": [1.0, 2.0, 3.0, 3.0]})
    np.testing.assert_array_equal(floats, prepared.encode(COLUMNS))
    with pytest.raises(DataError, match=r"drop column 'ag' .*did you mean 'age'"):
        TablePreprocessor.fit(COLUMNS, drop=["ag"])
    with pytest.raises(OptionError, match="max_categories is 0"):
        TablePreprocessor.fit(COLUMNS, max_categories=0)
    with pytest.raises(DataError, match=r"no column is left .*'x': the same value"):
        TablePreprocessor.fit({"x": [1, 1]})


def test_values_of_another_kind_than_in_training_are_named_with_their_row() -> None:
    prepared = TablePreprocessor.fit(COLUMNS)
    with pytest.raises(DataError, match=r"row 2 .*column 'age' holds the text 'old' .*numbers"):
        prepared.transform(COLUMNS | {"age": ["1", "old", "?", "2"]})
    with pytest.raises(DataError, match="column 'day' holds numbers but the training had dates"):
        prepared.transform(COLUMNS | {"day": [1, 2, 3, 4]})
    with pytest.raises(DataError, match=r"column 'age': row 3 .*holds inf"):
        prepared.transform(COLUMNS | {"age": [1.0, 2.0, np.inf, 4.0]})
    text = COLUMNS | {"age": ["20", "?", "30", "60"], "day": [str(d) for d in COLUMNS["day"]]}
    np.testing.assert_array_equal(prepared.transform(text), prepared.transform(COLUMNS))


def test_dates_have_the_parts_that_vary_in_training() -> None:
    def parts(**options: Any) -> tuple[str, ...]:
        dates = pd.date_range("2020-01-06", **options)
        return TablePreprocessor.fit({"d": dates.to_numpy()}).columns[0].parts

    assert parts(periods=60, freq="h") == ("day",)
    assert parts(periods=60, freq="D") == ("week",)
    assert parts(periods=60, freq="7D") == ("year",)
    assert parts(periods=400, freq="30h") == ("year", "week", "day")


def test_blocks_of_rows_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = TablePreprocessor.fit(COLUMNS)
    whole = prepared.transform(COLUMNS)
    monkeypatch.setattr("gpubackprop.data.coded_table.batch_rows_for", lambda columns: 3)
    np.testing.assert_array_equal(prepared.transform(COLUMNS), whole)


# -- in a model -----------------------------------------------------------------------------------


def model() -> Model:
    prepared = TablePreprocessor.fit(COLUMNS, min_rows=1)
    network = MLP([len(prepared.output_names), 4, 2], seed=3)
    return Model(network, classes=["no", "yes"], preprocessor=prepared)


def test_a_model_predicts_from_tables_with_text_and_gaps_as_from_their_encoded_columns() -> None:
    made = model()
    assert made.preprocessor is not None
    wanted = made.network.predict(made.preprocessor.transform(COLUMNS))
    for build in FRAMES.values():
        np.testing.assert_array_equal(made.predict(build(COLUMNS)), wanted)
    assert made.feature_names == list(COLUMNS)
    assert "TablePreprocessor(5 columns" in repr(made)


def test_a_model_warns_of_categories_and_gaps_that_the_training_had_not() -> None:
    """The command line prints the same line."""
    prepared = TablePreprocessor.fit(COLUMNS, min_rows=1)
    model = Model(MLP([len(prepared.output_names), 2], seed=1), prepared, classes=["no", "yes"])
    model.predict(COLUMNS)  # nothing to say
    later = COLUMNS | {"colour": ["red", "grey", "grey", "red"], "rooms": [None, 1, 1, 2]}
    said = (
        r"x: 1 missing value \('rooms' 1\), .*; 2 values \('colour' 2\) of categories that training"
    )
    for predict in (model.predict, model.predict_labels):
        with pytest.warns(UserWarning, match=said):
            predict(later)


def test_one_row_of_a_frame_is_refused_with_advice_that_works() -> None:
    frame = pd.DataFrame(COLUMNS)
    prepared = TablePreprocessor.fit(frame)
    with pytest.raises(ShapeError, match=r"pass frame\.iloc\[\[i\]\]"):
        prepared.encode(frame.iloc[0])
    np.testing.assert_array_equal(prepared.encode(frame.iloc[[0]]), prepared.encode(frame)[:1])


@pytest.mark.parametrize("kind", ["pandas arrow", "polars", "pyarrow dictionary"])
def test_a_trainer_and_a_model_take_a_preprocessor_in_place_of_a_standardizer(kind: str) -> None:
    frame, labels = FRAMES[kind](COLUMNS), np.array([0, 1, 0, 1])
    prepared = TablePreprocessor.fit(frame, min_rows=1)
    width = len(prepared.output_names)
    trainers = [Trainer(MLP([width, 4, 2], seed=3), batch_size=2, seed=1) for _ in range(2)]
    trainers[0].fit(frame, labels, epochs=3, validation=(frame, labels), standardizer=prepared)
    x = prepared.transform(COLUMNS)
    trainers[1].fit(x, labels, epochs=3, validation=(x, labels))
    parameters = [trainer.network.parameters.tolist() for trainer in trainers]
    assert parameters[0] == parameters[1]
    assert trainers[0].evaluate(frame, labels, standardizer=prepared) == trainers[1].evaluate(
        x, labels
    )
    made = Model(trainers[0].network, prepared, classes=["no", "yes"])
    assert made.preprocessor is prepared
    assert made.predict(frame).tolist() == trainers[1].network.predict(x).tolist()
    made._check()  # as `save` does again


def test_a_frame_with_text_names_the_preprocessor_as_what_to_do() -> None:
    for take in (Standardizer.fit, lambda x: Trainer(MLP([5, 2])).fit(x, [0, 1, 0, 1])):
        with pytest.raises(DataError, match=r"TablePreprocessor"):
            take(pd.DataFrame(COLUMNS).fillna({"age": 1.0}))


def test_a_preprocessor_comes_back_from_the_file_exactly(tmp_path: Any) -> None:
    made = model()
    made.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.predict(COLUMNS), made.predict(COLUMNS))
    assert loaded.preprocessor is not None
    assert made.preprocessor is not None
    assert loaded.preprocessor.report() == made.preprocessor.report()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("columns"),
        lambda state: state["columns"].pop(),
        lambda state: state["columns"][0].update(kind="x"),
        lambda state: state["columns"][0].update(more=1),
        lambda state: state["columns"][0].update(fill="NaN"),
        lambda state: state["columns"][2].update(categories=["red", "red"]),
        lambda state: state["columns"][4].update(parts=["month"]),
        lambda state: state["columns"][1].update(name="age"),
        lambda state: state.update(left_out=3),
    ],
)
def test_a_file_whose_preprocessor_does_not_fit_is_refused(change: Any, tmp_path: Any) -> None:
    model().save(tmp_path / "m")
    arrays, values = read_tensors(tmp_path / "m", "model", 2)
    change(values["preprocessor"])
    write_tensors(tmp_path / "m", arrays, json.loads(json.dumps(values)))
    with pytest.raises(ModelFileError, match=str(tmp_path / "m")):
        Model.load(tmp_path / "m")


def test_a_preprocessor_that_does_not_fit_the_other_parts_is_refused() -> None:
    prepared = TablePreprocessor.fit(COLUMNS)
    with pytest.raises(ShapeError, match="columns but the network has 3 input units"):
        Model(MLP([3, 2]), preprocessor=prepared)
    width = len(prepared.output_names)
    with pytest.raises(OptionError, match="leave feature_names out"):
        Model(MLP([width, 2]), feature_names=["a"] * 5, preprocessor=prepared)
    with pytest.raises(OptionError, match="must be a"):
        Model(MLP([width, 2]), preprocessor=prepared.state())  # type: ignore[arg-type]
