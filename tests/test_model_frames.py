"""`Model` on raw data: what the command line takes care of, in the API beneath it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.cli import main
from gpubackprop.data import Standardizer, TablePreprocessor, encode_labels, load_dataset
from gpubackprop.errors import DataError, OptionError, ShapeError
from gpubackprop.model import Model, in_target_units
from gpubackprop.network import MLP
from gpubackprop.optimizers import Adam
from gpubackprop.training import Trainer

pd = pytest.importorskip("pandas")
pl = pytest.importorskip("polars")
pa = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("sklearn.datasets")

KINDS: dict[str, Callable[[Any], Any]] = {
    "pandas": lambda frame: frame,
    "pandas of pyarrow": lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"),
    "polars": pl.from_pandas,
    "pyarrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
    "structured array": lambda frame: frame.to_records(index=False),
}


@pytest.fixture(scope="module")
def iris() -> tuple[Any, np.ndarray, Model]:
    """The frame of the four columns, the names of the kinds, and a model trained on them."""
    bunch = datasets.load_iris(as_frame=True)
    kinds = bunch.target_names[bunch.target]
    indices, classes = encode_labels(kinds)
    standardizer = Standardizer.fit(bunch.data)
    trainer = Trainer(MLP([4, 8, 3], seed=0), optimizer=Adam(lr=0.02), batch_size=32)
    trainer.fit(bunch.data, indices, epochs=40, standardizer=standardizer)
    return bunch.data, kinds, Model(trainer.network, standardizer, None, ["kind"], classes)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_in_any_order_and_among_others_give_the_same_predictions(
    kind: str, iris: Any, tmp_path: Path
) -> None:
    frame, kinds, model = iris
    model.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")
    assert loaded.feature_names == model.feature_names == list(frame.columns)
    mixed = frame[frame.columns[::-1]].assign(note=kinds, empty=np.nan)
    given = KINDS[kind](mixed)
    for one in (model, loaded):
        assert one.predict(given).tolist() == model.predict(frame.to_numpy()).tolist()
        assert one.predict_labels(given).tolist() == model.predict_labels(frame).tolist()
        assert one.evaluate(given, kinds)["accuracy"] > 0.9
    bare = Model(model.network, None, list(frame.columns), None, model.classes)
    assert bare.predict(given).tolist() == bare.predict(frame.to_numpy()).tolist()


def test_the_api_predicts_what_the_command_line_predicts(
    iris: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame, kinds, model = iris
    model.save(tmp_path / "model.safetensors")
    mixed = frame[frame.columns[::-1]].assign(note=kinds)
    mixed.to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "out.csv"
    assert main(["predict", str(tmp_path), str(tmp_path / "new.csv"), "--output", str(out)]) == 0
    capsys.readouterr()
    written = out.read_text().split()[1:]
    assert written == model.predict_labels(pd.read_csv(tmp_path / "new.csv")).tolist()


def test_a_column_that_is_absent_or_there_twice_is_named(iris: Any) -> None:
    frame, _, model = iris
    first = frame.columns[0]
    with pytest.raises(DataError, match=r"'sepal length \(cm\)' not among its columns"):
        model.predict(frame.drop(columns=first))
    with pytest.raises(DataError, match=r"did you mean 'Sepal Length \(cm\)'"):
        model.predict(frame.rename(columns={first: "Sepal Length (cm)"}))
    with pytest.raises(DataError, match="duplicate column names 'x'"):
        model.predict(frame.assign(x=1, y=2).rename(columns={"y": "x"}))
    with pytest.raises(DataError, match=r"numbers for names.*x\.to_numpy\(\)"):
        model.predict(pd.DataFrame(frame.to_numpy()))
    assert model.predict(pd.DataFrame(frame.to_numpy()).to_numpy()).shape == (150, 3)


def test_names_that_are_no_text_are_compared_as_text() -> None:
    network = MLP([3, 2], seed=1)
    x = np.arange(6.0).reshape(2, 3)
    for names in ([0, 1, 2], [("a", "x"), ("a", "y"), ("b", "x")], [1.5, "b", None]):
        frame = pd.DataFrame(x, columns=pd.Index(names, dtype=object))
        model = Model(network, None, frame.columns)
        assert model.feature_names == [str(name) for name in names]
        assert model.predict(frame.iloc[:, ::-1]).tolist() == model.predict(x).tolist()
    with pytest.raises(DataError, match="duplicate column names '0'"):
        Model(network, None, [0, 1, 2]).predict(
            pd.DataFrame(np.zeros((2, 4)), columns=pd.Index([0, "0", 1, 2], dtype=object))
        )
    doubled = Model(network, None, ["a", "a", "b"])  # of arrays, it may still predict
    assert doubled.predict(x).shape == (2, 2)
    with pytest.raises(DataError, match="column 'a' is asked for twice"):
        doubled.predict(pd.DataFrame(x, columns=["a", "b", "c"]))


def test_a_model_without_names_takes_the_columns_as_they_come() -> None:
    network = MLP([2, 2], seed=1)
    frame = pd.DataFrame({"b": [1.0, 2.0], "a": [True, False]})
    wanted = network.predict(np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert Model(network).predict(frame).tolist() == wanted.tolist()
    with pytest.raises(ShapeError, match=r"\(2, 3\) but the network wants \(N, 2\)"):
        Model(network).predict(frame.assign(c=1))


@pytest.mark.parametrize("standardized", [False, True])
def test_values_that_are_not_finite_are_named_and_never_become_a_class(standardized: bool) -> None:
    names = ["width", "height"]
    standardizer = Standardizer(np.zeros(2), np.ones(2)) if standardized else None
    model = Model(MLP([2, 2], seed=1), standardizer, names, None, np.array(["a", "b"]))
    x = np.ones((9, 2))
    for value in (np.nan, np.inf, -np.inf):
        x[7, 1] = value
        for call in (model.predict, model.predict_labels):
            with pytest.raises(DataError, match=r"row 8 .*column 'height'"):
                call(x)
        with pytest.raises(DataError, match="row 8 "):
            model.predict(x, batch_rows=3)
    x[7, 1] = 1e39  # beyond float32
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(DataError, match=r"row 8 "):
        model.predict_labels(x)


def test_batches_are_the_whole_and_their_rows_are_counted_on(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(25, 2)).astype(">f4")
    np.save(tmp_path / "x.npy", x)
    mapped = load_dataset(tmp_path / "x.npy").x
    model = Model(MLP([2, 3], seed=1), Standardizer.fit(x))
    parts = list(model.predict_batches(mapped, batch_rows=10))
    assert [start for start, _ in parts] == [0, 10, 20]
    np.testing.assert_array_equal(
        np.concatenate([yhat for _, yhat in parts]), model.predict(x, batch_rows=10)
    )


# -- labels and scores ----------------------------------------------------------------------------


def test_multilabel_models_and_single_logistic_units_have_labels() -> None:
    network = MLP([1, 2], output="logistic")
    network.W[0][...], network.b[0][...] = [[1.0], [-1.0]], 0
    model = Model(network, None, None, ["up", "down"])
    x = np.array([[3.0], [-3.0]])
    assert model.predict_labels(x).tolist() == [[1, 0], [0, 1]]
    frame = pd.DataFrame({"down": [0, 1], "other": ["a", "b"], "up": [True, True]})
    assert model.evaluate(x, frame) == {"accuracy": 0.5}
    one = MLP([1, 1], output="logistic")
    one.W[0][...], one.b[0][...] = 1.0, 0
    two = Model(one, classes=np.array(["no", "yes"]))
    assert two.predict_labels(x).tolist() == ["yes", "no"]
    assert two.evaluate(x, pd.Series(["yes", "yes"], dtype="category")) == {"accuracy": 0.5}
    assert Model(MLP([1, 1]), classes=["all"]).predict_labels(x).tolist() == ["all", "all"]


@pytest.mark.parametrize("classes", [["a", "b"], ["a", "b", "c", "d"]])
def test_classes_that_were_assigned_and_do_not_fit_the_units_give_no_labels(classes) -> None:
    """Four of three units were once taken for the two of a single unit."""
    model, x = Model(MLP([2, 3]), classes=["a", "b", "c"]), np.eye(2)
    model.classes = classes
    with pytest.raises(ShapeError, match="there are 3 output units"):
        model.predict_labels(x)
    with pytest.raises(ShapeError, match="there are 3 output units"):
        model.evaluate(x, ["a", "b"])


def test_scores_are_those_of_hand_worked_examples_in_the_units_of_the_targets() -> None:
    network = MLP([1, 2], output="linear", dtype="float64")
    network.W[0][...], network.b[0][...] = [[1.0], [2.0]], 0
    model = Model(network, None, ["x"], ["a", "b"])
    frame = pd.DataFrame({"x": [1, 2], "b": [2, 4], "a": [1.0, 6.0]})
    assert model.evaluate(frame, frame) == {"rmse": 2.0}  # errors 0, 0, 4, 0: root of 16 / 4
    assert model.evaluate(frame, np.array([[1, 2], [6, 4]])) == {"rmse": 2.0}
    for targets, message in [
        (np.array([["a", "b"]] * 2), "cannot be compared"),
        (np.zeros(2), r"shape \(2, 1\) cannot be compared"),
        (np.zeros((3, 2)), "2 predictions cannot"),
        (np.array([[1, np.nan], [1, 1]]), "row 1 .*column 'b' holds nan"),
        (frame.drop(columns="b"), "column 'b' not among"),
    ]:
        with pytest.raises(DataError, match=message):
            model.evaluate(frame, targets)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "z"], "row 2 .*label 'z'"), ([1, 2], "y holds numbers"), (["a", None], "no label"),
        (np.array([b"a", b"\xff"]), "row 2 .*not UTF-8"),
    ],
)  # fmt: skip
def test_labels_that_the_model_does_not_know_are_named(labels: Any, message: str) -> None:
    model = Model(MLP([1, 2]), classes=np.array(["a", "b"]))
    with pytest.raises(DataError, match=message):
        model.evaluate(np.zeros((2, 1)), labels)


@pytest.mark.parametrize("classes", [[0.5, 1.5], np.array(["2020", "2021"], "M8[Y]"), [7, 9]])
def test_classes_of_any_kind_are_scored_against_their_like(classes: Any) -> None:
    model = Model(MLP([1, 2], initializer="zeros"), classes=np.array(classes))
    model.network.b[0][1] = 1.0
    y = np.array(classes)[[1, 0, 1, 1]]
    assert model.evaluate(np.zeros((4, 1)), y) == {"accuracy": 0.75}
    with pytest.raises(DataError, match=r"row 1 .*not among"):
        model.evaluate(np.zeros((1, 1)), y[:1] + (y[0] - y[1]) + (y[0] - y[1]))


# -- units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [None, "bfloat16", "float16"])
def test_a_network_in_target_units_keeps_the_digits_of_a_large_offset(precision: Any) -> None:
    rng = np.random.default_rng(0)
    x, years = rng.normal(size=(50, 3)), 2024.0 + rng.normal(size=(50, 1))
    scaling = Standardizer.fit(years)
    network = MLP([3, 4, 1], output="linear", precision=precision, seed=1)
    wanted = network.predict(x) * scaling.scale + scaling.mean
    found = in_target_units(network, scaling)
    error = 0.02 * scaling.scale[0] if precision else 1e-3  # of the 16 bits of the network itself
    np.testing.assert_allclose(found.predict(x), wanted, rtol=0, atol=error)
    far = Standardizer(scaling.mean + 1.7e9, scaling.scale)  # seconds since 1970
    np.testing.assert_allclose(
        in_target_units(network, far).predict(x) - 1.7e9, found.predict(x), rtol=0, atol=1e-3
    )
    huge = Standardizer([1e39], [1e38])
    assert np.isfinite(in_target_units(network, huge).predict(x)).all()


def test_only_linear_outputs_have_a_unit() -> None:
    with pytest.raises(OptionError, match="output 'softmax'"):
        in_target_units(MLP([2, 2]), Standardizer(np.zeros(2), np.ones(2)))
    with pytest.raises(ShapeError, match="of 3 columns but the network has 2"):
        in_target_units(MLP([2, 2], output="linear"), Standardizer(np.zeros(3), np.ones(3)))


def test_a_standardizer_assigned_beside_a_preprocessor_is_refused_where_it_would_be_ignored() -> (
    None
):
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": ["x", "y", "x", "y"]})
    preprocessor = TablePreprocessor.fit(frame)
    units = len(preprocessor.output_names)
    model = Model(MLP([units, 2], seed=1), preprocessor=preprocessor)
    model.standardizer = Standardizer(np.zeros(units), np.ones(units))
    with pytest.raises(OptionError, match="give the model another preprocessor"):
        model.predict(frame)


def test_a_preprocessor_that_is_assigned_brings_its_standardizer_and_names(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": ["x", "y", "x", "y"]})
    other = pd.DataFrame({"c": [10.0, 2.0, -3.0, 5.0], "b": ["x", "y", "x", "y"]})
    first, second = TablePreprocessor.fit(frame), TablePreprocessor.fit(other)
    network = MLP([len(first.output_names), 2], seed=1)
    model, wanted = Model(network, preprocessor=first), Model(network, preprocessor=second)
    model.preprocessor = second
    assert np.array_equal(model.predict(other), wanted.predict(other))
    assert (model.standardizer, model.feature_names) == (second.standardizer, ["c", "b"])
    model.save(tmp_path / "model.safetensors")
    loaded = Model.load(tmp_path / "model.safetensors")
    assert np.array_equal(loaded.predict(other), wanted.predict(other))


def test_a_standardizer_of_other_names_than_the_models_is_refused() -> None:
    """Its means would be those of other columns."""
    frame = pd.DataFrame({"a": [1.0, 2.0, 4.0], "b": [10.0, 30.0, 20.0]})
    model = Model(MLP([2, 2], seed=1), Standardizer.fit(frame))
    model.standardizer = Standardizer.fit(frame[["b", "a"]])
    with pytest.raises(OptionError, match="are not those that the standardizer was fitted with"):
        model.predict(frame)
    model.feature_names = None
    reference = Model(MLP([2, 2], seed=1), Standardizer.fit(frame[["b", "a"]]))
    assert np.array_equal(model.predict(frame), reference.predict(frame))
