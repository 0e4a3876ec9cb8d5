"""Data frames into Standardizer, MLP, Trainer and Model: column by column, with named errors."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from gpubackprop.data import Standardizer, check_finite, split_rows
from gpubackprop.data.frames import as_inputs
from gpubackprop.errors import DataError, DtypeError, NonFiniteLossError, ShapeError
from gpubackprop.model import Model
from gpubackprop.network import MLP
from gpubackprop.training import Trainer

pa = pytest.importorskip("pyarrow")
pd = pytest.importorskip("pandas")
pl = pytest.importorskip("polars")
sparse = pytest.importorskip("scipy.sparse")
torch = pytest.importorskip("torch")

COLUMNS: dict[str, list[Any]] = {
    "sunny": [True, False, True, False], "rooms": [1, 2, 3, 4], "area": [0.5, 1.5, 2.5, -4.0],
}  # fmt: skip
VALUES = np.array([[1, 1, 0.5], [0, 2, 1.5], [1, 3, 2.5], [0, 4, -4.0]])


def pandas(**dtypes: Any) -> Any:
    return pd.DataFrame(COLUMNS).astype(dtypes)


def decimals() -> list[Decimal]:
    return [Decimal(str(value)) for value in COLUMNS["area"]]


FRAMES: dict[str, Callable[[], Any]] = {
    "pandas": pandas,
    "pandas nullable": lambda: pandas(sunny="boolean", rooms="Int64", area="Float64"),
    "pandas of pyarrow": lambda: pandas().convert_dtypes(dtype_backend="pyarrow"),
    "pandas categorical": lambda: pandas(sunny="category", rooms="category"),
    "pandas objects": lambda: pandas(sunny=object, rooms=object, area=object),
    "pandas sparse": lambda: pandas(area=pd.SparseDtype(float, 0.0)),
    "pandas decimals": lambda: pandas().assign(area=decimals()),
    "pandas with a shuffled index": lambda: pandas().set_index(np.array([3, 1, 0, 2])),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "polars small integers": lambda: pl.DataFrame(COLUMNS).with_columns(
        pl.col("rooms").cast(pl.Int8)
    ),
    "polars decimals": lambda: pl.DataFrame({**COLUMNS, "area": decimals()}),
    "pyarrow": lambda: pa.table(COLUMNS),
    "pyarrow in chunks": lambda: pa.concat_tables([pa.table(COLUMNS)[:1], pa.table(COLUMNS)[1:]]),
    "pyarrow batch": lambda: pa.RecordBatch.from_pydict(COLUMNS),
    "pyarrow dictionary": lambda: pa.table(
        {**COLUMNS, "rooms": pa.array(COLUMNS["rooms"]).dictionary_encode()}
    ),
    "pyarrow decimals": lambda: pa.table({**COLUMNS, "area": pa.array(decimals())}),
    "structured array": lambda: np.rec.fromarrays(
        list(map(np.array, COLUMNS.values())), names=list(COLUMNS)
    ),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_of_mixed_columns_means_its_numbers_to_all_who_take_x(kind: str) -> None:
    frame, labels = FRAMES[kind](), np.array([0, 1, 0, 1])
    found = as_inputs(frame)
    np.testing.assert_array_equal(found.array, VALUES)
    assert (found.names, found.array.dtype) == (tuple(COLUMNS), np.float64)
    fitted, wanted = Standardizer.fit(frame), Standardizer.fit(VALUES)
    assert fitted.mean.tolist() == wanted.mean.tolist()
    assert fitted.transform(frame).tolist() == wanted.transform(VALUES).tolist()
    network = MLP([3, 4, 2], seed=1)
    assert network.predict(frame).tolist() == network.predict(VALUES).tolist()
    assert network.logits(frame).tolist() == network.logits(VALUES).tolist()
    assert network.gradients(frame, labels).loss == network.gradients(VALUES, labels).loss
    model = Model(network, fitted)
    assert model.predict(frame).tolist() == Model(network, wanted).predict(VALUES).tolist()
    results = []
    for x, held in ((frame, FRAMES[kind]()), (VALUES, VALUES)):
        trainer = Trainer(network.copy(), batch_size=2)
        history = trainer.fit(x, labels, epochs=2, validation=(held, labels), standardizer=wanted)
        results.append([history["val_loss"], trainer.evaluate(held, labels)])
    assert results[0] == results[1]


TEXT = ["a", "b", "c", "d"]
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "text in pandas": (lambda: pandas().assign(t=TEXT), "row 1 .*column 't' holds the text 'a'"),
    "text in row 3": (
        lambda: pandas().assign(t=np.array([1, 2, "x", 4], object)),
        "row 3 .*column 't' holds the text 'x'",
    ),
    "numbers as text": (lambda: pandas().assign(t=["1", "2", "3", "4"]), "column 't' .*text '1'"),
    "categorical text": (
        lambda: pandas().assign(t=pd.Categorical(TEXT)), "column 't' holds the text 'a'"),
    "text of pyarrow in pandas": (
        lambda: pandas().assign(t=TEXT).convert_dtypes(dtype_backend="pyarrow"),
        "column 't' holds the text 'a'",
    ),
    "text in polars": (lambda: pl.DataFrame({**COLUMNS, "t": TEXT}), "column 't' .*text 'a'"),
    "text in pyarrow": (lambda: pa.table({**COLUMNS, "t": TEXT}), "column 't' .*text 'a'"),
    "bytes": (lambda: pandas().assign(t=[b"a"] * 4), "column 't' holds the text b'a'"),
    "dates": (
        lambda: pandas().assign(t=pd.date_range("2020", periods=4)), "column 't' .*datetime64"),
    "dates with zones": (
        lambda: pandas().assign(t=pd.date_range("2020", periods=4, tz="UTC")),
        "column 't' .*Timestamp",
    ),
    "durations": (
        lambda: pl.DataFrame({**COLUMNS, "t": [datetime.timedelta(1)] * 4}), "column 't'"),
    "lists": (lambda: pl.DataFrame({**COLUMNS, "t": [[1]] * 4}), "column 't' holds a ndarray"),
    "structs": (lambda: pl.DataFrame({**COLUMNS, "t": [{"a": 1}] * 4}), "column 't'"),
    "complex": (lambda: pandas().assign(t=[1j] * 4), "column 't' has the type complex128"),
    "128 bits": (
        lambda: pl.DataFrame(COLUMNS).with_columns(pl.lit(1).cast(pl.Int128).alias("t")),
        "column 't'",
    ),
    "NA of Int64": (
        lambda: pandas().assign(t=pd.array([1, None, 3, 4], "Int64")), "row 2 .*column 't'"),
    "NA of boolean": (
        lambda: pandas().assign(t=pd.array([True, None, True, True], "boolean")),
        "row 2 .*column 't' has a missing value",
    ),
    "NaN": (lambda: pandas().assign(t=[1, 2, np.nan, 4]), "row 3 .*column 't' holds nan"),
    "infinity": (lambda: pandas().assign(t=[1, 2, 3, np.inf]), "row 4 .*column 't' holds inf"),
    "None": (
        lambda: pandas().assign(t=np.array([1, None, 3, 4], object)), "row 2 .*column 't' .*missing"),
    "null in polars": (lambda: pl.DataFrame({**COLUMNS, "t": [1, None, 3, 4]}), "row 2 .*'t'"),
    "null in pyarrow": (
        lambda: pa.table({**COLUMNS, "t": [True, None, True, True]}), "row 2 .*column 't'"),
    "names twice": (
        lambda: pd.DataFrame(VALUES, columns=["a", "a", "b"]), "duplicate column names 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_column_that_holds_no_numbers_is_named_with_its_row(case: str) -> None:
    build, message = BAD[case]
    frame, labels = build(), np.array([0, 1, 0, 1])
    columns = 3 if case == "names twice" else 4
    network = MLP([columns, 2])
    model = Model(network, feature_names=None)
    takers: list[Callable[[], Any]] = [
        lambda: Standardizer.fit(frame),
        lambda: Standardizer(np.zeros(columns), np.ones(columns)).transform(frame),
        lambda: network.predict(frame),
        lambda: network.gradients(frame, labels),
        lambda: Trainer(network).fit(frame, labels),
        lambda: Trainer(network).fit(np.zeros((4, columns)), labels, validation=(frame, labels)),
        lambda: Trainer(network).evaluate(frame, labels),
        lambda: model.predict(frame),
    ]
    for take in takers:
        with pytest.raises((DataError, DtypeError), match=message):
            take()


def test_columns_of_small_types_stay_in_float32_and_equal_ones_as_they_are() -> None:
    assert as_inputs(pandas(rooms="int16", area="float32")).array.dtype == np.float32
    assert as_inputs(pandas(rooms="int32", area="float32")).array.dtype == np.float64
    assert as_inputs(pd.DataFrame({"a": [2**60 + 1], "b": [1]})).array.tolist() == [[2**60 + 1, 1]]
    assert as_inputs(pl.DataFrame({"a": [1.0]}, schema={"a": pl.Float32})).array.dtype == np.float32
    assert as_inputs(pa.table({"a": pa.array([], pa.int8())})).array.shape == (0, 1)


SPARSE: dict[str, tuple[Any, Callable[[Any], Any], str]] = {
    "matrix": (sparse.csr_matrix(VALUES), lambda x: x.toarray(), r"x\.toarray\(\)"),
    "array": (sparse.coo_array(VALUES), lambda x: x.toarray(), r"x\.toarray\(\)"),
    "tensor": (torch.tensor(VALUES).to_sparse(), lambda x: x.to_dense(), r"x\.to_dense\(\)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_rows_are_refused_with_advice_that_works(kind: str) -> None:
    x, follow, advice = SPARSE[kind]
    network, labels = MLP([3, 2]), np.array([0, 1, 0, 1])
    standardizer = Standardizer.fit(VALUES)
    takers: list[Callable[[Any], Any]] = [
        Standardizer.fit, standardizer.transform, network.predict, Model(network).predict,
        lambda x: network.gradients(x, labels), lambda x: Trainer(network).fit(x, labels, epochs=1),
    ]  # fmt: skip
    for take in takers:
        with pytest.raises(DtypeError, match=advice):
            take(x)
        take(follow(x))  # the advice
    assert network.predict(follow(x)).tolist() == network.predict(VALUES).tolist()


def test_the_other_advice_for_sparse_rows_works_too() -> None:
    with pytest.raises(DtypeError, match=r"the estimators of gpubackprop\.sklearn"):
        MLP([3, 2]).predict(sparse.csr_matrix(VALUES))
    from gpubackprop.sklearn import MLPClassifier

    fitted = MLPClassifier(4, solver="lbfgs", random_state=0).fit(
        sparse.csr_matrix(VALUES), [0, 1, 0, 1]
    )
    assert fitted.predict(sparse.csr_matrix(VALUES)).tolist() == [0, 1, 0, 1]


def test_what_is_not_computed_yet_or_no_array_at_all_is_refused_with_advice() -> None:
    network = MLP([3, 2])
    lazy = pl.DataFrame(COLUMNS).lazy()
    with pytest.raises(DtypeError, match=r"LazyFrame.*pass x\.collect\(\)"):
        network.predict(lazy)
    assert network.predict(lazy.collect()).shape == (4, 2)
    for x in (COLUMNS, {1.0, 2.0}, None, (value for value in [1.0])):
        with pytest.raises(DtypeError, match=f"x is a {type(x).__name__}, which is no array"):
            network.predict(x)
    with pytest.raises(ShapeError, match=r"frame\.iloc\[\[i\]\]"):
        network.predict(pandas().iloc[0])
    assert network.predict(pandas().iloc[[0]]).shape == (1, 2)
    with pytest.raises(ShapeError, match=r"x\.reshape\(len\(x\), -1\)"):
        network.predict(np.zeros((5, 1, 3)))


def test_a_tensor_may_be_resized_after_it_was_an_input() -> None:
    x, y, weight = torch.tensor(VALUES), torch.tensor([0, 1, 0, 1]), torch.ones(4)
    network = MLP([3, 2])
    Trainer(network).fit(x, y, epochs=1, sample_weight=weight, validation=(x, y))
    Model(network, Standardizer.fit(x), classes=torch.tensor([3, 4])).evaluate(x, y + 3)
    network.gradients(x, y, sample_weight=weight)
    rows, mean, scale = torch.arange(3), torch.zeros(3), torch.ones(3)
    Standardizer.fit(x, rows)
    Trainer(network).fit(x, y, epochs=1, rows=rows, standardizer=Standardizer(mean, scale))
    for tensor in (x, y, weight, rows, mean, scale):
        assert tensor.untyped_storage().resizable()
        tensor.data.resize_(100)
    turned = torch.view_as_complex(torch.tensor(VALUES[:, :2]).clone()).conj().imag  # negated views
    assert as_inputs(turned[:, None]).array[:, 0].tolist() == (-VALUES[:, 1]).tolist()


def test_tensors_leave_their_graph_and_masked_values_are_missing() -> None:
    network = MLP([3, 2])
    wanted = network.predict(VALUES)
    np.testing.assert_array_equal(network.predict(torch.tensor(VALUES, requires_grad=True)), wanted)
    half = network.predict(torch.tensor(VALUES, dtype=torch.bfloat16))  # exact: few digits
    np.testing.assert_array_equal(half, wanted)
    masked = np.ma.masked_array(VALUES, mask=False)
    np.testing.assert_array_equal(network.predict(masked), wanted)
    masked[2, 1] = np.ma.masked
    for take in (network.predict, Standardizer.fit, Model(network).predict):
        with pytest.raises(DataError, match=r"x\[2, 1\] is masked"):
            take(masked)
    labels, weights = np.zeros(len(VALUES), int), np.ma.masked_less(np.arange(len(VALUES)), 1)
    for take in (network.gradients, Trainer(network).fit):
        with pytest.raises(DataError, match=r"sample_weight\[0\] is masked"):
            take(VALUES, labels, sample_weight=weights)
    objects = np.array(VALUES.tolist(), dtype=object)
    np.testing.assert_array_equal(network.predict(objects), wanted)
    objects[1, 2] = None
    with pytest.raises(DataError, match=r"row 2 .*column 3 .*missing"):
        network.predict(objects)


# -- targets --------------------------------------------------------------------------------------

TARGETS: dict[str, Callable[[list[int]], Any]] = {
    "series": pd.Series,
    "nullable": lambda y: pd.Series(y, dtype="Int64"),
    "of pyarrow": lambda y: pd.Series(y, dtype="int64[pyarrow]"),
    "categorical": lambda y: pd.Series(y, dtype="category"),
    "Categorical": pd.Categorical,
    "objects": lambda y: np.array(y, object),
    "frame": lambda y: pd.DataFrame({"y": y}),
    "polars": pl.Series,
    "polars frame": lambda y: pl.DataFrame({"y": y}),
    "pyarrow": pa.array,
    "pyarrow dictionary": lambda y: pa.array(y).dictionary_encode(),
    "pyarrow chunks": lambda y: pa.chunked_array([y[:1], y[1:]]),
    "tensor": torch.tensor,
}


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_and_weights_may_be_columns(kind: str) -> None:
    labels, weights = [0, 1, 1, 0], [1, 2, 3, 4]
    network = MLP([3, 2], seed=1)
    y, w = TARGETS[kind](labels), TARGETS[kind](weights)
    wanted = network.gradients(VALUES, labels, sample_weight=weights).loss
    assert network.gradients(VALUES, y, sample_weight=w).loss == wanted
    losses = []
    for targets, weight in ((y, w), (np.array(labels), np.array(weights))):
        trainer = Trainer(network.copy(), batch_size=2)
        held = (VALUES, targets, weight)
        history = trainer.fit(VALUES, targets, epochs=2, sample_weight=weight, validation=held)
        losses.append([history["val_loss"], trainer.evaluate(VALUES, targets, weight)])
    assert losses[0] == losses[1]


def test_several_target_columns_of_different_types_are_numbers() -> None:
    frame = pd.DataFrame({"a": [True, False], "b": [0.5, 1.5]}).convert_dtypes()
    network = MLP([1, 2], output="linear")
    x = np.zeros((2, 1))
    for targets in (frame, pl.from_pandas(frame), pa.Table.from_pandas(frame)):
        found = network.gradients(x, targets).output
        np.testing.assert_array_equal(found, network.gradients(x, [[1, 0.5], [0, 1.5]]).output)
        assert Trainer(network).evaluate(x, targets)["rmse"] > 0


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (pd.Series(["a", "b", "a", "b"], dtype="category"), r"encode_labels\(targets\)"),
        (["a", "b", "a", "b"], r"encode_labels\(targets\)"),
        (pd.Series([0, 1, None, 1], dtype="Int64"), r"targets\[2\] is NaN, a missing label"),
        (pd.Series([0, None, 1, 1], dtype=object), "row 2 .*no label"),
        (pl.Series([True, None, True, True]), "row 2 .*no label"),
        (sparse.csr_matrix(np.eye(4)), r"targets\.toarray\(\)"),
        (pd.Series([(0, 1)] * 4), "row 1 .*is the tuple"),
    ],
)
def test_targets_that_are_no_class_indices_are_refused_with_what_to_do(
    y: Any, message: str
) -> None:
    network = MLP([3, 2])
    for take in (network.gradients, Trainer(network).fit, Trainer(network).evaluate):
        with pytest.raises((DataError, DtypeError), match=message):
            take(VALUES, y)


def test_missing_targets_are_named_before_training_and_ignored_where_their_weight_is_0() -> None:
    network = MLP([3, 1], output="linear")
    y = np.array([1.0, np.nan, 2.0, 3.0])
    before = network.parameters.tobytes()
    for take in (Trainer(network).fit, Trainer(network).evaluate):
        with pytest.raises(DataError, match=r"targets: row 2 .*nan"):
            take(VALUES, y)
    with pytest.raises(DataError, match=r"targets: row 2 .*nan"):
        Trainer(network).fit(VALUES, VALUES[:, :1], validation=(VALUES, y))
    with pytest.raises(DataError, match=r"targets: row 2 .*nan"):
        Trainer(network).fit(VALUES, y, rows=np.array([2, 1]))
    assert network.parameters.tobytes() == before
    assert Trainer(network).fit(VALUES, y, epochs=1, rows=np.array([0, 2]))["loss"][0] > 0


def test_validation_rows_may_come_as_an_index_or_a_list() -> None:
    labels = np.array([0, 1, 0, 1])
    losses = [
        Trainer(MLP([3, 2], seed=1)).fit(VALUES, labels, epochs=1, validation=rows)["val_loss"]
        for rows in (np.array([1, 2]), pd.Index([1, 2]), pd.Series([1, 2]), [1, 2])
    ]
    assert losses[1:] == losses[:1] * 3


# -- names ----------------------------------------------------------------------------------------


def test_a_standardizer_finds_the_columns_that_it_was_fitted_on() -> None:
    frame = pandas()
    fitted = Standardizer.fit(frame)
    assert fitted.feature_names == ("sunny", "rooms", "area")
    shuffled = frame[["area", "sunny", "rooms"]].assign(note="x")
    assert fitted.transform(shuffled).tolist() == fitted.transform(VALUES).tolist()
    with pytest.raises(DataError, match="column 'rooms' not among its columns"):
        fitted.transform(frame.drop(columns="rooms"))
    with pytest.raises(DataError, match=r"row 2 .*column 'area' is NaN"):
        fitted.transform(np.where(VALUES == 1.5, np.nan, VALUES))
    assert Standardizer.fit(pd.DataFrame(VALUES)).feature_names is None  # 0, 1, 2 are no names
    with pytest.raises(ShapeError, match="2 feature_names"):
        Standardizer(np.zeros(3), np.ones(3), ("a", "b"))


@pytest.mark.parametrize("standardized", [False, True])
def test_a_trainer_matches_later_frames_by_the_names_of_the_first(standardized: bool) -> None:
    frame, labels = pandas(), np.array([0, 1, 0, 1])
    shuffled = pl.from_pandas(frame[["area", "sunny", "rooms"]])
    fitted = Standardizer.fit(frame) if standardized else None
    trainer = Trainer(MLP([3, 2], seed=1), batch_size=2)
    trainer.fit(frame, labels, epochs=2, validation=(shuffled, labels), standardizer=fitted)
    again = Trainer(MLP([3, 2], seed=1), batch_size=2)
    again.fit(VALUES, labels, epochs=2, validation=(VALUES, labels), standardizer=fitted)
    assert trainer.history["val_loss"] == again.history["val_loss"]
    wanted = again.evaluate(VALUES, labels, standardizer=fitted)
    assert trainer.feature_names == tuple(COLUMNS)
    assert trainer.evaluate(shuffled, labels, standardizer=fitted) == wanted
    assert trainer.evaluate(VALUES, labels, standardizer=fitted) == wanted
    with pytest.raises(DataError, match="column 'area' not among"):
        trainer.evaluate(frame.drop(columns="area"), labels)


def test_a_trainer_matches_later_target_columns_by_the_names_of_the_first() -> None:
    targets = np.array([[0.0, 5.0], [1.0, 7.0], [2.0, 6.0], [3.0, 8.0]])
    frame = pd.DataFrame(targets, columns=["depth", "age"])
    others = (frame[["age", "depth"]], pl.from_pandas(frame[["age", "depth"]].assign(more=1.0)))

    def trained(first: Any, held: Any, later: Any) -> list[Any]:
        trainer = Trainer(MLP([3, 2], output="linear", seed=1), batch_size=2)
        trainer.fit(VALUES, first, epochs=2, validation=(VALUES, held))
        return [trainer.history["val_loss"], trainer.evaluate(VALUES, later)]

    wanted = trained(targets, targets, targets)
    for other in others:
        assert trained(frame, other, other) == wanted
        assert trained(frame, targets, targets) == wanted
    trainer = Trainer(MLP([3, 2], output="linear", seed=1))
    trainer.fit(VALUES, frame, epochs=1)
    assert trainer.target_names == ("depth", "age")
    with pytest.raises(DataError, match="targets: the column 'age' not among"):
        trainer.evaluate(VALUES, frame.rename(columns={"age": "years"}))


def test_nan_in_x_that_stops_a_training_is_named_by_row_and_column() -> None:
    x = np.ones((9, 3))
    x[4, 1] = np.nan
    labels = np.arange(9) % 2
    good = np.ones((9, 3))
    for train, held, options in (
        (x, (good, labels), {}), (good, (x, labels), {}), (x, None, {"rows": np.array([8, 4, 0])}),
    ):  # fmt: skip
        trainer = Trainer(MLP([3, 2]), batch_size=4)
        with pytest.raises(NonFiniteLossError, match=r"x: row 5 .*column 2 .*holds nan"):
            trainer.fit(train, labels, validation=held, **options)


def test_checks_and_splits_take_frames_and_columns_too() -> None:
    check_finite(pandas())
    check_finite(COLUMNS["area"])
    for x, message in [
        (pandas().assign(t=[1, 2, np.nan, 4]), "row 3 .*column 't' holds nan"),
        (pl.Series([1.0, None]), "row 2 .*holds nan"),
        ([[1.0, np.inf]], "row 1 .*column 2 .*holds inf"),
    ]:
        with pytest.raises(DataError, match=message):
            check_finite(x)
    wanted = split_rows(4, 0.5, 0, [0, 1, 0, 1])
    for classes in (
        pd.Series(["a", "b"] * 2, dtype="category"), pl.Series(["a", "b"] * 2),
        np.array([2, 7.5] * 2, object),
    ):  # fmt: skip
        np.testing.assert_array_equal(split_rows(4, 0.5, 0, classes), wanted)
    for classes in (pd.Series(["a", "b", "a", None]), np.array(["a", 1] * 2, object)):
        with pytest.raises(DataError, match=r"stratify: row \d"):
            split_rows(4, 0.5, 0, classes)
    with pytest.raises(DtypeError, match="out is a DataFrame"):
        Standardizer.fit(VALUES).transform(VALUES, out=pandas())
