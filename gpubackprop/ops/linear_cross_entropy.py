"""An affine layer and its softmax cross entropy, with every option, without the logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends import backend_for
from gpubackprop.backends.linear_cross_entropy import LinearGradients, emit_linear_cross_entropy
from gpubackprop.backends.memory import Array, Memory
from gpubackprop.errors import DtypeError, ShapeError
from gpubackprop.ops import checks
from gpubackprop.ops.display import call
from gpubackprop.ops.softmax_cross_entropy import (
    RowDetails,
    checked_upstream,
    cross_entropy_options,
)

OP = "linear_cross_entropy"


class LinearCrossEntropy(NamedTuple):
    """Loss and gradients of `linear_cross_entropy`.

    Parameters
    ----------
    loss : scalar, or (N,) array for "none"
        The loss, in the compute dtype.
    grad_h : (N, D) array or None
        Gradient with respect to h, in the dtype of h; None if it is not wanted.
    grad_W : (K, D) array or None
        Gradient with respect to W, in the compute dtype.
    grad_b : (K,) array or None
        Gradient with respect to b, in the compute dtype; None without b.
    details : RowDetails or None
        Results of each row, if they are wanted.

    Examples
    --------
    >>> h, W = np.array([[1.0, 2.0]]), np.zeros((4, 2))
    >>> linear_cross_entropy(h, W, None, np.array([3])).grad_W
    array([[ 0.25,  0.5 ],
           [ 0.25,  0.5 ],
           [ 0.25,  0.5 ],
           [-0.75, -1.5 ]])
    """

    loss: Any
    grad_h: Any = None
    grad_W: Any = None  # noqa: N815 (the lecture's name)
    grad_b: Any = None
    details: RowDetails | None = None

    def __repr__(self) -> str:
        with np.printoptions(threshold=6, edgeitems=1, precision=4):
            return call("LinearCrossEntropy", **self._asdict())


def linear_cross_entropy(
    h: Any,
    W: Any,
    b: Any,
    targets: Any,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float = 0.0,
    reduction: str = "mean",
    empty: str = "nan",
    upstream: Any = 1.0,
    gradient: bool = True,
    input_gradient: bool = True,
    details: bool = False,
    check: bool = False,
) -> LinearCrossEntropy:
    """Compute the cross entropy of softmax(h W^T + b) and its gradients, without all logits.

    The numbers are those of `softmax_cross_entropy` on logits = h W^T + b, followed by
    grad_h = delta W, grad_W = delta^T h and grad_b = sum_i delta_i. Logits and delta exist for some
    rows at a time only: `gpubackprop.backends.linear_cross_entropy.working_bytes` counts the
    memory. Nothing is computed twice.

    Parameters
    ----------
    h : (N, D) float array
        Inputs of the layer: float64, float32, float16 or bfloat16.
    W : (K, D) float array
        Weights, of the dtype of h.
    b : (K,) float array or None
        Biases, of the dtype of h.
    targets : (N,) int array or (N, K) float array
        Class indices in [0, K), or probabilities.
    class_weight : (K,) array or None
        Non-negative factor of the term of each class.
    sample_weight : (N,) array or None
        Non-negative factor of each row.
    ignore_index : int or None
        Rows with this label add nothing to loss, count or gradient.
    label_smoothing : float
        Share in [0, 1] of each target that is spread over the classes.
    z_loss : float
        Factor of lse^2, at least 0.
    soft_cap : float
        If c > 0, c tanh(z / c) takes the place of each logit z.
    reduction : {"mean", "sum", "none"}
        How rows become the loss.
    empty : {"nan", "zero"}
        The mean over no row, or over weights that sum to 0.
    upstream : float or (N,) array
        Gradient of the final result with respect to the loss; (N,) for "none".
    gradient : bool
        Whether to compute gradients; if not, they are None.
    input_gradient : bool
        Whether to compute grad_h, which takes a third of the products.
    details : bool
        Whether to return `RowDetails`, from the same pass.
    check : bool
        For arrays on a GPU, as in `softmax_cross_entropy`.

    Returns
    -------
    LinearCrossEntropy
        The tuple (loss, grad_h, grad_W, grad_b, details). 16-bit arrays are summed in float32, and
        so are loss, grad_W and grad_b.

    Raises
    ------
    ShapeError
        The shapes do not fit each other.
    DtypeError
        h, W and b are not of one float dtype.
    OptionError
        An option is unknown or out of range.
    TargetRangeError
        A label is out of range; the message names the row and the label.

    See Also
    --------
    gpubackprop.ops.softmax_cross_entropy : The same on logits; it has the formulas.

    References
    ----------
    P.-L. Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024, section 3.2:
    the gradients of a chunk of rows right after its loss.

    Examples
    --------
    >>> h, W = np.array([[1.0, 2.0]]), np.zeros((4, 2))
    >>> result = linear_cross_entropy(h, W, np.zeros(4), np.array([3]))
    >>> print(result.loss.round(4), result.grad_b)
    1.3863 [ 0.25  0.25  0.25 -0.75]
    """
    arrays = {"targets": targets, "sample_weight": sample_weight, "class_weight": class_weight}
    backend = backend_for(OP, h=h, W=W, b=b, **arrays, upstream=upstream)
    h, W, b = _layer(h, W, b, backend)
    rows, classes = len(h), len(W)
    options = cross_entropy_options(
        classes, class_weight, ignore_index, label_smoothing, z_loss, reduction, empty, check,
        soft_cap, backend,
    )  # fmt: skip
    shape_only = np.broadcast_to(np.float32(0), (rows, classes))
    targets, all_count = checks.cross_entropy_targets(
        targets, shape_only, options.ignore_index, backend, check
    )
    if all_count and options.ignore_index is not None:
        options = replace(options, ignore_index=None)
    weights = checks.sample_weights(sample_weight, OP, rows, backend, check)
    weights = None if weights is None else checks.near_one(weights, reduction)
    if type(upstream) is not float:
        upstream = checked_upstream(upstream, reduction, rows, backend)
    dtype = np.dtype(checks.compute_dtype(h.dtype, "h", OP))
    result = backend.loss_outputs(rows, dtype)
    if reduction == "none" and "row_loss" not in result:
        result["row_loss"] = backend.new(rows, dtype)
    if details:
        result["lse"], result["predicted"] = backend.new(rows, dtype), backend.new(rows, np.int64)
        if targets.ndim == 1:
            result["correct"] = backend.new(rows, np.bool_)
    given = backend.loss_inputs(dtype, h, targets, weights, upstream)
    gradients = _gradients(h, W, b, dtype, input_gradient, backend) if gradient else None
    emit_linear_cross_entropy(backend, h, W, b, given[1], options, result, gradients, *given[2:])
    loss = result["row_loss"] if reduction == "none" else result["loss"][()]
    count = backend.count(result["correct"]) if "correct" in result else None
    more = RowDetails(result["lse"], result["predicted"], count) if details else None
    if gradients is None:
        return LinearCrossEntropy(loss, details=more)
    return LinearCrossEntropy(loss, gradients.h, gradients.W, gradients.b, more)


def _layer(h: Any, W: Any, b: Any, backend: Memory) -> tuple[Array, Array, Array | None]:
    """Return h, W and b, checked and contiguous."""
    W = checks.float_matrix(W, "W", OP, backend)
    h = checks.float_matrix(h, "h", OP, backend, W.shape[1])
    if not len(W):
        raise ShapeError(f"W has shape {W.shape}: a softmax wants at least one class")
    if b is not None:
        b = checks.as_array(b, "b", OP, backend)
        if b.shape != W.shape[:1]:
            raise ShapeError(f"b has shape {b.shape} but {OP} wants ({len(W)},) for W {W.shape}")
    dtypes = {name: x.dtype for name, x in (("h", h), ("W", W), ("b", b)) if x is not None}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise DtypeError(f"{OP} wants one dtype but got {listed}; convert with .astype")
    return backend.asarray(h), backend.asarray(W), None if b is None else backend.asarray(b)


def _gradients(
    h: Array, W: Array, b: Array | None, dtype: Any, input_gradient: bool, backend: Memory
) -> LinearGradients:
    return LinearGradients(
        backend.new(h.shape, h.dtype) if input_gradient else None,
        backend.new(W.shape, dtype),
        None if b is None else backend.new(b.shape, dtype),
    )
