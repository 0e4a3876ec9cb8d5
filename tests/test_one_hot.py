"""One-hot inputs without their zeros: columns of W by number, in every way, against PyTorch.

`Operations` are the backends' own; `CodedInputs` are what networks, trainers and models take.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpubackprop import Model, Trainer
from gpubackprop.data import TablePreprocessor, coded_table
from gpubackprop.data.coded import CodedColumns, CodedInputs
from gpubackprop.errors import DataError, DtypeError, ModelFileError, ShapeError
from gpubackprop.optimizers import SGD
from tests import ways
from tests.tolerances import Draws, assert_equal_in_float64
from tests.ways import MLP, host, verb

pytestmark = pytest.mark.usefixtures("way")

Array = np.ndarray
# rows, units, groups, inputs: one of each; groups that meet, with gaps, at both ends; many rows of few
# categories; more columns than a tile; no rows
SHAPES = [
    (1, 1, ((0, 1),), 1), (7, 3, ((0, 2), (2, 9)), 9), (40, 33, ((1, 20), (25, 41)), 43),
    (600, 5, ((0, 3),), 3), (300, 40, ((2, 77), (80, 90), (90, 100)), 100), (0, 4, ((0, 5),), 6),
]  # fmt: skip
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[3]}")


def some_codes(rng: np.random.Generator, rows: int, groups: tuple[tuple[int, int], ...]) -> Array:
    codes = np.stack([rng.integers(first, stop, rows) for first, stop in groups], 1)
    return np.where(rng.random(codes.shape) < 0.1, -1, codes).astype(np.int32)


def matrix(codes: Array, inputs: int) -> Array:
    """The one-hot matrix of float64."""
    x = np.zeros((len(codes), inputs))
    rows, groups = np.nonzero(codes >= 0)
    x[rows, codes[rows, groups]] = 1
    return x


@SHAPE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sum_of_columns_is_the_product_with_the_one_hot_matrix(shape, dtype):
    rows, units, groups, inputs = shape
    draws = Draws()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        codes = some_codes(rng, rows, groups)
        W, before = (rng.normal(size=n).astype(dtype) for n in ((units, inputs), (rows, units)))
        x, a, added = matrix(codes, inputs), np.empty((rows, units), dtype), before.copy()
        verb("one_hot_forward", codes, W, a, add=False)
        verb("one_hot_forward", codes, W, added, add=True)
        exact = x @ W.astype(np.float64).T
        torch_a = torch.nn.functional.linear(torch.tensor(x.astype(dtype)), torch.tensor(W)).numpy()
        if dtype == "float64":
            assert_equal_in_float64(a, exact)
            assert_equal_in_float64(added, before + exact)
            continue
        draws.add(a, torch_a, exact)
        draws.add(added, before + torch_a, before.astype(np.float64) + exact)
    if dtype == "float32":
        draws.check()


@SHAPE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_of_a_column_is_the_sum_of_its_rows_and_other_columns_stay(shape, dtype):
    rows, units, groups, inputs = shape
    draws, mine = Draws(), np.zeros(inputs, bool)
    for first, stop in groups:
        mine[first:stop] = True
    for seed in range(3):
        rng = np.random.default_rng(seed)
        codes, delta = some_codes(rng, rows, groups), rng.normal(size=(rows, units)).astype(dtype)
        x, grad_W = matrix(codes, inputs), np.full((units, inputs), 7, dtype)
        verb("one_hot_backward", delta, codes, groups, grad_W)
        assert (grad_W[:, ~mine] == 7).all()
        exact = (delta.astype(np.float64).T @ x)[:, mine]
        if dtype == "float64":
            assert_equal_in_float64(grad_W[:, mine], exact)
            continue
        theirs = (torch.tensor(delta).T @ torch.tensor(x.astype(dtype))).numpy()
        draws.add(grad_W[:, mine], theirs[:, mine], exact)
    if dtype == "float32":
        draws.check()


def test_the_gradient_is_the_same_bit_for_bit_each_time_and_in_rows_with_gaps():
    rng, groups = np.random.default_rng(0), ((0, 3), (3, 50))
    codes, wide = some_codes(rng, 500, groups), rng.normal(size=(500, 40)).astype(np.float32)
    delta, found = wide[:, :17], []
    for source in (delta, delta.copy(), delta):
        grad_W = np.zeros((17, 60), np.float32)
        verb("one_hot_backward", source, codes, groups, grad_W[:, :50])
        found.append(grad_W)
        assert (grad_W[:, 50:] == 0).all()
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


# -- networks -------------------------------------------------------------------------------------

GROUPS = ((1, 12), (14, 20))


def some_rows(rows: int = 90, seed: int = 0) -> CodedInputs:
    rng, columns = np.random.default_rng(seed), CodedColumns(22, GROUPS)
    codes = some_codes(rng, rows, GROUPS)
    return CodedInputs(rng.normal(size=(rows, columns.others)), codes, columns)


def test_coded_inputs_are_the_matrix_that_they_stand_for():
    x = some_rows()
    assert np.asarray(x).shape == x.shape == (90, 22)
    assert np.array_equal(x.toarray()[:, 1:12], matrix(x.codes, 22)[:, 1:12])
    assert np.array_equal(x[3:9].toarray(), x.toarray()[3:9])
    picked = np.array([5, 0, 5])
    assert np.array_equal(x[picked].toarray(), x.toarray()[picked])


def test_a_row_of_coded_inputs_is_the_row_of_the_matrix():
    x = some_rows(5)
    for row in (0, 3, -1, np.int64(2)):
        assert np.array_equal(x[row], x.toarray()[row])
    with pytest.raises(IndexError):
        x[5]


@pytest.mark.parametrize(
    "groups", [((6, 9), (0, 3)), ((0, 4), (3, 6)), ((3, 10),), ((2, 2),), ((-1, 3),)]
)
def test_groups_that_are_out_of_order_meet_or_go_beyond_the_inputs_are_refused(groups):
    with pytest.raises(ShapeError, match="in order"):
        CodedColumns(9, groups)


def test_codes_may_be_a_list_and_are_whole_numbers():
    columns = CodedColumns(3, ((1, 3),))
    assert np.array_equal(CodedInputs([[0.5]], [[2]], columns).toarray(), [[0.5, 0, 1]])
    with pytest.raises(DtypeError, match="int32"):
        CodedInputs(np.zeros((1, 1)), np.array([[1.5]]), columns)


def test_coded_inputs_that_do_not_fit_are_refused():
    x = some_rows()
    with pytest.raises(ShapeError, match=r"dense has shape \(90, 4\).*want \(N, 5\) and \(N, 2\)"):
        CodedInputs(x.dense[:, 1:], x.codes, x.columns)
    with pytest.raises(DataError, match="holds 12 in group 0, which is the inputs 1 to 11"):
        CodedInputs(x.dense, np.where(x.codes == x.codes[0], 12, x.codes), x.columns)
    with pytest.raises(ShapeError, match=r"x has shape \(90, 22\) but the network wants \(N, 9\)"):
        MLP([9, 2]).predict(x)


@pytest.mark.parametrize("widths", [[22, 3], [22, 7, 5, 3]], ids=str)
def test_predictions_and_gradients_are_those_of_the_matrix_in_float64(widths):
    network, x = MLP(widths, "tanh", dtype="float64", seed=2), some_rows()
    y = np.arange(90) % 3
    assert_equal_in_float64(host(network.predict(x)), host(network.predict(x.toarray())), 1e-14)
    coded, dense = (network.gradients(rows, y) for rows in (x, x.toarray()))
    for got, wanted in zip([*coded.W, *coded.b], [*dense.W, *dense.b], strict=True):
        assert_equal_in_float64(host(got), host(wanted), 1e-13)


@pytest.mark.parametrize("kind", ["all in groups", "dropout", "squared error"])
def test_a_training_has_the_numbers_of_the_matrix_in_float64(kind):
    x, y = some_rows(150), np.arange(150) % 3
    if kind == "all in groups":
        codes = x.codes[:, :1] - (x.codes[:, :1] >= 0)
        x = CodedInputs(np.empty((150, 0)), codes, CodedColumns(11, ((0, 11),)))
    epochs, found = 2 if ways.is_emulated() else 6, []
    for rows in (x, x.toarray()):
        network = MLP(
            [x.shape[1], 8, 3], "gelu", dtype="float64", seed=1,
            dropout=0.3 if kind == "dropout" else 0.0,
            output="linear" if kind == "squared error" else "softmax",
        )  # fmt: skip
        trainer = Trainer(
            network, "squared_error" if kind == "squared error" else None, SGD(lr=0.1),
            batch_size=32, l2=1e-3, progress=False,
        )  # fmt: skip
        targets = np.eye(3)[y] if kind == "squared error" else y
        trainer.fit(rows, targets, epochs=epochs, validation=0.2, sample_weight=1.0 + y)
        found.append(([row["val_loss"] for row in trainer.history.rows], host(network.parameters)))
    assert np.allclose(found[0][0], found[1][0], rtol=1e-12)
    assert_equal_in_float64(found[0][1], found[1][1], 1e-12)


@pytest.mark.parametrize("precision", ["float16", "tf32"])
def test_16_bits_and_tf32_take_the_matrix(precision):
    x, y = some_rows(60), np.arange(60) % 3
    x = x.with_arrays(x.dense.astype(np.float32), x.codes)
    found = []
    for rows in (x, x.toarray()):
        network = MLP([22, 8, 3], precision=precision, seed=1)
        Trainer(network, batch_size=32, progress=False).fit(rows, y, epochs=1)
        found.append(host(network.parameters))
    assert np.array_equal(*found)


def test_a_standardizer_beside_coded_inputs_standardises_the_matrix():
    from gpubackprop.data import Standardizer

    x, y = some_rows(60), np.arange(60) % 3
    scale, found = Standardizer.fit(x.toarray()), []
    for rows in (x, x.toarray()):
        network = MLP([22, 3], dtype="float64", seed=1)
        trainer = Trainer(network, batch_size=32, progress=False)
        trainer.fit(rows, y, epochs=1, standardizer=scale)
        found.append(host(network.parameters))
    assert np.array_equal(*found)


@pytest.mark.ways("native", reason="what a trainer does with x is the same everywhere")
def test_nan_among_coded_inputs_is_named():
    from gpubackprop.errors import NonFiniteLossError

    x, y = some_rows(60), np.arange(60) % 3
    x.dense[7, 0] = np.nan
    trainer = Trainer(MLP([22, 3], dtype="float64"), batch_size=60, progress=False)
    with pytest.raises((NonFiniteLossError, DataError), match="row 8"):
        trainer.fit(x, y, epochs=1)


# -- tables ---------------------------------------------------------------------------------------


def some_table(rows: int = 400, towns: int = 90) -> dict[str, list[object]]:
    rng = np.random.default_rng(4)
    town = [f"town {k}" for k in rng.integers(0, towns, rows)]
    age = [None if rng.random() < 0.1 else float(v) for v in rng.normal(40, 9, rows)]
    return {
        "age": age, "town": [None if rng.random() < 0.05 else t for t in town],
        "sex": ["mf"[k] for k in rng.integers(0, 2, rows)],
    }  # fmt: skip


def test_a_table_is_coded_from_64_inputs_of_a_column_on_and_is_the_same_matrix():
    for towns, coded in ((50, False), (90, True)):
        table = some_table(towns=towns)
        prepared = TablePreprocessor.fit(table, min_rows=1)
        x = prepared.inputs(table)
        assert isinstance(x, CodedInputs) is coded, towns
        assert np.array_equal(np.asarray(x), prepared.transform(table))
    assert x.nbytes < 0.1 * x.toarray().nbytes


def test_a_table_of_nothing_else_is_coded_too_and_counts_what_training_had_not():
    from gpubackprop.data.preprocessor import Surprises

    prepared = TablePreprocessor.fit({"town": some_table()["town"]}, min_rows=1)
    surprises, table = Surprises(), {"town": ["town 3", None, "elsewhere"]}
    x = prepared.inputs(table, surprises=surprises)
    assert x.dense.shape == (3, 0)
    assert np.array_equal(np.asarray(x), prepared.transform(table))
    assert "1 value ('town' 1) of categories that training had not" in str(surprises)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_of_a_table_predicts_as_from_the_matrix_and_after_its_file(
    dtype, tmp_path, monkeypatch
):
    table, found = some_table(), []
    y = np.array([len(str(t)) % 3 for t in table["town"]])
    prepared = TablePreprocessor.fit(table, min_rows=1)
    for bound in (coded_table.CODED_FROM, 10**9):
        monkeypatch.setattr(coded_table, "CODED_FROM", bound)
        network = MLP([len(prepared.output_names), 6, 3], "tanh", dtype=dtype, seed=1)
        trainer = Trainer(network, batch_size=100, progress=False)
        trainer.fit(table, y, epochs=2, standardizer=prepared, validation=0.2)
        model = Model(network, preprocessor=prepared, classes=["a", "b", "c"])
        found.append(model.predict(table))
        model.save(tmp_path / "m.safetensors")
        assert np.allclose(
            Model.load(tmp_path / "m.safetensors").predict(table), found[-1], atol=1e-6
        )
    assert np.allclose(*found, atol=1e-5 if dtype == "float32" else 1e-13)


@pytest.mark.ways("native", reason="files and checkpoints are the same everywhere")
def test_a_training_on_a_coded_table_resumes_bit_for_bit(tmp_path):
    table, y = some_table(), np.arange(400) % 3
    prepared, found = TablePreprocessor.fit(table, min_rows=1), []
    for calls in ([4], [2, 4]):
        file = tmp_path / f"{len(calls)}.safetensors"
        for epochs in calls:
            network = MLP([len(prepared.output_names), 3], seed=1)
            trainer = Trainer(network, batch_size=64, progress=False)
            trainer.fit(table, y, epochs=epochs, standardizer=prepared, checkpoint=file)
        found.append(network.parameters.copy())
    assert np.array_equal(*found)
    other = dict(table, town=table["town"][::-1])
    trainer = Trainer(MLP([len(prepared.output_names), 3], seed=1), batch_size=64, progress=False)
    with pytest.raises(ModelFileError, match="training x"):
        trainer.fit(other, y, epochs=5, standardizer=prepared, checkpoint=file)


@pytest.mark.ways("native", reason="the command line takes the host")
def test_train_takes_thousands_of_categories_without_a_matrix_of_them(tmp_path, monkeypatch):
    """The matrix of 20,000 rows and 5,000 categories would have 400 MB."""
    import tracemalloc

    from gpubackprop.cli import main

    rng, rows, towns = np.random.default_rng(0), 20_000, 5_000
    town, size = rng.integers(0, towns, rows), rng.normal(size=rows)
    lines = [f"t{t},{s:.4f},{'yes' if t % 2 else 'no'}" for t, s in zip(town, size, strict=True)]
    (tmp_path / "data.csv").write_text("town,size,class\n" + "\n".join(lines))
    tracemalloc.start()
    command = ["train", "data.csv", "--target", "class", "--output", "out", "--epochs", "3", "--quiet",
               "--max-categories", "10000", "--hidden", "8", "--lr", "0.03"]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.25 * rows * towns * 4
    model = Model.load("out/model.safetensors")
    assert model.network.widths[0] > 3900
    frequent = model.preprocessor.columns[0].categories[:20]
    wanted = ["yes" if int(town[1:]) % 2 else "no" for town in frequent]
    assert model.predict_labels({"town": frequent, "size": [0.0] * 20}).tolist() == wanted
