"""Parity: every operation of the CUDA backend against the NumPy backend, with the worst error of
each.

The oracle is the NumPy backend in float64 on the numbers that the storage type holds. An error is
the largest absolute difference in units: the epsilon of the result's dtype times the oracle's
largest magnitude. NumPy's own error in the same dtype stands beside it. `gpubackprop check
--device cuda` shows the short form; ``python -m tools.gpu`` writes all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpubackprop import losses, optimizers
from gpubackprop.backends import Backend, NumpyBackend
from gpubackprop.cli.parity_cases import Case, cases
from gpubackprop.dtypes import STORAGES, compute_dtype
from gpubackprop.errors import MissingDependencyError
from gpubackprop.network import MLP
from gpubackprop.training.trainer import Trainer

Array = np.ndarray
TRAINING = {"float64": 1e4, "float32": 256.0}  # relative 2e-12 and 3e-5 after 12 steps


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
    found = {}
    for name, row in STORAGES.items():
        with contextlib.suppress(MissingDependencyError):
            found[name] = row.numpy()
    return found


# -- comparing ------------------------------------------------------------------------------------


def compare(backend: Backend, case: Case, name: str) -> Result:
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
    return (
        error / (STORAGES[dtype.name].epsilon * size)
        if size
        else (0.0 if not error else float("inf"))
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


# What has no kernel in a dtype: the backend refuses it, as it should.
FULL_PRECISION = {"output", "affine_forward", "affine_backward", "update"}


def results(
    backend: Backend, *, short: bool = False, seed: int = 0, names: tuple[str, ...] = ()
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
