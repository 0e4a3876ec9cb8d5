"""An output layer with its softmax cross entropy, whose logits are never whole in memory.

For chunks of rows, one after another, in the memory of one chunk:

    z = h W^T + b;   loss and delta of the chunk's rows, delta over z
    grad_h[chunk] = delta W;   grad_W += delta^T h[chunk];   grad_b += sum_i delta_i

These are the three products of the whole, and nothing is computed twice. Sums over chunks are in
the compute dtype: float32 for 16 bits. The calls are operations of the contract, so every backend
does the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpubackprop.backends.base import Backend
from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.memory import Array
from gpubackprop.backends.numpy.blocks import add_reduce
from gpubackprop.dtypes import compute_dtype
from gpubackprop.formulas import ACTIVATIONS

# On a CPU chunks are large, because BLAS packs W anew for each: few chunks, but so many that their
# logits are less than 1/8 of what PyTorch holds. 16 bits are computed in twice as many bytes.
CHUNKS_CPU, CHUNKS_CPU_NARROW, LEAST_ROWS_CPU = 4, 8, 32
# On a GPU a chunk's logits stay in the second-level cache. With too few rows, though, the products
# wait for W and grad_W, which each chunk reads and writes: on an H200 bytes and operations balance
# at about 350 rows (its data sheet: 4.8 TB/s, 800 TFLOP/s in 16 bits; 12 bytes for 6 operations).
CACHE_CUDA, LEAST_ROWS_CUDA = 32 << 20, 384
TILE_BYTES = 4 << 20  # of 16-bit weights that a CPU widens at a time
ROW_RESULTS = ("row_loss", "scale", "lse", "predicted", "correct")


@dataclass(frozen=True)
class LinearGradients:
    """Where the gradients go.

    Attributes
    ----------
    h : (N, D) array or None
        Gradient of h, of the dtype of h; None skips its product.
    W : (K, D) array
        Gradient of W, of the compute dtype.
    b : (K,) array or None
        Gradient of b, of the compute dtype.
    """

    h: Array | None
    W: Array
    b: Array | None


def chunk_rows(rows: int, classes: int, dtype: Any, on_gpu: bool) -> int:
    """Return how many rows are computed at a time.

    Parameters
    ----------
    rows : int
        Rows N.
    classes : int
        Classes K.
    dtype : dtype
        Dtype of h and W.
    on_gpu : bool
        Whether it is for a GPU.

    Returns
    -------
    int
        A number in [1, N].
    """
    compute = compute_dtype(dtype)
    if on_gpu:
        wanted = max(LEAST_ROWS_CUDA, CACHE_CUDA // (classes * compute.itemsize))
    else:
        chunks = CHUNKS_CPU if dtype == compute else CHUNKS_CPU_NARROW
        wanted = max(LEAST_ROWS_CPU, -(-rows // chunks))
    return max(1, min(rows, wanted))


def working_bytes(rows: int, features: int, classes: int, dtype: Any, on_gpu: bool) -> int:
    """Return the bytes that `emit_linear_cross_entropy` takes beyond its arguments.

    Parameters
    ----------
    rows : int
        Rows N.
    features : int
        Features D.
    classes : int
        Classes K.
    dtype : dtype
        Dtype of h and W.
    on_gpu : bool
        Whether it is for a GPU.

    Returns
    -------
    int
        Bytes. Results of a row are left out.

    Examples
    --------
    >>> whole = 3 * 4096 * 128256 * 2  # logits, their softmax and delta in 16 bits
    >>> round(working_bytes(4096, 4096, 128256, np.float16, True) / whole, 3)
    0.096
    """
    compute, narrow = compute_dtype(dtype).itemsize, np.dtype(dtype).itemsize
    chunk = chunk_rows(rows, classes, dtype, on_gpu)
    chunks = -(-rows // chunk)
    total = chunk * classes * compute + chunks * (classes + 1) * compute
    if narrow < compute and on_gpu:
        total += chunk * classes * narrow
    elif narrow < compute:
        total += (2 * chunk + tile_classes(features)) * features * compute
    return total + classes * compute


def tile_classes(features: int) -> int:
    """Return how many classes of 16-bit weights a CPU widens at a time."""
    return max(1, TILE_BYTES // (4 * features))


def emit_linear_cross_entropy(
    backend: Backend,
    h: Array,
    W: Array,
    b: Array | None,
    targets: Array,
    options: LossOptions,
    result: dict[str, Array],
    gradients: LinearGradients | None = None,
    sample_weight: Array | None = None,
    upstream: Any = 1.0,
) -> None:
    """Compute loss and gradients on a backend, or record the calls there.

    Parameters
    ----------
    backend : Backend
        The backend of the arrays, or its recorder.
    h : (N, D) array
        Inputs of the layer, C-contiguous.
    W : (K, D) array
        Weights, of the dtype of h, C-contiguous.
    b : (K,) array or None
        Biases, of that dtype.
    targets : (N,) or (N, K) array
        As for `Backend.softmax_cross_entropy`.
    options : LossOptions
        The options.
    result : dict of arrays
        As for `Backend.softmax_cross_entropy`, without "delta", "correct_rows" and "weight_sum".
    gradients : LinearGradients or None
        The arrays for the gradients; None computes the loss alone.
    sample_weight : (N,) array or None
        Factor of each row.
    upstream : float, or () or (N,) array
        Factor of the gradients.
    """
    if backend.asynchronous and options.class_weight is not None:  # copied there once
        weight = backend.asarray(options.class_weight, result["loss"].dtype)
        options = replace(options, class_weight=weight)
    layer = _Layer(backend, h, W, b, gradients, result["loss"].dtype)
    dtype, rows = layer.dtype, len(h)
    chunks = list(_slices(rows, layer.rows))
    exact = targets.ndim == 1 and not (
        options.label_smoothing or options.z_loss or options.soft_cap
    )
    divisor = None
    if options.reduction == "mean":
        divisor = backend.empty((), dtype)
        backend.mean_divisor(targets, options, divisor, sample_weight)
    losses = backend.empty((max(1, len(chunks)), 1), dtype)
    for number, part in enumerate(chunks):
        layer.forward(part)
        backend.number_rows_from(part.start)
        own = {name: result[name][part] for name in ROW_RESULTS if name in result}
        own["loss"] = losses[number].reshape(())
        if gradients is not None:
            own["delta"] = layer.logits(part)
        scaled = (
            None if sample_weight is None else sample_weight[part],
            upstream[part] if getattr(upstream, "ndim", 0) else upstream, divisor,
        )  # fmt: skip
        backend.softmax_cross_entropy(layer.logits(part), targets[part], options, own, *scaled)
        if gradients is not None:
            if exact and not backend.asynchronous:
                delta = layer.logits(part)
                backend.call(write_label_from_others, delta, targets[part], options, *scaled)
            layer.backward(number, part)
    backend.number_rows_from(0)
    if not chunks:
        _emit_nothing(backend, targets, options, result, layer, divisor)
    elif options.reduction != "none":
        backend.column_sum(losses, result["loss"].reshape(1))
    if gradients is not None and gradients.b is not None:
        backend.column_sum(layer.sums[: len(chunks)], gradients.b)


def write_label_from_others(
    delta: Array,
    labels: Array,
    options: LossOptions,
    sample_weight: Array | None,
    upstream: Any,
    divisor: Array | None,
) -> None:
    """Set delta[i, y_i] = -sum_{k != y_i} delta[i, k] where p is near 1. On the host only.

    It is s (p - 1), of which nothing is right in a row that is certain: its gradient is smaller
    than the rounding of p. Without smoothing the elements of a row add up to 0.
    """
    rows = np.flatnonzero((labels >= 0) & (labels < delta.shape[1]))
    own = labels[rows]
    scale = np.full(len(delta), 1.0) * upstream / (1.0 if divisor is None else divisor)
    if sample_weight is not None:
        scale *= sample_weight
    if options.class_weight is not None:
        scale[rows] *= options.class_weight[own]
    certain = np.abs(delta[rows, own]) < np.abs(scale[rows]) / 4
    rows, own = rows[certain], own[certain]
    if not len(rows):
        return
    delta[rows, own] = 0
    delta[rows, own] = 0 - add_reduce(delta[rows], 1)


def _emit_nothing(
    backend: Backend,
    targets: Array,
    options: LossOptions,
    result: dict[str, Array],
    layer: _Layer,
    divisor: Array | None,
) -> None:
    """Issue the loss and the gradients of no rows."""
    if options.reduction != "none":
        backend.softmax_cross_entropy(
            layer.z[:0], targets, options, result | {"delta": layer.z[:0]}, divisor=divisor
        )
    if layer.gradients is not None:
        no_rows = backend.empty((0, layer.h.shape[1]), layer.dtype)
        backend.matmul(layer.z[:0].T, no_rows, layer.gradients.W)


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


class _Layer:
    """The layer in chunks of rows: logits, and the gradients from delta, which overwrites them.

    A CPU multiplies in the compute dtype. It widens 16-bit weights tile by tile, so that there is
    no wide copy of W.
    """

    def __init__(
        self,
        backend: Backend,
        h: Array,
        W: Array,
        b: Array | None,
        gradients: LinearGradients | None,
        dtype: Any,
    ) -> None:
        (rows, features), classes, gpu = h.shape, len(W), backend.asynchronous
        self.backend, self.h, self.W, self.gradients, self.dtype = backend, h, W, gradients, dtype
        self.rows = chunk_rows(rows, classes, h.dtype, gpu)
        self.z = backend.empty((self.rows, classes), dtype)
        self.widens, self.narrows = (h.dtype != dtype and on for on in (not gpu, gpu))
        self.tiles = [slice(0, classes)]
        if self.widens:
            self.tiles = list(_slices(classes, tile_classes(features)))
            self.tile = backend.empty((self.tiles[0].stop, features), dtype)
            self.wide_h, self.wide_grad_h = (
                backend.empty((self.rows, features), dtype) for _ in range(2)
            )
        if self.narrows and gradients is not None:
            self.narrow = backend.empty((self.rows, classes), h.dtype)
        self.b = b
        if b is not None and b.dtype != dtype:
            self.b = backend.empty(classes, dtype)
            backend.gather_rows(b, None, self.b)
        if gradients is not None and gradients.b is not None:
            self.sums = backend.empty((max(1, -(-rows // self.rows)), classes), dtype)

    def logits(self, part: slice) -> Array:
        return self.z[: part.stop - part.start]

    def _weights(self, tile: slice) -> Array:
        if not self.widens:
            return self.W
        wide = self.tile[: tile.stop - tile.start]
        self.backend.gather_rows(self.W[tile], None, wide)
        return wide

    def _inputs(self, part: slice) -> Array:
        return self.wide_h[: part.stop - part.start] if self.widens else self.h[part]

    def forward(self, part: slice) -> None:
        """Compute the logits of some rows."""
        backend, z = self.backend, self.logits(part)
        if self.widens:
            backend.gather_rows(self.h[part], None, self._inputs(part))
        for tile in self.tiles:
            out = z if len(self.tiles) == 1 else z[:, tile]
            backend.matmul(self._inputs(part), self._weights(tile).T, out)
        if self.b is not None:
            backend.affine_epilogue(z, self.b, ACTIVATIONS["identity"], z)

    def backward(self, number: int, part: slice) -> None:
        """Add the gradients of chunk `number`, from delta, which the loss has written."""
        backend, delta, gradients = self.backend, self.logits(part), self.gradients
        assert gradients is not None
        if gradients.b is not None:
            backend.column_sum(delta, self.sums[number])
        if self.narrows:
            narrow = self.narrow[: len(delta)]
            backend.gather_rows(delta, None, narrow)
            delta = narrow
        grad_h = None if gradients.h is None else gradients.h[part]
        if self.widens and grad_h is not None:
            grad_h = self.wide_grad_h[: len(delta)]
        for tile in self.tiles:
            whole = len(self.tiles) == 1
            of_tile = delta if whole else delta[:, tile]
            grad_W = gradients.W if whole else gradients.W[tile]
            backend.matmul(of_tile.T, self._inputs(part), grad_W, accumulate=number > 0)
            if grad_h is not None:
                backend.matmul(of_tile, self._weights(tile), grad_h, accumulate=tile.start > 0)
        if self.widens and grad_h is not None and gradients.h is not None:
            backend.gather_rows(grad_h, None, gradients.h[part])
