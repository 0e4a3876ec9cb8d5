"""Tables as people have them, text and gaps included, to the inputs of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubackprop.data.any_table import Table, as_table
from gpubackprop.data.coded_table import coded_inputs, fill
from gpubackprop.data.column_plan import IDENTIFIER, ColumnPlan, learn, reason_to_leave_out
from gpubackprop.data.files import listing
from gpubackprop.data.finite import require_finite
from gpubackprop.data.names import check_present, positions
from gpubackprop.data.standardize import Standardizer
from gpubackprop.data.typed import Column
from gpubackprop.errors import DataError, OptionError, ShapeError

Floats = npt.NDArray[np.float64]


@dataclass
class Surprises:
    """What a table has that the training had not, counted by column.

    Attributes
    ----------
    unseen : Counter
        Values of a category that no input stands for.
    missing : Counter
        Missing values in columns that had none.
    """

    unseen: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)

    def note(self, name: str, unseen: int, missing: int) -> None:
        """Count what a column had."""
        self.unseen.update({name: unseen} if unseen else {})
        self.missing.update({name: missing} if missing else {})

    def __str__(self) -> str:
        """Say it on one line; "" if there is nothing to say."""
        parts = []
        if self.missing:
            parts.append(
                f"{_counted(self.missing, 'missing value')}, where training had none: taken as the "
                "median, or as no category"
            )
        if self.unseen:
            parts.append(
                f"{_counted(self.unseen, 'value')} of categories that training had not: taken as "
                "no category"
            )
        return "; ".join(parts)


def _counted(counts: Counter[str], noun: str) -> str:
    total = sum(counts.values())
    names = ", ".join(f"{name!r} {count:,}" for name, count in counts.most_common(5))
    more = f" and {len(counts) - 5} more columns" if len(counts) > 5 else ""
    return f"{total:,} {noun}{'' if total == 1 else 's'} ({names}{more})"


@dataclass(frozen=True, eq=False)
class TablePreprocessor:
    """The encoding of a table's columns, learnt from the training rows.

    A number is standardised; a missing one becomes the median, and has an input of its own that
    says so if training had gaps. Text is one-hot: an input for each category, one for rare
    categories together, and one for missing values if training had any. Dates and times of day are
    numbers, with sine and cosine of their place in the year, week and day where these vary. What
    looks like an identifier, is constant, or is no value at all is left out.

    Parameters
    ----------
    columns : sequence of ColumnPlan
        What is done with each column that is used.
    left_out : mapping of str to str
        Columns that are not used, with the reason.
    standardizer : Standardizer or None
        For the encoded columns (D of them); mean 0 and scale 1 for those that are not standardised.
    names : sequence of str
        All columns of the training table, in order; () is those used, then those left out.

    Raises
    ------
    DataError
        There are no columns, or a name is there twice.
    ShapeError
        The standardizer is of another number of columns.

    Examples
    --------
    >>> table = {"age": [20, 40, None, 30], "colour": ["red", "blue", "red", "red"]}
    >>> prepared = TablePreprocessor.fit(table, min_rows=1)
    >>> prepared.output_names
    ['age', 'age: missing', 'colour=red', 'colour=blue']
    >>> print(prepared.transform({"colour": ["red", "green"], "age": [30, None]}).round(2))
    [[0. 0. 1. 0.]
     [0. 1. 0. 0.]]
    """

    columns: tuple[ColumnPlan, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    standardizer: Standardizer | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the parts, which may come from a model file."""
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "left_out", dict(self.left_out))
        object.__setattr__(self, "names", tuple(self.names or [*self.input_names, *self.left_out]))
        names = self.input_names
        if sorted(self.names) != sorted([*names, *self.left_out]):
            raise DataError(
                f"a preprocessor of {listing(names)} has the names {listing(self.names)}"
            )
        if not names or len(set(names)) < len(names):
            raise DataError(f"a preprocessor wants columns, each once; it has {listing(names)}")
        width = len(self.output_names)
        if self.standardizer is not None and len(self.standardizer.mean) != width:
            raise ShapeError(
                f"the standardizer is of {len(self.standardizer.mean)} columns but the table "
                f"becomes {width}"
            )

    def __repr__(self) -> str:
        kinds = Counter(plan.kind for plan in self.columns)
        parts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return (
            f"TablePreprocessor({len(self.columns)} columns ({parts}) to "
            f"{len(self.output_names)} inputs; {len(self.left_out)} left out)"
        )

    @property
    def input_names(self) -> list[str]:
        """Names of the columns that are used, in order."""
        return [plan.name for plan in self.columns]

    @property
    def output_names(self) -> list[str]:
        """Names of the D encoded columns, in order."""
        return [name for plan in self.columns for name in plan.outputs]

    @classmethod
    def fit(
        cls,
        table: Any,
        rows: Any = None,
        *,
        columns: Sequence[str] | None = None,
        drop: Iterable[str] = (),
        include: Iterable[str] = (),
        categorical: Iterable[str] = (),
        max_categories: int = 100,
        min_rows: int = 2,
        standardize: bool = True,
        one_scale: bool = False,
    ) -> TablePreprocessor:
        """Learn from the training rows what each column becomes.

        Parameters
        ----------
        table : data frame, mapping from names to columns, or (N, C) array
            Of pandas, polars, pyarrow and what else narwhals knows. It must not have the targets.
        rows : (M,) int array-like or None
            The training rows; None is all.
        columns : sequence of str, or None
            The columns to use, none of which is left out; None is all.
        drop : iterable of str
            Columns not to use.
        include : iterable of str
            Columns to use although they look like identifiers.
        categorical : iterable of str
            Columns of numbers that are categories, such as codes.
        max_categories : int
            The most categories of a column that have an input of their own.
        min_rows : int
            Fewest training rows of such a category; rarer ones share an input.
        standardize : bool
            Whether numbers are standardised.
        one_scale : bool
            Whether all numbers share one scale; see `Standardizer.fit`.

        Returns
        -------
        TablePreprocessor
            The encoding.

        Raises
        ------
        DataError
            A named column is absent, no column is left, or a number is infinite.
        OptionError
            An option is out of range.
        """
        if max_categories < 1 or min_rows < 1:
            raise OptionError(
                f"max_categories is {max_categories} and min_rows {min_rows}; both want 1 or more"
            )
        source = as_table(table)
        picked = np.arange(len(source)) if rows is None else np.asarray(rows)
        if picked.dtype == bool:
            picked = np.flatnonzero(picked)
        if not len(picked):
            raise DataError(f"{source.source}: no rows to learn the columns from")
        lists = {"drop": [*drop], "include": [*include], "categorical": [*categorical]}
        for role, asked in {**lists, "columns": [*(columns or ())]}.items():
            check_present(asked, source.names, role, source.source, "among the columns")
        chosen = source.names if columns is None else list(columns)
        left_out = {name: "dropped" for name in chosen if name in lists["drop"]}
        kept = {*lists["include"], *lists["categorical"], *(columns or ())}
        learnt = {name: source.column(name).take(picked) for name in chosen if name not in left_out}
        for name, column in learnt.items():
            reason = reason_to_leave_out(name, source.column(name), column)
            if reason and (name not in kept or column.kind == "other" or column.missing.all()):
                left_out[name] = reason
        if len(left_out) == len(chosen):  # what looks like an identifier is then all there is
            left_out = {n: why for n, why in left_out.items() if not why.startswith(IDENTIFIER)}
        plans = []
        for name in chosen:
            if name not in left_out:
                _check_finite(learnt[name], name, picked, source)
                plans.append(
                    learn(
                        name, learnt[name], categorical=name in lists["categorical"],
                        max_categories=max_categories, min_rows=min_rows,
                    )
                )  # fmt: skip
        if not plans:
            why = "; ".join(f"{name!r}: {reason}" for name, reason in left_out.items())
            raise DataError(f"{source.source}: no column is left to learn from ({why})")
        plain = cls(tuple(plans), left_out, names=tuple(chosen))
        if not standardize:
            return plain
        scale = plain._fit_scale(source.take(picked), one_scale)
        return cls(plain.columns, left_out, scale, plain.names)

    def _fit_scale(self, table: Table, one_scale: bool) -> Standardizer:
        """Return the standardisation of the numbers; 0 and 1, sine and cosine stay as they are."""
        scaled = np.array([flag for plan in self.columns for flag in plan.scaled])
        mean, scale = np.zeros(len(scaled)), np.ones(len(scaled))
        if scaled.any():
            numbers = [plan for plan in self.columns if plan.kind != "category"]
            x = np.empty((len(table), len(numbers)))
            for j, plan in enumerate(numbers):
                column = plan.read(table.column(plan.name), table.where, table.source)
                x[:, j] = np.where(column.missing, plan.fill, column.values)
            fitted = Standardizer.fit(x, one_scale=one_scale)
            mean[scaled], scale[scaled] = fitted.mean, fitted.scale
        return Standardizer(mean, scale)

    # -- values ---------------------------------------------------------------------------------

    def _columns_of(self, table: Any) -> list[Column]:
        """Return the columns that are used, in order and as the kinds that they had in training.

        Columns of a table are found by name. Those of an array, which has no names, are taken as
        they come.

        Raises
        ------
        DataError
            A column is absent, or holds another kind of values (the row is named).
        ShapeError
            An array has another number of columns.
        """
        source = as_table(table)
        if source.positional:
            if len(source.names) == len(self.names):  # with those that were left out
                places = [self.names.index(name) for name in self.input_names]
            elif len(source.names) == len(self.columns):
                places = list(range(len(self.columns)))
            else:
                raise ShapeError(
                    f"x has {len(source.names)} columns but the model wants {len(self.columns)}: "
                    f"{listing(self.input_names)}"
                )
        else:
            places = positions(source.names, self.input_names, source.source)
        columns = []
        for plan, place in zip(self.columns, places, strict=True):
            held = source.text_at(place) if plan.wants_text else source.at(place)
            column = plan.read(held, source.where, source.source)
            _check_finite(column, plan.name, np.arange(len(source)), source)
            columns.append(column)
        return columns

    def encode(
        self, table: Any, dtype: npt.DTypeLike = np.float64, *, surprises: Surprises | None = None
    ) -> npt.NDArray[Any]:
        """Return the encoded columns before they are standardised.

        Parameters
        ----------
        table : data frame, mapping from names to columns, or (N, C) array
            As for `fit`. Its columns are found by name; others are ignored.
        dtype : dtype
            Float dtype of the result.
        surprises : Surprises or None
            Is given the number of unseen categories and of unexpected missing values.

        Returns
        -------
        (N, D) array
            One column for each of `output_names`.

        Raises
        ------
        DataError
            A column is absent, or holds another kind of values (the row is named).
        ShapeError
            An array has another number of columns.
        """
        columns = self._columns_of(table)
        result = np.empty((len(columns[0]), len(self.output_names)), dtype)
        fill(self.columns, columns, result, None, surprises or Surprises())
        return result

    def transform(
        self, table: Any, dtype: npt.DTypeLike = np.float32, *, surprises: Surprises | None = None
    ) -> npt.NDArray[Any]:
        """Return the inputs of a network: the encoded columns, standardised.

        Parameters
        ----------
        table : data frame, mapping from names to columns, or (N, C) array
            As for `encode`.
        dtype : dtype
            Float dtype of the result.
        surprises : Surprises or None
            As for `encode`.

        Returns
        -------
        (N, D) array
            One column for each of `output_names`.

        Raises
        ------
        DataError
            As for `encode`; or a value is beyond `dtype`.
        ShapeError
            As for `encode`.
        """
        columns = self._columns_of(table)
        result = np.empty((len(columns[0]), len(self.output_names)), dtype)
        fill(self.columns, columns, result, self.standardizer, surprises or Surprises())
        return result

    def inputs(
        self, table: Any, dtype: npt.DTypeLike = np.float32, *, surprises: Surprises | None = None
    ) -> Any:
        """Return what `transform` returns, without the zeros of columns of many categories.

        Parameters
        ----------
        table : data frame, mapping from names to columns, or (N, C) array
            As for `encode`.
        dtype : dtype
            Float dtype of the result.
        surprises : Surprises or None
            As for `encode`.

        Returns
        -------
        (N, D) array or CodedInputs
            A matrix; or, if a column became CODED_FROM inputs or more, a number for each of its
            rows beside the matrix of the other inputs.

        Raises
        ------
        DataError
            As for `transform`.
        ShapeError
            As for `encode`.
        """
        columns, noted = self._columns_of(table), surprises or Surprises()
        return coded_inputs(self.columns, columns, dtype, self.standardizer, noted)

    # -- what people and files want to know -------------------------------------------------------

    def report(self) -> dict[str, str]:
        """Say in words what is done with each column.

        Returns
        -------
        dict
            From the name of each column to what is done with it.

        Examples
        --------
        >>> TablePreprocessor.fit({"a": [1, 2, None], "b": [None, None, None]}).report()
        {'a': 'number, missing ones become 1.5', 'b': 'left out: no value in any training row'}
        """
        done = {plan.name: plan.describe() for plan in self.columns}
        done |= {name: f"left out: {reason}" for name, reason in self.left_out.items()}
        return {name: done[name] for name in self.names}

    def state(self) -> dict[str, Any]:
        """Return all but the standardizer as JSON values, for a model's file.

        Returns
        -------
        dict
            "columns" has a dictionary for each column, with the fields of `ColumnPlan`: "name",
            "kind", "fill" (the median), "gaps", "categories", "other" and "parts". "left_out" has
            the reason for each column that is not used, by its name; "names" all columns in order.
        """
        return {
            "columns": [plan.state() for plan in self.columns],
            "left_out": dict(self.left_out),
            "names": list(self.names),
        }

    @classmethod
    def from_state(cls, state: Any, standardizer: Standardizer | None) -> TablePreprocessor:
        """Return the preprocessor that gave this state.

        Parameters
        ----------
        state : dict
            What `state` returned.
        standardizer : Standardizer or None
            For the encoded columns.

        Returns
        -------
        TablePreprocessor
            The same encoding.

        Raises
        ------
        DataError
            The state is none.
        """
        try:
            plans = [ColumnPlan.from_state(plan) for plan in state["columns"]]
            left_out = {str(name): str(reason) for name, reason in state["left_out"].items()}
            names = tuple(map(str, state["names"]))
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError(f"the preprocessor is not readable ({error})") from error
        return cls(tuple(plans), left_out, standardizer, names)


def _check_finite(column: Column, name: str, rows: npt.NDArray[Any], table: Table) -> None:
    """Raise DataError at the first infinite number; rows are those of the table."""
    if column.kind == "text" or not np.isinf(column.values).any():
        return
    require_finite(
        np.nan_to_num(column.values, nan=0.0, posinf=np.inf, neginf=-np.inf),
        source=f"{table.source}, column {name!r}",
        where=lambda row: table.where(int(rows[row])),
    )
