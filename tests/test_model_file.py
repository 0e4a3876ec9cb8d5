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
from gpubackprop.errors import (
    DataError,
    GpubackpropError,
    ModelFileError,
    OptionError,
    StorageError,
)
from gpubackprop.model import Model
from gpubackprop.network import MLP
from gpubackprop.tensorfile import read_tensors, remove_leftovers, write_tensors

VALUES = {"kind": "test", "version": 1}


def some_model(classes: Any = ("a", "b", "c"), **options: Any) -> Model:
    network = MLP([4, 5, len(classes)], ["leaky_relu(0.2)"], seed=3, **options)
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
    "classes", [("no", "yes", "naïve"), (3, -1, 2**40), (True, False), (0.1, 1e-300, 2.5)]
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


def objects(*values: Any) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


ROUND_TRIPS: dict[str, np.ndarray] = {
    **{name: np.array([0, 1, np.iinfo(name).max], name) for name in
       ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u2")},
    **{name: np.array([-0.0, np.finfo(name).tiny, np.finfo(name).max], name) for name in
       ("f2", "f4", "f8", ">f8")},
    "infinite": np.array([-np.inf, 0.1, np.inf]), "least": np.array([-(2**63), 0, 1]),
    "bool": np.array([True, False]), "text": np.array(["a", "", "naïve ✓\U0001f600"]),
    "wide text": np.array(["a", "b", "c"], "U99"), ">U": np.array(["a", "b", "é"], ">U3"),
    "surrogate": np.array(["\udc80", "\x00a", "a\nb"]),
    "bytes": np.array([b"a", "é".encode(), b""]), "wide bytes": np.array([b"a", b"b", b"c"], "S9"),
    "StringDType": np.array(["a", "bb", "é"], np.dtypes.StringDType()),
    "days": np.array(["2020-01-01", "1960-02-29", "2262-01-01"], "M8[D]"),
    "nanoseconds": np.array(["2020-01-01T00:00:00.000000001", "1960", "2262"], "M8[ns]"),
    "years": np.array(["2020", "-4000", "12000"], "M8[Y]"),
    "25 seconds": np.array([0, 50, -25], "m8[25s]"), "durations": np.array([1, -2, 3], "m8[ms]"),
    "objects of text": objects("a", "bb", ""), "objects of ints": objects(1, -5, 2**62),
    "objects of bools": objects(True, False), "objects of floats": objects(0.1, 2.5, -1e300),
    "NumPy text": objects(np.str_("a"), np.str_("b"), np.str_("c")),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_classes_of_every_dtype_that_a_model_takes_come_back_exactly(
    name: str, tmp_path: Path
) -> None:
    classes = ROUND_TRIPS[name]
    model = some_model(classes)
    assert model.classes is not None
    assert (model.classes.dtype, model.classes.tolist()) == (classes.dtype, classes.tolist())
    model.save(tmp_path / "model")
    found = Model.load(tmp_path / "model")
    assert found.classes is not None
    assert found.classes.dtype == classes.dtype
    assert found.classes.tolist() == classes.tolist()
    assert [type(c) for c in found.classes] == [type(c) for c in model.classes]
    x = np.random.default_rng(0).normal(size=(9, 4))
    assert found.predict_labels(x).dtype == classes.dtype
    assert found.predict_labels(x).tolist() == model.predict_labels(x).tolist()


def refused(**changed: Any) -> Any:
    """What the constructor is given, so that it must refuse it: (arguments)."""
    return {"network": MLP([4, 5, 3]), **changed}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "few features": (refused(feature_names=["a"]), "1 feature_names but 4 input units"),
    "no features": (refused(feature_names=[]), "0 feature_names but 4 input units"),
    "many features": (refused(feature_names=list("abcde")), "5 feature_names but 4"),
    "features as text": (refused(feature_names="abcd"), "'abcd', which is not a list of names"),
    "features as a set": (refused(feature_names=set("abcd")), "not a list of names"),
    "features in rows": (refused(feature_names=np.array([list("abcd")])), "not a list of names"),
    "features as 0-d": (refused(feature_names=np.array("abcd")), "not a list of names"),
    "features in latin-1": (refused(feature_names=[b"\xe9", "a", "b", "c"]), "not UTF-8"),
    "features as a number": (refused(feature_names=4), "4, which is not a list"),
    "targets of classes": (refused(target_names=["a", "b"]), "2 target_names but 3 output units"),
    "targets of numbers": (
        refused(network=MLP([4, 3], output="linear"), target_names=["a"]), "1 target_names but 3"),
    "targets as text": (refused(target_names="abc"), "not a list of names"),
    "few classes": (refused(classes=["a"]), r"classes has shape \(1,\) but there are 3 output"),
    "many classes": (refused(classes=list("abcd")), r"shape \(4,\) but there are 3"),
    "classes of numbers": (
        refused(network=MLP([4, 3], output="linear"), classes=["a", "b"]), r"\(2,\) but there are 3"),
    "one unit, 3 classes": (
        refused(network=MLP([4, 1], output="logistic"), classes=["a", "b", "c"]), "are 1 output"),
    "2-D classes": (refused(classes=[["a", "b", "c"]]), r"shape \(1, 3\).*\(K,\)"),
    "no classes": (refused(classes="abc"), r"shape \(\)"),
    "text and numbers": (refused(classes=["a", 1, "b"]), "row 2 .*is 1 but row 1 is 'a'"),
    "mixed objects": (refused(classes=objects("a", 1, "b")), "row 2 .*is 1 but row 1 is 'a'"),
    "mixed numbers": (refused(classes=objects(1, 2.5, 3)), r"classes\[1\] is 2.5, float, and"),
    "bool and int": (refused(classes=objects(True, 2, 3)), r"classes\[1\] is 2, int, and"),
    "sequences": (refused(classes=objects((1, 2), (3, 4), (5, 6))), "row 1 .*is the tuple"),
    "dicts": (refused(classes=objects({}, {}, {})), "row 1 .*is the dict"),
    "None": (refused(classes=objects("a", None, "b")), "row 2 .*no label"),
    "a class twice": (refused(classes=["a", "b", "a"]), r"classes\[2\] is 'a' as classes\[0\] is"),
    "True and 1": (refused(classes=[1, True, 2]), r"classes\[1\] is 1 as classes\[0\] is"),
    "two zeros": (refused(classes=[0.0, 1.0, -0.0]), r"classes\[2\] is -0.0 as classes\[0\] is"),
    "a final NUL": (refused(classes=["a", "a\0", "b"]), r"classes\[1\] is 'a' as"),
    "rounded": (refused(classes=[-1, 2**64 - 1, 0]), r"classes\[1\] is 18446744073709551615, which no"),
    "NaN": (refused(classes=[1.0, np.nan, 2.0]), r"classes\[1\] is nan"),
    "NaT": (refused(classes=np.array(["2020", "NaT", "2021"], "M8[D]")), r"classes\[1\] is NaT"),
    "complex": (refused(classes=np.zeros(3, complex)), "dtype complex128"),
    "long double": (refused(classes=np.zeros(3, np.longdouble)), "up to 64 bits"),
    "records": (refused(classes=np.zeros(3, "i4,f4")), "classes"),
    "latin-1": (refused(classes=np.array([b"a", b"\xe9", b"b"])), "row 2 .*not UTF-8"),
    "standardizer": (refused(standardizer=lambda x: x), "must be a gpubackprop.data.Standardizer"),
    "other columns": (
        refused(standardizer=Standardizer(np.zeros(3), np.ones(3))), "3 columns .* 4 input units"),
    "other names": (
        refused(standardizer=Standardizer(np.zeros(4), np.ones(4), tuple("abcd")),
                feature_names=list("abdc")), "are not those that the standardizer"),
    "network": (refused(network="model"), "network is a str but must be an MLP"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_could_not_be_loaded_again_is_refused_when_it_is_made(
    case: str, tmp_path: Path
) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(GpubackpropError, match=message) as caught:
        Model(**arguments)
    assert "\n" not in str(caught.value)
    if case in ("network", "standardizer"):
        return
    model = Model(arguments["network"])  # what is assigned later is looked at by save
    for name, value in arguments.items():
        setattr(model, name, value)
    with pytest.raises(GpubackpropError, match=message):
        model.save(tmp_path / "model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_diverged_network_is_not_written_over_a_good_one(value: float, tmp_path: Path) -> None:
    model = some_model()
    model.save(tmp_path / "model")
    model.network.W[1][0, 0] = value
    with pytest.raises(
        DataError, match=r"layers\.1\.weight holds NaN or infinity, so the model is"
    ):
        model.save(tmp_path / "model")
    assert np.isfinite(Model.load(tmp_path / "model").network.W[1]).all()


def test_names_and_classes_may_be_columns_indexes_and_arrays(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    classes = pd.Series(["a", "b", "c"], dtype="category")
    names = pd.Index(["w", "x", "y", 4])
    model = Model(MLP([4, 3]), None, names, np.array(["kind"]), classes)
    model.save(tmp_path / "model")
    for one in (model, Model.load(tmp_path / "model")):
        assert (one.feature_names, one.target_names) == (["w", "x", "y", "4"], ["kind"])
        assert one.classes is not None
        assert one.classes.tolist() == ["a", "b", "c"]


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
    "newer": (lambda a, v: v.update(version=4), "format version 4 .* reads up to 3; upgrade"),
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
    "mixed classes": (
        lambda a, v: v.update(classes=["a", 1, "b"], classes_dtype="|O"),
        "row 2 .*is 1",
    ),
    "missing class": (lambda a, v: v.update(classes=["a", None, "b"], classes_dtype="|O"), "label"),
    "targets": (lambda a, v: v.update(target_names=["a", "b"]), "2 target_names but 3"),
    "feature type": (lambda a, v: v.update(feature_names=[1, 2, 3, 4]), "not a list of names"),
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
