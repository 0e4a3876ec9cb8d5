"""load_dataset on NPY, NPZ and IDX: values, memory, and files that are damaged or foreign."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gpubackprop.data import Standardizer, check_finite, load_dataset
from gpubackprop.errors import DataError

IDX_CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx_bytes(array: np.ndarray) -> bytes:
    """An array in the IDX format, written after its description at yann.lecun.com."""
    code = IDX_CODES[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array, allow_pickle=array.dtype == object)
    return path


def message(path, **options) -> str:
    """The text of the DataError that load_dataset raises; it must name the file."""
    with pytest.raises(DataError) as caught:
        load_dataset(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- NPY ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i8", "f2", "f4", "f8", ">f4", "?"])
def test_npy_is_a_read_only_memmap_of_the_same_values(tmp_path, dtype):
    values = (np.arange(12).reshape(4, 3) % 2).astype(dtype)
    data = load_dataset(saved(tmp_path / "x.npy", values))
    assert isinstance(data.x, np.memmap)
    assert not data.x.flags.writeable
    np.testing.assert_array_equal(data.x, values.astype(float))
    assert data.x.dtype == (np.uint8 if dtype == "?" else dtype)
    assert data.feature_names is None


def test_npy_of_more_dimensions_is_flattened_per_row_without_a_copy(tmp_path):
    values = np.arange(24.0).reshape(4, 3, 2)
    x = load_dataset(saved(tmp_path / "x.npy", values)).x
    np.testing.assert_array_equal(x, [range(6 * i, 6 * i + 6) for i in range(4)])
    assert isinstance(x, np.memmap)


def test_npy_in_fortran_order_is_mapped_if_2d_and_refused_if_3d(tmp_path):
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    x = load_dataset(saved(tmp_path / "x.npy", values)).x
    np.testing.assert_array_equal(x, [[0, 1, 2], [3, 4, 5]])
    assert isinstance(x, np.memmap)
    cube = saved(tmp_path / "cube.npy", np.asfortranarray(np.zeros((2, 3, 4))))
    assert "ascontiguousarray" in message(cube)


@pytest.mark.parametrize(
    "y", [np.array([3, 1]), np.array([[0.5, 1], [2, 3]]), np.array(["u", "v"])]
)
def test_npy_takes_its_targets_from_another_file(tmp_path, y):
    x = saved(tmp_path / "x.npy", np.zeros((2, 3)))
    data = load_dataset(x, target=saved(tmp_path / "y.npy", y))
    np.testing.assert_array_equal(data.y, y)


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.zeros(5), "reshape(-1, 1)"),
        (np.float64(3.0), "reshape(-1, 1)"),
        (np.zeros((0, 3)), "no rows"),
        (np.zeros((3, 0)), "no columns"),
        (np.zeros((2, 2), np.complex64), "complex64"),
        (np.array([["a", "b"]]), "<U1"),
        (np.zeros((2, 1), "M8[s]"), "datetime64"),
        (np.zeros(2, [("a", float)]), "real numbers"),
        (np.array([[{}, None]], object), "pickle"),
    ],
)
def test_npy_of_the_wrong_shape_or_dtype_says_what_to_save(tmp_path, array, wanted):
    assert wanted in message(saved(tmp_path / "x.npy", np.asarray(array)))


def test_x_and_y_of_different_length_names_both_numbers(tmp_path):
    x, y = saved(tmp_path / "x.npy", np.zeros((5, 2))), saved(tmp_path / "y.npy", np.zeros(4))
    got = message(x, target=y)
    assert "5 rows" in got
    assert "has 4" in got
    assert str(y) in got


@pytest.mark.parametrize(
    ("y", "wanted"),
    [
        (np.zeros((2, 2, 2)), "(N,) or (N, K)"),
        (np.array([1.0, np.nan]), "row 2"),
        (np.zeros(2, complex), "complex128"),
        (np.array([None, {}], object), "pickle"),
    ],
)
def test_bad_targets_of_npy_name_their_file(tmp_path, y, wanted):
    x, target = saved(tmp_path / "x.npy", np.zeros((2, 3))), saved(tmp_path / "y.npy", y)
    with pytest.raises(DataError) as caught:
        load_dataset(x, target=target)
    assert str(target) in str(caught.value)
    assert wanted in str(caught.value)


@pytest.mark.parametrize("target", ["absent.npy", "y.csv", ["a"], 3])
def test_targets_of_npy_must_be_an_npy_or_idx_file(tmp_path, target, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "y.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"no such file|NPY or IDX"):
        load_dataset(saved(tmp_path / "x.npy", np.zeros((2, 3))), target=target)


def test_npy_has_no_columns_to_choose_from(tmp_path):
    assert "column names" in message(saved(tmp_path / "x.npy", np.zeros((2, 3))), features=["a"])


@pytest.mark.parametrize("keep", [1, 7, 9, 60, 128, 200, -1])
def test_npy_cut_off_anywhere_is_an_error(tmp_path, keep):
    path = saved(tmp_path / "x.npy", np.ones((10, 4)))
    path.write_bytes(path.read_bytes()[:keep])
    assert "NPY" in message(path)


@pytest.mark.parametrize("shape", ["(10,-4)", "(9999999999999999999, 4)", "(1 + ", "[10, 4]"])
def test_npy_with_a_mad_header_is_an_error(tmp_path, shape):
    path = saved(tmp_path / "x.npy", np.ones((10, 4)))
    raw, old = path.read_bytes(), b"(10, 4), }                              "
    assert old in raw
    path.write_bytes(raw.replace(old, f"{shape}, }}".encode().ljust(len(old))))
    assert "NPY" in message(path)


# ---- NPZ ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_finds_x_beside_its_target(tmp_path, save):
    save(tmp_path / "d.npz", x=np.eye(3), y=np.array([1, 2, 3]), z=np.zeros(9))
    data = load_dataset(tmp_path / "d.npz", target="y")
    np.testing.assert_array_equal(data.x, np.eye(3))
    assert data.y.tolist() == [1, 2, 3]


def test_npz_takes_the_only_other_array_or_the_one_named(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, images=np.ones((2, 2, 2)), label=np.array([True, False]))
    assert load_dataset(path, target="label").x.shape == (2, 4)
    assert load_dataset(path, features="images").y is None
    assert load_dataset(path, features=["images"], target="label").y.dtype == bool
    assert "'images', 'label'" in message(path)
    assert "did you mean 'label'" in message(path, target="lable")
    assert "both" in message(path, target="label", features="label")


def test_npz_errors_name_array_and_row(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.array([[1.0, 2.0], [3.0, np.nan]]), y=np.zeros(3), o=np.array([{}], object))
    got = message(path)
    assert "'x'" in got
    assert "row 2" in got
    assert "column 2" in got
    assert "pickle" in message(path, features="o")
    np.savez(path, x=np.ones((2, 2)), y=np.zeros(3))
    assert "3" in message(path, target="y")


@pytest.mark.parametrize("keep", [4, 30, 150, -1])
def test_npz_cut_off_anywhere_is_an_error(tmp_path, keep):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.ones((10, 4)))
    path.write_bytes(path.read_bytes()[:keep])
    assert "NPZ" in message(path)


def test_npz_with_a_flipped_bit_is_an_error(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.ones((10, 4)))
    raw = bytearray(path.read_bytes())
    raw[300] ^= 1
    path.write_bytes(raw)
    assert "CRC" in message(path)


def test_a_zip_of_other_things_and_a_pickle_are_no_npz(tmp_path):
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "hello")
    assert "no NumPy array" in message(path)
    path.write_bytes(b"\x80\x04K\x01.")
    assert "no NPZ" in message(path)


# ---- IDX ----------------------------------------------------------------------------------------

NAMES = ["train-images-idx3-ubyte", "train-images.idx3-ubyte", "x.idx"]


@pytest.mark.parametrize("name", NAMES)
def test_idx_is_a_memmap_flattened_per_row(tmp_path, name):
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / name).write_bytes(idx_bytes(images))
    x = load_dataset(tmp_path / name).x
    assert isinstance(x, np.memmap)
    assert not x.flags.writeable
    np.testing.assert_array_equal(x, images.reshape(2, 12))


@pytest.mark.parametrize("dtype", IDX_CODES)
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_of_every_type_and_gz_hold_the_same_values(tmp_path, dtype, zipped):
    values = np.array([[1, 2], [3, 100]], dtype=dtype)
    path = tmp_path / ("x.idx.gz" if zipped else "x.idx")
    raw = idx_bytes(values)
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    np.testing.assert_array_equal(load_dataset(path).x, values)


def test_idx_images_and_labels_of_mnist_go_together(tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(idx_bytes(np.full((3, 28, 28), 9, np.uint8)))
    )
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.array([7, 2, 1], np.uint8)))
    data = load_dataset(tmp_path / "t10k-images-idx3-ubyte.gz", target=str(labels))
    assert data.x.shape == (3, 784)
    assert data.y.tolist() == [7, 2, 1]


WHOLE = idx_bytes(np.ones((4, 5), np.uint8))


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (WHOLE[:2], "no IDX"),
        (WHOLE[:10], "truncated"),
        (WHOLE[:-1], "truncated"),
        (WHOLE + b"x", "holds more"),
        (b"\x89PNG" + WHOLE, "89 50 4e 47"),
        (b"\0\0\x07\x02" + WHOLE[4:], "00 00 07 02"),
        (b"\0\0\x08\x00" + WHOLE[4:], "00 00 08 00"),
        (struct.pack(">BBBB3I", 0, 0, 14, 3, *[2**32 - 1] * 3), "truncated"),
        (struct.pack(">BBBB2I", 0, 0, 8, 2, 0, 5), "no rows"),
        (idx_bytes(np.ones(4, np.uint8)), "reshape"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_damaged_or_foreign_says_what_is_wrong(tmp_path, raw, wanted, zipped):
    path = tmp_path / ("x-idx2-ubyte.gz" if zipped else "x-idx2-ubyte")
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    assert wanted in message(path)


def test_idx_gz_damaged_as_gzip_and_gzip_without_gz_are_named(tmp_path):
    zipped = gzip.compress(WHOLE)
    for raw, wanted in [
        (zipped[:-9], "truncated"),
        (zipped[:-8] + bytes(8), "CRC"),
        (WHOLE, "gzip"),
    ]:
        (tmp_path / "x.idx.gz").write_bytes(raw)
        assert wanted in message(tmp_path / "x.idx.gz")
    (tmp_path / "x.idx").write_bytes(zipped)
    assert "name it .gz" in message(tmp_path / "x.idx")


# ---- files in general ---------------------------------------------------------------------------


def test_unknown_suffix_lists_the_known(tmp_path):
    for name in ("data.txt", "data", "data.npy.gz", "data.gz"):
        (tmp_path / name).write_text("1")
        got = message(tmp_path / name)
        assert [
            s for s in (".csv", ".csv.gz", ".parquet", ".npz", ".npy", "IDX") if s not in got
        ] == []


def test_absent_directory_and_pipe_are_told_apart(tmp_path):
    assert "no such file" in message(tmp_path / "absent.csv")
    (tmp_path / "dir.csv").mkdir()
    assert "is a directory" in message(tmp_path / "dir.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    assert "pipe" in message(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="null byte"):
        load_dataset("a\0b.csv")


def test_a_file_without_read_permission_says_so(tmp_path):
    path = saved(tmp_path / "x.npy", np.zeros((2, 2)))
    path.chmod(0)
    if os.geteuid() == 0:  # root may read anything: be someone else for a moment
        os.seteuid(65534)
        try:
            got = message(path)
        finally:
            os.seteuid(0)
    else:
        got = message(path)
    assert "Permission denied" in got


# ---- memory -------------------------------------------------------------------------------------

LARGER_THAN_MEMORY = """
import resource, sys
import numpy as np
from gpubackprop.data import Standardizer, load_dataset
budget = 512 << 20  # private memory; file mappings do not count
resource.setrlimit(resource.RLIMIT_DATA, (budget, budget))
x = load_dataset(sys.argv[1]).x
assert isinstance(x, np.memmap) and x.shape == (1 << 20, 1024), x.shape
print(Standardizer.fit(x, rows=np.arange(0, 1 << 20, 256)).mean[:2], x[-1, 0])
try:
    np.array(x)
except MemoryError:
    print("a copy does not fit")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
@pytest.mark.parametrize("kind", ["x.npy", "x-idx2-ubyte"])
def test_a_file_larger_than_the_memory_budget_is_read_in_batches(tmp_path, kind):
    path = tmp_path / kind
    shape = (1 << 20, 1024)
    if kind == "x.npy":
        np.lib.format.open_memmap(path, "w+", np.uint8, shape)[-1, 0] = 7
    else:
        with open(path, "wb") as file:  # 1 GiB that takes no disk: zeros are not written
            file.write(struct.pack(">BBBB2I", 0, 0, 8, 2, *shape))
            file.truncate(12 + shape[0] * shape[1])
            file.seek(12 + (shape[0] - 1) * shape[1])
            file.write(b"\7")
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LARGER_THAN_MEMORY, str(path)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.stdout == "[0. 0.] 7\na copy does not fit\n", done.stderr


def test_fitting_and_transforming_a_memmap_takes_a_few_batches_of_memory(tmp_path):
    path = tmp_path / "x.npy"
    mapped = np.lib.format.open_memmap(path, "w+", np.float32, (1 << 19, 32))  # 64 MiB
    mapped[:] = np.arange(32)
    mapped.flush()
    out = np.empty((1 << 19, 32), np.float32)
    tracemalloc.start()
    try:
        x = load_dataset(path).x
        standardizer = Standardizer.fit(x)
        fit_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        check_finite(x)
        standardizer.transform(x, out=out)
        transform_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(standardizer.mean, np.arange(32))
    assert fit_peak < 12 << 20
    assert transform_peak < 2 << 20
