"""What the texts of a column are, and any table as typed columns."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from gpubackprop.data import split_groups
from gpubackprop.data.any_table import as_table
from gpubackprop.data.parse import parse_texts
from gpubackprop.data.typed import numbers, text, written
from gpubackprop.errors import DataError, DtypeError, OptionError, ShapeError

NAN = float("nan")


def seconds(*moment: int) -> float:
    return datetime.datetime(*moment, tzinfo=datetime.UTC).timestamp()


CASES: dict[str, tuple[list[str], str | None, list[float]]] = {
    "numbers": (["1", " 2.5", "-3e2", ".5", "+4."], "number", [1, 2.5, -300, 0.5, 4]),
    "numbers and marks": (["1", "?", "-", "N/A", "none"], "number", [1, NAN, NAN, NAN, NAN]),
    "codes": (["007", "8"], None, []),
    "zeros and fractions": (["0.7", "0", "-0"], "number", [0.7, 0, 0]),
    "words and a mark": (["red", "?"], None, []),
    "commas without being asked": (["1,5"], None, []),
    "booleans": (["True", "FALSE", "true"], "boolean", [1, 0, 1]),
    "times": (["0:30", "23:59:59", "12:00:00.5"], "time", [1800, 86399, 43200.5]),
    "no times": (["24:00"], None, []),
    "dates": (["2024-02-29", "1969-12-31"], "date", [seconds(2024, 2, 29), -86400]),
    "moments": (
        ["2024-02-29 13:05", "2024-03-01T00:00:01"],
        "date",
        [seconds(2024, 2, 29, 13, 5), seconds(2024, 3, 1, 0, 0, 1)],
    ),
    "offsets are left out": (
        ["2024-02-29T13:05:00+02:00", "2024-02-29T13:05:00Z"],
        "date",
        [seconds(2024, 2, 29, 13, 5)] * 2,
    ),
    "short dates": (["2024/2/9", "2024-2-9 7:05"], "date", [seconds(2024, 2, 9), seconds(2024, 2, 9, 7, 5)]),
    "German dates": (["9.2.2024", "31.12.2023"], "date", [seconds(2024, 2, 9), seconds(2023, 12, 31)]),
    "day first": (["9/2/2024", "31/12/2023"], "date", [seconds(2024, 2, 9), seconds(2023, 12, 31)]),
    "month first": (["2/9/2024", "12/31/2023"], "date", [seconds(2024, 2, 9), seconds(2023, 12, 31)]),
    "day or month first": (["2/9/2024"], None, []),
    "both first": (["31/1/2024", "1/31/2024"], None, []),
    "no such day": (["2023-02-29"], None, []),
    "dates and a gap": (["2024-02-29", "?"], "date", [seconds(2024, 2, 29), NAN]),
    "nothing": (["", " "], "number", [NAN, NAN]),
    "marks alone": (["?", "-"], None, []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_kind_of_texts_is_found_over_all_of_them(case: str) -> None:
    texts, kind, values = CASES[case]
    found = parse_texts(texts)
    assert (found.kind if found else None) == kind
    if found:
        np.testing.assert_array_equal(found.values, values)


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1,5", "2"], [1.5, 2]),
        (["1.234,5", "12.345.678", ",5"], [1234.5, 12345678, 0.5]),
        (["1.5", "2"], [1.5, 2]),  # points alone are decimal
    ],
)
def test_decimal_commas_are_read_where_they_may_be(texts: list[str], values: list[float]) -> None:
    found = parse_texts(texts, decimal_comma=True)
    assert found is not None
    np.testing.assert_array_equal(found.values, values)
    assert parse_texts(["1,2,3"], decimal_comma=True) is None


def test_values_come_back_as_the_text_that_they_were() -> None:
    for texts in (
        ["3", "2.5"],
        ["true", "false"],
        ["2024-02-29", "2024-02-29T13:05:00"],
        ["13:05:00"],
    ):
        column = written(text(texts)).as_text()
        assert [column.texts[code] for code in column.codes] == texts
    assert numbers([3.0, NAN, 1e20]).as_text().texts == ("3", "1e+20")


def test_empty_text_is_missing() -> None:
    column = text(["a", "", None, "b", "a"])
    assert column.missing.tolist() == [False, True, True, False, False]
    assert [column.texts[code] for code in column.codes[[0, 3, 4]]] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("build", "error", "said"),
    [
        (lambda: as_table(3), DtypeError, "an int, which is no table|a int, which is no table"),
        (lambda: as_table(np.ones(3)), ShapeError, r"shape \(3,\) but a table is \(N, D\)"),
        (lambda: as_table({"a": [1], "b": [1, 2]}), DataError, "columns of"),
        (lambda: as_table(pd.DataFrame([[1, 2]], columns=["a", "a"])), DataError, "duplicate"),
        (lambda: as_table(pl.DataFrame({"a": [1]}).lazy()), DtypeError, r"pass x.collect\(\)"),
        (
            lambda: as_table({"a": [1, "b"]}).column("a"),
            DataError,
            "'a' holds values of several kinds",
        ),
    ],
)
def test_what_is_no_table_is_refused(build: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        build()


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_in_one_part_of_about_the_size_asked_for(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.choice([f"g{i}" for i in range(30)], 400)
    train, test = split_groups(groups, 0.25, seed)
    assert sorted([*train, *test]) == list(range(400))
    assert not set(groups[train]) & set(groups[test])
    assert 60 <= len(test) <= 140
    assert (np.diff(train) > 0).all()
    again = split_groups(groups, 0.25, seed)
    assert [part.tolist() for part in again] == [train.tolist(), test.tolist()]


def test_impossible_splits_of_groups_are_explained() -> None:
    with pytest.raises(DataError, match="1 group cannot be split"):
        split_groups(["a", "a"], 0.5, 0)
    with pytest.raises(OptionError, match="fraction is 1"):
        split_groups(["a", "b"], 1.0, 0)
    assert all(len(part) for part in split_groups(["a", "a", "a", "b"], 0.01, 0))
