"""Parity: the worst error of every operation of the CUDA backend against the NumPy backend.

`cases.compared` gives the cases. The problem's oracle computes in float64 on the numbers that the
storage type holds. An error is the largest absolute difference in units. A unit is the epsilon of
the result's dtype times the oracle's largest magnitude. NumPy's own error in the same dtype stands
beside it. `gpubackprop check --device cuda` shows the short form; ``python -m tools.gpu`` writes
the whole table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gpubackprop import losses, optimizers
from gpubackprop.backends import Backend, NumpyBackend
from gpubackprop.bench import operations
from gpubackprop.bench.cases import compared
from gpubackprop.bench.problems import Arrays, Tiling
from gpubackprop.bench.shapes import Case
from gpubackprop.dtypes import STORAGES, compute_dtype
from gpubackprop.errors import MissingDependencyError
from gpubackprop.network import MLP
from gpubackprop.training.trainer import Trainer

Array = np.ndarray
TRAINING = {"float64": 1e4, "float32": 256.0}  # relative 2e-12 and 3e-5 after 12 steps


@dataclass(frozen=True)
class Result:
    """Worst error over the outputs of one case, in units; `numpy` is NumPy's error.

    `pattern` is False if NaN or infinities are in other places than in NumPy's result.
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
    """Return storage types by name; bfloat16 only if ml_dtypes is installed."""
    found = {}
    for name, row in STORAGES.items():
        with contextlib.suppress(MissingDependencyError):
            found[name] = row.numpy()
    return found


# -- comparing ------------------------------------------------------------------------------------


def compare(backend: Backend, case: Case, *, seed: int = 0) -> Result:
    """Run `case` on `backend`, call by call and as a plan, and on NumPy.

    An exception is a failure.
    """
    problem, storage = operations.get(case.op), STORAGES[case.dtype].numpy()
    rows = case.shape[0]
    inputs = problem.host_block(case, rows, seed)
    with np.errstate(all="ignore"):
        oracle = problem.oracle(case, _floats(inputs, np.float64), Tiling(rows, rows))
        oracle = {key: np.asarray(array) for key, array in oracle.items()}
        full = replace(case, dtype=compute_dtype(storage).name)
        wanted = run(NumpyBackend(), full, _floats(inputs, full.dtype))
    label = f"{case.variant} {'x'.join(map(str, case.shape))}".lstrip()
    result = Result(case.op, label, case.dtype, 0.0, 0.0, problem.units, True, True)
    try:
        found = [run(backend, case, inputs, planned=planned) for planned in (False, True)]
    except Exception as error:  # the table goes on without this case
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        nan = float("nan")
        return replace(result, units=nan, numpy=nan, pattern=False, passed=False, error=text)
    units, own, pattern = 0.0, 0.0, True
    for key in oracle:
        for array in (one[key] for one in found):
            same_type = _round(wanted[key], array.dtype)
            coarser = full.dtype if array.dtype == np.float64 else array.dtype.name
            units = max(units, error_units(array, oracle[key], coarser))
            own = max(own, error_units(same_type, oracle[key], coarser))
            pattern &= _same_pattern(array, same_type)
    passed = pattern and units <= max(problem.units, own)
    return replace(result, units=units, numpy=own, pattern=pattern, passed=passed)


def run(
    backend: Backend,
    case: Case,
    inputs: Arrays,
    *,
    planned: bool = False,
    place: Callable[[Backend, Array], Any] = lambda backend, array: backend.asarray(array),
) -> dict[str, Array]:
    """Return every array after the case's calls, which run one by one or as a plan.

    ``place(backend, array)`` copies an array to the backend first.
    """
    problem = operations.get(case.op)
    arrays = {name: place(backend, array.copy()) for name, array in inputs.items()}
    for name, (shape, dtype) in (problem.results(case) | problem.more_results(case)).items():
        arrays[name] = place(backend, np.zeros(shape, dtype))
    emit = problem.emitter(backend, case, arrays)
    if planned:
        backend.plan(emit)()
    else:
        emit(backend)
    return {name: np.asarray(backend.to_host(array)) for name, array in arrays.items()}


def _floats(arrays: Arrays, dtype: Any) -> Arrays:
    """Convert the floating-point arrays to that dtype."""
    return {name: a.astype(dtype) if _is_float(a) else a for name, a in arrays.items()}


def error_units(found: Array, oracle: Array, dtype: str) -> float:
    """Return the largest error of `found` in units of that dtype.

    For integers and booleans, return the number of wrong elements.
    """
    if not _is_float(found):
        return float(np.count_nonzero(found != oracle))
    found, oracle = found.astype(np.float64), oracle.astype(np.float64)
    finite = np.isfinite(found) & np.isfinite(oracle)
    if not finite.any():
        return 0.0
    error = float(np.abs(found[finite] - oracle[finite]).max())
    size = float(np.abs(oracle[finite]).max())
    return (
        error / (STORAGES[dtype].epsilon * size) if size else (0.0 if not error else float("inf"))
    )


def _same_pattern(a: Array, b: Array) -> bool:
    if not _is_float(a):
        return True
    a, b = a.astype(np.float64), b.astype(np.float64)
    tests = (np.isnan, np.isposinf, np.isneginf)
    return all(np.array_equal(test(a), test(b)) for test in tests)


def _is_float(array: Array) -> bool:
    return array.dtype.name in STORAGES


def _round(array: Array, dtype: np.dtype) -> Array:
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def results(
    backend: Backend, *, short: bool = False, seed: int = 0, names: tuple[str, ...] = ()
) -> Iterator[Result]:
    """Return results of every case in every dtype; the short form has float64 and float32."""
    chosen = names or (("float64", "float32") if short else tuple(dtypes()))
    for case in compared(short=short):
        for name in chosen:
            if not STORAGES[name].sixteen_bit or operations.get(case.op).sixteen_bit:
                yield compare(backend, replace(case, dtype=name), seed=seed)


# -- training -------------------------------------------------------------------------------------


def training_results(device: str, *, short: bool = False, seed: int = 0) -> Iterator[Result]:
    """Compare parameters after 12 steps on `device` with the CPU's in float64 and in each dtype.

    The loss is smooth in the parameters here (tanh), so a rounding error stays small.
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
            own = error_units(_trained("cpu", name, loss, optimizer, options, seed), oracle, name)
            units, text = float("nan"), ""
            try:
                found = _trained(device, name, loss, optimizer, options, seed)
                units = error_units(found, oracle, name)
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
    """Return the worst case of each operation and dtype, in their order."""
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
        if not row.units <= entry["units"]:  # a NaN counts as the worst
            entry["units"], entry["variant"] = row.units, row.variant
    return list(worst.values())
