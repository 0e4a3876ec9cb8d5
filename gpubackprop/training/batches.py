"""The rows from which a step draws its batches."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.data import Standardizer, TablePreprocessor
from gpubackprop.data.coded import CodedInputs
from gpubackprop.data.files import row_from_1
from gpubackprop.data.finite import batch_rows_for, require_finite
from gpubackprop.data.frames import as_array, as_inputs, several_names
from gpubackprop.data.labels import training_targets
from gpubackprop.errors import DataError, OptionError, ShapeError
from gpubackprop.losses import Loss
from gpubackprop.network import MLP
from gpubackprop.ops.display import size

Array = np.ndarray


@dataclass(frozen=True)
class Batches:
    """Inputs, checked targets and weights; `rows` selects the part that is used.

    Attributes
    ----------
    x : (M, D_0) array or CodedInputs
        Any real dtype. It may be a memory map, which is read batch by batch. In memory it is
        contiguous, so that gathering a batch takes no memory; for a network on a GPU it is there,
        if it fits.
    targets : (M,) or (M, K) array
        As the loss's `check_targets` gave them.
    sample_weight : (M,) array or None
        Factor of each row.
    rows : (N,) int array or None
        Row numbers into these; None is all rows.
    standardizer : Standardizer or None
        Applied to each batch of x.
    feature_names : tuple of str, or None
        Names of the columns of x, if it was a data frame that has names.
    target_names : tuple of str, or None
        Likewise of the targets, if they were several columns.
    borrowed : bool
        Whether x is the caller's own array of a GPU, which must not be written to.
    """

    x: Any
    targets: Array
    sample_weight: Array | None = None
    rows: Array | None = None
    standardizer: Standardizer | None = None
    feature_names: tuple[str, ...] | None = None
    borrowed: bool = False
    target_names: tuple[str, ...] | None = None

    @classmethod
    def check(
        cls, network: MLP, loss: Loss, x: Any, targets: Any, sample_weight: Any = None,
        standardizer: Standardizer | TablePreprocessor | None = None,
        feature_names: tuple[str, ...] | None = None,
        target_names: tuple[str, ...] | None = None,
    ) -> Batches:  # fmt: skip
        """Return checked batches, or raise an error that names what does not fit.

        A data frame's columns are taken by the names with which the standardizer was fitted, or by
        `feature_names`, or as they come if there are neither; those of targets by `target_names`,
        likewise. A preprocessor encodes the rows here, once.
        """
        if isinstance(standardizer, TablePreprocessor):
            x, standardizer = standardizer.inputs(x, network.dtype), None
        if standardizer is not None:
            _check_standardizer(standardizer, network.widths[0])
            feature_names = standardizer.feature_names or feature_names
        names = None
        if isinstance(x, CodedInputs):
            x = x if standardizer is None else x.toarray()
        elif not network.backend.is_device_array(x):
            x, names = as_inputs(x, "x", feature_names)
        x = network.check_inputs(x)
        coded, backend = isinstance(x, CodedInputs), network.backend
        outside = backend.asynchronous and not coded and not backend.is_device_array(x)
        if not coded and not x.flags.c_contiguous and not _is_mapped(x):
            x = np.ascontiguousarray(x)
        if network.backend.is_device_array(targets):  # before training they are checked too
            targets = network.backend.to_host(network.backend.asarray(targets))
        plain = isinstance(targets, np.ndarray) and targets.dtype.names is None
        named = None if plain else several_names(targets)
        targets = training_targets(targets, wanted=target_names)
        if targets.ndim == 0 or len(targets) != len(x):
            raise ShapeError(
                f"x has {len(x)} rows but targets has shape {targets.shape}; both want one row "
                f"for each sample"
            )
        targets = loss.check_targets(targets, len(x), network.widths[-1], network.dtype)
        targets = np.ascontiguousarray(targets)
        weights = network.check_weights(loss, sample_weight, len(x), "training")
        weights = None if weights is None else weights.astype(network.dtype)
        if coded:
            dense = network.backend.place_inputs(np.asarray(x.dense, network.dtype), network.dtype)
            x = x.with_arrays(dense, network.backend.asarray(x.codes))
        elif not (_is_mapped(x) or (outside and not backend.has_room(x.nbytes))):
            # Integers of any size keep their digits until they are standardised.
            wide = network.dtype if standardizer is None else np.float64
            x = network.backend.place_inputs(x, wide)
        named = target_names if named and target_names else named
        return cls(x, targets, weights, None, standardizer, names, target_names=named)

    def __repr__(self) -> str:
        parts = {"x": self.x, "targets": self.targets, "sample_weight": self.sample_weight}
        shown = [f"{name} {size(a)}" for name, a in parts.items() if a is not None]
        shown += [] if self.rows is None else [f"{len(self)} rows of them"]
        shown += [] if self.standardizer is None else [repr(self.standardizer)]
        return f"Batches({', '.join(shown)})"

    def __len__(self) -> int:
        return int(self.x.shape[0]) if self.rows is None else len(self.rows)

    def select(self, rows: Array) -> Batches:
        """Return the same arrays, restricted to `rows`."""
        return replace(self, rows=rows)

    def at(self, rows: Any, name: str) -> Batches:
        """Check what a caller passed, integers in [0, M), none twice; then `select`."""
        rows = as_array(rows, name)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise OptionError(
                f"{name} is {rows.dtype} of shape {rows.shape} but must be 1-D integers; "
                f"for a mask pass np.flatnonzero(mask)"
            )
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self.x):
            wrong = rows[(rows < 0) | (rows >= len(self.x))][0]
            raise OptionError(f"{name} holds {wrong} but x has rows 0 to {len(self.x) - 1}")
        if np.unique(rows).size < rows.size:
            raise OptionError(
                f"{name} holds a row number twice; give repeated rows a sample_weight"
            )
        return self.select(rows.astype(np.intp))

    def order(self, rng: np.random.Generator | None) -> Array:
        """Return row numbers in a new random order, or in their own if rng is None."""
        if rng is None:
            return np.arange(len(self.x)) if self.rows is None else self.rows
        return rng.permutation(len(self.x) if self.rows is None else self.rows)

    def own(self, array: Array) -> Array:
        """Return the part of `targets` or `sample_weight` that `rows` selects."""
        return array if self.rows is None else array[self.rows]

    def ignored(self, loss: Loss) -> Array:
        """Return a mask (N,) of the rows that the loss ignores."""
        ignore_index = loss.options.ignore_index
        if ignore_index is None or self.targets.ndim != 1:
            return np.zeros(len(self), np.bool_)
        return self.own(self.targets) == ignore_index

    def row_weights(self, loss: Loss) -> Array:
        """Return the weight (N,) of each row in a mean: sample times class weight; 0 if ignored."""
        weight = np.ones(len(self)) if self.sample_weight is None else self.own(self.sample_weight)
        ignored, by_class = self.ignored(loss), loss.options.class_weight
        if by_class is not None and self.targets.ndim == 1:
            weight = weight * by_class[np.where(ignored, 0, self.own(self.targets))]
        return np.where(ignored, 0.0, weight)

    def counting(self, loss: Loss) -> Batches:
        """Return the rows whose weight is not 0: a batch of the others alone would have no mean."""
        counts = self.row_weights(loss) > 0
        return self if counts.all() else self.select(self.order(None)[counts])

    def weighed(self) -> Batches:
        """Return the rows whose sample weight is not 0, or all if there is no other."""
        weight = None if self.sample_weight is None else self.own(self.sample_weight)
        if weight is None or weight.all() or not weight.any():
            return self
        return self.select(self.order(None)[weight > 0])

    def require_finite_targets(self, loss: Loss) -> None:
        """Raise DataError at the first NaN or infinity among the targets that are not ignored."""
        if self.targets.dtype.kind == "f":
            counting = self.counting(loss)
            rows = counting.order(None)
            require_finite(
                counting.own(self.targets),
                source="targets",
                where=partial(_row_of, rows),
            )

    def not_finite(self) -> str:
        """Say where the first NaN or infinity of x is, by row and column.

        The result is "" if there is none, or if x is on a GPU.
        """
        rows, size = np.sort(self.order(None)), batch_rows_for(self.x.shape[1])
        x = self.x.dense if isinstance(self.x, CodedInputs) else self.x
        if not isinstance(x, np.ndarray):
            return ""
        try:
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                require_finite(x[part], names=self.feature_names, where=partial(_row_of, part))
        except DataError as error:
            return str(error)
        return ""

    def batch(self, network: MLP, rows: Array) -> Any:
        """Return these rows of x, standardised, as ``network.predict`` takes them."""
        fitted, backend = self.standardizer, network.backend
        if isinstance(self.x, CodedInputs):
            if isinstance(self.x.dense, np.ndarray):
                return self.x[rows]
            return gathered(backend, self.x, backend.asarray(rows, np.int64))
        if isinstance(self.x, np.ndarray):
            batch = self.x[rows]
            return batch if fitted is None else fitted.transform(batch, dtype=network.dtype)
        out = backend.empty((len(rows), self.x.shape[1]), network.dtype)
        raw = out if fitted is None else backend.empty(out.shape, gathered_dtype(self.x.dtype))
        backend.gather_rows(self.x, backend.asarray(rows, np.int64), raw)
        if fitted is not None:
            backend.standardize(
                raw, backend.asarray(fitted.mean), backend.asarray(fitted.scale), out
            )
        return out

    def sampled(self, network: MLP, rows: Array) -> Array:
        """Return these rows of x on the host, in the network's dtype."""
        if isinstance(self.x, CodedInputs):
            batch, to_host = self.batch(network, rows), network.backend.to_host
            return batch.with_arrays(to_host(batch.dense), to_host(batch.codes)).toarray()
        if isinstance(self.x, np.ndarray):
            return self.x[rows].astype(network.dtype)
        return network.backend.to_host(self.select(rows)._unstandardized().batch(network, rows))

    def _unstandardized(self) -> Batches:
        return replace(self, standardizer=None)

    def require_rows(self, what: str) -> None:
        if not len(self):
            raise DataError(f"{what} has 0 rows; training wants at least one")


def _row_of(rows: Array, place: int) -> str:
    """Return the name of the row whose number is at this place."""
    return row_from_1(int(rows[place]))


def gathered(backend: Backend, x: CodedInputs, index: Any) -> CodedInputs:
    """Return the rows of these numbers of coded inputs on the device."""
    out = empty_like(backend, x, len(index))
    backend.gather_rows(x.dense, index, out.dense)
    backend.gather_rows(x.codes, index, out.codes)
    return out


def empty_like(backend: Backend, x: CodedInputs, rows: int) -> CodedInputs:
    """Return memory for so many rows of the same columns."""
    dense = backend.empty((rows, x.dense.shape[1]), x.dense.dtype)
    return x.with_arrays(dense, backend.empty((rows, x.codes.shape[1]), np.int32))


def gathered_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype in which raw rows are gathered on the GPU before they are standardised.

    float32 holds uint8 and 16-bit values exactly.
    """
    return dtype if dtype in (np.float32, np.float64) else np.dtype(np.float32)


def _check_standardizer(standardizer: Any, columns: int) -> None:
    if not isinstance(standardizer, Standardizer):
        raise OptionError(
            f"standardizer is a {type(standardizer).__name__} but must be a "
            f"gpubackprop.data.Standardizer, e.g. Standardizer.fit(x), or a TablePreprocessor"
        )
    if len(standardizer.mean) != columns:
        raise ShapeError(
            f"the standardizer was fitted on {len(standardizer.mean)} columns but the network has "
            f"{columns} inputs"
        )


def _is_mapped(x: Array) -> bool:
    """Return whether the memory of `x` is a mapped file's, which must not be copied whole."""
    base: Any = x
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)
