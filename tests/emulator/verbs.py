"""The kernels called on NumPy arrays as the CuPy backend calls them: plan, arguments, launch.

What happens to a launch is up to `run`: executed (`Verbs()`), collected for a sanitizer
(`Verbs(run=collect(launches))`) or counted (`tests/test_kernel_traffic.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from gpubackprop.backends.cupy_launch import TABLE_CHUNK, DeviceProperties, Launch, plan, suffix_of
from gpubackprop.backends.softmax_plan import plan_softmax
from gpubackprop.dtypes import BY_SUFFIX, INTEGERS, compute_dtype
from gpubackprop.formulas import Dropout, pointwise_loss
from tests.emulator import sanitizers
from tests.emulator.module import Module

Array = np.ndarray
Run = Callable[[Launch, tuple[Any, ...]], None]
DTYPES = {suffix: row.numpy() for suffix, row in BY_SUFFIX.items()} | {
    suffix: np.dtype(name) for name, suffix in INTEGERS.items()
}
SMALL = DeviceProperties(multiprocessors=2)  # several blocks already for small arrays
COEFFICIENTS = 13  # updates.cuh: 8 of the formula and five controls
DECAY, L2, UNSCALE, GRADIENT_FACTOR, PROCEED = range(8, 13)


@cache
def module(source: str, mode: str = "values") -> Module:
    return Module(source, mode)


def run_now(launch: Launch, arguments: tuple[Any, ...]) -> None:
    arguments = tuple(a.words if isinstance(a, sanitizers.PointerTable) else a for a in arguments)
    module(launch.source)(
        launch.entry, launch.grid, launch.block, arguments, shared=launch.shared_bytes
    )


def collect(launches: list[sanitizers.Launch]) -> Run:
    """A `run` that keeps launches for `run_sanitized`, whole files at a time."""

    def keep(launch: Launch, arguments: tuple[Any, ...]) -> None:
        launches.append(
            sanitizers.Launch(
                launch.source, launch.entry, launch.grid, launch.block, arguments,
                launch.shared_bytes, dict(launch.defines),
            )
        )  # fmt: skip

    return keep


def stride(array: Array | None) -> np.int64:
    """Elements from one row to the next."""
    if array is None:
        return np.int64(0)
    if len(array) < 2:
        return np.int64(array.shape[1])
    return np.int64(array.strides[0] // array.itemsize)


def _contiguous(*arrays: Array | None) -> bool:
    return all(array is None or stride(array) == array.shape[1] for array in arrays)


def variant(dropout: Dropout | None) -> str:
    return "" if dropout is None else "_dropout"


def of_dropout(dropout: Dropout | None, scalar: Any) -> tuple[Any, ...]:
    """What the entries with dropout take more."""
    if dropout is None:
        return ()
    numbers = np.int64(dropout.threshold), scalar(dropout.scale), np.int64(dropout.layer)
    return dropout.state, *numbers


class Verbs:
    """One method for each verb; every scalar is cast, every output is given."""

    def __init__(self, run: Run = run_now, device: DeviceProperties = SMALL) -> None:
        self.run, self.device = run, device

    def _issue(
        self, kernel: str, shape: tuple[int, ...], dtype: Any,
        arguments: Callable[[Launch], tuple[Any, ...]], **options: Any,
    ) -> Launch:  # fmt: skip
        launch = plan(kernel, shape, dtype, self.device, **options)
        if not launch.empty:
            self.run(launch, arguments(launch))
        return launch

    def affine_epilogue(
        self,
        product: Array,
        bias: Array | None,
        a: Array | None,
        h: Array,
        name: str,
        k: float = 0.0,
        dropout: Dropout | None = None,
    ) -> None:
        rows, cols = product.shape
        scalar = compute_dtype(h.dtype).type
        storage = suffix_of(h.dtype)
        if product.dtype != h.dtype:
            storage += "_" + suffix_of(product.dtype)
        self._issue(
            "affine_epilogue" + variant(dropout), product.shape, storage,
            lambda launch: (
                product, bias, a, h, np.int64(rows), np.int64(cols), np.int32(launch.join),
                stride(product), stride(a), stride(h), scalar(k), *of_dropout(dropout, scalar),
            ),
            formula=name, contiguous=_contiguous(product, a, h),
        )  # fmt: skip

    def activation_backward(
        self, grad_h: Array, saved: Array | None, delta: Array, name: str, k: float = 0.0,
        grad_b: Array | None = None, dropout: Dropout | None = None,
    ) -> None:  # fmt: skip
        rows, cols = grad_h.shape
        compute, partial = compute_dtype(delta.dtype), None

        def arguments(launch: Launch) -> tuple[Any, ...]:
            nonlocal partial
            partial = None if grad_b is None else np.full(launch.partial, np.nan, compute)
            return (
                grad_h, saved, delta, partial, np.int64(rows), np.int64(cols),
                np.int32(launch.join), stride(grad_h), stride(saved), stride(delta), compute.type(k),
                *of_dropout(dropout, compute.type),
            )  # fmt: skip

        self._issue(
            "activation_backward" + variant(dropout), grad_h.shape, delta.dtype, arguments, formula=name,
            contiguous=_contiguous(grad_h, saved, delta),
        )  # fmt: skip
        if grad_b is not None:
            self._finish(partial if partial is not None else np.empty((0, cols), compute), grad_b)

    def column_sum(
        self, x: Array, out: Array, divisor: Array | None = None, empty_is_zero: bool = False
    ) -> None:
        partial = np.empty((0, x.shape[1]), compute_dtype(x.dtype))

        def arguments(launch: Launch) -> tuple[Any, ...]:
            nonlocal partial
            partial = np.full(launch.partial, np.nan, compute_dtype(x.dtype))
            rows, cols = x.shape
            return x, partial, np.int64(rows), np.int64(cols), np.int32(launch.join), stride(x)

        self._issue("column_sum", x.shape, x.dtype, arguments, contiguous=_contiguous(x))
        self._finish(partial, out, divisor, empty_is_zero)

    def _finish(
        self, partial: Array, out: Array, divisor: Array | None = None, empty_is_zero: bool = False
    ) -> None:
        rows, cols = partial.shape
        self._issue(
            "column_sum_finish", partial.shape, out.dtype,
            lambda launch: (
                partial, out, np.int64(rows), np.int64(cols), divisor, np.int32(empty_is_zero)
            ),
        )  # fmt: skip

    def pointwise_loss(
        self, a: Array, targets: Array, name: str, result: dict[str, Array],
        sample_weight: Array | None = None, upstream: Array | None = None,
        divisor: Array | None = None,
    ) -> None:  # fmt: skip
        formula, delta = pointwise_loss(name), result.get("delta")
        self._issue(
            "pointwise_loss", a.shape, a.dtype,
            lambda launch: (
                a, targets, delta, result["row_loss"], result.get("correct"), sample_weight,
                upstream, np.int64(upstream is not None and upstream.size > 1), divisor,
                np.int64(a.shape[0]), np.int64(a.shape[1]), stride(a), stride(targets),
                stride(delta), compute_dtype(a.dtype).type(formula.parameter),
            ),
            formula=formula.name,
        )  # fmt: skip

    def softmax_cross_entropy(
        self, logits: Array, targets: Array | None, result: dict[str, Array], *,
        sample_weight: Array | None = None, upstream: Array | None = None,
        divisor: Array | None = None, class_weight: Array | None = None,
        label_smoothing: float = 0.0, z_loss: float = 0.0, soft_cap: float = 0.0,
        ignore_index: int | None = None, log: bool = False, general: bool = False,
        cluster: int | None = None,
    ) -> tuple[Launch, ...]:  # fmt: skip
        labels = targets if targets is not None and targets.ndim == 1 else None
        probabilities = targets if labels is None else None
        delta, scalar = result.get("delta"), compute_dtype(logits.dtype).type
        spread = class_weight is not None and label_smoothing > 0
        launches = plan_softmax(
            *logits.shape, logits.dtype, self.device,
            general=general or probabilities is not None or spread or soft_cap > 0 or log,
            contiguous=_contiguous(logits, delta),
            aligned=logits.ctypes.data % 16 == 0 and stride(logits) * logits.itemsize % 16 == 0,
            cluster=cluster,
        )  # fmt: skip
        arguments = (
            logits, labels, np.int32(0 if labels is None else labels.itemsize), probabilities,
            stride(probabilities), delta, result.get("row_loss"), result.get("lse"),
            result.get("predicted"), result.get("correct"), sample_weight, upstream,
            np.int64(upstream is not None and upstream.size > 1), divisor, class_weight,
            scalar(label_smoothing), scalar(z_loss), scalar(soft_cap), np.int64(ignore_index or 0),
            np.int32(ignore_index is not None), np.int32(log), result.get("bad_label"),
            np.int64(logits.shape[0]), np.int64(logits.shape[1]), stride(logits), stride(delta),
        )  # fmt: skip
        statistics = None
        for launch in launches:
            if launch.source == "softmax_cross_entropy_short.cu":
                self.run(launch, arguments)
                continue
            if launch.partial is not None and statistics is None:
                words = 3 if scalar is np.float32 else 5
                statistics = np.full((*launch.partial, words), np.nan)
            self.run(launch, (*arguments, statistics, np.int32(launch.shared_packs)))
        return launches

    def row_weights(
        self, labels: Array | None, out: Array, sample_weight: Array | None = None,
        class_weight: Array | None = None, ignore_index: int | None = None, factor: float = 1.0,
        classes: int = 0,
    ) -> None:  # fmt: skip
        self._issue(
            "row_weights", out.shape, out.dtype,
            lambda launch: (
                labels, sample_weight, class_weight, np.int64(ignore_index or 0),
                np.int32(ignore_index is not None), out.dtype.type(factor), np.int64(classes), out,
                np.int64(len(out)),
            ),
            formula="i64" if labels is None else str(labels.dtype),
        )  # fmt: skip

    def gather_rows(self, source: Array, rows: Array | None, out: Array) -> None:
        self._issue(
            "gather_rows", out.shape, out.dtype,
            lambda launch: (
                source, rows, out, np.int64(out.shape[0]), np.int64(out.shape[1]),
                np.int64(len(source)), stride(source), stride(out),
            ),
            formula=str(source.dtype),
        )  # fmt: skip

    def accumulate(
        self, loss: Array, rows: int, correct: Array | None, penalty: tuple[Array, Array] | None,
        totals: Array,
    ) -> None:  # fmt: skip
        weights2, l2 = penalty or (None, None)
        self._issue(
            "accumulate", (1,), loss.dtype,
            lambda launch: (loss, correct, weights2, l2, np.int64(rows), totals),
        )  # fmt: skip

    def sum_of_squares(
        self, x: Array, out: Array, p: Array | None = None, unscale: Array | None = None,
        l2: Array | None = None, penalized: int = 0,
    ) -> None:  # fmt: skip
        partial = np.empty((2, 0), out.dtype)

        def arguments(launch: Launch) -> tuple[Any, ...]:
            nonlocal partial
            partial = np.full(launch.partial, np.nan, out.dtype)
            return x, p, unscale, l2, np.int64(penalized), partial, np.int64(len(x))

        self._issue("sum_of_squares", x.shape, x.dtype, arguments)
        self._issue(
            "sum_of_squares_finish", (1,), out.dtype,
            lambda launch: (partial, np.int64(partial.shape[1]), out),
        )  # fmt: skip

    def prepare_update(
        self, name: str, settings: Array, state: Array, norm: Array | None, c: Array, scaling: Array,
        random: Array | None = None,
    ) -> None:  # fmt: skip
        self._issue(
            "prepare_update", (1,), c.dtype,
            lambda launch: (settings, state, norm, c, scaling, random),
            formula=name,
        )  # fmt: skip

    def update(
        self, name: str, storage: str, p: Array, g: Array, slots: tuple[Array, ...], c: Array,
        copy: Array | None = None, random: Array | None = None, penalized: int = 0,
    ) -> None:  # fmt: skip
        s0, s1, s2 = (*slots, None, None, None)[:3]
        self._issue(
            "update", p.shape, storage,
            lambda launch: (
                p, g, s0, s1, s2, copy, c, random, np.int64(penalized), np.int64(len(p))
            ),
            formula=name,
        )  # fmt: skip

    def update_table(
        self, name: str, tensors: list[dict[str, Any]], settings: Array,
        scale: Array | None = None, found_inf: Array | None = None,
    ) -> None:  # fmt: skip
        """`tensors`: p, g, slots, step (float32 of one element), group."""
        table, chunks = pointer_table(tensors)
        p = tensors[0]["p"]
        c = np.full((len(tensors), COEFFICIENTS), np.nan, compute_dtype(p.dtype))
        self._issue(
            "prepare_table", (len(tensors),), p.dtype,
            lambda launch: (table, settings, scale, found_inf, c, np.int64(len(tensors))),
            formula=name,
        )  # fmt: skip
        self._issue(
            "update_table", (chunks,), p.dtype,
            lambda launch: (table, c, np.int64(len(tensors))), formula=name,
        )  # fmt: skip


def pointer_table(tensors: list[dict[str, Any]]) -> tuple[sanitizers.PointerTable, int]:
    """The table of kernels/update_table.cu, and how many chunks it has."""
    words, chunks, arrays = np.zeros((len(tensors), 9), np.uint64), 0, []
    for row, tensor in zip(words, tensors, strict=True):
        p, g, slots, step = (tensor[key] for key in ("p", "g", "slots", "step"))
        pack = 2 if p.dtype == np.float64 else 4
        head = p.ctypes.data // p.itemsize % pack
        addresses = [array.ctypes.data for array in (p, g, *slots)] + [0] * (3 - len(slots))
        row[:] = [*addresses, step.ctypes.data, len(p), chunks, tensor["group"]]
        chunks += -(-(head + len(p)) // TABLE_CHUNK)
        arrays += [p, g, *slots, step]
    return sanitizers.PointerTable(words, tuple(arrays)), chunks
