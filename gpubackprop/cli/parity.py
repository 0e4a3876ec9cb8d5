"""Parity: every verb of the CUDA backend against the NumPy backend, with the worst error of each.

The oracle is the NumPy backend in float64 on the numbers that the storage type holds. An error is
the largest absolute difference in units: the epsilon of the result's dtype times the oracle's
largest magnitude. NumPy's own error in the same dtype stands beside it. `gpubackprop check
--device cuda` shows the short form; ``python -m tools.gpu`` writes all of it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpubackprop import losses, optimizers
from gpubackprop.backends import LossOptions, NumpyBackend
from gpubackprop.formulas import ACTIVATIONS, OUTPUTS, POINTWISE_LOSSES, UPDATES
from gpubackprop.network import MLP
from gpubackprop.training.trainer import Trainer

Array = np.ndarray
Emit = Callable[..., None]
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
SHAPES = ((7, 33), (129, 5), (1, 1))  # rows, columns; the short form takes the first
# What passes, in units: the mathematical functions of CUDA are good to 2 or 3, one rounding more
# for each step of a formula. A sum adds in another order than NumPy.
ELEMENTWISE, SUM = 4.0, 16.0
TRAINING = {"float64": 1e4, "float32": 256.0}  # relative 2e-12 and 3e-5 after 12 steps


@dataclass(frozen=True)
class Case:
    """One call of a verb: ``emit(verbs, **arrays)``.

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


@dataclass(frozen=True)
class Result:
    """Worst error over the outputs of one case, in units; `numpy` is that of NumPy in that dtype.

    `pattern` is False where NaN or infinities are in other places than NumPy's.
    """

    operation: str
    variant: str
    dtype: str
    units: float
    numpy: float
    limit: float
    pattern: bool
    passed: bool
    error: str = ""

    def row(self) -> dict[str, Any]:
        return asdict(self)


def dtypes() -> dict[str, np.dtype]:
    """Storage types by name; bfloat16 where ml_dtypes is installed."""
    found = {name: np.dtype(name) for name in ("float64", "float32", "float16")}
    if importlib.util.find_spec("ml_dtypes") is not None:
        found["bfloat16"] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    return found


def compute_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


# -- comparing ------------------------------------------------------------------------------------


def compare(backend: Any, case: Case, name: str) -> Result:
    """Run `case` in the dtype of that name on `backend` and on NumPy; an exception is a failure."""
    storage = dtypes()[name]
    arrays = cast(case, storage)
    oracle = _on_numpy(case, {key: _wide(array) for key, array in arrays.items()})
    wanted = _on_numpy(
        case,
        {k: a.astype(compute_dtype(storage)) if _is_float(a) else a for k, a in arrays.items()},
    )
    units, own, pattern = 0.0, 0.0, True
    try:
        device = {key: backend.asarray(array) for key, array in arrays.items()}
        case.emit(backend, **device)
        found = {key: backend.to_host(device[key]) for key in case.outputs}
    except Exception as error:  # the rest of the table is wanted all the same
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        nan = float("nan")
        return Result(
            case.operation, case.variant, name, nan, nan, case.limit, False, False, text
        )  # fmt: skip
    for key, array in found.items():
        same_type = _round(wanted[key], array.dtype)
        units = max(units, error_units(array, oracle[key], array.dtype))
        own = max(own, error_units(same_type, oracle[key], array.dtype))
        pattern &= _same_pattern(array, same_type)
    passed = pattern and units <= max(case.limit, own)
    return Result(case.operation, case.variant, name, units, own, case.limit, pattern, passed)


def error_units(found: Array, oracle: Array, dtype: np.dtype) -> float:
    """Largest error of `found`; booleans and integers: the number of differences."""
    if not _is_float(found):
        return float(np.count_nonzero(found != oracle))
    found, oracle = found.astype(np.float64), oracle.astype(np.float64)
    finite = np.isfinite(found) & np.isfinite(oracle)
    if not finite.any():
        return 0.0
    error = float(np.abs(found[finite] - oracle[finite]).max())
    size = float(np.abs(oracle[finite]).max())
    return error / (EPSILON[dtype.name] * size) if size else (0.0 if not error else float("inf"))


def _same_pattern(a: Array, b: Array) -> bool:
    if not _is_float(a):
        return True
    a, b = a.astype(np.float64), b.astype(np.float64)
    tests = (np.isnan, np.isposinf, np.isneginf)
    return all(np.array_equal(test(a), test(b)) for test in tests)


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _round(array: Array, dtype: np.dtype) -> Array:
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if _is_float(array) else array.copy()


def cast(case: Case, storage: np.dtype) -> dict[str, Array]:
    """Inputs and outputs as that storage type has them."""
    compute = compute_dtype(storage)
    return {
        key: _round(array, storage if key in case.storage else compute)
        if _is_float(array)
        else array
        for key, array in (case.inputs | case.outputs).items()
    }


def _on_numpy(case: Case, arrays: dict[str, Array]) -> dict[str, Array]:
    """The outputs after ``emit`` on the NumPy backend."""
    arrays = {key: array.copy() for key, array in arrays.items()}
    with np.errstate(all="ignore"):
        case.emit(NumpyBackend(), **arrays)
    return {key: arrays[key] for key in case.outputs}


# -- the cases ------------------------------------------------------------------------------------


def cases(short: bool = False, seed: int = 0) -> Iterator[Case]:
    """Every verb; the short form has one shape and the options that matter most."""
    rng = np.random.default_rng(seed)
    shapes = SHAPES[:1] if short else SHAPES
    for shape in shapes:
        yield from _layer_cases(rng, shape)
        yield from _loss_cases(rng, shape, short)
    yield from _special_values()
    yield from _update_cases(rng, 100 if short else 4097)
    yield from _row_cases(rng)
    yield _column_sum(rng, (3000, 16) if short else (70001, 16))
    if not short:
        yield _column_sum(rng, (3, 10007))


def _layer_cases(rng: np.random.Generator, shape: tuple[int, int]) -> Iterator[Case]:
    text = f"{shape[0]}x{shape[1]}"
    for name, act in ACTIVATIONS.items():
        yield Case(
            "activation_forward", f"{name} {text}",
            lambda verbs, a, h, act=act: verbs.activation_forward(a, act, h),
            {"a": 3 * rng.normal(size=shape)}, {"h": np.zeros(shape)}, frozenset(("a", "h")),
        )  # fmt: skip
        saved = 3 * rng.normal(size=shape)
        if act.saved == "h":
            saved = _value(act, saved / 3)  # near 1, 1 - h^2 has no digits left in any dtype
        yield Case(
            "activation_backward", f"{name} {text}",
            lambda verbs, grad_h, saved, delta, grad_b, act=act: verbs.activation_backward(
                grad_h, saved, act, delta, grad_b
            ),
            {"grad_h": rng.normal(size=shape), "saved": saved},
            {"delta": np.zeros(shape), "grad_b": np.zeros(shape[1])},
            frozenset(("grad_h", "saved", "delta", "grad_b")), SUM,
        )  # fmt: skip
    yield Case(
        "affine_forward", f"relu {text}",
        lambda verbs, x, W, b, a: verbs.affine_forward(x, W, b, ACTIVATIONS["relu"], a, a),
        {"x": rng.normal(size=(shape[0], 5)), "W": rng.normal(size=(shape[1], 5)),
         "b": rng.normal(size=shape[1])},
        {"a": np.zeros(shape)}, frozenset(("x", "W", "b", "a")), SUM,
    )  # fmt: skip
    yield Case(
        "affine_backward", text,
        lambda verbs, delta, h, W, grad_W, grad_h: verbs.affine_backward(
            delta, h, W, grad_W, grad_h
        ),
        {"delta": rng.normal(size=shape), "h": rng.normal(size=(shape[0], 5)),
         "W": rng.normal(size=(shape[1], 5))},
        {"grad_W": np.zeros((shape[1], 5)), "grad_h": np.zeros((shape[0], 5))},
        frozenset(("delta", "h", "W", "grad_W", "grad_h")), SUM,
    )  # fmt: skip
    yield _column_sum(rng, shape)


def _value(act: Any, a: Array) -> Array:
    h = np.empty_like(a)
    NumpyBackend().activation_forward(a, act, h)
    return h


def _column_sum(rng: np.random.Generator, shape: tuple[int, int]) -> Case:
    return Case(
        "column_sum", f"{shape[0]}x{shape[1]}",
        lambda verbs, x, out: verbs.column_sum(x, out),
        {"x": rng.normal(size=shape)}, {"out": np.zeros(shape[1])}, frozenset(("x", "out")), SUM,
    )  # fmt: skip


def _special_values() -> Iterator[Case]:
    a = np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, 80.0, -80.0, 1e-7, -1e-7]])
    for name, act in ACTIVATIONS.items():
        yield Case(
            "activation_forward", f"{name} special values",
            lambda verbs, a, h, act=act: verbs.activation_forward(a, act, h),
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
    "all": {"class_weight": True, "ignore_index": 0, "label_smoothing": 0.2, "z_loss": 0.1},
}


def _loss_cases(
    rng: np.random.Generator, shape: tuple[int, int], short: bool
) -> Iterator[Case]:  # fmt: skip
    rows, units = shape
    text, storage = f"{rows}x{units}", frozenset(("a", "delta"))
    options = {key: value for key, value in _LOSS_OPTIONS.items() if not short or key != "none"}
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
    for name, formula in POINTWISE_LOSSES.items():
        for reduction in ("mean", "elementwise_mean", "sum", "none"):
            chosen = LossOptions(reduction=reduction)
            inputs = {
                "a": rng.normal(size=shape),
                "targets": (rng.random(shape) > 0.5).astype(np.float64),
                "sample_weight": rng.random(rows) + 0.1,
            }

            def emit(
                verbs: Any, a: Any, targets: Any, sample_weight: Any, formula: Any = formula,
                chosen: Any = chosen, **result: Any,
            ) -> None:  # fmt: skip
                verbs.pointwise_loss(
                    a, targets, formula, chosen, _scratch(verbs, result), sample_weight
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


def _scratch(verbs: Any, result: dict[str, Any]) -> dict[str, Any]:
    """What a loss wants besides its outputs: working memory, and a loss that nobody reads."""
    rows, dtype = result["row_loss"].shape[0], result["row_loss"].dtype
    extra = {"scale": verbs.empty(rows, dtype)}
    return {"loss": verbs.empty((), dtype)} | extra | result


def _softmax(options: LossOptions) -> Emit:
    def emit(verbs: Any, a: Any, targets: Any, sample_weight: Any = None, **result: Any) -> None:
        verbs.softmax_cross_entropy(a, targets, options, _scratch(verbs, result), sample_weight)

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
                verbs: Any, g: Any, p: Any, numbers: Any = numbers, formula: Any = formula,
                **slots: Any,
            ) -> None:  # fmt: skip
                verbs.update(p, g, tuple(slots[slot] for slot in formula.slots), formula, numbers)

            slots = {slot: np.abs(rng.normal(size=count)) for slot in formula.slots}
            yield Case(
                "update", f"{name}{', decay, clip, l2' * regularized}", emit,
                {"g": rng.normal(size=count)}, {"p": rng.normal(size=count)} | slots,
                frozenset(("p", "g")), 2 * ELEMENTWISE,
            )  # fmt: skip
    yield Case(
        "sum_of_squares", f"{count}", lambda verbs, x, out: verbs.sum_of_squares(x, out),
        {"x": rng.normal(size=count)}, {"out": np.zeros(())}, frozenset(("x",)), SUM,
    )  # fmt: skip


def _row_cases(rng: np.random.Generator) -> Iterator[Case]:
    rows = np.array([3, 3, 11, 0])
    for source in ("uint8", "storage"):
        x = np.arange(60).reshape(12, 5) % 7
        yield Case(
            "gather_rows", f"from {source}",
            lambda verbs, x, rows, out: verbs.gather_rows(x, rows, out),
            {"x": x.astype(np.uint8 if source == "uint8" else np.float64), "rows": rows},
            {"out": np.zeros((4, 5))}, frozenset(("x", "out")), 0.0,
        )  # fmt: skip
    for kind in OUTPUTS:
        yield Case(
            "output", kind, lambda verbs, a, out, kind=kind: verbs.output(a, kind, out),
            {"a": 3 * rng.normal(size=(6, 5))}, {"out": np.zeros((6, 5))},
            frozenset(("a", "out")), 2 * ELEMENTWISE,
        )  # fmt: skip


# What has no kernel in a dtype: the backend refuses it, as it should.
FULL_PRECISION = {"output", "affine_forward", "affine_backward", "update"}


def results(
    backend: Any, *, short: bool = False, seed: int = 0, names: tuple[str, ...] = ()
) -> Iterator[Result]:
    """Every case in every dtype (the short form: float64 and float32)."""
    chosen = names or (("float64", "float32") if short else tuple(dtypes()))
    for case in cases(short, seed):
        for name in chosen:
            if name in ("float64", "float32") or case.operation not in FULL_PRECISION:
                yield compare(backend, case, name)


# -- training -------------------------------------------------------------------------------------


def training_results(device: str, *, short: bool = False, seed: int = 0) -> Iterator[Result]:
    """Parameters after 12 steps on `device` against those of the CPU in float64 and in that dtype.

    The loss is smooth in the parameters here (tanh), so that a rounding stays a rounding.
    """
    runs: list[tuple[str, losses.Loss, Any, dict[str, Any]]] = [
        ("softmax, adam", losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01), {}),
        ("squared error, sgd, clipped", losses.SquaredError(), optimizers.SGD(0.01, momentum=0.9),
         {"clip_norm": 0.5}),
        ("binary, adamw, l2", losses.BinaryCrossEntropy(), optimizers.AdamW(0.01), {"l2": 0.01}),
        ("poisson, rmsprop", losses.Poisson(), optimizers.RMSprop(0.001), {}),
    ]  # fmt: skip
    for variant, loss, optimizer, options in runs[: 1 if short else None]:
        oracle = _trained("cpu", "float64", loss, optimizer, options, seed)
        for name in ("float64", "float32"):
            own = error_units(
                _trained("cpu", name, loss, optimizer, options, seed), oracle, np.dtype(name)
            )
            units, text = float("nan"), ""
            try:
                found = _trained(device, name, loss, optimizer, options, seed)
                units = error_units(found, oracle, found.dtype)
            except Exception as error:
                text = f"{type(error).__name__}: {error}".splitlines()[0]
            limit = TRAINING[name]
            passed = units <= max(limit, own)
            yield Result("training", variant, name, units, own, limit, not text, passed, text)


def _trained(
    device: str, dtype: str, loss: losses.Loss, optimizer: Any, options: dict[str, Any], seed: int
) -> Array:
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(44, 5)).astype(np.float32), rng.random((44, 3))
    targets = rng.integers(0, 3, 44) if loss.output == "softmax" else (noise > 0.5) * 1.0
    network = MLP(
        [5, 16, 7, 3], "tanh", output=loss.output, seed=seed, dtype=dtype, device=device
    )  # fmt: skip
    trainer = Trainer(network, loss, optimizer=optimizer, batch_size=16, progress=False, **options)
    trainer.fit(x, targets, epochs=4)  # 16, 16 and 12 rows: two plans
    arrays = [network.backend.to_host(array) for array in (*network.W, *network.b)]
    return np.concatenate([np.asarray(array).ravel() for array in arrays])


# -- tables ---------------------------------------------------------------------------------------


def summary(rows: list[Result]) -> list[dict[str, Any]]:
    """The worst case of each operation and dtype, in the order in which they come."""
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        entry = worst.setdefault(
            (row.operation, row.dtype),
            {"operation": row.operation, "dtype": row.dtype, "cases": 0, "failed": 0,
             "units": -1.0, "numpy": 0.0, "limit": row.limit, "variant": ""},
        )  # fmt: skip
        entry["cases"] += 1
        entry["failed"] += not row.passed
        entry["numpy"] = max(entry["numpy"], row.numpy)
        entry["limit"] = max(entry["limit"], row.limit)
        if not row.units <= entry["units"]:  # NaN is the worst
            entry["units"], entry["variant"] = row.units, row.variant
    return list(worst.values())
