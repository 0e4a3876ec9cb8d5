"""Softmax cross entropy on NumPy: loss and delta of a block of rows while it is in cache.

For logits z (after the soft cap), targets tau (class weights and label smoothing included),
T = sum_k tau_k, m = max_k z_k and S = sum_k exp(z_k - m):

    loss  = T log S - sum_k tau_k (z_k - m) + z_loss * lse^2,      lse = m + log S
    delta = scale * ((T + 2 z_loss lse) exp(z - m) / S - tau)

The loss is never formed as lse - z_y, which cancels if the logits have a large common offset.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.numpy.blocks import (
    Scratch,
    add_reduce,
    maximum_reduce,
    rows_per_block,
)
from gpubackprop.backends.numpy.recorded_calls import get_num_threads

Array = np.ndarray
_NOTHING: Array = np.empty(0)
BLOCK_BYTES = 1 << 19  # a block of logits: with its delta it fills a 1 MiB second-level cache
SCRATCH_BYTES = 1 << 20  # the most memory beyond the output and O(rows)
FEW_COLUMNS = 24  # up to this length rows are transposed: NumPy reduces short rows slowly


class RowViews:
    """Views of the row arrays and the scratch memory for one block of rows, made once.

    Attributes
    ----------
    m : (n,) array
        Row maxima of the block.
    s : (n,) array
        Row sums of the block.
    factor : (n,) array
        Spare row values of the block.
    m_column : (n, 1) array
        `m` for broadcasting.
    factor_column : (n, 1) array
        `factor` for broadcasting.
    d : (n, K) array or None
        Scratch for the logits; None if delta takes its place.
    flat : (n * K,) array or None
        `d` as one row.
    """

    def __init__(self, entropy: CrossEntropy, rows: slice, slot: int) -> None:
        n = rows.stop - rows.start
        self.whole = n == entropy.rows
        self.m, self.s, self.factor = entropy.m[rows], entropy.s[rows], entropy.spare[rows]
        self.m_column, self.factor_column = self.m[:, None], self.factor[:, None]
        self.dot, self.scaled_total = entropy.dot[rows], entropy.scaled_total[rows]
        self.d = None if entropy.direct else entropy.take(0, (n, entropy.k), slot)
        self.flat = None if self.d is None else entropy.as_row(self.d)
        self.targets: Any = None


class CrossEntropy:
    """One call: `prologue` over all rows, `block` for each block of rows, `epilogue` over all rows.

    Row values are computed for all rows at once, so that a block costs few NumPy calls. All (N,)
    arrays are made here. `bind` names the arrays of a call; it may be called again with others of
    the same shapes and dtypes.

    Parameters
    ----------
    shape : (N, K)
        Shape of the logits.
    dtype : dtype
        Compute dtype.
    options : LossOptions
        The options of every call; only the values of class_weight may change.
    direct : bool
        Whether delta is a C-contiguous array of the compute dtype, in which the blocks may work.
    scratch : Scratch
        Working memory of the blocks.
    """

    total_is_one = False  # whether T = 1 in every row: neither class weights nor smoothing

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        options: LossOptions,
        direct: bool,
        scratch: Scratch,
    ) -> None:
        self.weighted = options.class_weight is not None
        self.options = replace(options, class_weight=None) if self.weighted else options
        self.scratch, self.dtype = scratch, dtype
        self.rows, self.k = shape
        rows = self.rows
        self.few_columns = self.k <= FEW_COLUMNS
        self.direct = direct and not self.few_columns
        # m = max_k z_k, s = sum_k exp(z_k - m), dot = sum_k tau_k (z_k - m), total = T
        self.m, self.s, self.dot, self.total, self.spare = np.empty((5, rows), dtype)
        self.scaled_total = np.empty(rows, dtype)
        # whether scale and its products are those of the previous call
        self.fixed_scale = False
        blocks = (0 if self.direct else 1) + self.scratch_blocks() + (options.soft_cap > 0)
        limit = SCRATCH_BYTES // max(1, blocks * get_num_threads())
        self.block_bytes = min(BLOCK_BYTES, limit)
        self.block_rows = rows_per_block(self.k * dtype.itemsize, self.block_bytes)
        self.weight: Array | None = None
        self.uniform = options.label_smoothing / self.k  # eps / K, for every class
        self.keep = 1.0 - options.label_smoothing  # 1 - eps, for the target
        self._views: dict[tuple[int, int], RowViews] = {}

    def bind(
        self,
        z: Array,
        out: Array | None,
        targets: Array,
        result: dict[str, Array],
        class_weight: Array | None,
    ) -> None:
        """Name the arrays of the next call.

        Parameters
        ----------
        z : (N, K) array
            Logits of any float dtype.
        out : (N, K) array or None
            Receives delta and may be z; None computes the loss only.
        targets : (N,) or (N, K) array
            Labels or probabilities.
        result : dict of arrays
            "scale" and "row_loss" (N,) of the compute dtype, optionally "lse" (N,), "predicted"
            (N,) int64 and, with labels, "correct" (N,).
        class_weight : (K,) array or None
            Factor of each class.
        """
        self.z, self.out, self.targets = z, out, targets
        self.scale, self.loss, self.lse = result["scale"], result["row_loss"], result.get("lse")
        self.predicted = result.get("predicted")
        self.correct = result.get("correct")
        self.predicts = self.predicted is not None or self.correct is not None
        if class_weight is not None:
            self.weight = class_weight.astype(self.dtype)

    def release(self) -> None:
        """Drop the references to the arrays of the last call."""
        self.z = self.targets = self.y = self.scale = self.loss = _NOTHING
        self.out = self.lse = self.predicted = self.correct = self.weight = None

    def fix_scale(self) -> None:
        """Note that the scale is the same in every call from now on."""

    def as_row(self, d: Array) -> Array:
        """Return a view of a block as (n * K,), in the order of its memory."""
        return (d.T if self.few_columns else d).reshape(-1)

    def scratch_blocks(self) -> int:
        """Return how many block-sized arrays `gather` takes."""
        return 0

    def prologue(self) -> None:
        """Compute the row values that depend on the targets alone."""

    def block(self, rows: slice, slot: int) -> None:
        """Compute loss terms and delta of a block of rows."""
        v = self._views.get((rows.start, slot)) or self._view(rows, slot)
        z, out = self.z, self.out
        if not v.whole:
            z, out = z[rows], None if out is None else out[rows]
        d = v.d
        if d is None:
            assert out is not None
            d = out
        flat = d.reshape(-1) if v.flat is None else v.flat
        slope = None
        if self.options.soft_cap:
            slope = self.cap(z, d, slot)
            z = d
        if self.predicts:
            self.predict(z, rows, slot)
        if self.few_columns or z.dtype != d.dtype:
            np.copyto(d, z)
            z = d
        maximum_reduce(z, 1, None, v.m)
        np.subtract(z, v.m_column, d)
        self.gather(d, flat, v, rows)
        np.exp(d, d)
        add_reduce(d, 1, None, v.s)
        if out is None:
            return
        if not self.fixed_scale:
            self.scale_total(v, rows)
        np.divide(v.scaled_total, v.s, v.factor)
        np.multiply(d, v.factor_column, d)
        self.subtract(d, flat, v, rows)
        if slope is not None:
            np.multiply(d, slope, d)
        if d is not out:
            np.copyto(out, d, "unsafe")

    def _view(self, rows: slice, slot: int) -> RowViews:
        view = self._views[rows.start, slot] = RowViews(self, rows, slot)
        view.targets = self.target_views(view, rows, slot)
        return view

    def take(self, number: int, shape: tuple[int, ...], slot: int) -> Array:
        return self.scratch.take(slot, number, shape, self.dtype, "F" if self.few_columns else "C")

    def cap(self, z: Array, d: Array, slot: int) -> Array:
        """Set d = c tanh(z / c); return its derivative 1 - (d / c)^2."""
        slope = self.take(4, d.shape, slot)
        if z.dtype != d.dtype:  # NumPy would divide 16 bits in 16 bits
            np.copyto(d, z)
            z = d
        np.divide(z, self.options.soft_cap, d)
        np.tanh(d, d)
        np.multiply(d, d, slope)
        np.subtract(1.0, slope, slope)
        np.multiply(d, self.options.soft_cap, d)
        return slope

    def predict(self, z: Array, rows: slice, slot: int) -> None:
        """Write the index of the first of each row's largest logits, if it is wanted."""
        if self.predicted is not None:
            z.argmax(1, self.predicted[rows])

    def target_views(self, v: RowViews, rows: slice, slot: int) -> Any:
        """Return views and scratch of a block, on which `gather` and `subtract` work."""
        raise NotImplementedError

    def gather(self, d: Array, flat: Array, v: RowViews, rows: slice) -> None:
        """Fill `dot` from d = z - m."""
        raise NotImplementedError

    def subtract(self, d: Array, flat: Array, v: RowViews, rows: slice) -> None:
        """d -= scale * tau."""
        raise NotImplementedError

    def scale_total(self, v: RowViews, rows: slice) -> None:
        """Compute scaled_total = scale * (T + 2 z_loss lse)."""
        total, scale = self.total[rows], self.scale[rows]
        if not self.options.z_loss:
            np.multiply(total, scale, v.scaled_total)
            return
        factor = v.factor
        np.log(v.s, factor)
        np.add(factor, v.m, factor)
        np.multiply(factor, 2.0 * self.options.z_loss, factor)
        np.add(factor, total, factor)
        np.multiply(factor, scale, v.scaled_total)

    def epilogue(self) -> None:
        """Compute row_loss = T log S - dot + z_loss lse^2, and lse."""
        log_s, lse, z_loss = self.s, self.lse, self.options.z_loss
        if self.predicted is not None:  # argmax finds a NaN; its row has no prediction
            np.copyto(self.predicted, -1, where=~np.isfinite(self.s))
        np.log(self.s, log_s)
        if self.total_is_one:
            np.subtract(log_s, self.dot, self.loss)
        else:
            np.multiply(self.total, log_s, self.loss)
            np.subtract(self.loss, self.dot, self.loss)
        if lse is None and not z_loss:
            return
        lse = self.spare if lse is None else lse
        np.add(self.m, log_s, lse)
        if z_loss:
            np.multiply(lse, lse, log_s)
            np.multiply(log_s, z_loss, log_s)
            np.add(self.loss, log_s, self.loss)


class IndexCrossEntropy(CrossEntropy):
    """Targets are class indices: (N,) integers, in [0, K) or equal to ignore_index.

    tau_k = (1 - eps) w_y [k = y] + eps / K w_k, so T = (1 - eps) w_y + eps / K sum_k w_k.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        options: LossOptions,
        direct: bool,
        scratch: Scratch,
    ) -> None:
        super().__init__(shape, dtype, options, direct, scratch)
        rows = self.rows
        self.own_y = np.empty(rows, np.intp)  # labels, 0 where ignored
        self.ignored, self.right = np.zeros((2, rows), np.bool_)
        # tau_y = (1 - eps) w_y; scaled_tau = scale * tau_y; spread = sum_k w_k (z_k - m)
        self.tau_y, self.scaled_tau, self.spread = np.empty((3, rows), self.dtype)
        self.ramp = np.arange(min(rows, self.block_rows)) * (1 if self.few_columns else self.k)
        self.tau_y.fill(self.keep)
        np.add(self.tau_y, self.uniform * float(self.k), self.total)
        self.total_is_one = not self.weighted and not options.label_smoothing

    def fix_scale(self) -> None:
        if not self.options.z_loss:  # with z_loss, T + 2 z_loss lse changes from call to call
            np.multiply(self.total, self.scale, self.scaled_total)
            np.multiply(self.scale, self.tau_y, self.scaled_tau)
            self.fixed_scale = True

    def scratch_blocks(self) -> int:
        return 1 if self.options.label_smoothing and self.weighted else 0

    def prologue(self) -> None:
        ignore, self.y = self.options.ignore_index, self.targets
        if ignore is not None or self.y.dtype != np.intp:
            self.y = self.own_y
            np.copyto(self.y, self.targets, "unsafe")
        if ignore is not None:
            np.equal(self.targets, ignore, self.ignored)
            np.copyto(self.y, 0, where=self.ignored)
        if self.weight is not None:
            self.weight.take(self.y, None, self.tau_y, "clip")
            np.multiply(self.tau_y, self.keep, self.tau_y)
            np.add(self.tau_y, self.uniform * float(self.weight.sum()), self.total)
        if not self.fixed_scale:
            np.multiply(self.scale, self.tau_y, self.scaled_tau)

    def predict(self, z: Array, rows: slice, slot: int) -> None:
        super().predict(z, rows, slot)
        if self.correct is not None:
            first = self.scratch.take(slot, 1, (len(z),), np.intp)
            z.argmax(1, first)
            np.equal(first, self.y[rows], self.correct[rows])

    def target_views(self, v: RowViews, rows: slice, slot: int) -> tuple[Array, ...]:
        """Return position, ramp, at_y, scaled_tau and product.

        position is the label's place in the block's memory, ramp the places of the row starts, at_y
        the number at the label, scaled_tau what is subtracted from it, and product is room for a
        product if smoothing is weighted.
        """
        n = rows.stop - rows.start
        position = self.scratch.take(slot, 1, (n,), np.intp)
        at_y = self.scratch.take(slot, 2, (n,), self.dtype)
        product = self.take(3, (n, self.k), slot) if self.scratch_blocks() else at_y
        return position, self.ramp[:n], at_y, self.scaled_tau[rows], product

    def gather(self, d: Array, flat: Array, v: RowViews, rows: slice) -> None:
        position, ramp, _, _, product = v.targets
        y = self.y if v.whole else self.y[rows]
        if self.few_columns:  # d is the transpose of a (k, n) array
            np.multiply(y, len(d), position)
            np.add(position, ramp, position)
        else:
            np.add(y, ramp, position)
        flat.take(position, None, v.dot, "clip")
        if self.uniform and self.weight is None:
            add_reduce(d, 1, None, self.spread[rows])
        elif self.uniform and self.weight is not None:
            np.multiply(d, self.weight, product)  # no BLAS call, whose sums vary with the block
            add_reduce(product, 1, None, self.spread[rows])

    def subtract(self, d: Array, flat: Array, v: RowViews, rows: slice) -> None:
        position, _, at_y, scaled_tau, product = v.targets
        if self.uniform:
            np.multiply(self.scale[rows], self.uniform, at_y)
            if self.weight is None:
                np.subtract(d, at_y[:, None], d)
            else:
                np.multiply(at_y[:, None], self.weight, product)
                np.subtract(d, product, d)
        flat.take(position, None, at_y, "clip")
        np.subtract(at_y, scaled_tau, at_y)
        flat.put(position, at_y, "clip")
        if self.options.ignore_index is not None:
            np.copyto(d, 0.0, where=self.ignored[rows, None])

    def epilogue(self) -> None:
        if self.correct is not None:  # argmax finds a NaN, whose row is not right
            np.equal(self.dot, 0.0, self.right)
            np.logical_and(self.correct, self.right, self.correct)
        if self.weight is not None or self.uniform:
            np.multiply(self.dot, self.tau_y, self.dot)
        if self.uniform:
            np.multiply(self.spread, self.uniform, self.spread)
            np.add(self.dot, self.spread, self.dot)
        super().epilogue()
        if self.options.ignore_index is not None:
            np.copyto(self.loss, 0.0, where=self.ignored)
            if self.correct is not None:
                np.copyto(self.correct, False, where=self.ignored)


class ProbabilityCrossEntropy(CrossEntropy):
    """Targets are probabilities, (N, K); they need not sum to 1."""

    def scratch_blocks(self) -> int:
        return 2

    def target_views(self, v: RowViews, rows: slice, slot: int) -> tuple[Array, ...]:
        """Return tau and a product, (n, K) each."""
        shape = (rows.stop - rows.start, self.k)
        return self.take(1, shape, slot), self.take(2, shape, slot)

    def gather(self, d: Array, flat: Array, v: RowViews, rows: slice) -> None:
        tau, product = v.targets
        np.copyto(tau, self.targets[rows], "unsafe")
        if self.uniform:
            np.multiply(tau, self.keep, tau)
            np.add(tau, self.uniform, tau)
        if self.weight is not None:
            np.multiply(tau, self.weight, tau)
        np.multiply(tau, d, product)
        add_reduce(product, 1, None, v.dot)
        add_reduce(tau, 1, None, self.total[rows])

    def subtract(self, d: Array, flat: Array, v: RowViews, rows: slice) -> None:
        tau = v.targets[0]
        np.multiply(tau, self.scale[rows, None], tau)
        np.subtract(d, tau, d)


def works_in(delta: Array | None, dtype: np.dtype) -> bool:
    """Return whether blocks of long rows may be computed in the memory of delta."""
    return delta is not None and delta.dtype == dtype and delta.flags.c_contiguous


def scale_is_fixed(
    labels: Array | None,
    sample_weight: Array | None,
    upstream: Array | float,
    options: LossOptions,
) -> bool:
    """Return whether `row_scales` gives the same for every batch of as many rows."""
    by_label = options.ignore_index is not None or options.class_weight is not None
    known = not isinstance(upstream, np.ndarray) or upstream.ndim > 0
    return known and sample_weight is None and not (labels is not None and by_label)


def row_scales(
    labels: Array | None,
    sample_weight: Array | None,
    upstream: Array | float,
    options: LossOptions,
    result: dict[str, Array],
    denominator: Array,
    divisor: Array | None = None,
) -> None:
    """Fill result["scale"], the factor of each row's gradient, and `denominator` (), the mean's.

    The mean divides by `divisor`, or else by the sum of sample weight times class weight over the
    rows that are not ignored; the elementwise mean also divides by the number of units.
    """
    scale = result["scale"].reshape(-1)
    weight = np.ones_like(scale) if sample_weight is None else sample_weight.astype(scale.dtype)
    counted = _counted(labels, weight, options)
    denominator[...] = 1
    if options.reduction.endswith("mean"):
        denominator[...] = add_reduce(counted, dtype=np.float64)
    if options.reduction == "elementwise_mean":
        denominator *= result["units"]
    if divisor is not None:
        denominator[...] = divisor
    np.multiply(weight, upstream, scale)
    none = options.empty == "zero" and denominator == 0
    np.divide(scale, 1.0 if none else denominator, scale, casting="unsafe")


def _counted(labels: Array | None, weight: Array, options: LossOptions) -> Array:
    """Return what each row counts in a mean, from its weight."""
    if labels is not None and options.ignore_index is not None:
        weight = np.where(labels == options.ignore_index, 0, weight)
    if labels is not None and options.class_weight is not None:
        safe = np.where(weight == 0, 0, labels) if options.ignore_index is not None else labels
        weight = weight * options.class_weight.astype(weight.dtype)[safe]
    return weight


def mean_divisor(
    labels: Array | None, rows: int, sample_weight: Array | None, options: LossOptions, out: Array
) -> None:
    """Set out = the sum of what the rows count in a mean."""
    weight = np.ones(rows, out.dtype) if sample_weight is None else sample_weight.astype(out.dtype)
    out[...] = add_reduce(_counted(labels, weight, options), dtype=np.float64)


def summarize(result: dict[str, Array], denominator: Array | float) -> None:
    """Fill those of "weight_sum" and "correct_rows" that are in `result`, from a finished loss."""
    if "weight_sum" in result:
        result["weight_sum"][...] = denominator
    if "correct_rows" in result:
        result["correct_rows"][...] = np.count_nonzero(result["correct"])
