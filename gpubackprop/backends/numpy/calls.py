"""Small functions on given arrays, which the operations of the NumPy backend run or record."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends.loss import Total
from gpubackprop.backends.memory import RowCursor
from gpubackprop.backends.numpy.blocks import Scratch, add_reduce, logical_and_reduce
from gpubackprop.dtypes import storage
from gpubackprop.formulas import Activation, Dropout
from gpubackprop.formulas.dropout import ROUNDING_STREAM, Philox, drop
from gpubackprop.formulas.rounding import round_stochastic

Array = np.ndarray
DROPPED, RANDOM = 10, 11  # numbers of scratch arrays; the generator uses five from RANDOM on


def emit_value(
    call: Callable[..., None],
    activation: Activation,
    a: Array,
    h: Array,
    scratch: Scratch,
    slot: int,
) -> None:
    """Issue h = g(a); if a formula needs a and h apart, it gets scratch for h."""
    if activation.name == "identity" and h is a:
        return
    work = tuple(scratch.take(slot, i, a.shape, a.dtype) for i in range(4))
    apart = h is a and activation.saved == "a"
    call(activation.value, a, work[3] if apart else h, work[:3], activation.parameter)
    if apart:
        call(np.copyto, h, work[3])


def emit_drop(
    call: Callable[..., None],
    x: Array,
    out: Array,
    dropout: Dropout,
    row: int,
    scratch: Scratch,
    slot: int,
) -> None:
    """Issue the dropout of a block whose first row is number `row` of its array."""

    def take(number: int, shape: tuple[int, ...], dtype: Any) -> Array:
        return scratch.take(slot, RANDOM + number, shape, dtype)

    if x.size:
        first = (dropout.first_row + row) * x.shape[1]
        words = Philox(dropout.state, dropout.layer, first, x.size, take)
        dropped = scratch.take(slot, DROPPED, x.shape, np.bool_)
        call(drop, x, out, dropout, words, dropped)


def emit_round_to_storage(
    call: Callable[..., None],
    x: Array,
    out: Array,
    random: Array | None,
    first: int,
    scratch: Scratch,
    slot: int,
) -> None:
    """Issue out = x in 16 bits, for a block that begins with element `first` of its buffer."""

    def take(number: int, shape: tuple[int, ...], dtype: Any) -> Array:
        return scratch.take(slot, RANDOM + number, shape, dtype)

    if random is None:
        call(np.copyto, out, x)
    elif x.size:
        call(round_stochastic, x, out, Philox(random, ROUNDING_STREAM, first, x.size, take))


def is_sixteen_bit(dtype: np.dtype) -> bool:
    """Return whether it is float16 or bfloat16, which are computed in float32."""
    row = storage(dtype)
    return row is not None and row.sixteen_bit


def gather_rows(source: Array, rows: Array, out: Array) -> None:
    flags = source.flags
    if source.dtype is out.dtype and flags.c_contiguous and flags.aligned:
        source.take(rows, 0, out, "clip")  # "raise" would buffer; the caller's rows are in range
    else:
        np.copyto(out, source[rows], casting="unsafe")


class HostRows(RowCursor):
    """Keeps the row numbers of the next batch.

    Attributes
    ----------
    rows : (N,) int array
        The numbers.
    """

    rows: Array

    def put(self, rows: Array) -> None:
        self.rows = rows

    def done(self) -> None:
        pass


def gather_next(source: Array, cursor: HostRows, out: Array) -> None:
    """Gather the rows whose numbers the cursor has when the call runs."""
    gather_rows(source, cursor.rows, out)


def sum_of_squares(x: Array, out: Array) -> None:
    """Compute out = sum x^2, repeatably: blocks through BLAS, summed in float64."""
    total = 0.0
    for start in range(0, len(x), 4096):
        block = x[start : start + 4096]
        total += float(np.dot(block, block))
    out[...] = total


def reduce_rows(row_loss: Array, denominator: Array | float, loss: Array) -> None:
    """Compute loss = sum of row_loss / denominator, rounded once.

    The result is NaN over nothing, as in PyTorch. With smoothing, the sum may be above 0 even if
    the denominator, a sum of class weights, is 0.
    """
    total = add_reduce(row_loss, 0, np.float64)
    loss[...] = total / denominator if denominator else np.nan


def zero_where_empty(denominator: Array | float, loss: Array) -> None:
    if denominator == 0:
        loss[...] = 0


def accumulate(
    loss: Array,
    rows: int,
    correct: Array | None,
    penalty: tuple[Array, Array] | None,
    totals: Array,
) -> None:
    value = float(loss)
    totals[Total.LOSS] += value * rows
    if penalty is not None:
        totals[Total.PENALTY] += 0.5 * float(penalty[0]) * float(penalty[1]) * rows
    totals[Total.ROWS] += rows
    if correct is not None:
        totals[Total.CORRECT] += np.count_nonzero(correct) if correct.ndim else int(correct)
    if not math.isfinite(value) and totals[Total.BAD_STEP] < 0:
        totals[Total.BAD_STEP] = totals[Total.STEPS]
    totals[Total.STEPS] += 1


def units_right(a: Array, t: Array, correct: Array, above: Array, wanted: Array) -> None:
    """Set correct[i] to whether (a_ik > 0) == (t_ik > 1/2) for all k; a > 0 means yhat > 1/2."""
    np.greater(a, 0.0, above)
    np.greater(t, 0.5, wanted)
    np.equal(above, wanted, above)
    logical_and_reduce(above, 1, None, correct)
