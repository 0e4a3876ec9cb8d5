"""load_dataset on CSV and Parquet: values, columns, and errors that name file, row and column."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpubackprop.data import load_dataset
from gpubackprop.errors import DataError, MissingDependencyError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def write(tmp_path):
    """Writes text or bytes to a file and returns its path."""

    def write_file(content: str | bytes, name: str = "data.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def message(path, **options) -> str:
    """The text of the DataError that load_dataset raises; it must name the file."""
    with pytest.raises(DataError) as caught:
        load_dataset(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- values -------------------------------------------------------------------------------------


def test_csv_gives_features_in_file_order_and_target_apart(write):
    data = load_dataset(write("a,y,b\n1,u,2.5\n3,v,-4e2\n"), target="y")
    np.testing.assert_array_equal(data.x, [[1.0, 2.5], [3.0, -400.0]])
    assert data.x.dtype == np.float64
    assert data.x.flags.c_contiguous
    assert data.y.tolist() == ["u", "v"]
    assert (data.feature_names, data.target_names) == (("a", "b"), ("y",))


def test_csv_without_target_uses_all_columns_and_gives_no_y(write):
    data = load_dataset(write("a,b\n1,2\n"))
    assert data.x.tolist() == [[1.0, 2.0]]
    assert data.y is None
    assert data.target_names is None


def test_features_select_and_order_columns_of_a_file_with_others(write):
    path = write("note,b,y,a\nhello,2,0,1\nworld,4,1,3\n")
    data = load_dataset(path, target="y", features=("a", "b"))
    assert data.x.tolist() == [[1, 2], [3, 4]]
    assert data.feature_names == ("a", "b")


@pytest.mark.parametrize("target", [["v", "u"], "v,u", "v, u", ("v", "u")])
def test_several_targets_give_a_matrix_in_the_order_asked_for(write, target):
    data = load_dataset(write("u,a,v\n1,2,3\n4,5,6\n"), target=target)
    assert data.y.tolist() == [[3, 1], [6, 4]]
    assert data.target_names == ("v", "u")


def test_a_target_name_that_holds_a_comma_is_one_column(write):
    data = load_dataset(write('a,"size, cm"\n1,2\n'), target="size, cm")
    assert data.y.tolist() == [2]


@pytest.mark.parametrize(
    ("target", "y", "x"), [("0", 1, [2, 3]), ("-1", 3, [1, 2]), (-2, 2, [1, 3])]
)
def test_csv_without_header_takes_column_indices_as_target(write, target, y, x):
    data = load_dataset(write("1,2,3\n"), target=target, header=False)
    assert data.x.tolist() == [x]
    assert data.y.tolist() == [y]
    assert data.feature_names is None


def test_boolean_features_become_0_and_1(write):
    assert load_dataset(write("a,b\ntrue,1\nfalse,2\n")).x.tolist() == [[1, 1], [0, 2]]


def test_quoted_numbers_are_numbers(write):
    assert load_dataset(write('"a","b"\n"1","2.5"\n')).x.tolist() == [[1, 2.5]]


def test_labels_keep_leading_zeros_only_when_they_are_text(write):
    assert load_dataset(write("a,y\n1,007x\n2,8\n"), target="y").y.tolist() == ["007x", "8"]


def test_dates_as_target_are_labels(write):
    data = load_dataset(write("a,day\n1,2020-01-31\n"), target="day")
    assert data.y.tolist() == ["2020-01-31"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_mark_of_other_systems_are_read(write, newline):
    path = write("\ufeff" + newline.join(["a,b", "1,2", "3,4", ""]))
    data = load_dataset(path)
    assert data.feature_names == ("a", "b")
    assert data.x.tolist() == [[1, 2], [3, 4]]


def test_csv_gz_reads_as_the_csv_inside(write):
    path = write(gzip.compress(b"a,y\n1,u\n2,v\n", mtime=0), "data.CSV.GZ")
    assert load_dataset(path, target="y").x.tolist() == [[1], [2]]


def test_csv_keeps_the_digits_of_huge_offsets(write):
    assert load_dataset(write("a\n100000000.25\n")).x[0, 0] == 100000000.25


def test_a_column_whose_type_changes_after_many_rows_is_read_whole(write):
    path = write("a\n" + "1\n" * 50_000 + "0.5\n")
    data = load_dataset(path)
    assert (data.x.shape, data.x.sum()) == ((50_001, 1), 50_000.5)


def test_a_csv_line_of_two_megabytes_is_read(write):
    cell = "1.25" + "0" * 2000
    text = ",".join(f"c{i}" for i in range(1000)) + ("\n" + ",".join([cell] * 1000)) * 3
    np.testing.assert_array_equal(load_dataset(write(text)).x, np.full((3, 1000), 1.25))


def test_rows_and_quoted_line_breaks_survive_the_borders_of_parsed_blocks(write, monkeypatch):
    monkeypatch.setattr("gpubackprop.data.tables._BLOCK", 1000)
    rows = [f'{i},"a\nb, {i}\n\n",{i % 3}' for i in range(2000)]
    data = load_dataset(write("\n".join(["a,note,y", *rows])), features="a", target="y")
    np.testing.assert_array_equal(data.x[:, 0], np.arange(2000))
    np.testing.assert_array_equal(data.y, np.arange(2000) % 3)


def parquet(tmp_path, **columns) -> Path:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_of_narrow_types_is_float32_and_exact(tmp_path):
    path = parquet(
        tmp_path,
        a=pa.array([1, 255], pa.uint8()),
        b=pa.array([True, False]),
        c=pa.array([0.1, 65504.0], pa.float32()),
        h=pa.array(np.array([0.5, 2.0], np.float16)),
    )
    x = load_dataset(path).x
    assert x.dtype == np.float32
    want = np.array([[1, 1, np.float32(0.1), 0.5], [255, 0, 65504, 2]], np.float32)
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("kind", ["int32", "float64"])
def test_parquet_with_one_wide_column_is_float64_and_exact(tmp_path, kind):
    big = 2**24 + 1  # float32 has no such number
    path = parquet(
        tmp_path, a=pa.array([1.0], pa.float32()), b=pa.array([big], getattr(pa, kind)())
    )
    x = load_dataset(path).x
    assert x.dtype == np.float64
    assert x.tolist() == [[1, big]]


def test_parquet_dictionaries_decimals_and_large_strings_are_plain_values(tmp_path):
    import decimal

    path = parquet(
        tmp_path,
        a=pa.array([1, 2]).dictionary_encode(),
        b=pa.array([decimal.Decimal("1.5"), decimal.Decimal("2.25")]),
        y=pa.array(["u", "v"]).dictionary_encode(),
        z=pa.array(["p", "q"], pa.large_string()),
    )
    data = load_dataset(path, target=["y", "z"])
    assert data.x.tolist() == [[1, 1.5], [2, 2.25]]
    assert data.y.tolist() == [["u", "p"], ["v", "q"]]


def test_parquet_of_several_row_groups_keeps_the_row_order(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(
        pa.table({"a": np.arange(1000), "y": np.arange(1000) % 7}), path, row_group_size=64
    )
    data = load_dataset(path, target="y")
    np.testing.assert_array_equal(data.x[:, 0], np.arange(1000))
    np.testing.assert_array_equal(data.y, np.arange(1000) % 7)


def test_parquet_index_of_pandas_is_no_feature_unless_named(tmp_path):
    path = parquet(tmp_path, a=[1.0], **{"__index_level_0__": [7]})
    assert load_dataset(path).feature_names == ("a",)
    assert load_dataset(path, features=["__index_level_0__"]).x.tolist() == [[7]]


# ---- errors: rows and columns -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"a,b,y\n1,2,u\n3,caf\xe9,v\n", ["row 2 (line 3)", "'b'", "not UTF-8"]),
        (b"a,b,y\n1,2,caf\xe9\n", ["row 1 (line 2)", "'y'", "not UTF-8"]),
        ("a,b,y\n1,2,u\n3,,v\n", ["row 2 (line 3)", "'b'", "missing", "drop the row"]),
        ("a,b,y\n1,NA,u\n3,4,v\n", ["row 1 (line 2)", "'b'", "missing"]),
        ("a,b,y\n1,nan,u\n3,4,v\n", ["row 1 (line 2)", "'b'", "missing", "NaN"]),
        ("a,b,y\n1,2,u\n3,4,\n", ["row 2 (line 3)", "'y'", "missing"]),
        ('a,b,y\n1,2,u\n3,4,""\n', ["row 2 (line 3)", "'y'", "empty"]),
        ("a,b,y\n1,,u\n3,,v\n", ["row 1 (line 2)", "'b'", "2 rows"]),
        ("a,b,y\n1,2,u\n3,red,v\n", ["row 2 (line 3)", "'b'", "'red'", "encode", "leave it out"]),
        ("a,b,y\n1,?,u\n3,4,v\n", ["row 1 (line 2)", "'b'", "'?'", "missing value"]),
        ("a,b,y\n1,2,u\n3,inf,v\n", ["row 2 (line 3)", "'b'", "inf", "finite"]),
        ("a,b,y\n1,2,u\n3,1e400,v\n", ["row 2 (line 3)", "'b'", "inf"]),
        ("a,b,y\n1,2020-01-31,u\n", ["row 1 (line 2)", "'b'", "2020-01-31", "encode"]),
        ("a,b,y\n1,2,u\n3,4\n", ["row 2 (line 3)", "2 cells", "has 3"]),
        ("a,b,y\n1,2,u\n3,4,v,5\n", ["row 2 (line 3)", "4 cells", "has 3"]),
        ("\n\na,b,y\n\n1,2,u\n\n3,,v\n", ["row 2 (line 7)", "'b'", "missing"]),
        ('a,b,y\n1,2,"u\nu"\n3,,v\n', ["row 2 (line 4)", "'b'", "missing"]),
    ],
)
def test_csv_error_names_row_line_and_column(write, text, wanted):
    got = message(write(text), target="y")
    assert [part for part in wanted if part not in got] == [], got


def test_row_of_an_error_counts_data_rows_when_there_is_no_header(write):
    got = message(write("1,2\n3,\n"), header=False)
    assert "row 2 (line 2)" in got
    assert "'1'" in got


def test_an_empty_line_in_a_file_of_one_column_is_a_missing_value_and_shifts_no_row(write):
    assert "row 2 (line 3)" in message(write("a\n1\n\n2\n"))


def test_an_error_far_into_a_gzip_file_names_its_line(write):
    text = "a,b\n" + "1,2\n" * 30_000 + "1,x\n"
    got = message(write(gzip.compress(text.encode()), "data.csv.gz"))
    assert "row 30001 (line 30002)" in got


def test_an_unused_column_may_hold_anything(write):
    data = load_dataset(write("a,note\n1,\n2,text\n"), features="a")
    assert data.x.tolist() == [[1], [2]]


def test_a_quote_never_closed_in_an_unused_column_loses_no_rows_silently(write):
    got = message(write('a,note\n1,fine\n2,"oh\n3,x\n4,x\n'), features="a")
    assert "line 3" in got
    assert "never closed" in got


def test_an_odd_quote_inside_a_cell_is_no_error(write):
    data = load_dataset(write('a,note\n1,5" pipe\n2,x\n'), features="a")
    assert data.x.tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("row", "bad", "wanted"),
    [(2, None, "missing"), (1, float("nan"), "nan"), (3, float("-inf"), "-inf")],
)
def test_parquet_error_names_row_and_column(tmp_path, row, bad, wanted):
    values = [1.0, 2.0, 3.0]
    values[row - 1] = bad
    got = message(parquet(tmp_path, a=[1, 2, 3], b=pa.array(values, pa.float64())))
    assert f"row {row} (data rows counted from 1), column 'b'" in got
    assert wanted in got


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
def test_parquet_text_in_a_feature_names_the_value(tmp_path, kind):
    got = message(parquet(tmp_path, a=pa.array(["1", "red"], getattr(pa, kind)())))
    assert "row 2" in got
    assert "'red'" in got


def test_parquet_nested_columns_are_refused_by_name(tmp_path):
    path = parquet(tmp_path, a=[1.0], pixels=[[1, 2]])
    assert "'pixels'" in message(path)
    assert "'pixels'" in message(path, target="pixels")


# ---- errors: columns ----------------------------------------------------------------------------


def test_absent_target_lists_columns_and_suggests_the_nearest(write):
    got = message(write("length,width,species\n1,2,u\n"), target="Specis")
    assert "did you mean 'species'" in got
    assert "'length', 'width', 'species'" in got


def test_absent_features_are_all_named_with_what_is_there(write):
    got = message(write("a,b\n1,2\n"), features=["a", "p", "q"])
    assert "columns 'p', 'q' not in the file" in got
    assert "it has 'a', 'b'" in got


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"target": "a,b"}, "no feature column"),
        ({"target": "a", "features": "a,b"}, "'a' is both feature and target"),
        ({"target": ["a", "a"]}, "'a' is asked for twice"),
        ({"features": ["b", "b"]}, "'b' is asked for twice"),
    ],
)
def test_impossible_choices_of_columns_are_explained(write, options, wanted):
    assert wanted in message(write("a,b\n1,2\n"), **options)


def test_text_and_number_targets_together_are_refused(write):
    assert "'u' hold text" in message(write("a,u,v\n1,x,2\n"), target="u,v")


def test_duplicate_column_names_are_named(write):
    assert "duplicate column names 'a'" in message(write("a,b,a\n1,2,3\n"), features="b")


@pytest.mark.parametrize("text", [",a\n0,5\n", "a,\n5,\n"])
def test_a_nameless_column_is_not_taken_as_a_feature(write, text):
    path = write(text)
    assert "index=False" in message(path)
    assert load_dataset(path, features="a").x.tolist() == [[5]]


def test_a_csv_that_looks_headerless_suggests_no_header(write):
    assert "--no-header" in message(write("5.1,3.5,0\n4.9,3.0,0\n"))


def test_a_header_in_a_csv_read_without_header_is_recognised(write):
    assert "leave out --no-header" in message(write("a,b\n1,2\n"), header=False)


def test_the_numbered_header_of_pandas_is_a_header(write):
    data = load_dataset(write("0,1,2,3\n4,5,6,7\n"), target="3")
    assert data.feature_names == ("0", "1", "2")
    assert data.y.tolist() == [7]


def test_numeric_column_names_that_the_caller_lists_are_a_header(write):
    path = write("2019,2020\n1,2\n")
    assert "--no-header" in message(path)
    assert load_dataset(path, features=["2020", "2019"]).x.tolist() == [[2, 1]]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_another_separator_is_named(write, mark):
    got = message(write(f"a{mark}b\n1{mark}2\n"), target="b")
    assert repr(mark) in got


# ---- errors: files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name", "wanted"),
    [
        ("", "data.csv", "empty"),
        ("\n\n\n", "data.csv", "empty lines"),
        ("a,b", "data.csv", "no data rows"),
        ("a,b\n\n\n", "data.csv", "no data rows"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "data.csv", "not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "data.csv", "not UTF-8"),
        (b"a,b\n" + b"1,2\n" * 9000 + b"\xff,3\n", "data.csv", "row 9001 (line 9002), column 'a'"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "data.csv", ".csv.gz"),
        ("a,b\n1,2\n", "data.csv.gz", "gzip"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "data.csv.gz", "ended before"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0)[:-8] + bytes(8), "data.csv.gz", "CRC"),
        ("PAR1 hello", "data.parquet", "Parquet"),
        ("x", "data.parquet", "Parquet"),
    ],
)
def test_damaged_and_foreign_files_are_explained(write, content, name, wanted):
    assert wanted in message(write(content, name))


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.99])
def test_truncated_files_are_recognised_wherever_they_end(tmp_path, write, keep):
    whole = parquet(tmp_path, a=np.random.default_rng(0).normal(size=5000)).read_bytes()
    assert "Parquet" in message(write(whole[: int(len(whole) * keep)], "cut.parquet"))
    rows = "".join(f"{v}\n" for v in np.random.default_rng(0).normal(size=5000))
    zipped = gzip.compress(b"a\n" + rows.encode())
    assert "ended before" in message(write(zipped[: int(len(zipped) * keep)], "cut.csv.gz"))


def test_parquet_without_rows_is_refused(tmp_path):
    assert "no rows" in message(parquet(tmp_path, a=pa.array([], pa.float64())))


def test_importing_the_data_package_imports_no_pyarrow_and_no_narwhals():
    code = "import sys, gpubackprop.data, gpubackprop.model; print({'pyarrow', 'narwhals'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["data.csv", "data.parquet"])
def test_without_pyarrow_the_error_says_what_to_install(write, monkeypatch, name):
    path = write("a,b\n1,2\n", name)
    for module in ("pyarrow", "pyarrow.csv", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=re.escape("gpubackprop[cli]")):
        load_dataset(path)
