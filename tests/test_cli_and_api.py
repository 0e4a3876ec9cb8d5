"""The command line calls the API's own cares: labels, values that are not finite, units."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from gpubackprop import MLP, Model
from gpubackprop.data import load_dataset
from tests.cli_runs import QUICK, flowers, houses, ok, run_cli, write_table


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def fails(*arguments):
    """The one line on stderr of a command that ends with 1."""
    result = run_cli(*arguments)
    assert result.code == 1, result
    (line,) = result.err.splitlines()
    return line


@pytest.fixture
def arrays(tmp_path):
    """x.npy of the flowers, and a function that writes labels beside it."""
    table = flowers()
    np.save(tmp_path / "x.npy", np.stack([table["length"], table["width"]], axis=1))

    def write(labels):
        np.save(tmp_path / "y.npy", labels)
        return ("train", tmp_path / "x.npy", "--target", tmp_path / "y.npy", *QUICK)

    return write


LABELS = {
    "f2": [0, 1, 2], "f4": [0, 1, 2], ">f8": [0, 1, 2], "u1": [0, 1, 2], "S1": ["0", "1", "2"],
    "U1": ["0", "1", "2"], "?": [False, True],
}  # fmt: skip


@pytest.mark.parametrize("dtype", LABELS)
def test_labels_of_every_dtype_of_a_file_train_without_a_warning(dtype, arrays, tmp_path):
    classes = LABELS[dtype]
    ok(*arrays((np.arange(90) % len(classes)).astype(dtype)), "--output", tmp_path / "o")
    found = Model.load(tmp_path / "o" / "model.safetensors").classes
    assert found.tolist() == classes
    assert [type(label) for label in found.tolist()] == [type(label) for label in classes]


def test_bytes_that_are_not_utf8_end_the_command_in_one_line(arrays, tmp_path):
    labels = np.array([b"a", b"b", b"\xe9"] * 30)
    line = fails(*arrays(labels), "--output", tmp_path / "o")
    assert "row 3" in line
    assert r"b'\xe9', bytes that are not UTF-8" in line
    assert not (tmp_path / "o").exists()


def test_a_mapped_file_with_nan_is_not_predicted_in_silence(tmp_path):
    data = flowers()
    np.savez(tmp_path / "t.npz", x=np.stack([data["length"], data["width"]], 1), y=data["kind"])
    ok("train", tmp_path / "t.npz", "--target", "y", *QUICK, "--no-standardize", "--output",
       tmp_path / "o")  # fmt: skip
    x = np.ones((9, 2), np.float32)
    x[4, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    line = fails("predict", tmp_path / "o", tmp_path / "x.npy")
    assert "row 5 " in line
    assert "column 2 (counted from 1) holds nan" in line


def test_a_mapped_file_with_nan_is_predicted_by_a_model_of_a_table_and_counted(tmp_path):
    table = write_table(tmp_path / "t.csv", flowers())
    ok("train", table, "--target", "kind", *QUICK, "--output", tmp_path / "o")
    x = np.ones((9, 2), np.float32)
    x[4, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    result = ok("predict", tmp_path / "o", tmp_path / "x.npy")
    assert "1 missing value ('width' 1), where training had none" in result.err
    assert len(result.out.splitlines()) == 10


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_regression_in_16_bits_keeps_the_digits_of_its_targets(precision, tmp_path):
    data = houses()
    data["price"] = data["price"] * 1e-6 + 2024.0  # spreads by 0.2, a bfloat16 step is 8
    table = write_table(tmp_path / "t.csv", data)
    ok(
        "train", table, "--target", "price", "--task", "regression", "--hidden", "8", "--epochs",
        "40", "--lr", "0.02", "--device", "cpu", "--precision", precision, "--output",
        tmp_path / "o",
    )  # fmt: skip
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["test_rmse"] < 0.05
    assert summary["precision"] == precision
    model = Model.load(tmp_path / "o" / "model.safetensors")
    x = load_dataset(table, features=("area", "rooms")).x
    assert np.sqrt(np.mean((model.predict(x)[:, 0] - data["price"]) ** 2)) < 0.05


def test_predict_and_the_model_give_the_same_score(tmp_path):
    table = write_table(tmp_path / "t.csv", flowers())
    ok("train", table, "--target", "kind", *QUICK, "--output", tmp_path / "o")
    result = ok("predict", tmp_path / "o", table, "--score", "--json").json
    model = Model.load(tmp_path / "o" / "model.safetensors")
    data = load_dataset(table, target="kind")
    assert model.evaluate(data.x, data.y) == {"accuracy": result["accuracy"]}
    assert [row[0] for row in result["predictions"]] == model.predict_labels(data.x).tolist()


def test_one_logistic_unit_and_classes_in_bytes_are_written_as_they_are_meant(tmp_path):
    network = MLP([1, 1], output="logistic", initializer="zeros")
    network.b[0][0] = np.log(3.0)  # probability 0.75
    Model(network, None, ["x"], ["y"], np.array([b"no", "d\xe9j\xe0".encode()])).save(
        tmp_path / "m"
    )
    table = write_table(tmp_path / "t.csv", {"x": [1.0], "y": ["no"]})
    result = ok("predict", tmp_path / "m", table, "--probabilities", "--score", "--json").json
    assert result["columns"] == ["prediction", "probability_no", "probability_déjà"]
    assert result["predictions"] == [["déjà", 0.25, 0.75]]
    assert result["accuracy"] == 0
