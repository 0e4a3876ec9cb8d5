"""The kind of a column of text, from its distinct texts: numbers, booleans, dates, or text."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Kind = Literal["number", "boolean", "date", "time"]


class Parsed(NamedTuple):
    """What texts are: their kind, their values, and the order of day and month in their dates."""

    kind: Kind
    values: Floats
    form: str = ""


# What people write for a missing number. Beside text it may be a value like any other.
MARKS = frozenset({"?", "-", "--", "---", ".", "..", "*", "na", "n/a", "nan", "none", "null",
                   "missing", "unknown", "#n/a", "#value!", "#div/0!"})  # fmt: skip
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf(inity)?)", re.I)
_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d*)?|[+-]?,\d+")
_LEADING_ZERO = re.compile(r"[+-]?0\d+")
_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(:([0-5]\d)(\.\d+)?)?")
_ISO = re.compile(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}([T ].+)?")
_DOTS = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})( .+)?")
_SLASHES = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})( .+)?")
_UNIX = datetime.datetime(1970, 1, 1)


def parse_texts(
    texts: Sequence[str], *, decimal_comma: bool = False, form: str = ""
) -> Parsed | None:
    """Return the kind of these distinct texts and their values, or None if they are plain text.

    A text that stands for a missing value ("?", "-") becomes NaN if all others are numbers, dates
    or times. Whole numbers with zeros before them ("007") are text: they are codes.

    Parameters
    ----------
    texts : sequence of K str
        Distinct texts.
    decimal_comma : bool
        Whether a comma may stand before the decimals.
    form : str
        "dmy" or "mdy": what dates with slashes are known to be.

    Examples
    --------
    >>> parse_texts(["1", "2.5", "?"]).values
    array([1. , 2.5, nan])
    >>> parse_texts(["1,5", "2"], decimal_comma=True).values
    array([1.5, 2. ])
    >>> parse_texts(["31/1/2024", "1/2/2024"]).form
    'dmy'
    >>> parse_texts(["red", "?"]) is None
    True
    """
    stripped = [text.strip() for text in texts]
    there = [text for text in stripped if text and text.lower() not in MARKS]
    if not there:
        return Parsed("number", np.full(len(texts), np.nan)) if not any(stripped) else None
    form = form or _form_of(there)
    kinds: list[tuple[Any, Callable[[str], float] | None]] = [
        ("number", _numbers(there, decimal_comma)),
        ("boolean", _booleans(there)),
        ("time", _seconds if all(_TIME.fullmatch(text) for text in there) else None),
        ("date", _dates(there, form)),
    ]
    for kind, read in kinds:
        if read is None:
            continue
        kept = set(there)
        try:
            values = [read(text) if text in kept else np.nan for text in stripped]
        except ValueError:  # 2024-02-31
            continue
        return Parsed(kind, np.array(values, np.float64), form if kind == "date" else "")
    return None


def plain_number(text: str) -> str | None:
    """Return a number or boolean as numbers of a data frame are written, or None if it is none.

    >>> plain_number("1.0"), plain_number("TRUE"), plain_number("007"), plain_number("red")
    ('1', 'true', None, None)
    """
    stripped = text.strip()
    if stripped.lower() in ("true", "false"):
        return stripped.lower()
    if not _NUMBER.fullmatch(stripped) or _LEADING_ZERO.fullmatch(stripped):
        return None
    return number_text(float(stripped))


def number_text(value: float) -> str:
    """Return the text of a number: 3.0 is "3"."""
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(value)


def read_number(text: str, *, decimal_comma: bool = False) -> float | None:
    """Return the number that a text is, or None; a missing value is NaN."""
    text = text.strip()
    if not text or text.lower() in MARKS:
        return float("nan")
    read = _numbers([text], decimal_comma, codes=False)
    return None if read is None else read(text)


def _numbers(
    there: list[str], decimal_comma: bool, codes: bool = True
) -> Callable[[str], float] | None:
    if codes and any(_LEADING_ZERO.fullmatch(text) for text in there):
        return None
    if all(_NUMBER.fullmatch(text) for text in there):
        return float
    if decimal_comma and all(_COMMA.fullmatch(text) for text in there):
        return lambda text: float(text.replace(".", "").replace(",", "."))
    return None


def _booleans(there: list[str]) -> Callable[[str], float] | None:
    if {text.lower() for text in there} <= {"true", "false"}:
        return lambda text: float(text.lower() == "true")
    return None


def _seconds(text: str) -> float:
    hours, minutes, *seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + (float(seconds[0]) if seconds else 0.0)


def _form_of(there: list[str]) -> str:
    """Return "dmy" or "mdy" of dates with slashes: a number above 12 says which is the day."""
    parts = [part for text in there if (part := _SLASHES.fullmatch(text))]
    day_first = any(int(part[1]) > 12 for part in parts)
    month_first = any(int(part[2]) > 12 for part in parts)
    return "" if day_first == month_first else "dmy" if day_first else "mdy"


def _dates(there: list[str], form: str) -> Callable[[str], float] | None:
    """Return how these dates are read: 2024-01-31, 31.1.2024, 1/31/2024 or 31/1/2024.

    If nothing says of dates with slashes which number is the day, the column stays text.
    """
    if all(_ISO.fullmatch(text) for text in there):
        return _iso
    if all(_DOTS.fullmatch(text) for text in there):
        return partial(_reordered, pattern=_DOTS, day_first=True)
    if form and all(_SLASHES.fullmatch(text) for text in there):
        return partial(_reordered, pattern=_SLASHES, day_first=form == "dmy")
    return None


def _reordered(text: str, pattern: re.Pattern[str], day_first: bool) -> float:
    part = pattern.fullmatch(text)
    if part is None:
        raise ValueError(text)
    day, month = (part[1], part[2]) if day_first else (part[2], part[1])
    return _iso(f"{part[3]}-{int(month):02}-{int(day):02}{part[4] or ''}")


def _iso(text: str) -> float:
    """Return seconds since 1970 on the clock that was written; an offset is left out."""
    date, separator, clock = re.sub(r"[T ]", "T", text, count=1).partition("T")
    year, month, day = (int(part) for part in re.split(r"[-/]", date))
    padded = f"{year:04}-{month:02}-{day:02}"
    if separator:
        clock = re.sub(r"^(\d):", r"0\1:", clock.strip())
        padded = f"{padded}T{clock}"
    moment = datetime.datetime.fromisoformat(padded).replace(tzinfo=None)
    return (moment - _UNIX).total_seconds()
