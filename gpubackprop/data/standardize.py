"""Standardisation, fitted in one streaming pass over data that may be larger than memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubackprop.backends.arrays import as_host
from gpubackprop.data.files import row_from_1
from gpubackprop.data.finite import batch_rows_for, column_name
from gpubackprop.data.frames import as_array, as_inputs
from gpubackprop.errors import DataError, DtypeError, OptionError, ShapeError

Float64 = npt.NDArray[np.float64]
_SCRATCH_ELEMENTS = 1 << 15  # 256 KiB of float64, which stay in the second-level cache
_CONSTANT = 1e-150  # below it the squares are subnormal and the standard deviation is inaccurate


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Standardisation x -> (x - mean) / scale, column by column.

    Parameters
    ----------
    mean : (D,) float64 array
        Mean of each column.
    scale : (D,) float64 array
        Population standard deviation of each column (divided by N). It is 1 if that is 0 (or below
        1e-150, where its square underflows), so that a constant column becomes 0.
    feature_names : tuple of D str, or None
        Names of the columns, if it was fitted on a data frame that has names. `transform` finds a
        frame's columns by them, whatever their order.

    Raises
    ------
    ShapeError
        The parts do not fit each other.
    DataError
        mean or scale is not finite, or scale is not above 0.

    Examples
    --------
    >>> s = Standardizer.fit(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> print(s.mean, s.scale)
    [2. 5.] [1. 1.]
    >>> print(s.transform(np.array([[1.0, 5.0], [4.0, 6.0]])))
    [[-1.  0.]
     [ 2.  1.]]
    """

    mean: Float64
    scale: Float64
    feature_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the values, which may come from a model file."""
        for name in ("mean", "scale"):
            values = as_host(getattr(self, name))
            object.__setattr__(self, name, np.array(values, dtype=np.float64))
        if self.mean.ndim != 1 or self.mean.shape != self.scale.shape:
            raise ShapeError(
                f"mean has shape {self.mean.shape} and scale {self.scale.shape}; both want (D,)"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.scale).all()):
            raise DataError("mean and scale of a Standardizer must be finite; fit it again")
        if not (self.scale > 0).all():
            raise DataError("scale of a Standardizer must be above 0; use 1 for constant columns")
        if self.feature_names is not None and len(self.feature_names) != self.mean.size:
            raise ShapeError(
                f"{len(self.feature_names)} feature_names but mean has shape {self.mean.shape}"
            )

    def __repr__(self) -> str:
        if len(self.mean) <= 4:
            mean, scale = (f"[{', '.join(f'{v:.4g}' for v in a)}]" for a in (self.mean, self.scale))
        else:
            mean, scale = (f"{a.min():.4g} to {a.max():.4g}" for a in (self.mean, self.scale))
        columns = "1 column" if len(self.mean) == 1 else f"{len(self.mean)} columns"
        return f"Standardizer({columns}, mean {mean}, scale {scale})"

    @classmethod
    def fit(
        cls,
        x: Any,
        rows: Any = None,
        batch_rows: int | None = None,
        *,
        one_scale: bool = False,
    ) -> Standardizer:
        """Compute mean and population standard deviation of the columns, in float64.

        Batches are merged by the parallel update of Chan, Golub and LeVeque::

            mean = mean_a + d * n_b / n,  M2 = M2_a + M2_b + d**2 * n_a * n_b / n,

        where d = mean_b - mean_a, M2 is the sum of squared deviations, and n = n_a + n_b. The first
        row is subtracted from x before: that keeps the digits of columns with a huge offset, and
        makes M2 of a constant column exactly 0, whatever its value.

        Parameters
        ----------
        x : (N, D) array or data frame
            Booleans, integers or floats of any size. A read-only memmap is read batch by batch.
        rows : array-like or None
            Indices of the rows to use (the training part), or a boolean mask (N,); None is all
            rows. Their order does not matter: they are read in ascending order.
        batch_rows : int or None
            Rows held in memory at a time; None is about 4 MiB of float64.
        one_scale : bool
            Whether all columns share one scale, the root of the mean variance of the columns that
            are not constant. It is for pixels, which share a unit: with a scale of its own, a pixel
            that is rarely lit would be blown up with its noise.

        Returns
        -------
        Standardizer
            The fitted standardisation.

        Raises
        ------
        ShapeError
            x is not (N, D).
        DtypeError
            x does not hold numbers.
        OptionError
            `rows` is out of range, or `batch_rows` is below 1.
        DataError
            There are no rows, x holds NaN or infinity (row and column are named), a spread is
            beyond float64, or a frame's column is text or has a missing value.

        References
        ----------
        T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample variance:
        analysis and recommendations", 1983.
        """
        x, names = as_inputs(x)
        _check_matrix(x)
        picked = None if rows is None else _row_indices(rows, x.shape[0])
        total = x.shape[0] if picked is None else picked.size
        if total == 0:
            raise DataError(f"no rows to fit a Standardizer on: x has shape {x.shape}")
        step = batch_rows_for(x.shape[1]) if batch_rows is None else int(batch_rows)
        if step < 1:
            raise OptionError(f"batch_rows is {batch_rows}; it must be 1 or more")
        shift = np.asarray(x[0 if picked is None else picked[0]], dtype=np.float64)
        shift = np.where(np.isfinite(shift), shift, 0.0)  # a NaN is reported by its batch below
        mean, m2 = np.zeros_like(shift), np.zeros_like(shift)
        for start in range(0, total, step):
            stop = min(start + step, total)
            part = x[start:stop] if picked is None else x[picked[start:stop]]
            count = stop - start
            mean_b, m2_b = _moments(part, shift, start, picked, names)
            delta = mean_b - mean
            with np.errstate(over="ignore", invalid="ignore"):
                m2 += m2_b + delta * delta * (start * count / stop)
                mean += delta * (count / stop)
        scale = _scale(m2, total, names)
        if one_scale:
            varying = np.sqrt(m2 / total) > _CONSTANT  # scale != 1 would miss a deviation of 1
            common = np.sqrt(np.mean(scale[varying] ** 2)) if varying.any() else 1.0
            scale = np.full_like(scale, common)
        return cls(shift + mean, scale, names)

    def transform(
        self,
        x: Any,
        out: npt.NDArray[Any] | None = None,
        dtype: npt.DTypeLike = np.float32,
        *,
        first_row: int = 0,
        names: Sequence[str] | None = None,
    ) -> npt.NDArray[Any]:
        """Return (x - mean) / scale, computed in float64 and rounded once to the result's dtype.

        Row blocks pass through a scratch of at most 256 KiB or one row of float64, and with `out`
        that is all the memory taken. Subtracting in float32 would lose the digits of a column like
        1e8 + small, and overflow float16. A float64 `out` needs no scratch.

        Parameters
        ----------
        x : (n, D) array or data frame
            Booleans, integers or floats. A frame's columns are found by name if the Standardizer
            has `feature_names`, and taken as they come otherwise.
        out : (n, D) float array or None
            Receives the result; it may be `x` itself.
        dtype : dtype
            Float dtype of the result; ignored if `out` is given.
        first_row : int
            Index of x[0] in the whole data, so that errors name the right row.
        names : sequence of D str, or None
            Names of the columns for errors; by default those of the frame.

        Returns
        -------
        (n, D) array
            `out`, or a new C-contiguous array of `dtype`.

        Raises
        ------
        ShapeError
            x or `out` has another shape than (n, D).
        DtypeError
            x does not hold numbers, or the result is no float array.
        DataError
            x holds NaN or infinity, or a result is beyond `dtype`; row and column are named. A
            frame's column is absent, text, or has a missing value.
        """
        x, found = as_inputs(x, "x", self.feature_names)
        names = names or self.feature_names or found
        result = self._result(x, out, dtype)
        if result is not x and np.may_share_memory(result, x):
            x = x.copy()  # otherwise a block that is already written could be read as input
        block = max(1, _SCRATCH_ELEMENTS // x.shape[1])
        direct = result.dtype == np.float64
        scratch = None if direct else np.empty((min(block, x.shape[0]), x.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):  # NaN is reported below, by name
            for start in range(0, x.shape[0], block):
                part, target = x[start : start + block], result[start : start + block]
                wide = target if scratch is None else scratch[: part.shape[0]]
                np.subtract(part, self.mean, out=wide, casting="same_kind")
                np.divide(wide, self.scale, out=wide)
                if not direct:
                    target[...] = wide
                # A sum shows every NaN and infinity. If it only overflows, the search finds none.
                if not np.isfinite(target.sum(dtype=np.float64)):
                    _name_non_finite(wide, target, first_row + start, names)
        return result

    def _result(
        self, x: npt.NDArray[Any], out: npt.NDArray[Any] | None, dtype: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """Return `out` or a new array, after checking that it and x fit."""
        _check_matrix(x)
        if x.shape[1] != self.mean.size:
            raise ShapeError(
                f"x has {x.shape[1]} columns but the Standardizer was fitted on {self.mean.size}; "
                "pass the same columns as in training, in the same order"
            )
        result = np.empty(x.shape, dtype=dtype) if out is None else out
        if not isinstance(result, np.ndarray):
            raise DtypeError(
                f"out is a {type(out).__name__} but must be a NumPy array; leave it out"
            )
        if result.dtype.kind != "f":
            raise DtypeError(
                f"the result has dtype {result.dtype}; use float16, float32 or float64"
            )
        if result.shape != x.shape:
            raise ShapeError(f"out has shape {result.shape}; it must be that of x, {x.shape}")
        return result


def _check_matrix(x: npt.NDArray[Any]) -> None:
    """Raise ShapeError or DtypeError unless x is a (N, D) array of numbers with D > 0."""
    if x.ndim != 2 or x.shape[1] == 0:
        raise ShapeError(
            f"a Standardizer wants x of shape (N, D) with D > 0, got {x.shape}; "
            "for one feature pass x.reshape(-1, 1)"
        )
    if x.dtype.kind not in "biuf":
        raise DtypeError(f"x has dtype {x.dtype}; a Standardizer wants numbers, bool to float64")


def _row_indices(rows: npt.NDArray[Any], count: int) -> npt.NDArray[np.intp]:
    """Return `rows` as ascending indices into [0, count)."""
    rows = as_array(rows, "rows")
    if rows.dtype == np.bool_:
        if rows.shape != (count,):
            raise OptionError(f"rows is a mask of shape {rows.shape}; x wants ({count},)")
        return np.flatnonzero(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise OptionError(f"rows must be 1-D integers, got {rows.dtype} of shape {rows.shape}")
    ascending = np.sort(rows).astype(np.intp)
    if rows.size and (ascending[0] < 0 or ascending[-1] >= count):
        wrong = ascending[0] if ascending[0] < 0 else ascending[-1]
        raise OptionError(f"rows holds {wrong}; x has rows 0 to {count - 1}")
    return ascending


def _moments(
    part: npt.NDArray[Any],
    shift: Float64,
    start: int,
    picked: npt.NDArray[np.intp] | None,
    names: Sequence[str] | None,
) -> tuple[Float64, Float64]:
    """Return mean of part - shift and sum of squared deviations from it, in two passes."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = np.subtract(part, shift, dtype=np.float64, casting="same_kind")
        mean = wide.mean(axis=0)
        if not np.isfinite(mean).all():
            finite = np.isfinite(part)
            if not finite.all():
                bad, column = map(int, np.argwhere(~finite)[0])
                row = start + bad if picked is None else int(picked[start + bad])
                raise DataError(
                    f"x: {row_from_1(row)}, {column_name(column, names)} holds "
                    f"{part[bad, column]}; a Standardizer wants finite values: drop the row or "
                    "fill the value in"
                )
        wide -= mean
        np.multiply(wide, wide, out=wide)
        return mean, wide.sum(axis=0)


def _scale(m2: Float64, total: int, names: Sequence[str] | None) -> Float64:
    """Return the standard deviations of the columns; 1 for those below _CONSTANT.

    `m2` (D,) holds the sums of squared deviations of `total` rows.
    """
    if not np.isfinite(m2).all():
        column = int(np.flatnonzero(~np.isfinite(m2))[0])
        raise DataError(
            f"x: {column_name(column, names)} spreads over more than 1e150, too far to standardise "
            "in float64; divide it by a constant or take its logarithm"
        )
    std = np.sqrt(m2 / total)
    return np.where(std > _CONSTANT, std, 1.0)


def _name_non_finite(
    wide: Float64, rounded: npt.NDArray[Any], first_row: int, names: Sequence[str] | None
) -> None:
    """Raise DataError at the first NaN or infinity; return if there is none after all."""
    finite = np.isfinite(rounded)
    if finite.all():
        return
    row, column = map(int, np.argwhere(~finite)[0])
    place = f"x: {row_from_1(first_row + row)}, {column_name(column, names)}"
    value = float(wide[row, column])
    if np.isfinite(value):
        raise DataError(
            f"{place} becomes {value:g} when standardised, beyond {rounded.dtype}; it lies far "
            "outside the data that the Standardizer was fitted on: check the value"
        )
    raise DataError(f"{place} is NaN or infinite; drop the row or fill the value in")
