"""Inputs of a network of which groups are one-hot, with a number for each group and no zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.errors import DataError, DtypeError, ShapeError

Array = Any  # numpy.ndarray or cupy.ndarray


@dataclass(frozen=True)
class CodedColumns:
    """Which of the inputs belong to one-hot groups.

    Attributes
    ----------
    width : int
        Number of inputs D_0.
    groups : tuple of pairs of int
        The first input of each group, and the one behind its last, in order.

    Raises
    ------
    ShapeError
        The groups are not in order, meet, are empty, or go beyond the inputs.
    """

    width: int
    groups: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        before = 0
        for first, stop in self.groups:
            if not before <= first < stop <= self.width:
                raise ShapeError(
                    f"groups has ({first}, {stop}) but wants pairs in order, each of at least one "
                    f"input, behind input {before} and within the {self.width} inputs"
                )
            before = stop

    @property
    def runs(self) -> list[tuple[slice, slice]]:
        """Return the other inputs: slices of the inputs, and their places among one another."""
        runs, place, before = [], 0, 0
        for first, stop in (*self.groups, (self.width, self.width)):
            if first > before:
                runs.append((slice(before, first), slice(place, place + first - before)))
                place += first - before
            before = stop
        return runs

    @property
    def others(self) -> int:
        """Number of inputs that belong to no group."""
        return self.width - sum(stop - first for first, stop in self.groups)


@dataclass(frozen=True, eq=False)
class CodedInputs:
    """Rows of inputs, in which each one-hot group is the number of the input that is 1.

    Networks take them as they take a matrix (`MLP.predict`, `MLP.gradients`, `Trainer.fit`): the
    first layer then reads columns of W instead of multiplying by zeros.

    Parameters
    ----------
    dense : (N, D) float array or list
        The inputs that belong to no group, in order.
    codes : (N, G) int32 array or list
        Of each group the number, among all D_0 inputs, of the one that is 1; -1 if none is.
    columns : CodedColumns
        Which inputs the groups are.

    Raises
    ------
    ShapeError
        The arrays do not fit each other.
    DtypeError
        The codes are no whole numbers.
    DataError
        A code is outside its group.

    Examples
    --------
    >>> columns = CodedColumns(4, ((1, 4),))
    >>> x = CodedInputs(np.array([[0.5], [2.0]]), np.array([[3], [-1]], np.int32), columns)
    >>> x.toarray()
    array([[0.5, 0. , 0. , 1. ],
           [2. , 0. , 0. , 0. ]])
    """

    dense: Array
    codes: Array
    columns: CodedColumns

    def __post_init__(self) -> None:
        for name in ("dense", "codes"):
            if isinstance(getattr(self, name), list | tuple):
                object.__setattr__(self, name, np.asarray(getattr(self, name)))
        if self.codes.dtype.kind not in "iu":
            raise DtypeError(
                f"codes has dtype {self.codes.dtype} but wants int32, numbers of inputs"
            )
        groups, shapes = self.columns.groups, (self.dense.shape, self.codes.shape)
        if shapes != ((len(self.codes), self.columns.others), (len(self.dense), len(groups))):
            raise ShapeError(
                f"dense has shape {shapes[0]} and codes {shapes[1]} but {len(groups)} groups of "
                f"{self.columns.width} inputs want (N, {self.columns.others}) and "
                f"(N, {len(groups)})"
            )
        if isinstance(self.codes, np.ndarray) and len(self.codes):
            for number, (first, stop) in enumerate(groups):
                code = self.codes[:, number]
                wrong = (code != -1) & ((code < first) | (code >= stop))
                if wrong.any():
                    raise DataError(
                        f"codes holds {code[wrong][0]} in group {number}, which is the inputs "
                        f"{first} to {stop - 1}"
                    )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of inputs, (N, D_0)."""
        return len(self.codes), self.columns.width

    @property
    def ndim(self) -> int:
        """Number of dimensions of the matrix, 2."""
        return 2

    @property
    def dtype(self) -> Any:
        """Dtype of the inputs."""
        return self.dense.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return int(self.dense.nbytes + self.codes.nbytes)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> Any:
        """Return the rows of a slice or an array of row numbers, or the (D_0,) array of one row."""
        if isinstance(rows, int | np.integer):
            row = range(len(self))[rows]
            return self[row : row + 1].toarray()[0]
        return self.with_arrays(self.dense[rows], self.codes[rows])

    def with_arrays(self, dense: Array, codes: Array) -> CodedInputs:
        """Return inputs of the same columns whose arrays need no check."""
        made = object.__new__(CodedInputs)
        for name, value in (("dense", dense), ("codes", codes), ("columns", self.columns)):
            object.__setattr__(made, name, value)
        return made

    def __repr__(self) -> str:
        groups = len(self.columns.groups)
        return f"CodedInputs({self.shape}, {self.dtype}, {groups} one-hot groups)"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.toarray().astype(dtype or self.dtype, copy=False)

    def packed(self) -> np.ndarray:
        """Return (N, D + G) float64: `dense`, and the codes behind it."""
        return np.concatenate([self.dense, self.codes], 1, dtype=np.float64)

    def unpacked(self, packed: np.ndarray) -> CodedInputs:
        """Return the inputs that `packed` gave, of any rows."""
        others = self.columns.others
        dense = packed[:, :others].astype(self.dtype)
        return self.with_arrays(dense, packed[:, others:].astype(np.int32))

    def packed_columns(self) -> dict[int, int]:
        """Return the column of `packed` in which each of the D_0 inputs is."""
        found: dict[int, int] = {}
        for source, place in self.columns.runs:
            found |= dict(
                zip(range(source.start, source.stop), range(place.start, place.stop), strict=True)
            )
        for number, (first, stop) in enumerate(self.columns.groups):
            found |= dict.fromkeys(range(first, stop), self.columns.others + number)
        return found

    def toarray(self) -> np.ndarray:
        """Return the inputs as a matrix, with all zeros.

        Returns
        -------
        (N, D_0) array
            The inputs.
        """
        result = np.zeros(self.shape, self.dtype)
        for source, place in self.columns.runs:
            result[:, source] = self.dense[:, place]
        rows, groups = np.nonzero(np.asarray(self.codes) >= 0)
        result[rows, self.codes[rows, groups]] = 1
        return result


def stacked(parts: Sequence[Any]) -> Any:
    """Return matrices, or coded inputs of the same columns, one below the other."""
    first = parts[0]
    if not isinstance(first, CodedInputs):
        return np.concatenate(parts)
    dense, codes = (np.concatenate([getattr(p, k) for p in parts]) for k in ("dense", "codes"))
    return first.with_arrays(dense, codes)
