"""One column of a table as typed values: numbers, booleans, dates, times of day, or text.

A column comes from a CSV file (text, whose kind is found here), from Parquet, or from a data frame
of pandas, polars, pyarrow or another library that narwhals knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gpubackprop.data.parse import number_text, parse_texts
from gpubackprop.errors import DataError

Kind = Literal["number", "boolean", "date", "time", "text", "other"]
Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int32]
EPOCH = "1970-01-01"


@dataclass(frozen=True, eq=False)
class Column:
    """The values of a column.

    Attributes
    ----------
    kind : str
        "number", "boolean", "date", "time", "text", or "other" for what no network can read.
    values : (N,) float64 array
        Numbers; 0 and 1 of booleans; seconds since 1970 of dates; seconds since midnight of times.
        NaN is a missing value. Empty for text.
    codes : (N,) int32 array
        Text only: the place of each value in `texts`; -1 is a missing value.
    texts : tuple of str
        Text only: the distinct values.
    whole : bool
        Whether all numbers are whole.
    why : str
        What an "other" column holds.
    form : str
        Of dates that were text with slashes: "dmy" or "mdy".
    """

    kind: Kind
    values: Floats
    codes: Codes
    texts: tuple[str, ...] = ()
    whole: bool = False
    why: str = ""
    form: str = ""

    def __len__(self) -> int:
        return len(self.codes) if self.kind == "text" else len(self.values)

    def __repr__(self) -> str:
        return f"Column({self.kind}: {len(self):,} values, {int(self.missing.sum()):,} missing)"

    @cached_property
    def missing(self) -> npt.NDArray[np.bool_]:
        """Mask (N,) of the missing values."""
        return self.codes < 0 if self.kind == "text" else np.isnan(self.values)

    def take(self, rows: Any) -> Column:
        """Return the column of these rows: indices, a mask or a slice."""
        if self.kind == "text":
            return Column(self.kind, self.values, self.codes[rows], self.texts)
        return Column(self.kind, self.values[rows], self.codes, (), self.whole, self.why, self.form)

    def as_text(self) -> Column:
        """Return the values as text: 3 and 3.0 become "3", true becomes "true"."""
        if self.kind == "text":
            return self
        there = ~self.missing
        distinct, places = np.unique(self.values[there], return_inverse=True)
        codes = np.full(len(self), -1, np.int32)
        codes[there] = places
        return Column("text", _NOTHING, codes, tuple(self._written(v) for v in distinct.tolist()))

    def _written(self, value: float) -> str:
        if self.kind == "boolean":
            return "true" if value else "false"
        if self.kind == "date":
            moment = np.datetime64(EPOCH, "ms") + np.timedelta64(round(value * 1000), "ms")
            return str(moment.astype("datetime64[s]")).removesuffix("T00:00:00")
        if self.kind == "time":
            return str(np.datetime64(round(value * 1000), "ms").astype("datetime64[s]"))[11:]
        return number_text(value)


_NOTHING: Floats = np.empty(0)
_NO_CODES: Codes = np.empty(0, np.int32)


def numbers(values: npt.ArrayLike, kind: Kind = "number") -> Column:
    """Return a column of numbers, booleans, dates or times; NaN is a missing value."""
    floats = np.asarray(values, np.float64)
    whole = kind == "number" and bool(np.all((floats == np.trunc(floats)) | np.isnan(floats)))
    return Column(kind, floats, _NO_CODES, whole=whole)


def coded(codes: npt.ArrayLike, texts: Iterable[str]) -> Column:
    """Return a column of text from the distinct texts and the place of each value; -1 is missing.

    Empty text is missing too.
    """
    places, texts = np.asarray(codes, np.int32), tuple(texts)
    if "" in texts:
        empty = texts.index("")
        renumbered = np.arange(-1, len(texts) - 1, dtype=np.int32)
        renumbered[: empty + 1] += 1
        renumbered[empty] = -1
        places = np.where(places < 0, -1, renumbered[places]).astype(np.int32)
        texts = texts[:empty] + texts[empty + 1 :]
    return Column("text", _NOTHING, places, texts)


def unreadable(rows: int, why: str) -> Column:
    """Return a column that no network can read."""
    return Column("other", np.zeros(rows), _NO_CODES, why=why)


def text(values: Sequence[Any]) -> Column:
    """Return a column of these texts; None (or any object that is no text) is a missing value."""
    places: dict[str, int] = {}
    codes = [places.setdefault(v, len(places)) if isinstance(v, str) else -1 for v in values]
    return coded(codes, places)


def written(column: Column, *, decimal_comma: bool = False, form: str = "") -> Column:
    """Return a column of text from a file as what its texts are: numbers, dates, ..., or text.

    Parameters
    ----------
    column : Column
        Text.
    decimal_comma : bool
        Whether 1,5 may be a number.
    form : str
        "dmy" or "mdy": what dates with slashes are known to be.
    """
    found = parse_texts(column.texts, decimal_comma=decimal_comma, form=form)
    if found is None:
        return column
    distinct = found.values
    if not len(distinct):
        return numbers(np.full(len(column), np.nan))
    values = np.where(column.codes < 0, np.nan, distinct[column.codes])
    typed = numbers(values, found.kind)
    return replace(typed, form=found.form) if found.form else typed


def joined(columns: Sequence[Column]) -> Column:
    """Return the column of which these are the parts, one behind another.

    Raises
    ------
    DataError
        The parts hold several kinds of values.
    """
    known = [c for c in columns if c.kind == "text" or not c.missing.all()] or list(columns)
    kinds = {column.kind for column in known}
    if len(kinds) > 1:
        raise DataError(f"a column holds values of several kinds ({', '.join(sorted(kinds))})")
    first = known[0]
    if first.kind == "other":
        return unreadable(sum(map(len, columns)), first.why)
    if first.kind != "text":
        return numbers(np.concatenate([column.values for column in columns]), first.kind)
    places: dict[str, int] = {}
    codes = []
    for column in columns:
        own = [places.setdefault(text, len(places)) for text in column.texts]
        text = np.array([*own, -1], np.int32)  # the last is that of code -1
        codes.append(text[column.codes] if column.kind == "text" else np.full(len(column), -1))
    return coded(np.concatenate(codes), places)


def of_objects(values: Sequence[Any], name: str) -> Column:
    """Return a column of Python objects: all text, all numbers, all booleans, or all dates."""
    import datetime

    from gpubackprop.data.objects import kind_of

    plain = [v.decode() if isinstance(v, bytes) else v for v in values]
    there = [v for v in plain if kind_of(v) != "missing"]
    kinds = {_object_kind(value, datetime) for value in there}
    if not kinds:
        return numbers(np.full(len(plain), np.nan))
    if len(kinds) > 1:
        raise DataError(
            f"column {name!r} holds values of several kinds ({', '.join(sorted(kinds))}); make "
            "them all numbers or all text"
        )
    kind = kinds.pop()
    if kind == "text":
        return text(plain)
    if kind in ("number", "boolean"):
        values = [np.nan if kind_of(v) == "missing" else float(v) for v in plain]
        return numbers(values, kind)  # type: ignore[arg-type]
    if kind == "date":
        return moments(np.array([None if kind_of(v) == "missing" else v for v in plain], "M8[us]"))
    if kind == "time":
        return numbers([_seconds(v) for v in plain], "time")
    return unreadable(len(plain), f"objects of the type {kind}")


def _object_kind(value: Any, datetime: Any) -> str:
    from gpubackprop.data.objects import kind_of

    if isinstance(value, bool | np.bool_):
        return "boolean"
    if isinstance(value, datetime.date | np.datetime64):  # a datetime is a date
        return "date"
    if isinstance(value, datetime.time):
        return "time"
    kind = kind_of(value)
    return kind if kind in ("text", "number") else type(value).__name__


def _seconds(value: Any) -> float:
    """Return the seconds since midnight of a time; NaN for what is none."""
    if not hasattr(value, "hour"):
        return float("nan")
    return value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6


def moments(values: npt.NDArray[Any]) -> Column:
    """Return a column of dates from datetime64 values; NaT is a missing value."""
    microseconds = values.astype("datetime64[us]")
    seconds = microseconds.astype(np.int64) / 1e6
    return numbers(np.where(np.isnat(microseconds), np.nan, seconds), "date")


def of_array(values: npt.NDArray[Any], name: str) -> Column:
    """Return a column from a NumPy vector of any kind."""
    kind = values.dtype.kind
    if kind == "b":
        return numbers(values, "boolean")
    if kind in "iuf":
        return numbers(values)
    if kind == "M":
        return moments(values)
    if kind == "m":
        seconds = values.astype("timedelta64[us]").astype(np.int64) / 1e6
        return numbers(np.where(np.isnat(values), np.nan, seconds))
    if kind in "OUST":
        return of_objects(values.tolist(), name)
    return unreadable(len(values), f"values of the type {values.dtype}")
