"""Loss operations on a GPU: weights of the rows, loss and delta, the reduction over the rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.arguments import LABELS
from gpubackprop.backends.cupy.issuer import Issuer
from gpubackprop.backends.cupy.launcher import dense, row_stride
from gpubackprop.backends.cupy_launch import Launch
from gpubackprop.backends.loss import LossOptions
from gpubackprop.backends.softmax_plan import plan_softmax
from gpubackprop.dtypes import compute_dtype
from gpubackprop.errors import DtypeError, ShapeError
from gpubackprop.formulas import PointwiseLoss

Result = dict[str, Any]
# Words of 8 bytes in Statistics<C> of kernels/include/softmax.cuh: four C and an int64.
STATISTICS_WORDS = {"float32": 3, "float64": 5}
KNOWN, WITH_ROWS, FIRST = range(3)  # Weigh of kernels/include/softmax.cuh
# The gradients of a mean want its divisor first. Up to so many rows each block adds it up by
# itself, from the second-level cache: 4 KiB of labels, and a round trip instead of a launch.
WEIGHED_IN_EACH_BLOCK = 512


def softmax_cross_entropy(
    backend: Issuer,
    logits: Any,
    targets: Any,
    options: LossOptions,
    result: Result,
    sample_weight: Any,
    upstream: Any,
    divisor: Any,
) -> None:
    rows, classes = logits.shape
    compute = compute_dtype(logits.dtype)
    by_label = targets.ndim == 1
    _check_shapes(targets, (rows,) if by_label else (rows, classes), result, logits.shape)
    if by_label and targets.dtype not in LABELS:
        raise DtypeError(f"labels are {targets.dtype} but the GPU wants uint8, int32 or int64")
    sample_weight = backend.converted(sample_weight, compute, "sample_weight")
    if not by_label:
        targets = backend.converted(targets, compute, "probabilities")
    class_weight = backend.on_device(options.class_weight, compute)
    labels = targets if by_label else None
    weigh = KNOWN
    if divisor is None:
        divisor, weigh = _divisor_of_softmax(
            backend, labels, sample_weight, class_weight, options, result, logits
        )
    launch_softmax(
        backend, logits, labels, None if by_label else targets, result, options,
        sample_weight=sample_weight, upstream=_upstream(backend, upstream, compute),
        divisor=divisor, class_weight=class_weight, weigh=weigh,
    )  # fmt: skip
    if by_label:
        backend.labels_used()


def _divisor_of_softmax(
    backend: Issuer,
    labels: Any,
    sample_weight: Any,
    class_weight: Any,
    options: LossOptions,
    result: Result,
    logits: Any,
) -> tuple[Any, int]:
    """Return the mean's divisor, and who adds it up (`Weigh` of kernels/include/softmax.cuh)."""
    rows, classes = logits.shape
    if options.reduction != "mean":
        return 1.0, KNOWN
    if not _has_weights(labels, sample_weight, class_weight, options):
        return float(rows), KNOWN
    if result.get("delta") is None:
        return 1.0, WITH_ROWS
    if rows <= WEIGHED_IN_EACH_BLOCK:
        return 1.0, FIRST
    total = backend.memory.scratch("divisor", (1,), compute_dtype(logits.dtype)).reshape(())
    row_weights(backend, labels, total, rows, options, sample_weight, class_weight, 1.0, classes)
    return total, KNOWN


def softmax(backend: Issuer, logits: Any, out: Any, *, log: bool = False) -> None:
    """Set out = softmax(logits), or its logarithm; (N, K) of one dtype; out may be logits."""
    launch_softmax(backend, logits, None, None, {"delta": out}, LossOptions(), log=log)


def launch_softmax(
    backend: Issuer,
    logits: Any,
    labels: Any,
    probabilities: Any,
    result: Result,
    options: LossOptions,
    *,
    sample_weight: Any = None,
    upstream: Any = 1.0,
    divisor: Any = 1.0,
    class_weight: Any = None,
    weigh: int = KNOWN,
    log: bool = False,
) -> None:
    """Issue the entries that `plan_softmax` chooses, which also reduce the loss over the rows.

    Without labels and probabilities it is the softmax itself, or its logarithm. `upstream` and
    `divisor` are numbers or arrays.
    """
    rows, classes = logits.shape
    compute = compute_dtype(logits.dtype)
    delta = result.get("delta")
    smooth = options.label_smoothing > 0
    loss = None if options.reduction == "none" else result.get("loss")
    factor_is_known = sample_weight is None and weigh == KNOWN
    factor_is_known &= isinstance(upstream, float) and isinstance(divisor, float)
    address = int(logits.data.ptr) or 16  # 0 is that of an empty array
    plain = (
        labels is not None and not smooth and class_weight is None and not options.z_loss
        and all(result.get(name) is None for name in _OF_A_ROW)
    )  # fmt: skip
    alike = sample_weight is None and not _stride(upstream)  # all rows count alike
    launches = plan_softmax(
        rows, classes, logits.dtype, backend.launcher.properties,
        general=probabilities is not None or (class_weight is not None and smooth)
        or options.soft_cap > 0 or log,
        plain=plain and alike and _on_packs(logits, delta),
        contiguous=dense(logits, delta),
        aligned=address % 16 == 0 and row_stride(logits) * logits.itemsize % 16 == 0,
        alignment=min(16, address & -address),
    )  # fmt: skip
    eps = compute.type(options.label_smoothing)
    arguments = {
        "logits": logits, "labels": labels, "probabilities": probabilities, "delta": delta,
        **{name: result.get(name) for name in ("row_loss", "lse", "predicted", "correct")},
        "sample_weight": sample_weight, "class_weight": class_weight, "upstream": upstream,
        "upstream_stride": _stride(upstream), "divisor": divisor,
        "bad_label": backend.memory.bad_label, "partial": None, "loss": loss,
        "weight_sum": result.get("weight_sum"), "correct_rows": result.get("correct_rows"),
        "sums": None, "counter": None, "rows": rows, "cols": classes,
        "stride_logits": row_stride(logits), "stride_delta": row_stride(delta),
        "stride_probabilities": row_stride(probabilities),
        "one_minus_eps": compute.type(1) - eps, "eps_over_K": eps / compute.type(classes or 1),
        "z_loss": options.z_loss, "soft_cap": options.soft_cap,
        "label_bytes": 0 if labels is None else labels.itemsize,
        "ignore_index": options.ignore_index or 0,
        "has_ignore_index": options.ignore_index is not None, "log_output": log, "weigh": weigh,
        "empty_is_zero": options.empty == "zero", "factor_is_known": factor_is_known,
        "factor": _quotient(upstream, divisor, compute, options) if factor_is_known else 1.0,
        "is_plain": plain and factor_is_known,
        "wants_best": any(result.get(name) is not None for name in _OF_THE_BEST),
        "spread": probabilities is not None or (labels is not None and smooth),
    }  # fmt: skip
    reduces = loss is not None or result.get("correct_rows") is not None
    if reduces and not launches:
        _reduce_nothing(backend, divisor if weigh == KNOWN else 0.0, loss, options, result)
    if reduces and launches:
        blocks = math.prod(launches[-1].grid)
        arguments["sums"] = backend.memory.scratch("sums", (3 * blocks,), compute)
        arguments["counter"] = backend.memory.counter()
    for launch in launches:
        if launch.partial is not None and arguments["partial"] is None:  # both launches share it
            count = math.prod(launch.partial) * STATISTICS_WORDS[compute.name]
            arguments["partial"] = backend.memory.scratch("statistics", (count,), np.float64)
        backend.issue(launch, {**arguments, "shared_packs": launch.shared_packs})


_OF_A_ROW = ("lse", "predicted", "correct")
_OF_THE_BEST = ("predicted", "correct", "correct_rows")


def _on_packs(*matrices: Any) -> bool:
    """Return whether each matrix that there is starts on 16 bytes."""
    return all(int(matrix.data.ptr) % 16 == 0 for matrix in matrices if matrix is not None)


def _quotient(upstream: float, divisor: float, compute: np.dtype, options: LossOptions) -> Any:
    """Return what the kernel would compute of the two."""
    if divisor == 0 and options.empty == "zero":
        divisor = 1.0
    with np.errstate(all="ignore"):
        return compute.type(upstream) / compute.type(divisor)


def _reduce_nothing(
    backend: Issuer, divisor: Any, loss: Any, options: LossOptions, result: Result
) -> None:
    """Fill the sums over the rows of an empty matrix, for which nothing is launched."""
    if loss is not None:
        backend._finish(None, loss.reshape(1), divisor, options.empty == "zero")
    for name in ("weight_sum", "correct_rows"):
        if result.get(name) is not None:
            backend.fill(result[name], 0)


def _stride(upstream: Any) -> int:
    """Return 1 for an array of one number for each row; 0 for one number, in an array or not."""
    return int(getattr(upstream, "ndim", 0))


def pointwise_loss(
    backend: Issuer,
    a: Any,
    targets: Any,
    formula: PointwiseLoss,
    options: LossOptions,
    result: Result,
    sample_weight: Any,
    upstream: Any,
) -> None:
    compute = compute_dtype(a.dtype)
    _check_shapes(targets, a.shape, result, a.shape)
    sample_weight = backend.converted(sample_weight, compute, "sample_weight")
    divisor = _divisor(backend, sample_weight, options, a.shape[0], a.shape[1], compute)
    launch_pointwise(
        backend, a, targets, result, formula, options, sample_weight=sample_weight,
        upstream=_upstream(backend, upstream, compute), divisor=divisor,
    )  # fmt: skip


def launch_pointwise(
    backend: Issuer,
    a: Any,
    targets: Any,
    result: Result,
    formula: PointwiseLoss,
    options: LossOptions | None = None,
    *,
    sample_weight: Any = None,
    upstream: Any = 1.0,
    divisor: Any = 1.0,
) -> None:
    """Compute the losses of the rows, their sum / `divisor`, delta and the rest of `result`.

    `upstream` and `divisor` are numbers or arrays.
    """
    options = options or LossOptions()
    delta, (rows, columns) = result.get("delta"), a.shape
    loss = None if options.reduction == "none" else result.get("loss")
    hits, empty_is_zero = result.get("correct_rows"), options.empty == "zero"
    if rows == 0:  # nothing is launched
        _reduce_nothing(backend, divisor, loss, options, result)
        return

    def arguments(launch: Launch) -> dict[str, Any]:
        sums = counter = None
        if loss is not None or hits is not None:
            shape = (2 * math.prod(launch.grid),), compute_dtype(a.dtype)
            sums, counter = backend.memory.scratch("sums", *shape), backend.memory.counter()
        return {
            "a": a, "targets": targets, "delta": delta, "row_loss": result.get("row_loss"),
            "correct": result.get("correct"), "sample_weight": sample_weight,
            "upstream": upstream, "upstream_stride": _stride(upstream), "divisor": divisor,
            "loss": loss, "correct_rows": hits, "sums": sums, "counter": counter, "rows": rows,
            "cols": columns, "stride_a": row_stride(a), "stride_targets": row_stride(targets),
            "stride_delta": row_stride(delta), "parameter": formula.parameter,
            "empty_is_zero": empty_is_zero,
        }  # fmt: skip

    backend.launch("pointwise_loss", a.shape, a.dtype, arguments, formula=formula.name)


def _check_shapes(
    targets: Any, wanted: tuple[int, ...], result: Result, logits: tuple[int, ...]
) -> None:
    """Raise for a smaller array, beyond which a kernel would read or write."""
    shapes = {"row_loss": logits[:1], "scale": logits[:1], "lse": logits[:1], "correct": logits[:1]}
    shapes |= {"predicted": logits[:1], "delta": logits}
    named = [("targets", targets, wanted)]
    named += [(name, result[name], shape) for name, shape in shapes.items() if name in result]
    for name, array, shape in named:
        if array.shape != shape:
            raise ShapeError(f"{name} has shape {array.shape} but the loss wants {shape}")


def _has_weights(labels: Any, sample_weight: Any, class_weight: Any, options: LossOptions) -> bool:
    """Return whether the divisor of a mean is more than the number of rows."""
    by_label = labels is not None and (options.ignore_index is not None or class_weight is not None)
    return sample_weight is not None or by_label


def _divisor(
    backend: Issuer, sample_weight: Any, options: LossOptions, rows: int, units: int, dtype: Any
) -> Any:
    """Return the divisor of a pointwise loss's mean; 1 for the other reductions.

    It is the sum of the sample weights, times the units for the elementwise mean. It is a number if
    the host knows it, else a 0-d array.
    """
    if not options.reduction.endswith("mean"):
        return 1.0
    factor = units if options.reduction == "elementwise_mean" else 1
    if sample_weight is None:
        return float(rows * factor)
    total = backend.memory.scratch("divisor", (1,), dtype).reshape(())
    row_weights(backend, None, total, rows, options, sample_weight, None, factor, units)
    return total


def mean_divisor(
    backend: Issuer, targets: Any, options: LossOptions, out: Any, sample_weight: Any
) -> None:
    rows, labels = len(targets), targets if targets.ndim == 1 else None
    sample_weight = backend.converted(sample_weight, out.dtype, "sample_weight")
    class_weight = None if labels is None else backend.on_device(options.class_weight, out.dtype)
    if not _has_weights(labels, None, class_weight, options):
        labels = None  # a label out of range spoils its own row alone
    classes = np.iinfo(np.int64).max if class_weight is None else len(class_weight)
    row_weights(backend, labels, out, rows, options, sample_weight, class_weight, 1.0, classes)


def row_weights(
    backend: Issuer,
    labels: Any,
    total: Any,
    rows: int,
    options: LossOptions,
    sample_weight: Any = None,
    class_weight: Any = None,
    factor: float = 1.0,
    classes: int = 0,
) -> None:
    """Set total to the sum of what the rows weigh in the mean, times `factor`.

    It is NaN if a label is out of range.
    """

    def arguments(launch: Any) -> dict[str, Any]:
        blocks = math.prod(launch.grid)
        return {
            "labels": labels, "sample_weight": sample_weight, "class_weight": class_weight,
            "total": total, "sums": backend.memory.scratch("sums", (blocks,), total.dtype),
            "counter": backend.memory.counter(), "ignore_index": options.ignore_index or 0,
            "has_ignore_index": options.ignore_index is not None, "factor": factor,
            "classes": classes, "rows": rows,
        }  # fmt: skip

    backend.launch(
        "row_weights", (max(rows, 1),), total.dtype, arguments,
        formula="int64" if labels is None else str(labels.dtype),
    )  # fmt: skip


def _upstream(backend: Issuer, upstream: Any, compute: np.dtype) -> Any:
    """Return a number, or an array of 0 or 1 dimensions."""
    if not backend.is_device_array(upstream):
        return float(upstream)
    return backend.converted(upstream, compute, "upstream")
