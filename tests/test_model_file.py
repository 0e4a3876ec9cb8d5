"""Files of tensors and the model file: round trips, damage, permissions, disks that are full."""

from __future__ import annotations

import errno
import json
import os
import pickle
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gpubackprop.data import Standardizer
from gpubackprop.errors import ModelFileError, OptionError, StorageError
from gpubackprop.model import Model
from gpubackprop.network import MLP
from gpubackprop.tensorfile import read_tensors, remove_leftovers, write_tensors

VALUES = {"kind": "test", "version": 1}


def some_model(classes: Any = ("a", "b", "c"), **options: Any) -> Model:
    network = MLP([4, 5, 3], ["leaky_relu(0.2)"], seed=3, **options)
    standardizer = Standardizer(np.arange(4.0), np.arange(1.0, 5.0) / 3)
    return Model(network, standardizer, ["w", "x", "y", "é ✓"], ["kind"], np.array(classes))


# -- tensors --------------------------------------------------------------------------------------

a = np.arange(24.0).reshape(4, 6)
ARRAYS: dict[str, np.ndarray] = {
    "transposed": a.T, "fortran": np.asfortranarray(a), "strided": a[::2, ::-3],
    "big_endian": a.astype(">f4"), "broadcast": np.broadcast_to(a[:1], (3, 6)),
    "scalar": np.array(2.5), "empty": np.zeros((0, 3)), "bool": a > 3, "read_only": a[1],
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_any_layout_is_written_by_value(name: str, tmp_path: Path) -> None:
    array = ARRAYS[name]
    write_tensors(tmp_path / "f", {"t": array}, VALUES)
    found = read_tensors(tmp_path / "f", "test", 1)[0]["t"]
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(found, array)


def test_values_keep_numpy_numbers_infinities_and_nan(tmp_path: Path) -> None:
    values = VALUES | {"i": np.int64(3), "f": np.float32(0.5), "inf": np.inf, "a": np.arange(2)}
    write_tensors(tmp_path / "f", {}, values | {"nan": float("nan"), "big": 2**127})
    found = read_tensors(tmp_path / "f", "test", 1)[1]
    assert (found["i"], found["f"], found["inf"], found["a"]) == (3, 0.5, float("inf"), [0, 1])
    assert found["big"] == 2**127
    assert found["nan"] != found["nan"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        some_model().save(tmp_path / "model")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == mode


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    write_tensors(tmp_path / "link", {"t": a}, VALUES)
    assert (tmp_path / "link").is_symlink()
    assert np.array_equal(read_tensors(tmp_path / "real" / "file", "test", 1)[0]["t"], a)


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "broken", ["os.fsync", "os.replace", "builtins.open", "pathlib.Path.mkdir"]
)
def test_a_full_disk_leaves_the_previous_file_and_no_temporary_one(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    some_model().save(path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(broken, refuse)
        with pytest.raises(StorageError, match=r"model could not be written \(No space left"):
            some_model(("d", "e", "f")).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("kind", ["file as folder", "folder as file", "/proc"])
def test_a_path_that_cannot_be_written_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    path = {"file as folder": tmp_path / "file" / "m", "folder as file": tmp_path / "folder"}.get(
        kind, Path("/proc/gpubackprop/m")
    )
    with pytest.raises(StorageError, match=f"{path} could not be written"):
        some_model().save(path)


def test_leftovers_of_killed_writers_go_and_other_files_stay(tmp_path: Path) -> None:
    names = ["m[1].st", ".m[1].st.77-ab.tmp", ".m[1].st.78-cd.tmp", ".m1.st.77-ab.tmp", ".x.tmp"]
    for name in names:
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path / "m[1].st")
    assert sorted(os.listdir(tmp_path)) == sorted(["m[1].st", ".m1.st.77-ab.tmp", ".x.tmp"])


# -- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "classes", [("no", "yes", "naïve"), (3, -1, 2**40), (True, False, True), (0.1, 1e-300, 2.5)]
)
def test_a_model_comes_back_whole(classes: Any, dtype: str, tmp_path: Path) -> None:
    model = some_model(classes, dtype=dtype)
    model.save(tmp_path / "model")
    found = Model.load(str(tmp_path / "model"))
    x = np.random.default_rng(0).normal(size=(50, 4)) * 3
    assert found.predict(x).tobytes() == model.predict(x).tobytes()
    np.testing.assert_allclose(found.predict(x, batch_rows=7), model.predict(x), rtol=1e-5)
    assert found.predict_labels(x).tolist() == model.predict_labels(x).tolist()
    assert found.classes is not None
    assert found.classes.dtype == np.array(classes).dtype
    assert found.classes.tolist() == list(classes)
    assert found.network.config() == model.network.config()
    assert (found.feature_names, found.target_names) == (["w", "x", "y", "é ✓"], ["kind"])


def test_a_bare_regression_model_comes_back_bare(tmp_path: Path) -> None:
    Model(MLP([2, 1], output="linear")).save(tmp_path / "model")
    found = Model.load(tmp_path / "model")
    assert found.standardizer is found.feature_names is found.target_names is found.classes is None
    with pytest.raises(OptionError, match="no classes"):
        found.predict_labels(np.zeros((1, 2)))


def test_predictions_are_those_of_standardised_inputs(tmp_path: Path) -> None:
    model = some_model()
    assert model.standardizer is not None
    x = np.arange(20.0).reshape(5, 4)
    wanted = model.network.predict((x - model.standardizer.mean) / model.standardizer.scale)
    np.testing.assert_allclose(model.predict(x), wanted, rtol=1e-5)


def test_weights_have_the_documented_names_and_are_readable_by_others(tmp_path: Path) -> None:
    model = some_model()
    model.save(tmp_path / "model")
    tensors = load_file(tmp_path / "model")
    assert sorted(tensors) == [
        "input.mean", "input.scale", "layers.0.bias", "layers.0.weight", "layers.1.bias",
        "layers.1.weight",
    ]  # fmt: skip
    assert np.array_equal(tensors["layers.1.weight"], model.network.W[1])


# -- damage ---------------------------------------------------------------------------------------


def saved(tmp_path: Path) -> Path:
    some_model().save(tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """Change a file's tensors and values in place, as another program might."""
    arrays, values = read_tensors(path, "model", 1)
    change(arrays, values)
    save_file(arrays, path, {"gpubackprop": json.dumps(values)})


EDITS: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "kind": (lambda a, v: v.update(kind="checkpoint"), "holds a checkpoint but a model"),
    "newer": (lambda a, v: v.update(version=2), "format version 2 .* reads up to 1; upgrade"),
    "version": (lambda a, v: v.update(version="x"), "format version x"),
    "nan": (
        lambda a, v: a["layers.0.weight"].__setitem__((1, 2), np.nan),
        r"weight\[1, 2\] is nan",
    ),
    "inf": (lambda a, v: a["layers.1.bias"].__setitem__(1, np.inf), r"bias\[1\] is inf"),
    "shape": (
        lambda a, v: a.update({"layers.0.bias": np.zeros(4, "f4")}),
        r"\(4,\) .* wants \(5,\)",
    ),
    "dtype": (lambda a, v: a.update({"layers.0.bias": np.zeros(5)}), "float64 but float32"),
    "missing": (lambda a, v: a.pop("layers.1.weight"), "no tensor 'layers.1.weight'"),
    "mean only": (lambda a, v: a.pop("input.scale"), "no tensor 'input.scale'"),
    "scale 0": (lambda a, v: a["input.scale"].fill(0), "above 0"),
    "nan mean": (lambda a, v: a["input.mean"].fill(np.nan), r"input.mean\[0\] is nan"),
    "output": (lambda a, v: v["network"].update(output="sofmax"), "architecture"),
    "widths": (lambda a, v: v["network"].update(widths=[4, 10**12, 3]), "architecture wants"),
    "fraction": (lambda a, v: v["network"].update(widths=[4, 5.5, 3]), "architecture"),
    "no network": (lambda a, v: v.pop("network"), "architecture"),
    "activation": (lambda a, v: v["network"].update(activation=["a", "b"]), "architecture"),
    "classes": (lambda a, v: v.update(classes=["a"]), r"\(1,\) but there are 3"),
    "classes dtype": (lambda a, v: v.update(classes_dtype="<q9"), "classes are not readable"),
    "features": (lambda a, v: v.update(feature_names=["a"]), "1 feature_names but 4"),
    "feature kind": (lambda a, v: v.update(feature_names="abcd"), "not a list of names"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_file_that_does_not_fit_is_refused_with_file_and_reason(
    case: str, tmp_path: Path
) -> None:
    change, message = EDITS[case]
    path = saved(tmp_path)
    edit(path, change)
    with pytest.raises(ModelFileError, match=message) as caught:
        Model.load(path)
    assert str(path) in str(caught.value)


def foreign(path: Path, kind: str) -> None:
    contents: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "text": lambda: b"a,b,c\n1,2,3\n",
        "pickle": lambda: pickle.dumps({"weights": [1.0]}),
        "json": lambda: json.dumps(VALUES).encode(),
        "huge header": lambda: struct.pack("<Q", 2**62) + b"{}",
        "zip": lambda: b"PK\x03\x04" + bytes(100),
    }
    path.write_bytes(contents[kind]())


@pytest.mark.parametrize("kind", ["empty", "text", "pickle", "json", "huge header", "zip"])
def test_a_foreign_file_is_refused(kind: str, tmp_path: Path) -> None:
    foreign(tmp_path / "f", kind)
    with pytest.raises(ModelFileError, match="f is not a whole safetensors file"):
        Model.load(tmp_path / "f")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"gpubackprop": "[" * 100_000}])
def test_a_safetensors_file_of_another_program_is_refused(metadata: Any, tmp_path: Path) -> None:
    save_file({"t": a}, tmp_path / "f", metadata)
    with pytest.raises(ModelFileError, match="not one of gpubackprop's"):
        Model.load(tmp_path / "f")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        Model.load(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match="is a directory"):
        Model.load(tmp_path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = saved(tmp_path).read_bytes()
    for length in [*range(0, len(content), 37), len(content) - 1]:
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(ModelFileError, match="not a whole safetensors file"):
            Model.load(tmp_path / "cut")


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_a_file_with_changed_bytes_loads_or_is_refused_and_nothing_else(
    changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    some_model().save(path)
    content = bytearray(path.read_bytes())
    for place, byte in changes:
        content[place % len(content)] = byte
    path.write_bytes(content)
    try:
        Model.load(path)
    except ModelFileError as error:
        assert str(path) in str(error)  # noqa: PT017 (either outcome is right)
