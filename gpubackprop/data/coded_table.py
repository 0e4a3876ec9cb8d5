"""A table's columns as coded inputs: the category's number where there are many categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubackprop.data.coded import CodedColumns, CodedInputs
from gpubackprop.data.column_plan import ColumnPlan
from gpubackprop.data.finite import batch_rows_for
from gpubackprop.data.standardize import Standardizer
from gpubackprop.data.typed import Column

# From so many inputs on, a column's part of the product costs more than taking columns of W, on two
# cores with batches of 256 rows (docs/decisions/2026-11-29-sparse-first-layer.md).
CODED_FROM = 64


def coded_inputs(
    plans: Sequence[ColumnPlan],
    columns: Sequence[Column],
    dtype: Any,
    scale: Standardizer | None,
    surprises: Any,
) -> Any:
    """Return the inputs of a network, coded if a column of the table became CODED_FROM or more.

    Parameters
    ----------
    plans : sequence of ColumnPlan
        What each column becomes.
    columns : sequence of Column
        The columns as their plans read them.
    dtype : dtype
        Dtype of the inputs.
    scale : Standardizer or None
        Of all inputs.
    surprises : Surprises
        Is given what training had not.

    Returns
    -------
    (N, D) array or CodedInputs
        The inputs.
    """
    spans = _spans(plans)
    all_three = list(zip(plans, spans, columns, strict=True))
    coded = [one for one in all_three if _is_coded(one[0], one[1], scale)]
    other = [one for one in all_three if not _is_coded(one[0], one[1], scale)]
    rows, width = len(columns[0]), spans[-1].stop
    dense = np.empty((rows, sum(span.stop - span.start for _, span, _ in other)), dtype)
    if other:
        if scale is not None and coded:
            picked = np.concatenate([np.arange(width)[span] for _, span, _ in other])
            scale = Standardizer(scale.mean[picked], scale.scale[picked])
        fill([plan for plan, _, _ in other], [c for _, _, c in other], dense, scale, surprises)
    if not coded:
        return dense
    codes = np.empty((rows, len(coded)), np.int32)
    for place, (plan, span, column) in enumerate(coded):
        found, unseen, missing = plan.codes(column)
        codes[:, place] = np.where(found < 0, -1, found + span.start)
        surprises.note(plan.name, unseen, missing)
    groups = tuple((span.start, span.stop) for _, span, _ in coded)
    return CodedInputs(dense, codes, CodedColumns(width, groups))


def fill(
    plans: Sequence[ColumnPlan],
    columns: Sequence[Column],
    result: npt.NDArray[Any],
    scale: Standardizer | None,
    surprises: Any,
) -> None:
    """Write encoded rows, block by block: a block is all the memory taken beside `result`."""
    step, names = batch_rows_for(result.shape[1]), [name for plan in plans for name in plan.outputs]
    wide = np.empty((min(step, len(result)), result.shape[1]))
    for start in range(0, len(result), step):
        block = wide[: len(result[start : start + step])]
        first = 0
        for plan, column in zip(plans, columns, strict=True):
            stop = first + len(plan.outputs)
            part = column.take(slice(start, start + len(block)))
            unseen, missing = plan.encode(part, block[:, first:stop])
            surprises.note(plan.name, unseen, missing)
            first = stop
        target = result[start : start + len(block)]
        if scale is None:
            target[...] = block
        else:
            scale.transform(block, out=target, first_row=start, names=names)


def _spans(plans: Sequence[ColumnPlan]) -> list[slice]:
    """Return the place of each plan's inputs among all."""
    spans, first = [], 0
    for plan in plans:
        spans.append(slice(first, first + len(plan.outputs)))
        first = spans[-1].stop
    return spans


def _is_coded(plan: ColumnPlan, span: slice, scale: Standardizer | None) -> bool:
    # A program's own standardizer may move 0 and 1.
    plain = scale is None or not (scale.mean[span].any() or (scale.scale[span] != 1).any())
    return plan.kind == "category" and span.stop - span.start >= CODED_FROM and plain
