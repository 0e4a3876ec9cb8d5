"""Softmax cross entropy on NumPy: loss and delta of a block of rows while it is in cache.

For logits z (after the soft cap), targets tau (class weights and label smoothing included),
T = sum_k tau_k, m = max_k z_k and S = sum_k exp(z_k - m):

    loss  = T log S - sum_k tau_k (z_k - m) + z_loss * lse^2,      lse = m + log S
    delta = scale * ((T + 2 z_loss lse) exp(z - m) / S - tau)

The loss is never formed as lse - z_y, which cancels under a large common offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpubackprop.backends.numpy.blocks import (
    Scratch,
    add_reduce,
    maximum_reduce,
    rows_per_block,
)
from gpubackprop.backends.numpy.tape import get_num_threads

Array = np.ndarray
BLOCK_BYTES = 1 << 19  # of the logits: these and delta fill a 1 MiB second-level cache
SCRATCH_BYTES = 1 << 20  # at most this much memory beyond the output, and O(rows)
NARROW = 24  # rows up to this length are worked on transposed: NumPy reduces short rows slowly


@dataclass(frozen=True)
class LossOptions:
    """Options of a loss that do not depend on the batch; pointwise losses have only `reduction`.

    Attributes
    ----------
    class_weight : (K,) or None.
    ignore_index : label whose rows count for nothing, or None.
    label_smoothing : eps in [0, 1]; targets become (1 - eps) * target + eps / K.
    z_loss : factor of lse^2 added to each row's loss.
    soft_cap : c > 0 replaces each logit z by c tanh(z / c); 0 for none.
    reduction : "mean", "sum", "none"; pointwise also "elementwise_mean".
    empty : mean over no row, or of weights that sum to 0: "nan" (as PyTorch) or "zero".
    """

    class_weight: Array | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    soft_cap: float = 0.0
    reduction: str = "mean"
    empty: str = "nan"


class CrossEntropy:
    """One call: `prologue` over all rows, `block` for each block of rows, `epilogue` over all rows.

    What is per row and not per element is done for all rows at once, so that a block costs few
    NumPy calls. All (N,) arrays are made here.

    Parameters
    ----------
    z : (N, K) logits of any float dtype. out : (N, K) delta, may be z; None: loss only.
    result : "scale" and "row_loss" (N,) of the compute dtype, optionally "lse", "predicted" (N,)
        int64 and, with labels, "correct".
    """

    def __init__(
        self,
        z: Array,
        out: Array | None,
        result: dict[str, Array],
        options: LossOptions,
        scratch: Scratch,
    ) -> None:
        self.z, self.out, self.options, self.scratch = z, out, options, scratch
        self.scale, self.loss, self.lse = result["scale"], result["row_loss"], result.get("lse")
        self.dtype, self.predicted = self.loss.dtype, result.get("predicted")
        rows, self.k = z.shape
        self.narrow = self.k <= NARROW
        self.direct = (
            out is not None
            and out.dtype == self.dtype
            and out.flags.c_contiguous
            and not self.narrow
        )
        # m = max_k z_k, s = sum_k exp(z_k - m), dot = sum_k tau_k (z_k - m), total = T
        self.m, self.s, self.dot, self.total, self.spare = np.empty((5, rows), self.dtype)
        blocks = (0 if self.direct else 1) + self.scratch_blocks() + (options.soft_cap > 0)
        limit = SCRATCH_BYTES // max(1, blocks * get_num_threads())
        self.block_bytes = min(BLOCK_BYTES, limit)
        weight = options.class_weight
        self.weight = None if weight is None else weight.astype(self.dtype)
        self.uniform = options.label_smoothing / self.k  # what smoothing gives every class
        self.keep = 1.0 - options.label_smoothing

    def scratch_blocks(self) -> int:
        """Block-sized arrays that `gather` takes."""
        return 0

    def prologue(self) -> None:
        """Per-row terms of the targets."""

    def block(self, rows: slice, slot: int) -> None:
        """Loss terms and delta of a block of rows."""
        z, m, s = self.z[rows], self.m[rows], self.s[rows]
        d = self.out[rows] if self.direct and self.out is not None else self.take(0, z.shape, slot)
        slope = None
        if self.options.soft_cap:
            slope = self.cap(z, d, slot)
            z = d
        self.predict(z, rows, slot)
        if self.narrow or z.dtype != d.dtype:
            np.copyto(d, z)
            z = d
        maximum_reduce(z, 1, None, m)
        np.subtract(z, m[:, None], d)
        target = self.gather(d, rows, slot)
        np.exp(d, d)
        add_reduce(d, 1, None, s)
        if self.out is None:
            return
        factor = self.spare[rows]
        np.divide(self.scaled_total(rows), s, factor)
        np.multiply(d, factor[:, None], d)
        self.subtract(d, target, rows)
        if slope is not None:
            np.multiply(d, slope, d)
        if not self.direct:
            np.copyto(self.out[rows], d, casting="unsafe")

    def take(self, number: int, shape: tuple[int, ...], slot: int) -> Array:
        return self.scratch.take(slot, number, shape, self.dtype, "F" if self.narrow else "C")

    def cap(self, z: Array, d: Array, slot: int) -> Array:
        """d = c tanh(z / c); returns its derivative 1 - (d / c)^2."""
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
        """Note the first of each row's largest logits, where that is asked for."""
        if self.predicted is not None:
            z.argmax(1, self.predicted[rows])

    def gather(self, d: Array, rows: slice, slot: int) -> tuple[Array, ...]:
        """Fill `dot` from d = z - m; returns what `subtract` needs."""
        raise NotImplementedError

    def subtract(self, d: Array, target: tuple[Array, ...], rows: slice) -> None:
        """d -= scale * tau."""
        raise NotImplementedError

    def scaled_total(self, rows: slice) -> Array:
        """scale * (T + 2 z_loss lse)."""
        factor = self.spare[rows]
        if not self.options.z_loss:
            return np.multiply(self.total[rows], self.scale[rows], factor)
        np.log(self.s[rows], factor)
        np.add(factor, self.m[rows], factor)
        np.multiply(factor, 2.0 * self.options.z_loss, factor)
        np.add(factor, self.total[rows], factor)
        return np.multiply(factor, self.scale[rows], factor)

    def epilogue(self) -> None:
        """row_loss = T log S - dot + z_loss lse^2; lse."""
        log_s, lse, z_loss = self.s, self.lse, self.options.z_loss
        if self.predicted is not None:  # argmax finds a NaN; its row has no prediction
            np.copyto(self.predicted, -1, where=~np.isfinite(self.s))
        np.log(self.s, log_s)
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
    """Targets are class indices: `labels` (N,) integers, in [0, K) or equal to ignore_index.

    tau_k = (1 - eps) w_y [k = y] + eps / K w_k, so T = (1 - eps) w_y + eps / K sum_k w_k.
    """

    def __init__(
        self,
        z: Array,
        out: Array | None,
        labels: Array,
        result: dict[str, Array],
        options: LossOptions,
        scratch: Scratch,
    ) -> None:
        super().__init__(z, out, result, options, scratch)
        self.labels, self.correct = labels, result.get("correct")
        rows = len(labels)
        self.y = np.empty(rows, np.intp)  # labels, 0 where ignored
        self.ignored, self.right = np.zeros((2, rows), np.bool_)
        # tau_y without the smoothing's share; sum_k w_k (z_k - m)
        self.tau_y, self.spread = np.empty((2, rows), self.dtype)
        self.sum_w = float(self.k if self.weight is None else self.weight.sum())
        block = min(rows, rows_per_block(self.k * self.dtype.itemsize, self.block_bytes))
        self.ramp = np.arange(block) * (1 if self.narrow else self.k)

    def scratch_blocks(self) -> int:
        smoothed = self.options.label_smoothing and self.options.class_weight is not None
        return 1 if smoothed else 0

    def prologue(self) -> None:
        ignore = self.options.ignore_index
        np.copyto(self.y, self.labels, casting="unsafe")
        if ignore is not None:
            np.equal(self.labels, ignore, self.ignored)
            np.copyto(self.y, 0, where=self.ignored)
        if self.weight is None:
            self.tau_y.fill(self.keep)
        else:
            self.weight.take(self.y, None, self.tau_y, "clip")
            np.multiply(self.tau_y, self.keep, self.tau_y)
        np.add(self.tau_y, self.uniform * self.sum_w, self.total)

    def predict(self, z: Array, rows: slice, slot: int) -> None:
        super().predict(z, rows, slot)
        if self.correct is not None:
            first = self.scratch.take(slot, 1, (len(z),), np.intp)
            z.argmax(1, first)
            np.equal(first, self.y[rows], self.correct[rows])

    def gather(self, d: Array, rows: slice, slot: int) -> tuple[Array, ...]:
        n = len(d)
        position = self.scratch.take(slot, 1, (n,), np.intp)
        if self.narrow:  # d is the transpose of a (k, n) array
            np.multiply(self.y[rows], n, position)
            np.add(position, self.ramp[:n], position)
        else:
            np.add(self.y[rows], self.ramp[:n], position)
        flat = (d.T if self.narrow else d).reshape(-1)
        flat.take(position, None, self.dot[rows], "clip")
        if self.uniform and self.weight is None:
            add_reduce(d, 1, None, self.spread[rows])
        at_y = self.scratch.take(slot, 2, (n,), self.dtype)
        if self.uniform and self.weight is not None:
            product = self.take(3, d.shape, slot)
            np.multiply(d, self.weight, product)  # not a BLAS call: its sums vary with the block
            add_reduce(product, 1, None, self.spread[rows])
            return flat, position, at_y, product
        return flat, position, at_y

    def subtract(self, d: Array, target: tuple[Array, ...], rows: slice) -> None:
        flat, position, at_y, *rest = target
        if self.uniform:
            np.multiply(self.scale[rows], self.uniform, at_y)
            if self.weight is None:
                np.subtract(d, at_y[:, None], d)
            else:
                (product,) = rest
                np.multiply(at_y[:, None], self.weight, product)
                np.subtract(d, product, d)
        scaled = self.spare[rows]
        np.multiply(self.scale[rows], self.tau_y[rows], scaled)
        flat.take(position, None, at_y, "clip")
        np.subtract(at_y, scaled, at_y)
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

    def __init__(
        self,
        z: Array,
        out: Array | None,
        targets: Array,
        result: dict[str, Array],
        options: LossOptions,
        scratch: Scratch,
    ) -> None:
        super().__init__(z, out, result, options, scratch)
        self.targets = targets

    def scratch_blocks(self) -> int:
        return 2

    def gather(self, d: Array, rows: slice, slot: int) -> tuple[Array, ...]:
        tau, product = self.take(1, d.shape, slot), self.take(2, d.shape, slot)
        np.copyto(tau, self.targets[rows], casting="unsafe")
        if self.uniform:
            np.multiply(tau, self.keep, tau)
            np.add(tau, self.uniform, tau)
        if self.weight is not None:
            np.multiply(tau, self.weight, tau)
        np.multiply(tau, d, product)
        add_reduce(product, 1, None, self.dot[rows])
        add_reduce(tau, 1, None, self.total[rows])
        return (tau,)

    def subtract(self, d: Array, target: tuple[Array, ...], rows: slice) -> None:
        (tau,) = target
        np.multiply(tau, self.scale[rows, None], tau)
        np.subtract(d, tau, d)


def row_scales(
    labels: Array | None,
    sample_weight: Array | None,
    upstream: Array | float,
    options: LossOptions,
    result: dict[str, Array],
    denominator: Array,
) -> None:
    """Fill result["scale"], what multiplies each row's gradient, and `denominator` (), of the mean.

    The mean divides by the sum over the rows that count of sample weight times class weight, the
    elementwise mean also by the number of units.
    """
    scale = result["scale"].reshape(-1)
    weight = np.ones_like(scale) if sample_weight is None else sample_weight.astype(scale.dtype)
    counted = weight
    if labels is not None and options.ignore_index is not None:
        counted = np.where(labels == options.ignore_index, 0, counted)
    if labels is not None and options.class_weight is not None:
        safe = np.where(counted == 0, 0, labels) if options.ignore_index is not None else labels
        counted = counted * options.class_weight.astype(scale.dtype)[safe]
    denominator[...] = 1
    if options.reduction.endswith("mean"):
        denominator[...] = add_reduce(counted, dtype=np.float64)
    if options.reduction == "elementwise_mean":
        denominator *= result["units"]
    np.multiply(weight, upstream, scale)
    none = options.empty == "zero" and denominator == 0
    np.divide(scale, 1.0 if none else denominator, scale, casting="unsafe")
