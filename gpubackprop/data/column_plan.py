"""What was learnt of one column of a table, and how its values become inputs of a network."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gpubackprop.data.files import shorten
from gpubackprop.data.parse import plain_number, read_number
from gpubackprop.data.typed import Column, numbers, written
from gpubackprop.errors import DataError

Floats = npt.NDArray[np.float64]
Kind = Literal["number", "boolean", "category", "date", "time"]
DAY = 86_400.0
_FEW_ROWS = 20  # fewer distinct values may be no identifier
IDENTIFIER = "looks like an identifier"
# The period of each cyclic part of a moment in seconds (that of a year on average).
PERIODS = {"year": 365.2425 * DAY, "week": 7 * DAY, "day": DAY}
_SCALARS = {"number": "number", "boolean": "number", "date": "date", "time": "time of day"}


@dataclass(frozen=True)
class ColumnPlan:
    """How one column becomes inputs.

    Attributes
    ----------
    name : str
        Name of the column.
    kind : str
        "number", "boolean", "category", "date" (seconds since 1970) or "time" (seconds since
        midnight).
    fill : float
        What a missing number, boolean, date or time becomes: the median of the training rows.
    gaps : bool
        Whether training had missing values; they then have an input of their own, 1 where the
        value is missing.
    categories : tuple of str
        Texts with an input of their own, the most frequent first.
    other : bool
        Whether the remaining texts share an input.
    parts : tuple of str
        Of a date or time: "year", "week", "day" for two inputs each, sine and cosine.
    form : str
        Of dates that were text with slashes: "dmy" or "mdy".
    """

    name: str
    kind: Kind
    fill: float = 0.0
    gaps: bool = False
    categories: tuple[str, ...] = ()
    other: bool = False
    parts: tuple[str, ...] = ()
    form: str = ""

    @property
    def outputs(self) -> list[str]:
        """Names of the inputs that the column becomes."""
        if self.kind == "category":
            names = [f"{self.name}={category}" for category in self.categories]
            names += [f"{self.name}: other"] if self.other else []
        else:
            names = [self.name]
            names += [f"{self.name}: {f} of {part}" for part in self.parts for f in ("sin", "cos")]
        return [*names, f"{self.name}: missing"] if self.gaps else names

    @property
    def scaled(self) -> list[bool]:
        """Which of the inputs are standardised: numbers are; 0 and 1, sine and cosine are not."""
        return [self.kind != "category", *[False] * (len(self.outputs) - 1)]

    def describe(self) -> str:
        """Say in words what is done."""
        if self.kind == "category":
            text = (
                f"{len(self.categories)} categories" if len(self.categories) > 1 else "1 category"
            )
            text += ", the rest together" if self.other else ""
            return text + (", missing ones apart" if self.gaps else "")
        text = _SCALARS[self.kind]
        if self.parts:
            text += f" and its place in the {', '.join(self.parts)}"
        return text + (f", missing ones become {self._shown_fill()}" if self.gaps else "")

    def _shown_fill(self) -> str:
        return self._column([self.fill]).as_text().texts[0]

    def _column(self, values: npt.ArrayLike) -> Column:
        return numbers(values, "text" if self.kind == "category" else self.kind)

    # -- values ---------------------------------------------------------------------------------

    @property
    def wants_text(self) -> bool:
        """Whether the texts of a file are wanted, and not what this file alone says they are."""
        return self.kind == "category" or bool(self.form)

    def read(self, column: Column, where: Any, source: str) -> Column:
        """Return the column as the kind that this plan wants.

        Raises
        ------
        DataError
            The column cannot be read so; the row is named if a value is to blame.
        """
        if column.kind == "other":
            raise DataError(f"{source}: column {self.name!r} holds {column.why}")
        if self.kind == "category":
            return column.as_text()
        if column.kind == "text":
            column = self._from_text(column, where, source)
        if column.missing.all():
            return self._column(np.full(len(column), np.nan))
        wanted = {"number", "boolean"} if self.kind in ("number", "boolean") else {self.kind}
        if column.kind not in wanted:
            raise DataError(
                f"{source}: column {self.name!r} holds {column.kind}s but the training had "
                f"{self.kind}s in it; give it the same kind of values"
            )
        return column

    def _from_text(self, column: Column, where: Any, source: str) -> Column:
        if self.kind != "number":
            found = written(column, form=self.form)
            if found.kind != "text":
                return found
            row = int(np.flatnonzero(column.codes >= 0)[0]) if (column.codes >= 0).any() else 0
        else:
            comma = any("," in text for text in column.texts)
            values = [read_number(text, decimal_comma=comma) for text in column.texts]
            if None not in values:
                distinct = np.array([*values, np.nan], np.float64)
                return numbers(distinct[column.codes])
            bad = [code for code, value in enumerate(values) if value is None]
            row = int(np.flatnonzero(np.isin(column.codes, bad))[0])
        what = column.texts[column.codes[row]] if len(column) and column.codes[row] >= 0 else ""
        raise DataError(
            f"{source}: {where(row)}, column {self.name!r} holds the text {shorten(what)} but the "
            f"training had {self.kind}s in it; correct it, or leave it empty"
        )

    def encode(self, column: Column, out: Floats) -> tuple[int, int]:
        """Write the inputs (N, outputs) of a column that `read` returned.

        Returns
        -------
        unseen : int
            Number of values with an unseen category that no shared input takes.
        missing : int
            Number of missing values, if training had none.
        """
        missing = column.missing
        if self.kind == "category":
            codes, unseen, lost = self.codes(column)
            out[...] = 0
            rows = np.flatnonzero(codes >= 0)
            out[rows, codes[rows]] = 1
            return unseen, lost
        lost = 0 if self.gaps else int(missing.sum())
        if self.gaps:
            out[:, -1] = missing
        values = np.where(missing, self.fill, column.values)
        out[:, 0] = values
        for place, part in enumerate(self.parts):
            turn = np.where(missing, np.nan, turns(values, part)) * (2 * np.pi)
            out[:, 1 + 2 * place] = np.nan_to_num(np.sin(turn))
            out[:, 2 + 2 * place] = np.nan_to_num(np.cos(turn))
        return 0, lost

    def codes(self, column: Column) -> tuple[npt.NDArray[np.int64], int, int]:
        """Return which input of a category is 1.

        Returns
        -------
        codes : (N,) array
            The number of the input among `outputs`; -1 if none is 1.
        unseen : int
            As for `encode`.
        missing : int
            As for `encode`.
        """
        place = {category: j for j, category in enumerate(self.categories)}
        count = len(self.categories)
        rest = count if self.other else -1
        by_value = {plain_number(category): j for category, j in place.items()}
        by_value[None] = rest  # 1.0 of a frame, or of another file, is "1"
        found = (place.get(t, by_value.get(plain_number(t), rest)) for t in column.texts)
        missing = column.missing
        absent = count + self.other if self.gaps else -1
        targets = np.array([*found, absent], np.int64)
        codes = targets[column.codes]  # code -1 is missing: the last entry
        return codes, int(((codes < 0) & ~missing).sum()), 0 if self.gaps else int(missing.sum())

    # -- the model's file -----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return dataclasses.asdict(self) | {
            "categories": list(self.categories), "parts": list(self.parts),
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Any) -> ColumnPlan:
        """Return what `state` was given; raise DataError if it is none."""
        try:
            plan = cls(**state | {k: tuple(state[k]) for k in ("categories", "parts")})
        except (TypeError, KeyError) as error:
            raise DataError(f"a column of the preprocessor is not readable ({error})") from error
        texts = (plan.name, *plan.categories)
        ok = (
            plan.kind in ("number", "boolean", "category", "date", "time")
            and all(isinstance(text, str) for text in texts)
            and len(set(plan.categories)) == len(plan.categories)
            and isinstance(plan.fill, float | int)
            and bool(np.isfinite(plan.fill))
            and isinstance(plan.gaps, bool)
            and isinstance(plan.other, bool)
            and set(plan.parts) <= set(PERIODS)
            and plan.form in ("", "dmy", "mdy")
            and len(plan.outputs) > 0
        )
        if not ok:
            raise DataError(f"a column of the preprocessor is not readable ({shorten(state)})")
        return plan


def turns(seconds: Floats, part: str) -> Floats:
    """Return the fraction in [0, 1) of a moment within its year, week or day."""
    if part != "year":
        since = 4 * DAY if part == "week" else 0.0  # 1970-01-01 was a Thursday; Monday is 0
        return np.asarray(((seconds - since) / PERIODS[part]) % 1.0)
    days = np.floor(np.nan_to_num(seconds) / DAY).astype("datetime64[D]")
    years = days.astype("datetime64[Y]")
    first = years.astype("datetime64[D]")
    length = ((years + 1).astype("datetime64[D]") - first).astype(np.float64)
    within = np.nan_to_num(seconds) / DAY - first.astype(np.float64)
    return np.asarray(within / length)


def learn(
    name: str, column: Column, *, categorical: bool, max_categories: int, min_rows: int
) -> ColumnPlan:
    """Return the plan of a column, from its values in the training rows."""
    gaps = bool(column.missing.any())
    if categorical or column.kind == "text":
        return _learn_categories(name, column.as_text(), gaps, max_categories, min_rows)
    there = column.values[~column.missing]
    kind: Any = column.kind
    fill = float(np.median(there)) if len(there) else 0.0
    parts: tuple[str, ...] = ()
    if kind == "date":
        parts = tuple(part for part in PERIODS if _varies(there, part))
    elif kind == "time":
        parts = ("day",)
    return ColumnPlan(name, kind, fill, gaps, parts=parts, form=column.form)


def _varies(seconds: Floats, part: str) -> bool:
    """Return whether moments lie in several places of a year, week or day, of which they fill some.

    Dates within a month say nothing of a year's seasons; monthly dates nothing of weekdays.
    """
    if np.ptp(seconds) < PERIODS[part] if len(seconds) else True:
        return False
    places = np.unique((turns(seconds, part) * {"year": 12, "week": 7, "day": 24}[part]) // 1)
    return len(places) > 1


def _learn_categories(
    name: str, column: Column, gaps: bool, max_categories: int, min_rows: int
) -> ColumnPlan:
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.texts))
    order = sorted(np.flatnonzero(counts), key=lambda j: (-counts[j], column.texts[j]))
    kept = [j for j in order[:max_categories] if counts[j] >= min_rows]
    return ColumnPlan(
        name, "category", gaps=gaps, categories=tuple(column.texts[j] for j in kept),
        other=len(kept) < len(order),
    )  # fmt: skip


def reason_to_leave_out(name: str, column: Column, training: Column) -> str:
    """Say why a column teaches nothing; "" if it may.

    `training` are the training rows of the column. All rows tell whether it is an identifier.
    """
    if column.kind == "other":
        return column.why
    if training.missing.all():
        return "no value in any training row"
    values = training.codes if training.kind == "text" else training.values
    if not training.missing.any() and (values == values[0]).all():
        return "the same value in every training row"
    return _why_identifier(name, column)


def _why_identifier(name: str, column: Column) -> str:
    there = ~column.missing
    values = column.codes[there] if column.kind == "text" else column.values[there]
    if len(values) < _FEW_ROWS or len(np.unique(values)) < len(values):
        return ""
    if column.kind == "text":
        return f"{IDENTIFIER}: every value is another text"
    if column.kind != "number" or not column.whole:
        return ""
    short = name.lower().strip(" _.")
    named = short in ("id", "index", "row", "rownames", "unnamed", "unnamed: 0") or name.endswith(
        ("_id", " id", ".id", "Id", "ID")
    )
    low, high = values[0], values[-1]  # some rows may be gone
    counts = low >= 0 and high < 2 * len(values) and bool(np.all(np.diff(values) > 0))
    return f"{IDENTIFIER}: it counts the rows" if named or counts else ""
