"""The losses' problems: softmax cross entropy with its options, and pointwise losses."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gpubackprop.backends import Backend, LossOptions
from gpubackprop.bench.problems import (
    Array,
    Arrays,
    Emit,
    Problem,
    Tiling,
    Unsupported,
    compute,
    count,
    storage,
)
from gpubackprop.bench.shapes import Case
from gpubackprop.formulas import POINTWISE_LOSSES

IGNORED = -100


def scratch(case: Case) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The arrays that a loss fills."""
    rows = case.shape[:1]
    return {
        "loss": ((), compute(case)), "row_loss": (rows, compute(case)),
        "scale": (rows, compute(case)), "delta": (case.shape, storage(case)),
    }  # fmt: skip


def entropy_options(case: Case) -> dict[str, Any]:
    """label_smoothing, z_loss, ignore_index and weighted (class weights) of a case's variant."""
    name = case.variant
    return {
        "label_smoothing": 0.1 * (name in ("label_smoothing", "no_weight", "all")),
        "z_loss": 1e-4 * (name in ("z_loss", "no_weight", "all")),
        "ignore_index": IGNORED if name in ("ignore_index", "no_weight", "all") else None,
        "weighted": name in ("class_weight", "all"),
    }


class SoftmaxCrossEntropy(Problem):
    """Mean loss and gradient of the logits; options by variant."""

    shared: ClassVar = ("class_weight",)
    sums: ClassVar = ("loss",)

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        classes = case.shape[1]
        found: Arrays = {
            "logits": rng.normal(0, 3, (rows, classes)),
            "labels": rng.integers(0, classes, rows),
        }
        options = entropy_options(case)
        if options["ignore_index"] is not None:
            found["labels"][1::10] = IGNORED
        if options["weighted"]:
            found["class_weight"] = rng.uniform(0.5, 1.5, classes)
        return found

    def dtype_of(self, case: Case, name: str) -> np.dtype:
        return compute(case) if name == "class_weight" else storage(case)

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        z, y, options = inputs["logits"], inputs["labels"], entropy_options(case)
        smooth, z_loss = options["label_smoothing"], options["z_loss"]
        weight = inputs.get("class_weight", np.ones(z.shape[1]))
        counts = y != IGNORED
        label = np.where(counts, y, 0)
        top = z.max(1, keepdims=True)
        e = np.exp(z - top)
        total = e.sum(1, keepdims=True)
        lse = (top + np.log(total))[:, 0]
        target = np.full_like(z, smooth / z.shape[1])
        target[np.arange(len(y)), label] += 1 - smooth
        target *= weight
        row = (target * (lse[:, None] - z)).sum(1) + z_loss * lse**2
        delta = (target.sum(1) + 2 * z_loss * lse)[:, None] * e / total - target
        divisor = tiling.total(weight[label] * counts)
        return {
            "loss": tiling.total(row * counts) / divisor,
            "delta": delta * counts[:, None] / divisor,
        }

    def results(self, case: Case) -> dict[str, Any]:
        return scratch(case)

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        options = entropy_options(case)
        weight = arrays.get("class_weight")
        loss_options = LossOptions(
            None if weight is None else backend.to_host(weight),
            options["ignore_index"], options["label_smoothing"], options["z_loss"],
        )  # fmt: skip
        result = {name: arrays[name] for name in scratch(case)}
        return lambda recorder: recorder.softmax_cross_entropy(
            arrays["logits"], arrays["labels"], loss_options, result
        )

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        if case.variant:
            return self._with_options(xp, case, arrays)
        z, y = arrays["logits"], arrays["labels"]
        e = xp.exp(z - z.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        loss = -xp.log(p[xp.arange(len(y)), y]).mean()
        p[xp.arange(len(y)), y] -= 1
        return {"loss": loss, "delta": p / len(y)}

    def _with_options(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        z, y, options = arrays["logits"], arrays["labels"], entropy_options(case)
        smooth, z_loss = options["label_smoothing"], options["z_loss"]
        counts = (y != IGNORED).astype(z.dtype)
        label = xp.where(y == IGNORED, 0, y)
        weight = arrays["class_weight"] if options["weighted"] else xp.ones(z.shape[1], z.dtype)
        top = z.max(axis=1, keepdims=True)
        e = xp.exp(z - top)
        total = e.sum(axis=1, keepdims=True)
        lse = (top + xp.log(total))[:, 0]
        target = xp.full_like(z, smooth / z.shape[1])
        target[xp.arange(len(y)), label] += 1 - smooth
        target = target * weight
        row = (target * (lse[:, None] - z)).sum(axis=1) + z_loss * lse * lse
        divisor = (weight[label] * counts).sum()
        delta = (target.sum(axis=1) + 2 * z_loss * lse)[:, None] * (e / total) - target
        return {
            "loss": (row * counts).sum() / divisor,
            "delta": delta * (counts / divisor)[:, None],
        }

    def bytes(self, case: Case) -> int:
        return 2 * count(case) * storage(case).itemsize + 8 * case.shape[0]

    def flops(self, case: Case) -> int:
        return 4 * count(case)  # subtract, exp, add to the sum, multiply


def five_lines_two_exps(logits: Array, labels: Array) -> Arrays:
    """The textbook's NumPy, which takes the exponential twice."""
    z = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(labels)), labels]).mean()
    p[np.arange(len(labels)), labels] -= 1
    return {"loss": loss, "delta": p / len(labels)}


class PointwiseLoss(Problem):
    """Loss, a mean over rows, and gradient."""

    sums: ClassVar = ("loss",)

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        shape = (rows, case.shape[1])
        domain = POINTWISE_LOSSES[case.variant].target_domain
        targets = {
            "real": lambda: rng.normal(size=shape), "unit": lambda: rng.random(shape),
            "nonnegative": lambda: rng.poisson(1.0, shape).astype(float),
        }[domain]()  # fmt: skip
        return {"a": rng.normal(size=shape), "targets": targets}

    def dtype_of(self, case: Case, name: str) -> np.dtype:
        return compute(case) if name == "targets" else storage(case)

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        a, t = inputs["a"], inputs["targets"]
        value, delta, work = (np.empty_like(a) for _ in range(3))
        POINTWISE_LOSSES[case.variant].value_and_delta(
            a, t, value, delta, work, POINTWISE_LOSSES[case.variant].parameter
        )
        return {"loss": tiling.total(value.sum(1)) / tiling.rows, "delta": delta / tiling.rows}

    def results(self, case: Case) -> dict[str, Any]:
        return scratch(case)

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        formula = POINTWISE_LOSSES[case.variant]
        result = {name: arrays[name] for name in scratch(case)}
        return lambda recorder: recorder.pointwise_loss(
            arrays["a"], arrays["targets"], formula, LossOptions(), result
        )

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        a, t = arrays["a"], arrays["targets"]
        if case.variant == "squared_error":
            delta = a - t
            value = 0.5 * delta * delta
        elif case.variant == "poisson":
            e = xp.exp(a)
            value, delta = e - t * a, e - t
        elif case.variant == "binary_cross_entropy":
            value = xp.maximum(a, 0) - a * t + xp.log1p(xp.exp(-xp.abs(a)))
            delta = 1 / (1 + xp.exp(-a)) - t
        else:
            raise Unsupported(f"no array expression is written for {case.variant}")
        return {"loss": value.sum() / len(a), "delta": delta / len(a)}

    def bytes(self, case: Case) -> int:
        return 3 * count(case) * storage(case).itemsize

    def flops(self, case: Case) -> int:
        return 6 * count(case)
