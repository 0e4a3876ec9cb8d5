"""The problems of reductions, gathering, updates and transfers, and the registry of all
problems."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gpubackprop.backends import Backend, UpdateRule
from gpubackprop.bench import front_ends, layers, many
from gpubackprop.bench.losses import PointwiseLoss, SoftmaxCrossEntropy
from gpubackprop.bench.problems import (
    ELEMENTWISE,
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
from gpubackprop.bench.steps import TrainingStep
from gpubackprop.formulas import UPDATES, Update, lookup

LEARNING_RATE = 1e-3
LATER = (0.1, 3)  # learning rate and number of a later step
DECAY, CLIP, L2 = 0.9, 0.5, 0.3


class ColumnSum(Problem):
    """out[j] = sum_i x[i, j]."""

    limit: ClassVar = "read"
    sums: ClassVar = ("out",)

    def compared(self, variant: str, *, short: bool) -> tuple[tuple[int, ...], ...]:
        most = ((3000, 16),) if short else ((70001, 16), (3, 10007))
        return super().compared(variant, short=short) + most

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        return {"x": rng.normal(size=(rows, case.shape[1]))}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        return {"out": tiling.total(inputs["x"])}

    def results(self, case: Case) -> dict[str, Any]:
        return {"out": (case.shape[1:], storage(case))}

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        return lambda recorder: recorder.column_sum(arrays["x"], arrays["out"])

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        return {"out": arrays["x"].sum(axis=0)}

    def bytes(self, case: Case) -> int:
        return count(case) * storage(case).itemsize

    def flops(self, case: Case) -> int:
        return count(case)


class SumOfSquares(Problem):
    """out = sum of x^2 over a flat array."""

    awkward: ClassVar = ((4097,),)
    limit: ClassVar = "read"
    sums: ClassVar = ("out",)

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        return {"x": rng.normal(size=rows)}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        return {"out": tiling.total(inputs["x"] ** 2)}

    def results(self, case: Case) -> dict[str, Any]:
        return {"out": ((), np.dtype(np.float64))}

    def measured(self, device: str, elements: int) -> tuple[int, ...]:
        return (elements,)

    def check(self, case: Case, found: Arrays) -> tuple[float, float]:
        return super().check(case, {"out": np.asarray(found["out"]).astype(compute(case))})

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        return lambda recorder: recorder.sum_of_squares(arrays["x"], arrays["out"])

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        return {"out": (arrays["x"] * arrays["x"]).sum()}

    def bytes(self, case: Case) -> int:
        return count(case) * storage(case).itemsize

    def flops(self, case: Case) -> int:
        return 2 * count(case)


class GatherRows(Problem):
    """out[i] = x[rows[i]], every row once, in an order that is random within a block.

    The variants "repeated" and "uint8" take some rows several times; "uint8" also converts them.
    """

    shared: ClassVar = ("rows",)
    variants: ClassVar = ("", "repeated", "uint8")
    units: ClassVar = 0.0

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        order, i = rng.permutation(rows), np.arange(case.shape[0])
        if case.variant:
            order = rng.integers(0, rows, rows)
        start = i // rows * rows
        start[start + rows > case.shape[0]] = 0  # the last block may be incomplete
        shape = (rows, case.shape[1])
        whole = case.variant == "uint8"
        x = rng.integers(0, 256, shape, np.uint8) if whole else rng.normal(size=shape)
        return {"x": x, "rows": start + order[i % rows]}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        return {"out": np.asarray(inputs["x"][inputs["rows"][: tiling.block]], np.float64)}

    def results(self, case: Case) -> dict[str, Any]:
        return {"out": (case.shape, storage(case))}

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        return lambda recorder: recorder.gather_rows(arrays["x"], arrays["rows"], arrays["out"])

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        return {"out": arrays["x"][arrays["rows"]].astype(storage(case), copy=False)}

    def bytes(self, case: Case) -> int:
        itemsize = 1 if case.variant == "uint8" else storage(case).itemsize
        return count(case) * (itemsize + storage(case).itemsize) + 8 * case.shape[0]

    def flops(self, case: Case) -> int:
        return 0


class OptimizerUpdate(Problem):
    """An optimizer's first step on a flat buffer, with new slots.

    A variant with "_later" is the third step, with filled slots. "_regularized" also has weight
    decay, clipping and L2.
    """

    variants: ClassVar = (*UPDATES, "adam_regularized")
    compared_only: ClassVar = (
        *(f"{name}_later" for name in UPDATES),  # as fast as the first
        *(f"{name}_regularized" for name in UPDATES if name != "adam"),  # adam's is measured
    )
    awkward: ClassVar[tuple[tuple[int, ...], ...]] = ((4097,),)
    units: ClassVar = 2 * ELEMENTWISE
    sixteen_bit: ClassVar = False

    def measured(self, device: str, elements: int) -> tuple[int, ...]:
        return (elements,)

    def compared(self, variant: str, *, short: bool) -> tuple[tuple[int, ...], ...]:
        return ((100,),) if short and self.awkward else self.awkward

    def formula(self, case: Case) -> Update:
        name = case.variant or "adam"
        return UPDATES[name.removesuffix("_later").removesuffix("_regularized")]

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        found = {"p": rng.normal(size=rows), "g": rng.normal(size=rows)}
        if self._first(case):
            return found
        slots = self._slots(case)
        return found | {name: np.abs(rng.normal(size=rows)) for name in slots}

    def _first(self, case: Case) -> bool:
        return not case.variant.endswith(("_later", "_regularized"))

    def _slots(self, case: Case) -> list[str]:
        return [f"slot{i}" for i in range(len(self.formula(case).slots))]

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        formula, p, g = self.formula(case), inputs["p"].copy(), inputs["g"].copy()
        first = formula.hyperparameters[formula.initial] if formula.initial else 0.0
        new = np.full_like(p, first)
        slots = {name: inputs.get(name, new).copy() for name in self._slots(case)}
        rate, step = (LEARNING_RATE, 1) if self._first(case) else LATER
        if case.variant.endswith("_regularized"):
            penalized = self._penalized(case)
            g[:penalized] += L2 * p[:penalized]
            g *= CLIP
            if formula.decay == "coupled":
                g += DECAY * p
            else:
                p *= DECAY
        c = formula.coefficients(formula.hyperparameters, rate, step)
        work = tuple(np.empty_like(p) for _ in range(2))
        formula.apply(p, g, tuple(slots.values()), tuple(map(np.asarray, c)), work)
        return {"p": p} | slots

    def optional(self, case: Case) -> tuple[str, ...]:
        return tuple(self._slots(case))

    def results(self, case: Case) -> dict[str, Any]:
        new = self._slots(case) if self._first(case) else ()
        return {name: ((count(case),), storage(case)) for name in new}

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        formula = self.formula(case)
        p, g, slots = arrays["p"], arrays["g"], tuple(arrays[name] for name in self._slots(case))
        if not self._first(case):
            numbers = self._numbers(case)
            return lambda recorder: recorder.update(p, g, slots, formula, numbers)
        for slot in slots if formula.initial else ():
            slot.fill(formula.hyperparameters[formula.initial])
        rule = UpdateRule(formula, formula.hyperparameters, LEARNING_RATE)
        updater = backend.updater(rule, p, g, slots)
        updater.set(LEARNING_RATE, 1)
        return lambda recorder: updater.emit(recorder)

    def _penalized(self, case: Case) -> int:
        """Return how many parameters L2 penalises: half, or all if blocks repeat and must be
        alike."""
        tiling = self.tiling(case)
        return tiling.rows // 2 if tiling.block == tiling.rows else tiling.rows

    def _numbers(self, case: Case) -> dict[str, Any]:
        """Return the arguments with which `update` makes a later step."""
        formula = self.formula(case)
        c = formula.coefficients(formula.hyperparameters, *LATER)
        numbers: dict[str, Any] = {"c": tuple(map(np.asarray, c))}
        if case.variant.endswith("_regularized"):
            numbers |= {"decay": np.array(DECAY), "clip": np.array(CLIP)}
            numbers |= {"l2": (self._penalized(case), np.array(L2))}
        return numbers

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        p, g = arrays["p"], arrays["g"]
        if case.variant not in ("", "adam"):
            raise Unsupported("array expressions are written for adam")
        m = arrays.setdefault("m", xp.zeros_like(p))
        v = arrays.setdefault("v", xp.zeros_like(p))
        arrays["step"] = step = arrays.get("step", 0) + 1
        m += (g - m) * 0.1
        v += (g * g - v) * 0.001
        root = (1 - 0.999**step) ** 0.5
        p -= LEARNING_RATE / (1 - 0.9**step) * m / (xp.sqrt(v) / root + 1e-8)
        return {"p": p}

    def bytes(self, case: Case) -> int:
        return (3 + 2 * len(self.formula(case).slots)) * count(case) * storage(case).itemsize

    def flops(self, case: Case) -> int:
        return (2 + 5 * len(self.formula(case).slots)) * count(case)


class UpdateOfMany(OptimizerUpdate):
    """The first step on a thousand tensors in PyTorch; ours is on the same flat buffer."""

    variants: ClassVar = ("adam",)
    compared_only: ClassVar = ()
    awkward: ClassVar = ()


class Transfer(Problem):
    """A copy between host and GPU."""

    limit: ClassVar = ""
    variants: ClassVar = ("to_device", "to_host")
    awkward: ClassVar = ()

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        return {"x": rng.normal(size=rows)}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        return {"out": inputs["x"]}

    def bytes(self, case: Case) -> int:
        return count(case) * storage(case).itemsize

    def flops(self, case: Case) -> int:
        return 0


PROBLEMS: dict[str, Problem] = {
    "activation_forward": layers.ActivationForward(),
    "activation_backward": layers.ActivationBackward(),
    "affine_forward": layers.AffineForward(),
    "affine_backward": layers.AffineBackward(),
    "affine_layer": layers.AffineLayer(),
    "output": layers.Output(),
    "softmax_cross_entropy": SoftmaxCrossEntropy(),
    "pointwise_loss": PointwiseLoss(),
    "column_sum": ColumnSum(),
    "sum_of_squares": SumOfSquares(),
    "gather_rows": GatherRows(),
    "update": OptimizerUpdate(),
    "update_many": UpdateOfMany(),
    "transfer": Transfer(),
    "training_step": TrainingStep(),
}


def get(op: str) -> Problem:
    """Return the problem of that name, or raise OptionError."""
    return lookup(PROBLEMS | front_ends.PROBLEMS | many.PROBLEMS, op, "operation")
