"""Networks whose outputs are averaged, and the model that has them."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpubackprop import MLP, Ensemble, Model
from gpubackprop.data import Standardizer
from gpubackprop.errors import DataError, ModelFileError, OptionError
from gpubackprop.tensorfile import read_tensors
from tests.ways import Way


def networks(count: int = 3, **options: Any) -> list[MLP]:
    settings = {"activation": "relu", "dtype": "float64"} | options
    return [MLP([4, 5, 3], seed=seed, **settings) for seed in range(count)]


def by_hand(tensors: dict[str, np.ndarray], member: int, x: np.ndarray) -> np.ndarray:
    """Return the probabilities of a member of a file: relu, then softmax."""
    W, b = (
        [tensors[f"members.{member}.layers.{layer}.{kind}"] for layer in (0, 1)]
        for kind in ("weight", "bias")
    )
    a = np.maximum(x @ W[0].T + b[0], 0) @ W[1].T + b[1]
    e = np.exp(a - a.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def test_a_model_of_several_networks_predicts_the_mean_and_comes_back_from_its_file(
    tmp_path: Path,
) -> None:
    x = np.random.default_rng(0).normal(size=(50, 4)) * 3
    scale = Standardizer(np.arange(4.0), np.arange(1.0, 5.0))
    model = Model(Ensemble(networks()), scale, classes=np.array(["a", "b", "c"]))
    model.save(tmp_path / "model")
    found, tensors = Model.load(tmp_path / "model"), load_file(tmp_path / "model")
    assert isinstance(found.network, Ensemble)
    raw = (x - np.arange(4.0)) / np.arange(1.0, 5.0)
    expected = (by_hand(tensors, 0, raw) + by_hand(tensors, 1, raw) + by_hand(tensors, 2, raw)) / 3
    np.testing.assert_allclose(found.predict(x), expected, rtol=1e-12)
    assert found.predict(x).tobytes() == model.predict(x).tobytes()
    np.testing.assert_allclose(found.predict(x, batch_rows=7), expected, rtol=1e-12)
    assert (
        found.predict_labels(x).tolist() == np.array(["a", "b", "c"])[expected.argmax(1)].tolist()
    )
    assert np.abs(expected - by_hand(tensors, 0, raw)).max() > 0.05


@pytest.mark.usefixtures("way")
def test_an_ensemble_on_any_device_predicts_what_its_copy_on_the_cpu_predicts(way: Way) -> None:
    ensemble = Ensemble([network.copy(way.device) for network in networks(dtype="float32")])
    x = np.random.default_rng(0).normal(size=(33, 4)).astype(np.float32)
    expected = np.mean([network.predict(x) for network in networks(dtype="float64")], 0)
    on_device = ensemble.backend.to_host(ensemble.predict(x, batch_rows=8))
    np.testing.assert_allclose(on_device, expected, rtol=1e-5, atol=1e-6)
    assert ensemble.copy("cpu").device == "cpu"
    np.testing.assert_allclose(Model(ensemble).predict(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "members",
    [
        [],
        [MLP([2, 2]), MLP([2, 3])],
        [MLP([2, 2]), MLP([2, 2], dtype="float64")],
        [MLP([2, 2]), MLP([2, 2], device="cpu:numpy")],
        [MLP([2, 2]), Ensemble([MLP([2, 2])])],
    ],
)
def test_networks_that_differ_in_more_than_their_parameters_are_no_ensemble(members: Any) -> None:
    with pytest.raises(OptionError, match="ensemble"):
        Ensemble(members)


@pytest.mark.parametrize("count", [0, 4, -1, "3", True, 2.0])
def test_a_file_with_another_number_of_members_is_refused(count: Any, tmp_path: Path) -> None:
    Model(Ensemble(networks())).save(tmp_path / "model")
    arrays, values = read_tensors(tmp_path / "model", "model", 3)
    metadata = {"gpubackprop": json.dumps(values | {"members": count})}
    save_file(arrays, tmp_path / "model", metadata)
    with pytest.raises(ModelFileError, match="model"):
        Model.load(tmp_path / "model")


def test_weights_that_are_not_finite_name_the_member(tmp_path: Path) -> None:
    members = networks()
    members[1].W[0][2, 3] = np.nan
    with pytest.raises(DataError, match=r"members\.1\.layers\.0\.weight holds NaN"):
        Model(Ensemble(members)).save(tmp_path / "model")
    pytest.importorskip("onnx")
    with pytest.raises(DataError, match="NaN"):
        Model(Ensemble(members)).to_onnx()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_graph_of_several_networks_computes_their_mean(dtype: str) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = Model(Ensemble(networks(dtype=dtype)), classes=[1, 2, 3])
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(dtype)
    content = model.to_onnx().SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {"x": x})
    np.testing.assert_allclose(probabilities, model.predict(x), rtol=1e-5)
    assert label.tolist() == model.predict_labels(x).tolist()


def test_members_are_checked_when_they_are_assigned_and_before_they_are_written(
    tmp_path: Path,
) -> None:
    """A file once got the first member's activation for all of them."""
    members = [MLP([2, 3, 2], seed=seed) for seed in (0, 1)]
    ensemble = Ensemble(members)
    with pytest.raises(OptionError, match="differ in their parameters alone, but network 2"):
        ensemble.members = [members[0], MLP([2, 4, 2])]
    with pytest.raises(OptionError, match="at least one MLP"):
        ensemble.members = []
    assert ensemble.members == tuple(members)
    for twin in (
        copy.copy(ensemble),
        copy.deepcopy(ensemble),
        pickle.loads(pickle.dumps(ensemble)),
    ):
        assert np.array_equal(twin.predict(np.eye(2)), ensemble.predict(np.eye(2)))
    old = object.__new__(Ensemble)
    old.__setstate__({"members": tuple(members)})  # as version 0.2.0 pickled it
    assert old.members == tuple(members)
    model = Model(ensemble)
    members[1].activations = "tanh"
    with pytest.raises(OptionError, match="differ in their parameters alone, but network 2"):
        model.save(tmp_path / "model.safetensors")
    members[0].activations = "tanh"
    model.save(tmp_path / "model.safetensors")
    loaded = Model.load(tmp_path / "model.safetensors")
    assert np.array_equal(loaded.predict(np.eye(2)), model.predict(np.eye(2)))
