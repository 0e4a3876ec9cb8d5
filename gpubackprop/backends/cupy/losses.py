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


def softmax_cross_entropy(
    backend: Issuer,
    logits: Any,
    targets: Any,
    options: LossOptions,
    result: Result,
    sample_weight: Any,
    upstream: Any,
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
    divisor = _divisor(backend, labels, sample_weight, class_weight, options, result, classes)
    launch_softmax(
        backend, logits, labels, None if by_label else targets, result, options,
        sample_weight=sample_weight, upstream=_upstream(backend, upstream, compute),
        divisor=_of_gradients(backend, divisor, options), class_weight=class_weight,
    )  # fmt: skip
    if by_label:
        backend.labels_used()
    _reduce(backend, divisor, options, result)


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
    log: bool = False,
) -> None:
    """Issue the entries that `plan_softmax` chooses.

    Without labels and probabilities it is the softmax itself, or its logarithm. `upstream` and
    `divisor` are numbers or arrays.
    """
    rows, classes = logits.shape
    compute = compute_dtype(logits.dtype)
    delta = result.get("delta")
    spread = class_weight is not None and options.label_smoothing > 0
    launches = plan_softmax(
        rows, classes, logits.dtype, backend.launcher.properties,
        general=probabilities is not None or spread or options.soft_cap > 0 or log,
        contiguous=dense(logits, delta),
        aligned=logits.data.ptr % 16 == 0 and row_stride(logits) * logits.itemsize % 16 == 0,
    )  # fmt: skip
    eps = compute.type(options.label_smoothing)
    arguments = {
        "logits": logits, "labels": labels, "probabilities": probabilities, "delta": delta,
        **{name: result.get(name) for name in ("row_loss", "lse", "predicted", "correct")},
        "sample_weight": sample_weight, "class_weight": class_weight, "upstream": upstream,
        "upstream_stride": _stride(upstream), "divisor": divisor,
        "bad_label": backend.memory.bad_label, "partial": None, "rows": rows, "cols": classes,
        "stride_logits": row_stride(logits), "stride_delta": row_stride(delta),
        "stride_probabilities": row_stride(probabilities),
        "one_minus_eps": compute.type(1) - eps, "eps_over_K": eps / compute.type(classes or 1),
        "z_loss": options.z_loss, "soft_cap": options.soft_cap,
        "label_bytes": 0 if labels is None else labels.itemsize,
        "ignore_index": options.ignore_index or 0,
        "has_ignore_index": options.ignore_index is not None, "log_output": log,
    }  # fmt: skip
    for launch in launches:
        if launch.partial is not None and arguments["partial"] is None:  # both launches share it
            count = math.prod(launch.partial) * STATISTICS_WORDS[compute.name]
            arguments["partial"] = backend.memory.scratch("statistics", (count,), np.float64)
        backend.issue(launch, {**arguments, "shared_packs": launch.shared_packs})


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
    divisor = _divisor(backend, None, sample_weight, None, options, result, a.shape[1])
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
        if loss is not None:
            backend._finish(None, loss.reshape(1), divisor, empty_is_zero)
        if hits is not None:
            backend.fill(hits, 0)
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


def _divisor(
    backend: Issuer,
    labels: Any,
    sample_weight: Any,
    class_weight: Any,
    options: LossOptions,
    result: Result,
    units: int,
) -> Any:
    """Return the divisor of the mean; 1 for the other reductions.

    It is the sum of sample weight times class weight over the rows that are not ignored, times the
    units for the elementwise mean. It is a number if the host knows it, else a 0-d array.
    result["scale"] is the working memory for the rows' weights.
    """
    if not options.reduction.endswith("mean"):
        return 1.0
    row_loss = result["row_loss"]
    rows, compute = row_loss.shape[0], row_loss.dtype
    factor = units if options.reduction == "elementwise_mean" else 1
    by_label = labels is not None and (options.ignore_index is not None or class_weight is not None)
    if sample_weight is None and not by_label:
        return float(rows * factor)
    weights = result["scale"]
    row_weights(
        backend, labels if by_label else None, weights, options, sample_weight, class_weight,
        factor, units,
    )  # fmt: skip
    total = backend.memory.scratch("divisor", (1,), compute)
    backend.column_sum(weights.reshape(rows, 1), total)
    return total.reshape(())


def row_weights(
    backend: Issuer,
    labels: Any,
    out: Any,
    options: LossOptions,
    sample_weight: Any = None,
    class_weight: Any = None,
    factor: float = 1.0,
    classes: int = 0,
) -> None:
    """Set out[i] to row i's weight in the mean, times `factor`; NaN for a label out of range."""
    backend.launch(
        "row_weights", out.shape, out.dtype,
        lambda launch: {
            "labels": labels, "sample_weight": sample_weight, "class_weight": class_weight,
            "ignore_index": options.ignore_index or 0,
            "has_ignore_index": options.ignore_index is not None, "factor": factor,
            "classes": classes, "out": out, "rows": out.size,
        },
        formula="int64" if labels is None else str(labels.dtype),
    )  # fmt: skip


def _of_gradients(backend: Issuer, divisor: Any, options: LossOptions) -> Any:
    """Return the divisor of the gradients.

    If a mean over nothing is 0, a divisor of 0 becomes 1, and the gradients are 0 too.
    """
    if options.empty != "zero":
        return divisor
    if isinstance(divisor, float):
        return divisor or 1.0
    out = backend.memory.scratch("divisor of gradients", (1,), divisor.dtype).reshape(())
    backend.elementwise("one_for_zero", divisor, out)
    return out


def _upstream(backend: Issuer, upstream: Any, compute: np.dtype) -> Any:
    """Return a number, or an array of 0 or 1 dimensions."""
    if not backend.is_device_array(upstream):
        return float(upstream)
    return backend.converted(upstream, compute, "upstream")


def _reduce(backend: Issuer, divisor: Any, options: LossOptions, result: Result) -> None:
    if options.reduction == "none":
        return
    row_loss, loss = result["row_loss"], result["loss"]
    backend.sum_columns(
        row_loss.reshape(row_loss.shape[0], 1), loss.reshape(1), divisor, options.empty == "zero"
    )
