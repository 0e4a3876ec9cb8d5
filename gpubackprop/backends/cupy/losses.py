"""Loss operations on a GPU: weights of the rows, loss and delta, the reduction over the rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.cupy.issuer import Issuer
from gpubackprop.backends.cupy.launcher import LABELS, dense, row_stride
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
    """out = softmax(logits), or its logarithm; (N, K) of one dtype; out may be logits."""
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
    upstream: Any = None,
    divisor: Any = None,
    class_weight: Any = None,
    log: bool = False,
) -> None:
    """Issue the entries that `plan_softmax` chooses, with the parameters of kernels/include/
    softmax.cuh; without labels and probabilities the softmax itself, or its logarithm."""
    rows, classes = logits.shape
    delta = result.get("delta")
    spread = class_weight is not None and options.label_smoothing > 0
    launches = plan_softmax(
        rows, classes, logits.dtype, backend.launcher.properties,
        general=probabilities is not None or spread or options.soft_cap > 0 or log,
        contiguous=dense(logits, delta),
        aligned=logits.data.ptr % 16 == 0 and row_stride(logits) * logits.itemsize % 16 == 0,
    )  # fmt: skip
    arguments = (
        logits, labels, 0 if labels is None else labels.itemsize, probabilities,
        row_stride(probabilities), delta, result.get("row_loss"), result.get("lse"),
        result.get("predicted"), result.get("correct"), sample_weight, upstream,
        0 if upstream is None else upstream.ndim, divisor, class_weight, options.label_smoothing,
        options.z_loss, options.soft_cap, options.ignore_index or 0,
        options.ignore_index is not None, log, backend.memory.bad_label, rows, classes,
        row_stride(logits), row_stride(delta),
    )  # fmt: skip
    for launch in launches:
        if launch.source == "softmax_cross_entropy_short.cu":
            backend.issue("softmax_cross_entropy_short", launch, arguments)
            continue
        statistics = None
        if launch.partial is not None:
            count = math.prod(launch.partial) * STATISTICS_WORDS[compute_dtype(logits.dtype).name]
            statistics = backend.memory.scratch("statistics", (count,), np.float64)
        backend.issue(
            "softmax_cross_entropy", launch, (*arguments, statistics, launch.shared_packs)
        )


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
    rows, units = a.shape
    compute = compute_dtype(a.dtype)
    _check_shapes(targets, a.shape, result, a.shape)
    sample_weight = backend.converted(sample_weight, compute, "sample_weight")
    divisor = _divisor(backend, None, sample_weight, None, options, result, units)
    upstream = _upstream(backend, upstream, compute)
    delta, of_gradients = result.get("delta"), _of_gradients(backend, divisor, options)
    backend.launch(
        "pointwise_loss", a.shape, a.dtype,
        lambda launch: (
            a, targets, delta, result["row_loss"], result.get("correct"), sample_weight, upstream,
            0 if upstream is None else upstream.ndim, of_gradients, rows, units, row_stride(a),
            row_stride(targets), row_stride(delta), formula.parameter,
        ),
        formula=formula.name,
    )  # fmt: skip
    _reduce(backend, divisor, options, result)


def _check_shapes(
    targets: Any, wanted: tuple[int, ...], result: Result, logits: tuple[int, ...]
) -> None:
    """A kernel would read or write beyond a smaller array."""
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
    """What the mean divides by, a 0-d array, or None for the other reductions.

    The sum over the rows that count of sample weight times class weight, times the units for the
    elementwise mean. result["scale"] is the working memory for the rows' weights.
    """
    if not options.reduction.endswith("mean"):
        return None
    row_loss = result["row_loss"]
    rows, compute = row_loss.shape[0], row_loss.dtype
    factor = units if options.reduction == "elementwise_mean" else 1
    by_label = labels is not None and (options.ignore_index is not None or class_weight is not None)
    if sample_weight is None and not by_label:
        return backend.memory.constant(rows * factor, compute)
    weights = result["scale"]
    labels = labels if by_label else None
    backend.launch(
        "row_weights", (rows,), compute,
        lambda launch: (
            labels, sample_weight, class_weight, options.ignore_index or 0,
            options.ignore_index is not None, factor, units, weights, rows,
        ),
        formula="int64" if labels is None else str(labels.dtype),
    )  # fmt: skip
    total = backend.memory.scratch("divisor", (1,), compute)
    backend.column_sum(weights.reshape(rows, 1), total)
    return total.reshape(())


def _of_gradients(backend: Issuer, divisor: Any, options: LossOptions) -> Any:
    """The divisor, but 1 for 0 where a mean over nothing is 0: its gradients are, too."""
    if divisor is None or options.empty != "zero":
        return divisor
    out = backend.memory.scratch("divisor of gradients", (1,), divisor.dtype).reshape(())
    backend.elementwise("one_for_zero", divisor, out)
    return out


def _upstream(backend: Issuer, upstream: Any, compute: np.dtype) -> Any:
    """None for 1, else an array of 0 or 1 dimensions."""
    if not backend.is_device_array(upstream):
        return None if float(upstream) == 1.0 else backend.memory.constant(float(upstream), compute)
    return backend.converted(upstream, compute, "upstream")


def _reduce(backend: Issuer, divisor: Any, options: LossOptions, result: Result) -> None:
    if options.reduction == "none":
        return
    row_loss, loss = result["row_loss"], result["loss"]
    backend.sum_columns(
        row_loss.reshape(row_loss.shape[0], 1), loss.reshape(1), divisor, options.empty == "zero"
    )
