"""`Model.to_onnx` and ``gpubackprop export``: onnxruntime gives the model's own predictions."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop import MLP, Model
from gpubackprop.data import Standardizer
from gpubackprop.errors import DataError, MissingDependencyError, OptionError
from gpubackprop.formulas import ACTIVATIONS, OUTPUTS
from gpubackprop.onnx import graph as onnx_graph
from tests.cli_runs import QUICK, flowers, houses, ok, read_table, run_cli, write_table

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CLOSE = 1e-5  # relative to the largest prediction, and absolute below 1


def session(model: Any) -> Any:
    content = model if isinstance(model, (bytes, str)) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def run(model: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of onnxruntime by their names, for x in the dtype of the graph's input."""
    running = session(model)
    (wanted,) = running.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[wanted.type]
    names = [output.name for output in running.get_outputs()]
    return dict(zip(names, running.run(names, {wanted.name: x.astype(dtype)}), strict=True))


def run_columns(model: Any, columns: dict[str, Any]) -> dict[str, np.ndarray]:
    """The outputs of onnxruntime by their names, for a model of a table: an input a column."""
    running = session(model)
    names = [output.name for output in running.get_outputs()]
    dtypes = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    fed = {
        wanted.name: np.asarray(columns[wanted.name], dtypes[wanted.type])[:, None]
        for wanted in running.get_inputs()
    }
    return dict(zip(names, running.run(names, fed), strict=True))


def raw(rows: int = 50, seed: int = 0) -> np.ndarray:
    """Four columns far from 0 and of different scales, which float32 holds."""
    x = np.random.default_rng(seed).normal(size=(rows, 4)) * [1, 10, 100, 0.1] + [0, 5, 2000, 3]
    return x.astype(np.float32)


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert np.abs(found - wanted).max() <= CLOSE * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "leaky_relu(0.3)", "elu(0.5)"])
def test_every_activation_gives_the_models_predictions_in_both_dtypes(activation, dtype):
    x = raw()
    network = MLP([4, 9, 6, 3], activation, dtype=dtype, initializer="he_normal", seed=1)
    network.W = [4 * np.asarray(W) for W in network.W]  # hidden units on both sides, far from 0
    model = Model(network, Standardizer.fit(x), classes=["a", "b", "ü"])
    found = run(model.to_onnx(), x)
    assert list(found) == ["label", "probabilities"]
    assert_close(found["probabilities"], model.predict(x))
    assert found["label"].tolist() == model.predict_labels(x).tolist()


def test_an_activation_of_the_program_exports_with_its_own_formula_and_is_refused_without():
    relu = ACTIVATIONS["relu"]
    own = replace(relu, name="own", onnx=lambda n, a, k: n.op("Max", a, n.number(0.0)))
    x = raw()
    model = Model(MLP([4, 5, 2], own, seed=8), Standardizer.fit(x))
    assert_close(run(model.to_onnx(), x)["probabilities"], model.predict(x))
    with pytest.raises(OptionError, match="activation 'own' has no formula for ONNX"):
        Model(MLP([4, 5, 2], replace(own, onnx=None))).to_onnx()


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_output_function_gives_the_models_predictions(output):
    x = raw()
    model = Model(MLP([4, 8, 3], "tanh", output=output, seed=2), Standardizer.fit(x))
    found = run(model.to_onnx(), x)
    name = "probabilities" if output in ("softmax", "logistic") else "predictions"
    assert list(found) == (["label", name] if output == "logistic" else [name])
    assert_close(found[name], model.predict(x))
    if output == "logistic":  # a multilabel model
        assert found["label"].tolist() == model.predict_labels(x).tolist()


@pytest.mark.parametrize(
    ("classes", "kind"),
    [
        (np.array(["no", "yes", "?"]), "O"),
        (np.array(["no", "yes", "?"], dtype=np.dtypes.StringDType()), "O"),
        (np.array([b"n", b"y", b"?"]), "O"),
        (np.array(["2024-01-01", "2024-01-02", "2024-01-03"], "M8[D]"), "O"),
        (np.array([7, -2, 100], np.int8), "i"),
        (np.array([7, 8, 2**63], np.uint64), "O"),
        (np.array([0.5, 1.5, 2.0]), "f"),
        (np.array([3, 1, 2], dtype=object), "i"),
    ],
    ids=lambda value: str(getattr(value, "dtype", value)),
)
def test_labels_are_numbers_or_the_text_of_the_classes(classes, kind):
    x = raw()
    model = Model(MLP([4, 3], seed=3), Standardizer.fit(x), classes=classes)
    label = run(model.to_onnx(), x)["label"]
    assert label.dtype.kind == kind
    wanted = model.predict_labels(x)
    if kind == "O":
        wanted = [w.decode() if isinstance(w, bytes) else str(w) for w in wanted]
    assert label.tolist() == list(wanted)


def test_one_logistic_unit_gives_the_two_classes():
    x = raw()
    model = Model(
        MLP([4, 1], output="logistic", seed=4), Standardizer.fit(x), classes=[False, True]
    )
    found = run(model.to_onnx(), x)
    assert found["label"].dtype == bool
    assert found["label"].tolist() == model.predict_labels(x).tolist()
    assert set(found["label"].tolist()) == {True, False}
    assert_close(found["probabilities"], model.predict(x))


def test_inputs_are_of_float64_where_float32_would_blur_a_column():
    seconds = 1.7e9 + np.arange(40.0)[:, None]
    model = Model(MLP([1, 1], output="linear", seed=5), Standardizer.fit(seconds))
    graph = model.to_onnx()
    assert session(graph).get_inputs()[0].type == "tensor(double)"
    assert_close(run(graph, seconds)["predictions"], model.predict(seconds))
    asked = model.to_onnx(input_dtype="float32")
    assert session(asked).get_inputs()[0].type == "tensor(float)"
    with pytest.raises(
        OptionError, match="input_dtype is 'int8' but must be one of float32, float64"
    ):
        model.to_onnx(input_dtype="int8")


def test_a_network_of_16_bits_computes_in_its_parameters_dtype():
    x = raw()
    half = MLP([4, 8, 2], output="linear", precision="bfloat16", seed=6)
    full = MLP(**half.config() | {"precision": None})
    full.W, full.b = half.W, half.b
    fitted = Standardizer.fit(x)
    assert_close(
        run(Model(half, fitted).to_onnx(), x)["predictions"], Model(full, fitted).predict(x)
    )


def test_metadata_names_columns_classes_and_targets_and_the_producer():
    names, targets = ["länge", "b", "c", "d"], ["kind"]
    model = Model(MLP([4, 2]), None, names, targets, np.array(["x", "y"]))
    proto = model.to_onnx()
    values = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert values == {
        "feature_names": names,
        "target_names": targets,
        "classes": ["x", "y"],
        "network": model.network.config(),
    }
    assert proto.producer_name == "gpubackprop"
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17)]


def test_any_number_of_rows_runs_also_none():
    model = Model(MLP([4, 3], seed=7), classes=[1, 2, 3])
    for rows in (0, 1, 5):
        assert run(model.to_onnx(), np.zeros((rows, 4)))["probabilities"].shape == (rows, 3)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = MLP([2, 2])
    network.W[0][0, 0] = np.nan
    with pytest.raises(DataError, match="diverged"):
        Model(network).to_onnx(tmp_path / "bad.onnx")
    assert not (tmp_path / "bad.onnx").exists()


def test_a_network_that_no_onnx_file_holds_is_refused(monkeypatch):
    monkeypatch.setattr(onnx_graph, "_MOST_BYTES", 2**20 + 40)
    with pytest.raises(OptionError, match="at most 2 GiB"):
        Model(MLP([20, 2])).to_onnx()


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "gpubackprop\[onnx\]"'):
        Model(MLP([2, 2])).to_onnx()


# -- the command ----------------------------------------------------------------------------------


def train(folder: Path, table: dict[str, Any], target: str) -> tuple[Path, Path]:
    data = write_table(folder / "data.csv", table)
    ok("train", data, "--target", target, *QUICK, "--output", folder / "run", "--quiet")
    return data, folder / "run"


def test_export_of_a_trained_classifier_gives_what_predict_writes(tmp_path):
    table = flowers()
    data, folder = train(tmp_path, table, "kind")
    file = tmp_path / "out.onnx"
    said = ok("export", folder, file).out
    assert "in  length: float (N, 1)" in said
    assert "in  width: float (N, 1)" in said
    assert "out label: string (N)" in said
    found = run_columns(str(file), table)
    written = read_table(ok("predict", folder, data, "--probabilities").out)
    assert found["label"].tolist() == written["prediction"]
    columns = [written[f"probability_{name}"] for name in ("iris", "lily", "rose")]
    assert_close(found["probabilities"], np.array(columns, np.float32).T)


def test_export_of_a_trained_regression_is_in_the_units_of_the_file(tmp_path):
    table = houses()
    data, folder = train(tmp_path, table, "price")
    file = tmp_path / "out.onnx"
    report = ok("export", folder / "model.safetensors", file, "--json").json
    assert report["outputs"] == {"predictions": {"dtype": "float", "shape": ["N", "1"]}}
    written = read_table(ok("predict", folder, data).out)["prediction"]
    assert_close(
        run_columns(str(file), table)["predictions"], np.array(written, np.float32)[:, None]
    )


def test_export_replaces_its_own_file_and_no_other(tmp_path):
    Model(MLP([4, 2])).save(tmp_path / "model.safetensors")
    file = tmp_path / "out.onnx"
    for _ in range(2):
        ok("export", tmp_path, file, "--quiet")
    file.write_text("my notes")
    refused = run_cli("export", tmp_path, file)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert file.read_text() == "my notes"
    ok("export", tmp_path, file, "--overwrite")
    assert run_cli("export", tmp_path, tmp_path / "model.safetensors", "--overwrite").code == 2
    assert run_cli("export", tmp_path / "absent", file).code == 1
