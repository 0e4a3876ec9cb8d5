"""Standardizer against exact fractions and scikit-learn, over shapes, layouts and huge offsets."""

from __future__ import annotations

import math
from fractions import Fraction

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubackprop.data import Standardizer, check_finite
from gpubackprop.errors import DataError, DtypeError, OptionError, ShapeError


def exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of the columns in rational arithmetic."""
    means, stds = [], []
    for column in x.T.tolist():
        values = [Fraction(v) for v in column]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        means.append(float(mean))
        stds.append(math.sqrt(variance))
    return np.array(means), np.array(stds)


def layouts(x: np.ndarray) -> list[np.ndarray]:
    """The same values C-ordered, Fortran-ordered, strided both ways, reversed and read-only."""
    wide = np.zeros((2 * x.shape[0], 3 * x.shape[1]), x.dtype)
    wide[::2, ::3] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    return [x, np.asfortranarray(x), wide[::2, ::3], x[::-1].copy()[::-1], frozen]


def test_fit_and_transform_of_a_hand_worked_matrix():
    x = np.array([[1.0, 10.0, 7.0], [2.0, 20.0, 7.0], [3.0, 60.0, 7.0]])
    s = Standardizer.fit(x)
    np.testing.assert_allclose(s.mean, [2, 30, 7], rtol=0, atol=0)
    # variances: (1 + 0 + 1) / 3 and (400 + 100 + 900) / 3
    np.testing.assert_allclose(s.scale, [math.sqrt(2 / 3), math.sqrt(1400 / 3), 1], rtol=1e-15)
    z = s.transform(x, dtype=np.float64)
    root = math.sqrt(1.5)
    np.testing.assert_allclose(z[:, 0], [-root, 0, root], rtol=1e-15)
    np.testing.assert_array_equal(z[:, 2], 0)
    assert s.transform(x).dtype == np.float32


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f2", "f4", "f8", ">f4", ">i4", "?"])
def test_fit_and_transform_agree_with_sklearn_for_every_dtype(dtype):
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(500, 6)) * 20 + 60).clip(0, 120).astype(dtype)
    reference = preprocessing.StandardScaler().fit(x.astype(np.float64))
    s = Standardizer.fit(x, batch_rows=37)
    np.testing.assert_allclose(s.mean, reference.mean_, rtol=1e-14)
    np.testing.assert_allclose(s.scale, reference.scale_, rtol=1e-13)
    want = reference.transform(x.astype(np.float64))
    np.testing.assert_allclose(s.transform(x, dtype=np.float64), want, rtol=1e-12, atol=1e-13)


@settings(deadline=None, max_examples=150)
@given(
    x=hnp.arrays(
        st.sampled_from([np.float64, np.float32]),
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
        elements=st.floats(-1e6, 1e6, width=32),
    ),
    batch_rows=st.integers(1, 13),
    layout=st.integers(0, 4),
)
def test_fit_equals_exact_arithmetic_for_any_shape_layout_and_batch(x, batch_rows, layout):
    mean, std = exact(x)
    view = layouts(x)[layout]
    s = Standardizer.fit(view, batch_rows=batch_rows)
    spread = np.ptp(x.astype(np.float64), axis=0)
    np.testing.assert_array_less(abs(s.mean - mean), 1e-15 * (abs(mean) + spread) + 1e-300)
    constant = spread == 0
    np.testing.assert_array_equal(s.scale[constant], 1)
    usable = std > 1e-150  # values down to subnormals are drawn; their squares underflow
    np.testing.assert_allclose(s.scale[usable], std[usable], rtol=1e-11)
    z = s.transform(view, dtype=np.float64)
    np.testing.assert_array_equal(z[:, constant], 0)
    np.testing.assert_array_less(abs(z.mean(axis=0)), 1e-9)


@pytest.mark.parametrize("offset", [1e8, -1e12])
@pytest.mark.parametrize("spread", [1e-3, 1.0])
@pytest.mark.parametrize("batch_rows", [1, 7, 1000, None])
def test_a_column_with_a_huge_offset_keeps_its_spread(offset, spread, batch_rows):
    x = offset + spread * np.random.default_rng(0).normal(size=(3000, 2))
    mean, std = exact(x)
    s = Standardizer.fit(x, batch_rows=batch_rows)
    np.testing.assert_allclose(s.scale, std, rtol=1e-12)
    np.testing.assert_allclose(s.mean, mean, rtol=2.3e-16)
    want = np.array([[(Fraction(v) - Fraction(m)) / Fraction(d) for v, m, d in
                      zip(row, s.mean.tolist(), s.scale.tolist(), strict=True)]
                     for row in x[:50].tolist()], dtype=float)  # fmt: skip
    np.testing.assert_allclose(s.transform(x[:50]), want, rtol=1e-7)


def test_a_first_row_far_from_the_others_costs_rounding_of_the_spread_only():
    x = np.random.default_rng(0).normal(size=(5000, 1))
    x[0] = 1e9
    mean, std = exact(x)
    s = Standardizer.fit(x, batch_rows=100)
    np.testing.assert_allclose(s.mean, mean, rtol=0, atol=1e-13 * std[0])
    np.testing.assert_allclose(s.scale, std, rtol=1e-13)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e8 + 0.1, -7e300, 5e-324, 0.0])
@pytest.mark.parametrize("count", [1, 3, 1001])
def test_a_constant_column_of_any_value_gets_scale_1_and_becomes_0(value, count):
    x = np.full((count, 1), value)
    s = Standardizer.fit(x, batch_rows=10)
    assert (s.mean[0], s.scale[0]) == (value, 1)
    np.testing.assert_array_equal(s.transform(x), 0)


def test_fit_on_rows_uses_those_and_no_others():
    x = np.array([[1.0], [np.nan], [5.0], [1e300], [3.0]])
    for rows in (np.array([4, 0, 2]), np.array([True, False, True, False, True])):
        s = Standardizer.fit(x, rows=rows, batch_rows=2)
        assert s.mean[0] == 3
        assert s.scale[0] == pytest.approx(math.sqrt(8 / 3), rel=1e-15)


def test_repeated_rows_count_as_often_as_they_are_named():
    s = Standardizer.fit(np.array([[0.0], [3.0]]), rows=np.array([1, 0, 1]))
    assert s.mean[0] == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch_rows", [1, 4, 100])
@pytest.mark.parametrize("row", [0, 6])
def test_fit_names_row_and_column_of_a_non_finite_value(bad, batch_rows, row):
    x = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    x[row, 1] = bad
    named = rf"row {row + 1} \(data rows counted from 1\), column 2 .* {bad};"
    with pytest.raises(DataError, match=named):
        Standardizer.fit(x, batch_rows=batch_rows)
    with pytest.raises(DataError, match=named):  # in terms of x, not of the rows picked
        Standardizer.fit(x, rows=np.array([8, 6, 0]), batch_rows=batch_rows)
    with pytest.raises(DataError, match=rf"row {row + 1} .*column 2 .* {bad};"):
        check_finite(x)


def test_a_nan_beyond_the_first_batch_is_named_by_its_row_in_the_whole():
    x = np.zeros((300_000, 2), np.float32)  # a batch has 262,144 of these rows
    x[290_000, 1] = np.nan
    for search in (check_finite, Standardizer.fit):
        with pytest.raises(DataError, match=r"row 290001 .*column 2"):
            search(x)


def test_transform_names_row_and_column_of_a_non_finite_value():
    s = Standardizer(np.zeros(2), np.ones(2))
    x = np.zeros((40_000, 2))
    x[30_000, 1] = np.nan
    with pytest.raises(DataError, match=r"row 30001 .*column 2"):
        s.transform(x)
    with pytest.raises(DataError, match=r"row 30501 .*column 2"):
        s.transform(x, first_row=500, dtype=np.float64)


def test_two_infinities_of_opposite_sign_do_not_cancel():
    with pytest.raises(DataError, match="row 1"):
        Standardizer(np.zeros(1), np.ones(1)).transform(np.array([[np.inf], [-np.inf]]))


def test_transform_names_a_value_beyond_the_result_dtype():
    s = Standardizer(np.zeros(1), np.ones(1))
    with pytest.raises(DataError, match=r"row 2 .*1e\+06.*float16"):
        s.transform(np.array([[1.0], [1e6]]), dtype=np.float16)


def test_finite_values_whose_sum_overflows_are_no_error():
    x = np.full((3, 1), 1.7e308)
    out = Standardizer(np.zeros(1), np.ones(1)).transform(x, dtype=np.float64)
    np.testing.assert_array_equal(out, x)


def test_float16_result_survives_columns_of_huge_and_tiny_scale():
    # In float16 arithmetic the differences would be infinite in column 1 and 0 in column 2.
    x = np.array([[1e8, 1e-12], [3e8, 3e-12]])
    np.testing.assert_array_equal(
        Standardizer.fit(x).transform(x, dtype=np.float16), [[-1, -1], [1, 1]]
    )


@settings(deadline=None, max_examples=60)
@given(
    rows=st.sampled_from([0, 1, 2, 7]),
    columns=st.sampled_from([1, 3]),
    layout=st.integers(0, 4),
    out_layout=st.integers(0, 3),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_transform_into_out_of_any_layout_equals_the_new_array(
    rows, columns, layout, out_layout, dtype
):
    x = np.arange(rows * columns, dtype=np.float64).reshape(rows, columns) * 1.7
    s = Standardizer(np.arange(columns) + 0.3, np.arange(columns) + 0.7)
    want = ((x - s.mean) / s.scale).astype(dtype)
    out = layouts(np.full((rows, columns), -9, dtype))[out_layout]
    got = s.transform(layouts(x)[layout], out=out)
    assert got is out
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(s.transform(x, dtype=dtype), want)


def test_blocks_of_a_matrix_larger_than_the_scratch_are_all_written():
    x = np.random.default_rng(0).normal(size=(1000, 301))
    s = Standardizer.fit(x)
    np.testing.assert_array_equal(s.transform(x), ((x - s.mean) / s.scale).astype(np.float32))


def test_transform_in_place_and_into_overlapping_memory():
    memory = np.arange(200_000.0).reshape(-1, 1)
    s = Standardizer(np.array([1.0]), np.array([2.0]))
    want = (memory[:-1] - 1) / 2
    s.transform(memory[:-1], out=memory[1:])
    np.testing.assert_array_equal(memory[1:], want)
    want = (memory - 1) / 2
    s.transform(memory, out=memory)
    np.testing.assert_array_equal(memory, want)


@pytest.mark.parametrize(
    ("call", "error", "wanted"),
    [
        (lambda s: Standardizer.fit(np.zeros(3)), ShapeError, r"reshape\(-1, 1\)"),
        (lambda s: Standardizer.fit(np.zeros((3, 0))), ShapeError, r"D > 0"),
        (lambda s: Standardizer.fit(np.zeros((0, 3))), DataError, "no rows"),
        (lambda s: Standardizer.fit(np.ones((2, 2)), rows=np.array([], int)), DataError, "no rows"),
        (
            lambda s: Standardizer.fit(np.ones((2, 2)), rows=np.array([0, 2])),
            OptionError,
            "holds 2",
        ),
        (lambda s: Standardizer.fit(np.ones((2, 2)), rows=np.array([-1])), OptionError, "holds -1"),
        (
            lambda s: Standardizer.fit(np.ones((2, 2)), rows=np.array([0.0])),
            OptionError,
            "integers",
        ),
        (lambda s: Standardizer.fit(np.ones((2, 2)), rows=np.array([True])), OptionError, "mask"),
        (lambda s: Standardizer.fit(np.ones((2, 2)), batch_rows=0), OptionError, "1 or more"),
        (lambda s: Standardizer.fit(np.ones((2, 2), complex)), DtypeError, "complex128"),
        (lambda s: Standardizer.fit(np.array([[1e200], [-1e200]])), DataError, "logarithm"),
        (lambda s: s.transform(np.zeros((4, 3))), ShapeError, "3 columns .* fitted on 2"),
        (lambda s: s.transform(np.zeros((4, 2)), out=np.zeros((3, 2))), ShapeError, r"\(4, 2\)"),
        (lambda s: s.transform(np.zeros((4, 2)), dtype=int), DtypeError, "float32"),
        (lambda s: Standardizer(np.zeros(2), np.zeros(2)), DataError, "above 0"),
        (lambda s: Standardizer(np.zeros(2), np.ones(3)), ShapeError, r"\(2,\)"),
        (lambda s: Standardizer(np.array([np.nan]), np.ones(1)), DataError, "finite"),
    ],
)
def test_misuse_is_explained(call, error, wanted):
    with pytest.raises(error, match=wanted):
        call(Standardizer(np.zeros(2), np.ones(2)))
