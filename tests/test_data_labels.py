"""encode_labels, infer_task and split_rows."""

from __future__ import annotations

import datetime
from decimal import Decimal
from fractions import Fraction

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubackprop.data import balanced_weights, encode_labels, infer_task, split_rows
from gpubackprop.errors import DataError, DtypeError, OptionError, ShapeError

# ---- encode_labels ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "indices", "classes"),
    [
        (["no", "yes", "no"], [0, 1, 0], ["no", "yes"]),
        ([True, False, True], [1, 0, 1], [False, True]),
        ([7, -3, 7, 40], [1, 0, 1, 2], [-3, 7, 40]),
        ([2.0, 0.0, 2.0], [1, 0, 1], [0, 2]),
        (np.array([[5], [4]], np.uint8), [1, 0], [4, 5]),
        (np.array(["b", "a"], object), [1, 0], ["a", "b"]),
        (np.array([b"b", b"a"]), [1, 0], ["a", "b"]),
        (np.array([1, 2.0, True], object), [0, 1, 0], [1, 2]),
    ],
)
def test_labels_of_every_kind_become_indices_of_sorted_classes(y, indices, classes):
    got, known = encode_labels(y)
    assert got.dtype == np.int64
    assert got.tolist() == indices
    assert known.tolist() == classes
    assert [type(c) for c in known.tolist()] == [type(c) for c in classes]


def test_given_classes_keep_their_order_and_need_not_all_occur():
    indices, classes = encode_labels(["c", "a", "c"], classes=["c", "b", "a"])
    assert indices.tolist() == [0, 2, 0]
    assert classes.tolist() == ["c", "b", "a"]
    assert encode_labels([1.0, 1.0], classes=np.array([0, 1]))[0].tolist() == [1, 1]


@given(
    y=st.one_of(
        hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(-5, 5)),
        hnp.arrays(np.float32, st.integers(1, 40), elements=st.integers(-5, 5).map(float)),
        hnp.arrays("U3", st.integers(1, 40), elements=st.text("xyz", max_size=3)),
        hnp.arrays(np.bool_, st.integers(1, 40)),
    ),
    step=st.sampled_from([1, 2, -1]),
)
def test_classes_at_the_indices_are_the_labels(y, step):
    y = y[::step]
    y.flags.writeable = False
    if len(set(y.tolist())) < 2:
        with pytest.raises(DataError, match="one class only"):
            encode_labels(y)
        return
    indices, classes = encode_labels(y)
    assert classes.tolist() == sorted(set(y.tolist()))
    np.testing.assert_array_equal(classes[indices], y)
    again, _ = encode_labels(y, classes=classes[::-1])
    np.testing.assert_array_equal(again, len(classes) - 1 - indices)


@pytest.mark.parametrize(
    ("y", "classes", "wanted"),
    [
        (["a", "b", "z", "a"], ["a", "b"], r"row 3 .*'z'.*'a', 'b'"),
        ([1, 2, 9], [1, 2], r"row 3 .*label 9,.*'1', '2'"),
        ([0, -1], [0, 1], r"row 2 .*label -1,"),
        (["1", "2"], [1, 2], r"y holds text \(row 1: '1'\) but the classes are numbers"),
        ([1, 2], ["1", "2"], r"y holds numbers .* classes are text"),
        (["a"], ["a", "a"], "distinct"),
        ([4, 4, 4], None, r"one class only \(4 in all 3 rows\)"),
        ([0.0, 1.5], None, r"row 2 .* 1\.5.* regression"),
        ([0.0, 1e300], None, r"row 2 .* regression"),
        ([1.0, np.nan], None, r"row 2 .* nan"),
        ([1.0, np.inf], None, r"row 2 .* inf"),
        (np.array(["a", None], object), None, r"row 2 .*no label"),
        (np.array(["a", float("nan")], object), None, r"row 2 .*no label"),
        (np.array(["a", 3], object), None, r"row 2 .* is 3 but row 1 is 'a'"),
        ([], None, "no labels"),
    ],
)
def test_bad_labels_are_named_with_their_row(y, classes, wanted):
    with pytest.raises(DataError, match=wanted):
        encode_labels(y, classes)


def objects(*values):
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


@pytest.mark.parametrize(
    ("y", "wanted"),
    [
        (objects((1, 2), (3, 4)), r"row 1 .*the tuple \(1, 2\), which is no label"),
        (objects((1,), (2,)), r"row 1 .*the tuple"),
        (objects([1], [2, 3]), r"row 1 .*the list \[1\]"),
        (objects(np.arange(2), np.arange(2)), "row 1 .*the ndarray"),
        (objects("a", np.array("b")), "row 2 .*the ndarray"),
        (objects({"a": 1}, {"b": 2}), "row 1 .*the dict"),
        (objects({1}, {2}), "row 1 .*the set"),
        (objects(1, 1j), "row 2 .*the complex"),
        (objects(object(), object()), "row 1 .*the object"),
        (objects(datetime.date(2020, 1, 1), "a"), "row 1 .*the date"),
        (objects("a", b"b"), "row 2 .*is b'b' but row 1 is 'a'"),
        (objects(b"a", 1), "row 2 .*is 1 but row 1 is b'a'"),
        (objects("a", np.datetime64("NaT")), "row 2 .*no label"),
        (objects(1, Decimal("nan")), "row 2 .*no label"),
        (objects(1, 10**30), "row 2 .*beyond 64 bits"),
        (objects(2**63, -1), "row 1 .*beyond 64 bits"),
        (objects(2**53 + 1, 1.0, 2.5), "row 3 .* 2.5.* regression"),
        (["a", 3], "row 2 .*is 3 but row 1 is 'a'"),  # NumPy makes '3' of it
        (["a", float("nan")], "row 2 .*no label"),
        (["a", None], "row 2 .*no label"),
        ([["a"], [3]], "row 2 .*is 3 but row 1 is 'a'"),
        (np.array([b"a", b"\xe9"]), r"row 2 .*b'\\xe9', bytes that are not UTF-8"),
        (objects(b"a", b"\xe9"), r"row 2 .*not UTF-8"),
        (np.ma.masked_array([1, 2, 3], mask=[0, 1, 0]), r"\[1\] is masked"),
        (np.array([0, 1.5], np.float16), r"row 2 .* 1\.5.* regression"),
        (np.array([0, np.inf], np.float16), r"row 2 .* inf"),
    ],
)
@pytest.mark.parametrize(
    "function", [encode_labels, lambda y: encode_labels(["a", "b"], y), infer_task]
)
def test_what_is_no_label_in_a_vector_of_objects_is_named_with_its_row(y, wanted, function):
    if function is infer_task and "regression" in wanted:
        assert infer_task(y) == "regression"
        return
    with pytest.raises(DataError, match=wanted) as caught:
        function(y)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (np.array([0, 1, 2], np.float16), [0, 1, 2]),
        (np.array([0, 65504], np.float16), [0, 65504]),
        (np.array([1, 2], np.longdouble), [1, 2]),
        (objects(Decimal(1), Fraction(4, 2), 3.0), [1, 2, 3]),
        (objects(2**53 + 1, 2**53), [2**53, 2**53 + 1]),
        (objects(np.int8(1), True, np.bool_(False)), [0, 1]),
        (objects("a", np.str_("b")), ["a", "b"]),
        (np.array([b"b", "é".encode()]), ["b", "é"]),
        (np.array(["b", "a"], np.dtypes.StringDType()), ["a", "b"]),
        ((b"b", b"a"), ["a", "b"]),
    ],
)
def test_labels_of_rare_types_are_whole_numbers_or_text(y, classes):
    indices, known = encode_labels(y)
    assert known.tolist() == classes
    assert [type(c) for c in known.tolist()] == [type(c) for c in classes]
    assert encode_labels(y, known)[0].tolist() == indices.tolist()


@pytest.mark.parametrize(
    "kind", ["series", "category", "string", "polars", "enum", "arrow", "frame"]
)
def test_a_column_of_a_frame_is_a_vector_of_labels(kind):
    pd, pl, pa = map(pytest.importorskip, ("pandas", "polars", "pyarrow"))
    y, missing = ["b", "a", "b"], ["b", None, "a"]
    build = {
        "series": pd.Series, "category": lambda v: pd.Series(v, dtype="category"),
        "string": lambda v: pd.Series(v, dtype="string[pyarrow]"), "polars": pl.Series,
        "enum": lambda v: pl.Series(v, dtype=pl.Enum(["b", "a"])),
        "arrow": lambda v: pa.chunked_array([pa.array(v).dictionary_encode()]),
        "frame": lambda v: pl.DataFrame({"kind": v}),
    }[kind]  # fmt: skip
    indices, classes = encode_labels(build(y))
    assert (indices.tolist(), classes.tolist(), classes.dtype.kind) == ([1, 0, 1], ["a", "b"], "U")
    assert infer_task(build(y)) == "classification"
    with pytest.raises(DataError, match=r"row 2 .*no label"):
        encode_labels(build(missing))


def test_labels_that_are_no_vector_or_no_labels_are_refused():
    with pytest.raises(ShapeError, match=r"\(2, 3\).*argmax\(1\)"):
        encode_labels(np.eye(2, 3))
    with pytest.raises(DtypeError, match="complex"):
        encode_labels(np.zeros(3, complex))
    with pytest.raises(DtypeError, match=r"y\.astype\(str\)"):
        encode_labels(np.array(["2020", "2021"], "M8[Y]"))
    with pytest.raises(DtypeError, match="y is not an array"):
        encode_labels([[1], [2, 3]])
    with pytest.raises(ShapeError, match=r"shape \(\)"):
        encode_labels({"a": 1})


class NAType:
    """Stands for pandas.NA, which refuses to be compared in a condition."""

    def __ne__(self, other):
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = object.__hash__


def test_the_missing_value_of_pandas_is_named_with_its_row():
    with pytest.raises(DataError, match=r"row 2 .*no label"):
        encode_labels(np.array([1, NAType(), 2], object))


@pytest.mark.parametrize("seed", range(3))
def test_balanced_weights_are_those_of_sklearn(seed):
    utils = pytest.importorskip("sklearn.utils")
    y = np.r_[np.arange(4), np.random.default_rng(seed).integers(0, 4, 50) ** 2 % 4]
    wanted = utils.compute_class_weight("balanced", classes=np.arange(4), y=y)
    np.testing.assert_allclose(balanced_weights(y, 4), wanted, rtol=1e-15)
    assert balanced_weights(y, 5)[4] == len(y) / 5  # a class without a row


# ---- infer_task ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (["u", "v"], "classification"),
        ([True, False], "classification"),
        ([0, 1], "classification"),
        ([-1.0, 1.0], "classification"),
        ([0, 1, 2], "regression"),  # three values, each once
        ([0, 1, 2] * 10, "classification"),
        (([0, 1, 2] * 10)[:-1], "regression"),  # 29 rows of 3 values: above a tenth
        (np.arange(20).repeat(10), "classification"),
        (np.arange(21).repeat(100), "regression"),  # more than 20 values
        (np.arange(20.0).repeat(10), "classification"),
        ([0.5, 1.0], "regression"),
        (np.full((4, 2), 2), "regression"),
        (np.array([[0, 1], [1, 1]]), "multilabel"),
        (np.zeros((4, 2), int), "multilabel"),
        (np.array([[0, 1], [1, 0], [1.0, 0]]), "classification"),  # one-hot
        (np.array([[0], [1]]), "classification"),
        (np.array(["u", "v"], object), "classification"),
    ],
)
def test_task_follows_the_documented_rule(y, task):
    assert infer_task(np.asarray(y)) == task


@pytest.mark.parametrize("name", ["iris", "digits", "breast_cancer", "wine", "diabetes"])
def test_task_of_known_data_sets(name):
    datasets = pytest.importorskip("sklearn.datasets")
    target = getattr(datasets, f"load_{name}")().target
    assert infer_task(target) == ("regression" if name == "diabetes" else "classification")


@pytest.mark.parametrize(
    ("y", "wanted"),
    [
        (np.array([1.5, np.nan]), "row 2"),
        (np.array([]), "no targets"),
        (np.array([["a", "b"]]), "one target column"),
    ],
)
def test_task_of_bad_targets_is_an_error(y, wanted):
    with pytest.raises(DataError, match=wanted):
        infer_task(y)


# ---- split_rows ---------------------------------------------------------------------------------


@given(
    n=st.integers(2, 300),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
    classes=st.none() | st.integers(1, 12),
)
def test_parts_are_disjoint_complete_ascending_and_repeatable(n, fraction, seed, classes):
    labels = None if classes is None else np.random.default_rng(seed).integers(0, classes, n)
    wanted = round(n * fraction)
    if wanted in (0, n):
        with pytest.raises(OptionError, match="empty"):
            split_rows(n, fraction, seed, labels)
        return
    if labels is not None and np.unique(labels, return_counts=True)[1].max() < 2:
        with pytest.raises(DataError, match="one row"):
            split_rows(n, fraction, seed, labels)
        return
    train, test = split_rows(n, fraction, seed, labels)
    assert train.dtype == test.dtype == np.int64
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(n))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()
    again = split_rows(n, fraction, seed, labels)
    np.testing.assert_array_equal(again[1], test)
    if labels is None:
        assert len(test) == wanted
        return
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        in_test = int((labels[test] == label).sum())
        assert in_test == 0 if count == 1 else 1 <= in_test <= count - 1


def test_stratified_split_has_the_exact_shares_where_they_are_whole():
    labels = np.array(["a"] * 50 + ["b"] * 30 + ["c"] * 20)
    train, test = split_rows(100, 0.3, seed=3, stratify=labels)
    assert [(labels[test] == c).sum() for c in "abc"] == [15, 9, 6]
    assert len(train) == 70


def test_rows_left_over_go_to_the_largest_remainders():
    labels = np.repeat([0, 1, 2], [7, 6, 7])  # of 0.25: 1.75, 1.5, 1.75, together 5
    _, test = split_rows(20, 0.25, seed=0, stratify=labels)
    assert np.bincount(labels[test]).tolist() == [2, 1, 2]


def test_a_small_class_is_kept_in_both_parts_at_the_cost_of_the_large():
    labels = np.array([0] * 96 + [1] * 2 + [2] * 2)
    _, test = split_rows(100, 0.1, seed=0, stratify=labels)
    assert np.bincount(labels[test]).tolist() == [8, 1, 1]


def test_seeds_give_different_splits_and_every_row_can_be_in_the_test_part():
    parts = [tuple(split_rows(20, 0.2, seed)[1]) for seed in range(60)]
    assert len(set(parts)) > 50
    assert {row for part in parts for row in part} == set(range(20))
    labels = np.arange(20) % 2
    parts = [tuple(split_rows(20, 0.2, seed, labels)[1]) for seed in range(60)]
    assert {row for part in parts for row in part} == set(range(20))


@pytest.mark.parametrize(
    ("arguments", "error", "wanted"),
    [
        ((1, 0.5, 0), DataError, "2 are needed"),
        ((10, 0.0, 0), OptionError, "between 0 and 1"),
        ((10, 1.0, 0), OptionError, "between 0 and 1"),
        ((10, float("nan"), 0), OptionError, "between 0 and 1"),
        ((10, 0.01, 0), OptionError, "test part empty; use a fraction from 0.1 to 0.9"),
        ((10, 0.99, 0), OptionError, "training part empty"),
        ((10, 0.5, -1), OptionError, "seed"),
        ((10, 0.5, 0, [0] * 9), ShapeError, r"\(9,\)"),
        ((4, 0.5, 0, list("abcd")), DataError, "without stratify"),
    ],
)
def test_impossible_splits_are_explained(arguments, error, wanted):
    with pytest.raises(error, match=wanted):
        split_rows(*arguments)
