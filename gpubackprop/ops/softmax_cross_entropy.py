"""Cross entropy of a softmax output and its gradient, with every option; softmax and its log."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends import LossOptions, backend_for
from gpubackprop.backends.arrays import ANYWHERE
from gpubackprop.backends.memory import Array, Memory
from gpubackprop.errors import OptionError, ShapeError
from gpubackprop.ops import checks
from gpubackprop.ops.display import call

REDUCTIONS = ("mean", "sum", "none")


class RowDetails(NamedTuple):
    """Per-row results of `softmax_cross_entropy` beside the loss.

    Parameters
    ----------
    lse : (N,) array
        The values log sum_k exp(logits_ik), in the loss's dtype.
    predicted : (N,) int64 array
        Index of the first of the largest logits; -1 for a row with NaN.
    correct : 0-d int array or None
        Number of rows whose label is predicted; None for probabilities.

    Examples
    --------
    >>> *_, details = softmax_cross_entropy(np.zeros((1, 2)), np.array([0]), details=True)
    >>> print(details.lse.round(4), details.predicted, details.correct)
    [0.6931] [0] 1
    """

    lse: Any
    predicted: Any
    correct: Any

    def __repr__(self) -> str:
        with np.printoptions(threshold=12):
            return call("RowDetails", **self._asdict())


def softmax_cross_entropy(
    logits: Any,
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
    out: Array | None = None,
    gradient: bool = True,
    details: bool = False,
    check: bool = False,
) -> Any:
    """Compute the cross entropy of softmax(logits) and its gradient, in one pass.

    With tau the targets after smoothing and class weights, T_i = sum_k tau_ik and
    lse_i = log sum_k exp(logits_ik)::

        row_i      = sample_weight_i * (sum_k tau_ik (lse_i - logits_ik) + z_loss * lse_i^2)
        delta_ik   = s_i * ((T_i + 2 z_loss lse_i) softmax(logits_i)_k - tau_ik)

    where s_i = upstream * sample_weight_i. For "mean" it is divided by the sum of
    sample_weight_i * class_weight[targets_i] over the rows that are not ignored. With plain class
    indices delta is the lecture's softmax(a) - e_y, for "mean" divided by the number of rows.

    Parameters
    ----------
    logits : (N, K) float array
        Dtype float64, float32, float16 or bfloat16; any strides. The row maximum is subtracted
        first, so a common offset of 1e4 is safe.
    targets : (N,) int array or (N, K) float array
        Class indices in [0, K), or probabilities (they need not sum to 1).
    class_weight : (K,) array or None
        Non-negative factor of the term of each class.
    sample_weight : (N,) array or None
        Non-negative factor of each row.
    ignore_index : int or None
        Rows with this label add nothing to loss, count or gradient, even if they hold NaN.
    label_smoothing : float
        Share eps in [0, 1]: tau = (1 - eps) target + eps / K, times the class weight.
    z_loss : float
        Factor of lse^2, at least 0.
    soft_cap : float
        If c > 0, c tanh(logits / c) takes the place of the logits; delta is with respect to the
        logits themselves. 0 is none.
    reduction : {"mean", "sum", "none"}
        How rows become the loss.
    empty : {"nan", "zero"}
        The mean over no row, or over weights that sum to 0. "nan" is PyTorch's.
    upstream : float or (N,) array
        Gradient of the final result with respect to the loss; (N,) for "none".
    out : (N, K) array or None
        Receives delta, in the dtype of logits; `logits` itself works in place.
    gradient : bool
        Whether to compute delta; if not, delta is None.
    details : bool
        Whether to return `RowDetails` as third result, from the same pass.
    check : bool
        For arrays on a GPU. True waits for the GPU and checks labels and weights, as is always done
        on the host. False does not wait: if a label is out of range, loss and delta of its row are
        NaN, and the next call with check=True on that GPU raises TargetRangeError.

    Returns
    -------
    loss : scalar, or (N,) array for "none"
        The loss, in float32, or in float64 for float64 logits.
    delta : (N, K) array or None
        Gradient of the reduced loss with respect to logits, in the dtype of logits.
    details : RowDetails
        Only if `details` is true.

    Raises
    ------
    ShapeError
        The shapes do not fit each other.
    DtypeError
        An array has a dtype that the operation does not take.
    OptionError
        An option is unknown or out of range.
    TargetRangeError
        A label is out of range; the message names the row and the label.

    References
    ----------
    I. Goodfellow, Y. Bengio and A. Courville, "Deep Learning", 2016, section 6.2.2. C. Szegedy et
    al., "Rethinking the Inception architecture", 2016 (label smoothing). A. Chowdhery et al.,
    "PaLM", 2022 (z-loss). I. Bello et al., "Neural combinatorial optimization", 2016, and Gemma
    Team, "Gemma 2", 2024 (soft cap).

    Examples
    --------
    >>> loss, delta = softmax_cross_entropy(np.zeros((1, 2)), np.array([1]))
    >>> print(loss.round(4), delta)
    0.6931 [[ 0.5 -0.5]]
    """
    op = "softmax_cross_entropy"
    arrays = {"targets": targets, "sample_weight": sample_weight, "class_weight": class_weight}
    backend = backend_for(op, logits=logits, **arrays, upstream=upstream, out=out)
    logits = checks.float_matrix(logits, "logits", op, backend)
    rows, classes = logits.shape
    if not classes:
        raise ShapeError(f"logits has shape {logits.shape}: a softmax wants at least one class")
    options = cross_entropy_options(
        classes, class_weight, ignore_index, label_smoothing, z_loss, reduction, empty, check,
        soft_cap, backend,
    )  # fmt: skip
    targets, all_count = checks.cross_entropy_targets(
        targets, logits, options.ignore_index, backend, check
    )
    if all_count and options.ignore_index is not None:
        options = replace(options, ignore_index=None)
    if sample_weight is not None:
        sample_weight = checks.sample_weights(sample_weight, op, rows, backend, check)
    if type(upstream) is not float:
        upstream = checked_upstream(upstream, reduction, rows, backend)
    if not gradient and out is not None:
        raise OptionError("out is for delta, which gradient=False does not compute; leave one out")
    dtype = checks.compute_dtype(logits.dtype, "logits", op)
    result = backend.loss_outputs(rows, dtype)
    if reduction == "none" and "row_loss" not in result:
        result["row_loss"] = backend.new(rows, dtype)
    weights = None if sample_weight is None else checks.near_one(sample_weight, reduction)
    source, labels, *weights = backend.loss_inputs(dtype, logits, targets, weights, upstream)
    delta = None
    if gradient:
        if out is None:
            delta = backend.new(logits.shape, logits.dtype)
        else:
            delta = checks.output_array(out, logits, "logits", op, backend)
            checks.no_overlap(
                delta, backend, targets=targets, sample_weight=sample_weight, upstream=upstream,
                class_weight=options.class_weight,
            )  # fmt: skip
        result["delta"] = backend.target(delta, source)
    if details:
        result["lse"], result["predicted"] = backend.new(rows, dtype), backend.new(rows, np.int64)
        if targets.ndim == 1:
            if backend.asynchronous:
                result["correct_rows"] = backend.new((), np.int64)
            else:
                result["correct"] = backend.new(rows, np.bool_)
    backend.softmax_cross_entropy(source, labels, options, result, *weights)
    if delta is not None:
        backend.store(result["delta"], delta)
    loss = result["row_loss"] if reduction == "none" else result["loss"][()]
    if not details:
        return loss, delta
    count = result.get("correct_rows")
    if "correct" in result:
        count = backend.count(result["correct"])
    return loss, delta, RowDetails(result["lse"], result["predicted"], count)


def cross_entropy_options(
    classes: int,
    class_weight: Any,
    ignore_index: int | None,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
    empty: str = "nan",
    check: bool = False,
    soft_cap: float = 0.0,
    memory: Memory | None = None,
) -> LossOptions:
    """Return the checked options, or raise OptionError or ShapeError."""
    numbers = (ignore_index, label_smoothing, z_loss, soft_cap, reduction, empty)
    if class_weight is None and _PLAIN.issuperset(map(type, numbers)):
        return plain_options(*numbers)
    op = "softmax_cross_entropy"
    memory = memory or backend_for(op, class_weight=class_weight)
    class_weight = checks.non_negative(class_weight, "class_weight", op, classes, memory, check)
    return _options(class_weight, *numbers)


def _options(
    class_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    soft_cap: Any,
    reduction: Any,
    empty: Any,
) -> LossOptions:
    if ignore_index is not None and not isinstance(ignore_index, (int, np.integer)):
        raise OptionError(f"ignore_index is {ignore_index!r} but must be an integer or None")
    return LossOptions(
        checks.near_one(class_weight, reduction),
        None if ignore_index is None else int(ignore_index),
        checks.number(label_smoothing, "label_smoothing", 0.0, 1.0),
        checks.number(z_loss, "z_loss", 0.0),
        checks.number(soft_cap, "soft_cap", 0.0),
        reduction=checks.choice(reduction, "reduction", REDUCTIONS),
        empty=checks.choice(empty, "empty", ("nan", "zero")),
    )


_PLAIN = frozenset((type(None), int, float, str))  # values of these types cannot change


@lru_cache(maxsize=64, typed=True)
def plain_options(*numbers: Any) -> LossOptions:
    """Return the options without class weights. Valid ones are checked once and then kept.

    Invalid ones are not kept: they raise each time.
    """
    return _options(None, *numbers)


def checked_upstream(upstream: Any, reduction: str, rows: int, memory: Memory) -> Any:
    """Return a float, or (N,) numbers if the loss itself is (N,); a GPU's 0-d array passes too."""
    if memory.asynchronous and not isinstance(upstream, ANYWHERE):
        upstream = memory.as_ndarray(upstream)
        if upstream.ndim == 0:
            return upstream
    if np.ndim(upstream) == 0:
        try:
            return float(upstream)
        except (TypeError, ValueError):
            raise OptionError(f"upstream is {upstream!r} but must be a number or (N,)") from None
    if reduction != "none":
        raise ShapeError(
            f"upstream has shape {np.shape(upstream)} but the loss of reduction={reduction!r} is a "
            f'number; pass a number, or reduction="none"'
        )
    return checks.row_vector(upstream, "upstream", "softmax_cross_entropy", rows, memory)


def softmax(logits: Any, *, out: Array | None = None) -> Array:
    """Compute softmax(logits)[i, k] = exp(logits[i, k]) / sum_j exp(logits[i, j]).

    Parameters
    ----------
    logits : (N, K) float array
        Any offset; the row maximum is subtracted first. 16-bit types are computed in float32.
    out : (N, K) array or None
        Receives the result, in the dtype of logits; it may be `logits`.

    Returns
    -------
    (N, K) array
        Probabilities, in the dtype of logits: `out`, or a new array.

    Raises
    ------
    ShapeError
        `logits` is no matrix with columns, or `out` does not fit it.
    DtypeError
        `logits` is no float array.
    OptionError
        `out` cannot be written into.

    References
    ----------
    J. S. Bridle, "Probabilistic interpretation of feedforward classification network outputs",
    1990.

    Examples
    --------
    >>> softmax(np.zeros((1, 2)))
    array([[0.5, 0.5]])
    """
    return _of_rows("softmax", logits, out)


def log_softmax(logits: Any, *, out: Array | None = None) -> Array:
    """Compute log_softmax(logits)[i, k] = logits[i, k] - log sum_j exp(logits[i, j]).

    Parameters
    ----------
    logits : (N, K) float array
        Any offset; the row maximum is subtracted first. 16-bit types are computed in float32.
    out : (N, K) array or None
        Receives the result, in the dtype of logits; it may be `logits`.

    Returns
    -------
    (N, K) array
        Log probabilities, in the dtype of logits: `out`, or a new array.

    Raises
    ------
    ShapeError
        `logits` is no matrix with columns, or `out` does not fit it.
    DtypeError
        `logits` is no float array.
    OptionError
        `out` cannot be written into.

    Examples
    --------
    >>> log_softmax(np.zeros((1, 2))).round(4)
    array([[-0.6931, -0.6931]])
    """
    return _of_rows("log_softmax", logits, out)


def _of_rows(op: str, logits: Any, out: Array | None) -> Array:
    backend = backend_for(op, logits=logits, out=out)
    logits = checks.float_matrix(logits, "logits", op, backend)
    if not logits.shape[1]:
        raise ShapeError(f"logits has shape {logits.shape}: a softmax wants at least one class")
    result = checks.output_array(out, logits, "logits", op, backend)
    source = backend.source(logits, checks.compute_dtype(logits.dtype, "logits", op))
    work = backend.target(result, source)
    backend.softmax(source, work, log=op == "log_softmax")
    backend.store(work, result)
    return result
