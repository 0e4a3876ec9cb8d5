"""Search for NaN and infinities in batches, so that files larger than memory can be checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpubackprop.data.files import Where, row_from_1
from gpubackprop.errors import DataError

BATCH_ELEMENTS = 1 << 19
"""Elements of one batch of a streaming pass: 4 MiB of float64."""


def batch_rows_for(columns: int) -> int:
    """Return how many rows of `columns` columns have about BATCH_ELEMENTS elements, at least 1."""
    return max(1, BATCH_ELEMENTS // max(1, columns))


def require_finite(
    x: np.ndarray,
    *,
    source: str = "x",
    names: Sequence[str] | None = None,
    where: Where = row_from_1,
) -> None:
    """Raise DataError at the first NaN or infinity of an array; see `check_finite`."""
    if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
        return
    width = x.shape[1] if x.ndim == 2 else 1
    step = batch_rows_for(width)
    for start in range(0, x.shape[0], step):
        finite = np.isfinite(x[start : start + step])
        if not finite.all():
            bad = np.argwhere(~finite)[0]
            row = start + int(bad[0])
            value = float(x[(row, *bad[1:])])
            column = f", {column_name(int(bad[1]), names)}" if x.ndim == 2 else ""
            raise DataError(
                f"{source}: {where(row)}{column} holds {value}; values must be finite: "
                "drop the row, or fill the value in, e.g. with the column's median"
            )


def column_name(column: int, names: Sequence[str] | None) -> str:
    """Return the name of a column (index from 0) for a message."""
    if names is not None:
        return f"column {names[column]!r}"
    return f"column {column + 1} (counted from 1)"
