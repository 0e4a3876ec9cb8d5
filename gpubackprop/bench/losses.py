"""The problems of losses: softmax cross entropy with its options, and pointwise losses."""

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
from gpubackprop.formulas import POINTWISE_LOSSES, lookup

IGNORED = -100


# Options by variant. "class_weight" and "sample_weight" say whether there are any.
_ENTROPIES: dict[str, dict[str, Any]] = {
    "": {},
    "label_smoothing": {"label_smoothing": 0.2},
    "class_weight": {"class_weight": True},
    "ignore_index": {"ignore_index": IGNORED},
    "z_loss": {"z_loss": 0.1},
    "no_weight": {"ignore_index": IGNORED, "label_smoothing": 0.2, "z_loss": 0.1},
    "all": {
        "class_weight": True, "ignore_index": IGNORED, "label_smoothing": 0.2, "z_loss": 0.1
    },
    # Peers are not set up for these.
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "soft_cap": {"soft_cap": 5.0},
    "ignored_class": {"ignore_index": 0},
    "all_ignored_class": {
        "class_weight": True, "ignore_index": 0, "label_smoothing": 0.2, "z_loss": 0.1
    },
}  # fmt: skip
_WEIGHTED = {
    f"{name}_weighted".lstrip("_"): options | {"sample_weight": True}
    for name, options in _ENTROPIES.items()
}
_PROBABILITIES = {"probabilities": {"label_smoothing": 0.1, "probabilities": True}}
ENTROPIES = _ENTROPIES | _PROBABILITIES | _WEIGHTED
MANY_ROWS = (40_001, 10)  # a block of rows for every multiprocessor (plan_softmax)
LONG_ROWS = ((5, 301), (5, 1501), (3, 9001))  # for a warp, a block, and shared memory
_DEFAULTS: dict[str, Any] = {
    "class_weight": False, "ignore_index": None, "label_smoothing": 0.0, "z_loss": 0.0,
    "soft_cap": 0.0, "reduction": "mean",
}  # fmt: skip


def scratch(case: Case) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return the arrays that a loss fills."""
    rows = case.shape[:1]
    return {
        "loss": ((), compute(case)), "row_loss": (rows, compute(case)),
        "scale": (rows, compute(case)), "delta": (case.shape, storage(case)),
    }  # fmt: skip


def entropy_options(case: Case) -> dict[str, Any]:
    """Return the options that a case's variant names; the others have their defaults."""
    return _DEFAULTS | lookup(ENTROPIES, case.variant, "variant")


def peer_options(case: Case) -> dict[str, Any]:
    """Return `entropy_options` for peers.

    Raises
    ------
    Unsupported : peers are not set up for one of the options.
    """
    options = entropy_options(case)
    known = ("class_weight", "label_smoothing", "z_loss")
    other = [name for name, value in options.items()
             if name not in known and value not in (_DEFAULTS.get(name), IGNORED)]  # fmt: skip
    if other:
        raise Unsupported(f"what is written for peers has no {', '.join(other)}")
    return options


class Loss(Problem):
    """The results that softmax cross entropy and pointwise losses share."""

    sums: ClassVar = ("loss",)

    def reduction(self, case: Case) -> str:
        raise NotImplementedError

    def results(self, case: Case) -> dict[str, Any]:
        return scratch(case)

    def optional(self, case: Case) -> tuple[str, ...]:
        return ("row_loss", "correct")

    def reduced(self, case: Case, row: Array, delta: Array, divisor: Any, tiling: Tiling) -> Arrays:
        """Compute the results from each row's loss and gradient and the divisor of a mean."""
        found = {"row_loss": row, "delta": delta}
        if self.reduction(case) == "none":
            return found
        divisor = divisor if "mean" in self.reduction(case) and divisor else 1.0
        return found | {"loss": tiling.total(row) / divisor, "delta": delta / divisor}


class SoftmaxCrossEntropy(Loss):
    """Loss and gradient of the logits; the variant names the options."""

    shared: ClassVar = ("class_weight",)
    variants: ClassVar = (*_ENTROPIES, *_PROBABILITIES, "weighted")
    # The case above shows what a row's weight costs.
    compared_only: ClassVar = tuple(name for name in _WEIGHTED if name != "weighted")

    def measured(self, device: str, elements: int) -> tuple[int, ...]:
        return (4096, 1000)

    def compared(self, variant: str, *, short: bool) -> tuple[tuple[int, ...], ...]:
        found = super().compared(variant, short=short)
        if variant.startswith("all") or variant == "probabilities":
            found += LONG_ROWS[:1] if short else LONG_ROWS
        if variant in ("", "ignore_index"):
            found += (MANY_ROWS,)
        return found

    def reduction(self, case: Case) -> str:
        return str(entropy_options(case)["reduction"])

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        classes, options = case.shape[1], entropy_options(case)
        found: Arrays = {"logits": rng.normal(0, 3, (rows, classes))}
        if options.get("probabilities"):
            found["probabilities"] = rng.random((rows, classes))
        else:
            found["labels"] = rng.integers(0, classes, rows)
        if options["ignore_index"] == IGNORED:
            found["labels"][1::10] = IGNORED
        if options["class_weight"]:
            found["class_weight"] = rng.uniform(0.5, 1.5, classes)
        if options.get("sample_weight"):
            found["sample_weight"] = rng.uniform(0.1, 1.1, rows)
        return found

    def dtype_of(self, case: Case, name: str) -> np.dtype:
        return storage(case) if name == "logits" else compute(case)

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        options, z = entropy_options(case), inputs["logits"]
        smooth, z_loss, cap = (options[n] for n in ("label_smoothing", "z_loss", "soft_cap"))
        slope: Any = 1.0
        if cap:
            z = cap * np.tanh(z / cap)
            slope = 1 - (z / cap) ** 2
        weight = inputs.get("class_weight", np.ones(z.shape[1]))
        each = inputs.get("sample_weight", np.ones(len(z)))
        right: Arrays = {}
        if "probabilities" in inputs:
            target, of_class = inputs["probabilities"], 1.0
        else:
            y = inputs["labels"]
            each = each * (y != options["ignore_index"])
            label = np.where(y == IGNORED, 0, y)
            target, of_class = np.zeros_like(z), weight[label]
            target[np.arange(len(y)), label] = 1
            if self.more_results(case):
                right = {"correct": (z.argmax(1) == y) & (each > 0)}
        top = z.max(1, keepdims=True)
        e = np.exp(z - top)
        total = e.sum(1, keepdims=True)
        lse = (top + np.log(total))[:, 0]
        target = weight * ((1 - smooth) * target + smooth / z.shape[1])
        row = (target * (lse[:, None] - z)).sum(1) + z_loss * lse**2
        delta = slope * ((target.sum(1) + 2 * z_loss * lse)[:, None] * e / total - target)
        divisor = tiling.total(each * of_class)
        return right | self.reduced(case, each * row, each[:, None] * delta, divisor, tiling)

    def more_results(self, case: Case) -> dict[str, Any]:
        if entropy_options(case).get("probabilities") or case.shape == MANY_ROWS:
            return {}  # the second is for the form without options of single rows
        return {"correct": (case.shape[:1], np.dtype(np.bool_))}

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        options = entropy_options(case)
        weight = arrays.get("class_weight")
        given = {name: options[name] for name in _DEFAULTS if name != "class_weight"}
        host = None if weight is None else backend.to_host(weight)
        chosen = LossOptions(host, empty="zero", **given)
        targets = arrays["labels" if "labels" in arrays else "probabilities"]
        result = {n: arrays[n] for n in (*scratch(case), "correct") if n in arrays}
        return lambda recorder: recorder.softmax_cross_entropy(
            arrays["logits"], targets, chosen, result, arrays.get("sample_weight")
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
        options = peer_options(case)
        z, y = arrays["logits"], arrays["labels"]
        smooth, z_loss = options["label_smoothing"], options["z_loss"]
        counts = (y != IGNORED).astype(z.dtype)
        label = xp.where(y == IGNORED, 0, y)
        weight = arrays["class_weight"] if options["class_weight"] else xp.ones(z.shape[1], z.dtype)
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
    """Compute the loss as the textbook does, with two exponentials."""
    z = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(labels)), labels]).mean()
    p[np.arange(len(labels)), labels] -= 1
    return {"loss": loss, "delta": p / len(labels)}


REDUCTIONS = ("mean", "elementwise_mean", "sum", "none")


class PointwiseLoss(Loss):
    """Loss and gradient: a mean over rows, or with sample weights and the named reduction."""

    variants: ClassVar = tuple(POINTWISE_LOSSES)
    compared_only: ClassVar = tuple(  # they take the time of the mean over rows
        f"{name}_weighted_{reduction}" for name in POINTWISE_LOSSES for reduction in REDUCTIONS
    )

    def formula(self, case: Case) -> Any:
        return POINTWISE_LOSSES[case.variant.partition("_weighted_")[0]]

    def reduction(self, case: Case) -> str:
        return case.variant.partition("_weighted_")[2] or "mean"

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        shape = (rows, case.shape[1])
        targets = {
            "real": lambda: rng.normal(size=shape),
            "unit": lambda: rng.uniform(-0.5, 1.5, shape).clip(0, 1),  # half of them 0 or 1
            "nonnegative": lambda: rng.poisson(1.0, shape).astype(float),
        }[self.formula(case).target_domain]()
        found = {"a": rng.normal(size=shape), "targets": targets}
        if "_weighted_" in case.variant:
            found["sample_weight"] = rng.uniform(0.1, 1.1, rows)
        return found

    def dtype_of(self, case: Case, name: str) -> np.dtype:
        return storage(case) if name == "a" else compute(case)

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        a, t, formula = inputs["a"], inputs["targets"], self.formula(case)
        value, delta, work = (np.empty_like(a) for _ in range(3))
        formula.value_and_delta(a, t, value, delta, work, formula.parameter)
        each = inputs.get("sample_weight", np.ones(len(a)))
        divisor = tiling.total(each)
        if self.reduction(case) == "elementwise_mean":
            divisor *= case.shape[1]
        return self.reduced(case, each * value.sum(1), each[:, None] * delta, divisor, tiling)

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        options = LossOptions(reduction=self.reduction(case))
        result = {name: arrays[name] for name in scratch(case)}
        return lambda recorder: recorder.pointwise_loss(
            arrays["a"], arrays["targets"], self.formula(case), options, result,
            arrays.get("sample_weight"),
        )  # fmt: skip

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
