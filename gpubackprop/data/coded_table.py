"""A table's columns as coded inputs: the category's number where there are many categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpubackprop.data.coded import CodedColumns, CodedInputs
from gpubackprop.data.column_plan import ColumnPlan
from gpubackprop.data.standardize import Standardizer
from gpubackprop.data.typed import Column

if TYPE_CHECKING:
    from gpubackprop.data.preprocessor import TablePreprocessor

# From so many inputs on, a column's part of the product costs more than taking columns of W, on two
# cores with batches of 256 rows (docs/decisions/2026-11-29-sparse-first-layer.md).
CODED_FROM = 64


def coded_inputs(
    prepared: TablePreprocessor, columns: Sequence[Column], dtype: Any, surprises: Any
) -> Any:
    """Return the inputs of a network, coded if a column of the table became CODED_FROM or more.

    Parameters
    ----------
    prepared : TablePreprocessor
        The encoding.
    columns : sequence of Column
        The columns as it read them.
    dtype : dtype
        Dtype of the inputs.
    surprises : Surprises
        Is given what training had not.

    Returns
    -------
    (N, D) array or CodedInputs
        The inputs.
    """
    spans = _spans(prepared.columns)
    is_coded = [_is_coded(plan, span, prepared) for plan, span in spans]
    coded = [(p, s, c) for (p, s), c, it in zip(spans, columns, is_coded, strict=True) if it]
    other = [(p, s, c) for (p, s), c, it in zip(spans, columns, is_coded, strict=True) if not it]
    rows, width = len(columns[0]), spans[-1][1].stop
    dense = np.empty((rows, sum(span.stop - span.start for _, span, _ in other)), dtype)
    if other:
        picked = np.concatenate([np.arange(width)[span] for _, span, _ in other])
        scale = prepared.standardizer
        if scale is not None and coded:
            scale = Standardizer(scale.mean[picked], scale.scale[picked])
        part = type(prepared)(tuple(plan for plan, _, _ in other)) if coded else prepared
        part.fill([column for _, _, column in other], dense, scale, surprises)
    if not coded:
        return dense
    codes = np.empty((rows, len(coded)), np.int32)
    for place, (plan, span, column) in enumerate(coded):
        found, unseen, missing = plan.codes(column)
        codes[:, place] = np.where(found < 0, -1, found + span.start)
        surprises.unseen.update({plan.name: unseen} if unseen else {})
        surprises.missing.update({plan.name: missing} if missing else {})
    groups = tuple((span.start, span.stop) for _, span, _ in coded)
    return CodedInputs(dense, codes, CodedColumns(width, groups))


def _spans(plans: Sequence[ColumnPlan]) -> list[tuple[ColumnPlan, slice]]:
    """Return each plan with the place of its inputs among all."""
    spans, first = [], 0
    for plan in plans:
        spans.append((plan, slice(first, first + len(plan.outputs))))
        first = spans[-1][1].stop
    return spans


def _is_coded(plan: ColumnPlan, span: slice, prepared: TablePreprocessor) -> bool:
    scale = prepared.standardizer  # a program's own may move 0 and 1
    plain = scale is None or not (scale.mean[span].any() or (scale.scale[span] != 1).any())
    return plan.kind == "category" and span.stop - span.start >= CODED_FROM and plain
