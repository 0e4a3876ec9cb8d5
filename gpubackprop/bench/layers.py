"""The problems of layers: activations, affine layers and output functions."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.bench.problems import (
    ELEMENTWISE,
    Array,
    Arrays,
    Emit,
    Problem,
    Tiling,
    Unsupported,
    count,
    product_bytes,
    product_flops,
    storage,
)
from gpubackprop.bench.shapes import PEER_ACTIVATIONS, Case
from gpubackprop.formulas import ACTIVATIONS, OUTPUTS, Activation, Dropout
from gpubackprop.formulas.dropout import keep_mask, random_state

# They stand in one row, so every repeated block has them. They are compared, not timed: the time
# of NaN says nothing.
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 80.0, -80.0, 1e-7, -1e-7])
DROPOUT, SEED, STEP, LAYER = 0.3, 5, 3, 1


def erf(xp: Any, x: Any) -> Any:
    """Return the error function of SciPy or CuPy."""
    name = "scipy.special" if xp is np else "cupyx.scipy.special"
    try:
        return importlib.import_module(name).erf(x)
    except ImportError:
        raise Unsupported(f"gelu needs {name}") from None


def slope(xp: Any, name: str, saved: Any) -> Any:
    """Compute g' by array expressions, from h (relu, tanh) or from a (gelu)."""
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


def formula(act: Activation, kind: str, x: Array) -> Array:
    """Compute an activation's "value" or "slope"; x is not changed."""
    out, work = np.empty_like(x), tuple(np.empty_like(x) for _ in range(3))
    with np.errstate(all="ignore"):
        getattr(act, kind)(x.copy(), out, work, act.parameter)
    return out


class OnActivations(Problem):
    """What forward and backward share: a variant is an activation's name, maybe with a suffix.

    Variants with a suffix are in `compared_only`. Dropout has another mask in each row, so the
    oracle of a block cannot have it. It is drawn from a seed and is the same on every backend, or
    else the error is that of a whole element.
    """

    variants: ClassVar = tuple(ACTIVATIONS)
    compared_only: ClassVar[tuple[str, ...]] = ("relu_dropout",)

    def activation(self, case: Case) -> Activation:
        return ACTIVATIONS[case.variant.removesuffix("_special").removesuffix("_dropout")]

    def dropout(self, backend: Backend, case: Case) -> Dropout | None:
        if not case.variant.endswith("_dropout"):
            return None
        return Dropout(DROPOUT, LAYER, backend.asarray(random_state(SEED, STEP)))

    def kept(self, case: Case) -> Any:
        """Return the factor by which dropout multiplies each element, in float64."""
        if not case.variant.endswith("_dropout"):
            return 1.0
        mask = keep_mask(case.shape, Dropout(DROPOUT, LAYER, random_state(SEED, STEP)))
        return mask / (1 - DROPOUT)


class ActivationForward(OnActivations):
    """h = g(a)."""

    units: ClassVar = ELEMENTWISE
    compared_only: ClassVar = ("relu_dropout", *(f"{name}_special" for name in ACTIVATIONS))

    def compared(self, variant: str, *, short: bool) -> tuple[tuple[int, ...], ...]:
        if variant.endswith("_special"):
            return ((1, len(SPECIAL)),)
        return super().compared(variant, short=short)

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        if case.variant.endswith("_special"):
            return {"a": np.resize(SPECIAL, (rows, case.shape[1]))}
        return {"a": 3 * rng.normal(size=(rows, case.shape[1]))}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        h = formula(self.activation(case), "value", inputs["a"])
        return {"h": h * self.kept(case)}

    def results(self, case: Case) -> dict[str, Any]:
        return {"h": (case.shape, storage(case))}

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        act, dropout = self.activation(case), self.dropout(backend, case)
        return lambda recorder: recorder.activation_forward(arrays["a"], act, arrays["h"], dropout)

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        return {"h": value(xp, case.variant, arrays["a"])}

    def bytes(self, case: Case) -> int:
        return 2 * count(case) * storage(case).itemsize

    def flops(self, case: Case) -> int:
        return count(case)


class ActivationBackward(OnActivations):
    """delta = grad_h * g', and the bias gradient, its sum over the rows."""

    sums: ClassVar = ("grad_b",)

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        shape, act = (rows, case.shape[1]), self.activation(case)
        a = rng.normal(size=shape)  # near h = 1, 1 - h^2 has lost its digits in any dtype
        saved = 3 * a if act.saved == "a" else formula(act, "value", a)
        return {"grad_h": rng.normal(size=shape), "saved": saved}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        slopes = formula(self.activation(case), "slope", inputs["saved"])
        delta = inputs["grad_h"] * self.kept(case) * slopes
        return {"delta": delta, "grad_b": tiling.total(delta)}

    def results(self, case: Case) -> dict[str, Any]:
        dtype = storage(case)
        return {"delta": (case.shape, dtype), "grad_b": (case.shape[1:], dtype)}

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        act, dropout = self.activation(case), self.dropout(backend, case)
        return lambda recorder: recorder.activation_backward(
            arrays["grad_h"], arrays["saved"], act, arrays["delta"], arrays["grad_b"], dropout
        )

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        delta = arrays["grad_h"] * slope(xp, case.variant, arrays["saved"])
        return {"delta": delta, "grad_b": delta.sum(axis=0)}

    def bytes(self, case: Case) -> int:
        return 3 * count(case) * storage(case).itemsize

    def flops(self, case: Case) -> int:
        return 3 * count(case)


class Output(Problem):
    """yhat = O(a); the variant names the output function O."""

    variants: ClassVar = tuple(OUTPUTS)
    awkward: ClassVar = ((6, 5),)
    units: ClassVar = 2 * ELEMENTWISE
    sixteen_bit: ClassVar = False

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        return {"a": 3 * rng.normal(size=(rows, case.shape[1]))}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        out = np.empty_like(inputs["a"])
        OUTPUTS[case.variant](inputs["a"], out)
        return {"out": out}

    def results(self, case: Case) -> dict[str, Any]:
        return {"out": (case.shape, storage(case))}

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        return lambda recorder: recorder.output(arrays["a"], case.variant, arrays["out"])

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        a = arrays["a"]
        if case.variant == "linear":
            return {"out": a.copy()}
        if case.variant == "logistic":
            return {"out": 1 / (1 + xp.exp(-a))}
        e = xp.exp(a - a.max(axis=1, keepdims=True)) if case.variant == "softmax" else xp.exp(a)
        return {"out": e / e.sum(axis=1, keepdims=True) if case.variant == "softmax" else e}

    def bytes(self, case: Case) -> int:
        return 2 * count(case) * storage(case).itemsize

    def flops(self, case: Case) -> int:
        return 4 * count(case)


class Affine(Problem):
    """Problems with x (rows, inner) and W (outer, inner); a case's shape is (rows, inner,
    outer)."""

    limit: ClassVar = "products"
    shared: ClassVar = ("W", "b")
    awkward: ClassVar = ((7, 5, 33), (129, 5, 5), (1, 5, 1), (5, 4, 400))
    sixteen_bit: ClassVar = False

    def measured(self, device: str, elements: int) -> tuple[int, ...]:
        return (1024, 1024, 1024)

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        _, inner, outer = case.shape
        return {
            "x": rng.normal(size=(rows, inner)), "b": rng.normal(size=outer),
            "W": rng.normal(0, inner**-0.5, (outer, inner)),
            "grad_h": rng.normal(size=(rows, outer)),
        }  # fmt: skip

    def bytes(self, case: Case) -> int:
        return product_bytes(case)

    def flops(self, case: Case) -> int:
        return product_flops(case)


class AffineForward(Affine):
    """h = g(x W' + b), and a = x W' + b if g' is a function of a."""

    variants: ClassVar = ("relu",)
    compared_only: ClassVar = tuple(
        name for name in ACTIVATIONS if name != "relu"
    )  # their time is the product's

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        act, a = ACTIVATIONS[case.variant], inputs["x"] @ inputs["W"].T + inputs["b"]
        return {"h": formula(act, "value", a)} | ({"a": a} if act.saved == "a" else {})

    def results(self, case: Case) -> dict[str, Any]:
        names = ("h", "a") if ACTIVATIONS[case.variant].saved == "a" else ("h",)
        return {name: ((case.shape[0], case.shape[2]), storage(case)) for name in names}

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        act, r = ACTIVATIONS[case.variant], arrays
        a = r.get("a", r["h"])
        return lambda recorder: recorder.affine_forward(r["x"], r["W"], r["b"], act, a, r["h"])

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        return {"h": value(xp, case.variant, arrays["x"] @ arrays["W"].T + arrays["b"])}


class AffineBackward(Affine):
    """The gradients of weights and inputs, from delta."""

    sums: ClassVar = ("grad_W",)

    def block(self, case: Case, rng: np.random.Generator, rows: int) -> Arrays:
        found = super().block(case, rng, rows)
        del found["b"]
        return found | {"delta": found.pop("grad_h")}

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        delta, x = inputs["delta"], inputs["x"]
        return {"grad_W": tiling.product(delta, x), "grad_x": delta @ inputs["W"]}

    def results(self, case: Case) -> dict[str, Any]:
        rows, inner, outer = case.shape
        return {
            "grad_W": ((outer, inner), storage(case)), "grad_x": ((rows, inner), storage(case))
        }  # fmt: skip

    def emitter(self, backend: Backend, case: Case, arrays: Arrays) -> Emit:
        a = arrays
        return lambda recorder: recorder.affine_backward(
            a["delta"], a["x"], a["W"], a["grad_W"], a["grad_x"]
        )

    def expressions(self, xp: Any, case: Case, arrays: Arrays) -> Arrays:
        delta = arrays["delta"]
        return {"grad_W": delta.T @ arrays["x"], "grad_x": delta @ arrays["W"]}


class AffineLayer(Affine):
    """A layer forward and backward: h, and the gradients of weights, biases and inputs."""

    sums: ClassVar = ("grad_W", "grad_b")
    variants: ClassVar = ("tanh",)

    def oracle(self, case: Case, inputs: Arrays, tiling: Tiling) -> Arrays:
        x, W = inputs["x"], inputs["W"]
        h = np.tanh(x @ W.T + inputs["b"])
        delta = inputs["grad_h"] * (1 - h * h)
        grad_W = tiling.product(delta, x)
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
