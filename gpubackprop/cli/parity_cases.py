"""The calls that `gpubackprop.cli.parity` compares: every operation with each of its options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends import Backend, LossOptions, NumpyBackend
from gpubackprop.formulas import (
    ACTIVATIONS,
    OUTPUTS,
    POINTWISE_LOSSES,
    UPDATES,
    Dropout,
)
from gpubackprop.formulas.dropout import random_state

Array = np.ndarray
Emit = Callable[..., None]
SHAPES = ((7, 33), (129, 5), (1, 1))  # rows, columns; the short form takes the first
# Rows for the softmax kernels that a warp, a block, and registers with shared memory take.
LONG_ROWS = ((5, 301), (5, 1501), (3, 9001))
# What passes, in units: the mathematical functions of CUDA are good to 2 or 3, one rounding more
# for each step of a formula. A sum adds in another order than NumPy.
ELEMENTWISE, SUM = 4.0, 16.0


@dataclass(frozen=True)
class Case:
    """One call of an operation: ``emit(backend, **arrays)``.

    Attributes
    ----------
    inputs, outputs : arrays by name in float64 (or integers), which `cast` casts.
    storage : names that have the storage dtype; other floats have the compute dtype (float32 for
        16 bits).
    limit : units that pass.
    """

    operation: str
    variant: str
    emit: Emit
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    storage: frozenset[str]
    limit: float = ELEMENTWISE


def cases(short: bool = False, seed: int = 0) -> Iterator[Case]:
    """Every operation; the short form has one shape and the options that matter most."""
    rng = np.random.default_rng(seed)
    shapes = SHAPES[:1] if short else SHAPES
    for shape in shapes:
        yield from _layer_cases(rng, shape)
        yield from _loss_cases(rng, shape, short)
    yield from _special_values()
    yield from _update_cases(rng, 100 if short else 4097)
    yield from _row_cases(rng)
    for shape in LONG_ROWS[:1] if short else LONG_ROWS:
        yield from _softmax_cases(rng, shape, {"all": _LOSS_OPTIONS["all"]})
    yield _column_sum(rng, (3000, 16) if short else (70001, 16))
    if not short:
        yield _column_sum(rng, (3, 10007))


def _layer_cases(rng: np.random.Generator, shape: tuple[int, int]) -> Iterator[Case]:
    text = f"{shape[0]}x{shape[1]}"
    for name, act in ACTIVATIONS.items():
        yield Case(
            "activation_forward", f"{name} {text}",
            lambda backend, a, h, act=act: backend.activation_forward(a, act, h),
            {"a": 3 * rng.normal(size=shape)}, {"h": np.zeros(shape)}, frozenset(("a", "h")),
        )  # fmt: skip
        saved = 3 * rng.normal(size=shape)
        if act.saved == "h":
            saved = _value(act, saved / 3)  # near 1, 1 - h^2 has no digits left in any dtype
        yield Case(
            "activation_backward", f"{name} {text}",
            lambda backend, grad_h, saved, delta, grad_b, act=act: backend.activation_backward(
                grad_h, saved, act, delta, grad_b
            ),
            {"grad_h": rng.normal(size=shape), "saved": saved},
            {"delta": np.zeros(shape), "grad_b": np.zeros(shape[1])},
            frozenset(("grad_h", "saved", "delta", "grad_b")), SUM,
        )  # fmt: skip
    yield from _dropout_cases(rng, shape)
    yield Case(
        "affine_forward", f"relu {text}",
        lambda backend, x, W, b, a: backend.affine_forward(x, W, b, ACTIVATIONS["relu"], a, a),
        {"x": rng.normal(size=(shape[0], 5)), "W": rng.normal(size=(shape[1], 5)),
         "b": rng.normal(size=shape[1])},
        {"a": np.zeros(shape)}, frozenset(("x", "W", "b", "a")), SUM,
    )  # fmt: skip
    yield Case(
        "affine_backward", text,
        lambda backend, delta, h, W, grad_W, grad_h: backend.affine_backward(
            delta, h, W, grad_W, grad_h
        ),
        {"delta": rng.normal(size=shape), "h": rng.normal(size=(shape[0], 5)),
         "W": rng.normal(size=(shape[1], 5))},
        {"grad_W": np.zeros((shape[1], 5)), "grad_h": np.zeros((shape[0], 5))},
        frozenset(("delta", "h", "W", "grad_W", "grad_h")), SUM,
    )  # fmt: skip
    yield _column_sum(rng, shape)


def _dropout_cases(rng: np.random.Generator, shape: tuple[int, int]) -> Iterator[Case]:
    """The mask is drawn from the seed: the same on both sides, or the error is that of a whole
    element."""
    text, relu = f"dropout {shape[0]}x{shape[1]}", ACTIVATIONS["relu"]

    def forward(backend: Backend, a: Any, h: Any) -> None:
        state = backend.asarray(random_state(5, 3))
        backend.activation_forward(a, relu, h, Dropout(0.3, 1, state))

    def backward(backend: Backend, grad_h: Any, saved: Any, delta: Any, grad_b: Any) -> None:
        state = backend.asarray(random_state(5, 3))
        backend.activation_backward(grad_h, saved, relu, delta, grad_b, Dropout(0.3, 1, state))

    yield Case(
        "activation_forward", f"relu {text}", forward, {"a": rng.normal(size=shape)},
        {"h": np.zeros(shape)}, frozenset(("a", "h")),
    )  # fmt: skip
    yield Case(
        "activation_backward", f"relu {text}", backward,
        {"grad_h": rng.normal(size=shape), "saved": rng.normal(size=shape)},
        {"delta": np.zeros(shape), "grad_b": np.zeros(shape[1])},
        frozenset(("grad_h", "saved", "delta", "grad_b")), SUM,
    )  # fmt: skip


def _value(act: Any, a: Array) -> Array:
    h = np.empty_like(a)
    NumpyBackend().activation_forward(a, act, h)
    return h


def _column_sum(rng: np.random.Generator, shape: tuple[int, int]) -> Case:
    return Case(
        "column_sum", f"{shape[0]}x{shape[1]}",
        lambda backend, x, out: backend.column_sum(x, out),
        {"x": rng.normal(size=shape)}, {"out": np.zeros(shape[1])}, frozenset(("x", "out")), SUM,
    )  # fmt: skip


def _special_values() -> Iterator[Case]:
    a = np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, 80.0, -80.0, 1e-7, -1e-7]])
    for name, act in ACTIVATIONS.items():
        yield Case(
            "activation_forward", f"{name} special values",
            lambda backend, a, h, act=act: backend.activation_forward(a, act, h),
            {"a": a}, {"h": np.zeros_like(a)}, frozenset(("a", "h")),
        )  # fmt: skip


def _loss_result(rows: int, units: int) -> dict[str, Array]:
    return {
        "loss": np.zeros(()), "row_loss": np.zeros(rows), "scale": np.zeros(rows),
        "delta": np.zeros((rows, units)), "correct": np.zeros(rows, np.bool_),
    }  # fmt: skip


_LOSS_OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "class weights": {"class_weight": True},
    "ignored label": {"ignore_index": 0},
    "smoothing": {"label_smoothing": 0.2},
    "z loss": {"z_loss": 0.1},
    "soft cap": {"soft_cap": 5.0},
    "all": {"class_weight": True, "ignore_index": 0, "label_smoothing": 0.2, "z_loss": 0.1},
}


def _loss_cases(
    rng: np.random.Generator, shape: tuple[int, int], short: bool
) -> Iterator[Case]:  # fmt: skip
    options = {key: value for key, value in _LOSS_OPTIONS.items() if not short or key != "none"}
    yield from _softmax_cases(rng, shape, options)
    yield from _pointwise_cases(rng, shape)


def _softmax_cases(
    rng: np.random.Generator, shape: tuple[int, int], options: dict[str, dict[str, Any]]
) -> Iterator[Case]:
    rows, units = shape
    text, storage = f"{rows}x{units}", frozenset(("a", "delta"))
    for label, values in options.items():
        weight = rng.random(units) + 0.5 if values.get("class_weight") else None
        chosen = LossOptions(**(values | {"class_weight": weight, "empty": "zero"}))
        for weighted in (False, True):
            inputs = {"a": 3 * rng.normal(size=shape), "targets": rng.integers(0, units, rows)}
            if weighted:
                inputs["sample_weight"] = rng.random(rows) + 0.1
            yield Case(
                "softmax_cross_entropy", f"labels, {label}{', weighted' * weighted} {text}",
                _softmax(chosen), inputs, _outputs(shape, chosen), storage, SUM,
            )  # fmt: skip
    chosen = LossOptions(label_smoothing=0.1)
    probabilities = {"a": rng.normal(size=shape), "targets": rng.random(shape)}
    outputs = _outputs(shape, chosen)
    del outputs["correct"]
    yield Case(
        "softmax_cross_entropy", f"probabilities {text}", _softmax(chosen), probabilities, outputs,
        storage, SUM,
    )  # fmt: skip


def _pointwise_cases(rng: np.random.Generator, shape: tuple[int, int]) -> Iterator[Case]:
    rows, units = shape
    text, storage = f"{rows}x{units}", frozenset(("a", "delta"))
    for name, formula in POINTWISE_LOSSES.items():
        for reduction in ("mean", "elementwise_mean", "sum", "none"):
            chosen = LossOptions(reduction=reduction)
            inputs = {
                "a": rng.normal(size=shape),
                "targets": (rng.random(shape) > 0.5).astype(np.float64),
                "sample_weight": rng.random(rows) + 0.1,
            }

            def emit(
                backend: Backend, a: Any, targets: Any, sample_weight: Any, formula: Any = formula,
                chosen: Any = chosen, **result: Any,
            ) -> None:  # fmt: skip
                backend.pointwise_loss(
                    a, targets, formula, chosen, _scratch(backend, result), sample_weight
                )

            yield Case(
                "pointwise_loss", f"{name}, {reduction} {text}", emit, inputs,
                _outputs(shape, chosen), storage, SUM,
            )  # fmt: skip


def _outputs(shape: tuple[int, int], options: LossOptions) -> dict[str, Array]:
    outputs = _loss_result(*shape)
    del outputs["scale"]
    if options.reduction == "none":
        del outputs["loss"]
    return outputs


def _scratch(backend: Backend, result: dict[str, Any]) -> dict[str, Any]:
    """What a loss wants besides its outputs: working memory, and a loss that nobody reads."""
    rows, dtype = result["row_loss"].shape[0], result["row_loss"].dtype
    extra = {"scale": backend.empty(rows, dtype)}
    return {"loss": backend.empty((), dtype)} | extra | result


def _softmax(options: LossOptions) -> Emit:
    def emit(
        backend: Backend, a: Any, targets: Any, sample_weight: Any = None, **result: Any
    ) -> None:
        backend.softmax_cross_entropy(a, targets, options, _scratch(backend, result), sample_weight)

    return emit


def _update_cases(rng: np.random.Generator, count: int) -> Iterator[Case]:
    for name, formula in UPDATES.items():
        for regularized in (False, True):
            c = formula.coefficients(formula.hyperparameters, 0.1, 3)
            numbers: dict[str, Any] = {"c": tuple(map(np.asarray, c))}
            if regularized:
                numbers |= {"decay": np.array(0.9), "clip": np.array(0.5)}
                numbers |= {"l2": (count // 2, np.array(0.3))}

            def emit(
                backend: Backend, g: Any, p: Any, numbers: Any = numbers, formula: Any = formula,
                **slots: Any,
            ) -> None:  # fmt: skip
                backend.update(p, g, tuple(slots[slot] for slot in formula.slots), formula, numbers)

            slots = {slot: np.abs(rng.normal(size=count)) for slot in formula.slots}
            yield Case(
                "update", f"{name}{', decay, clip, l2' * regularized}", emit,
                {"g": rng.normal(size=count)}, {"p": rng.normal(size=count)} | slots,
                frozenset(("p", "g")), 2 * ELEMENTWISE,
            )  # fmt: skip
    yield Case(
        "sum_of_squares", f"{count}", lambda backend, x, out: backend.sum_of_squares(x, out),
        {"x": rng.normal(size=count)}, {"out": np.zeros(())}, frozenset(("x",)), SUM,
    )  # fmt: skip


def _row_cases(rng: np.random.Generator) -> Iterator[Case]:
    rows = np.array([3, 3, 11, 0])
    for source in ("uint8", "storage"):
        x = np.arange(60).reshape(12, 5) % 7
        yield Case(
            "gather_rows", f"from {source}",
            lambda backend, x, rows, out: backend.gather_rows(x, rows, out),
            {"x": x.astype(np.uint8 if source == "uint8" else np.float64), "rows": rows},
            {"out": np.zeros((4, 5))}, frozenset(("x", "out")), 0.0,
        )  # fmt: skip
    for kind in OUTPUTS:
        yield Case(
            "output", kind, lambda backend, a, out, kind=kind: backend.output(a, kind, out),
            {"a": 3 * rng.normal(size=(6, 5))}, {"out": np.zeros((6, 5))},
            frozenset(("a", "out")), 2 * ELEMENTWISE,
        )  # fmt: skip
