"""The problems of layers, reductions, gathering, updates and transfers."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np

from gpubackprop.backends import Backend, UpdateRule
from gpubackprop.bench.losses import PointwiseLoss, SoftmaxCrossEntropy
from gpubackprop.bench.problems import (
    Array,
    Arrays,
    Emit,
    Problem,
    Tiling,
    Unsupported,
    compute,
    count,
    product_bytes,
    product_flops,
    storage,
)
from gpubackprop.bench.shapes import PEER_ACTIVATIONS, Case
from gpubackprop.formulas import ACTIVATIONS, UPDATES

LEARNING_RATE = 1e-3


def erf(xp: Any, x: Any) -> Any:
    """The error function of SciPy or CuPy."""
    name = "scipy.special" if xp is np else "cupyx.scipy.special"
    try:
        return importlib.import_module(name).erf(x)
    except ImportError:
        raise Unsupported(f"gelu needs {name}") from None


def slope(xp: Any, name: str, saved: Any) -> Any:
    """g' by array expressions, of h (relu, tanh) or of a (gelu)."""
    if name == "relu":
        return saved > 0
    if name == "tanh":
        return 1 - saved * saved
    if name == "gelu":
        density = xp.exp(-0.5 * saved * saved) * 0.3989422804014327  # 1 / sqrt(2 pi)
        return 0.5 * (1 + erf(xp, saved * 0.7071067811865476)) + saved * density
    raise Unsupported(f"array expressions are written for {', '.join(PEER_ACTIVATIONS)}")


def value(xp: Any, name: str, a: Any) -> Any:
    if name == "relu":
        return xp.maximum(a, 0)
    if name == "tanh":
        return xp.tanh(a)
    if name == "gelu":
        return 0.5 * a * (1 + erf(xp, a * 0.7071067811865476))
    raise Unsupported(f"array expressions are written for {', '.join(PEER_ACTIVATIONS)}")


def _formula(name: str, kind: str, x: Array) -> Array:
    entry, out = ACTIVATIONS[name], np.empty_like(x)
    work = tuple(np.empty_like(x) for _ in range(3))
    with np.errstate(all="ignore"):
        getattr(entry, kind)(x, out, work, entry.parameter)
    return out


class ActivationForward(Problem):
    """h = g(a)."""

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        return {"a": rng.normal(size=(rows, case.shape[1]))}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        return {"h": _formula(case.variant, "value", inputs["a"].copy())}

    def results(self, case: Case) -> dict[str, Any]:
        return {"h": (case.shape, storage(case))}

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        act = ACTIVATIONS[case.variant]
        return lambda recorder: recorder.activation_forward(arrays["a"], act, arrays["h"])

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        return {"h": value(xp, case.variant, arrays["a"])}

    def bytes(self, case: Case) -> int:
        return 2 * count(case) * storage(case).itemsize

    def flops(self, case: Case) -> int:
        return count(case)


class ActivationBackward(Problem):
    """delta = grad_h * g', and the bias gradient, its sum over the rows."""

    sums: ClassVar = ("grad_b",)

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        shape, act = (rows, case.shape[1]), ACTIVATIONS[case.variant]
        a = rng.normal(size=shape)
        saved = a if act.saved == "a" else _formula(act.name, "value", a)
        return {"grad_h": rng.normal(size=shape), "saved": saved}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        delta = inputs["grad_h"] * _formula(case.variant, "slope", inputs["saved"].copy())
        return {"delta": delta, "grad_b": tiling.total(delta)}

    def results(self, case: Case) -> dict[str, Any]:
        dtype = storage(case)
        return {"delta": (case.shape, dtype), "grad_b": (case.shape[1:], dtype)}

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        act = ACTIVATIONS[case.variant]
        return lambda recorder: recorder.activation_backward(
            arrays["grad_h"], arrays["saved"], act, arrays["delta"], arrays["grad_b"]
        )

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        delta = arrays["grad_h"] * slope(xp, case.variant, arrays["saved"])
        return {"delta": delta, "grad_b": delta.sum(axis=0)}

    def bytes(self, case: Case) -> int:
        return 3 * count(case) * storage(case).itemsize

    def flops(self, case: Case) -> int:
        return 3 * count(case)


class ColumnSum(Problem):
    """out[j] = sum_i x[i, j]."""

    limit: ClassVar = "read"
    sums: ClassVar = ("out",)

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
    """out = sum x^2 of a flat array."""

    limit: ClassVar = "read"
    sums: ClassVar = ("out",)

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        return {"x": rng.normal(size=rows)}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        return {"out": tiling.total(inputs["x"] ** 2)}

    def results(self, case: Case) -> dict[str, Any]:
        return {"out": ((), np.dtype(np.float64))}

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
    """out[i] = x[rows[i]], every row once, in an order that is random within a block."""

    shared: ClassVar = ("rows",)

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        order, i = rng.permutation(rows), np.arange(case.shape[0])
        start = i // rows * rows
        start[start + rows > case.shape[0]] = 0  # the last block is not whole
        return {"x": rng.normal(size=(rows, case.shape[1])), "rows": start + order[i % rows]}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        return {"out": inputs["x"][inputs["rows"][: tiling.block]]}

    def results(self, case: Case) -> dict[str, Any]:
        return {"out": (case.shape, storage(case))}

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        return lambda recorder: recorder.gather_rows(arrays["x"], arrays["rows"], arrays["out"])

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        return {"out": arrays["x"][arrays["rows"]]}

    def bytes(self, case: Case) -> int:
        return 2 * count(case) * storage(case).itemsize + 8 * case.shape[0]

    def flops(self, case: Case) -> int:
        return 0


class OptimizerUpdate(Problem):
    """The first step of an optimizer on a flat buffer, slots new."""

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        return {"p": rng.normal(size=rows), "g": rng.normal(size=rows)}

    def formula(self, case: Case) -> Any:
        return UPDATES[case.variant or "adam"]

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        formula, p = self.formula(case), inputs["p"].copy()
        first = formula.hyperparameters[formula.initial] if formula.initial else 0.0
        slots = tuple(np.full_like(p, first) for _ in formula.slots)
        c = formula.coefficients(formula.hyperparameters, LEARNING_RATE, 1)
        work = tuple(np.empty_like(p) for _ in range(2))
        formula.apply(p, inputs["g"], slots, tuple(np.float64(v) for v in c), work)
        return {"p": p}

    def results(self, case: Case) -> dict[str, Any]:
        shape = (count(case),)
        return {f"slot{i}": (shape, storage(case)) for i in range(len(self.formula(case).slots))}

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        formula = self.formula(case)
        slots = tuple(arrays[f"slot{i}"] for i in range(len(formula.slots)))
        rule = UpdateRule(formula, formula.hyperparameters, LEARNING_RATE)
        updater = backend.updater(rule, arrays["p"], arrays["g"], slots)
        updater.set(LEARNING_RATE, 1)
        return lambda recorder: updater.emit(recorder)

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        p, g = arrays["p"], arrays["g"]
        if self.formula(case).name != "adam":
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


class AffineLayer(Problem):
    """A layer there and back: h, and the gradients of weights, biases and inputs."""

    limit: ClassVar = "products"
    shared: ClassVar = ("W", "b")
    sums: ClassVar = ("grad_W", "grad_b")

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        _, inner, outer = case.shape
        return {
            "x": rng.normal(size=(rows, inner)), "b": rng.normal(size=outer),
            "W": rng.normal(0, inner**-0.5, (outer, inner)),
            "grad_h": rng.normal(size=(rows, outer)),
        }  # fmt: skip

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        x, W = inputs["x"], inputs["W"]
        h = np.tanh(x @ W.T + inputs["b"])
        delta = inputs["grad_h"] * (1 - h * h)
        times, rest = divmod(tiling.rows, tiling.block)
        grad_W = times * (delta.T @ x) + delta[:rest].T @ x[:rest]
        return {"h": h, "grad_W": grad_W, "grad_b": tiling.total(delta), "grad_x": delta @ W}

    def results(self, case: Case) -> dict[str, Any]:
        rows, inner, outer = case.shape
        dtype = storage(case)
        return {
            "h": ((rows, outer), dtype), "delta": ((rows, outer), dtype),
            "grad_W": ((outer, inner), dtype), "grad_b": ((outer,), dtype),
            "grad_x": ((rows, inner), dtype),
        }  # fmt: skip

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        act, a = ACTIVATIONS[case.variant], arrays

        def emit(recorder: Backend) -> None:
            recorder.affine_forward(a["x"], a["W"], a["b"], act, a["h"], a["h"])
            recorder.activation_backward(a["grad_h"], a["h"], act, a["delta"], a["grad_b"])
            recorder.affine_backward(a["delta"], a["x"], a["W"], a["grad_W"], a["grad_x"])

        return emit

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        x, W = arrays["x"], arrays["W"]
        h = value(xp, case.variant, x @ W.T + arrays["b"])
        delta = arrays["grad_h"] * slope(xp, case.variant, h)
        return {"h": h, "grad_W": delta.T @ x, "grad_b": delta.sum(axis=0), "grad_x": delta @ W}

    def bytes(self, case: Case) -> int:
        return product_bytes(case)

    def flops(self, case: Case) -> int:
        return product_flops(case)


class Transfer(Problem):
    """A copy between host and GPU."""

    limit: ClassVar = ""

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        return {"x": rng.normal(size=rows)}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        return {"out": inputs["x"]}

    def bytes(self, case: Case) -> int:
        return count(case) * storage(case).itemsize

    def flops(self, case: Case) -> int:
        return 0


PROBLEMS: dict[str, Problem] = {
    "softmax_cross_entropy": SoftmaxCrossEntropy(),
    "pointwise_loss": PointwiseLoss(),
    "activation_forward": ActivationForward(),
    "activation_backward": ActivationBackward(),
    "column_sum": ColumnSum(),
    "sum_of_squares": SumOfSquares(),
    "gather_rows": GatherRows(),
    "update": OptimizerUpdate(),
    "update_many": OptimizerUpdate(),
    "affine_layer": AffineLayer(),
    "transfer": Transfer(),
}
