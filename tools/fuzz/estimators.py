"""Histories of estimator calls, by this package and by scikit-learn."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import joblib
import numpy as np
import pandas as pd
import scipy.sparse as sparse
import sklearn.neural_network as theirs
from scipy.special import xlogy
from sklearn.base import BaseEstimator, clone
from sklearn.neural_network import _multilayer_perceptron as inner

import gpubackprop.sklearn as ours
from tools.fuzz import known, programs
from tools.fuzz.draw import Draw
from tools.fuzz.leaves import Leaves, leaves_of
from tools.fuzz.programs import Fuzzer, World

# -- worlds -----------------------------------------------------------------------------------


def _names(library: Any, **options: Any) -> dict[str, Any]:
    made = {
        name: functools.partial(getattr(library, name), **options)
        for name in ("MLPClassifier", "MLPRegressor")
    }
    return made | {
        "np": np, "pd": pd, "sparse": sparse, "clone": clone, "copy": copy, "pickle": pickle,
        "by_joblib": by_joblib,
    }  # fmt: skip


def by_joblib(value: Any) -> Any:
    """Write a value to a joblib file and read it back."""
    file = io.BytesIO()
    joblib.dump(value, file)
    file.seek(0)
    return joblib.load(file)


@contextmanager
def checked_gradients() -> Iterator[None]:
    """Refuse a gradient of another size than the parameters.

    scikit-learn gives it to SciPy where a later call of "lbfgs" has y of another width, and SciPy's
    L-BFGS-B writes past it.
    """
    network = inner.BaseMultilayerPerceptron
    given = network._loss_grad_lbfgs

    def checked(self: Any, packed: np.ndarray, *arguments: Any) -> Any:
        loss, gradient = given(self, packed, *arguments)
        if gradient.size != packed.size:
            raise ValueError(f"a gradient of {gradient.size} for {packed.size} parameters")
        return loss, gradient

    network._loss_grad_lbfgs = checked
    try:
        with programs.seeded():
            yield
    finally:
        network._loss_grad_lbfgs = given


@contextmanager
def other_roundings(seed: int) -> Iterator[None]:
    """Make scikit-learn round differently: products and sums of deltas as if in another order.

    Each probability and loss is off by a unit. A loss of 1e-4 has lost four digits of its
    probability, and a fit of huge targets, whose loss stays the same, ends by its last bits.
    The square in tanh's slope 1 - h^2 is off by a unit as well: it is all that is left of the slope
    where h is next to 1. So is each weight, by which a gradient is multiplied before it is divided
    by their sum. So is each update: Adam's first ones are the rate, whatever the gradient's last
    bits, and a parameter that they bring next to 0 has few digits. Odd seeds round targets to the
    type of x, as this package does; scikit-learn's float32 is half in float64 where y is.
    """
    rng, product = np.random.default_rng(seed), inner.safe_sparse_dot
    activations = {name: inner.ACTIVATIONS[name] for name in ("logistic", "softmax")}
    losses, network = dict(inner.LOSS_FUNCTIONS), inner.BaseMultilayerPerceptron
    whole, tanh_slope = network._backprop, inner.DERIVATIVES["tanh"]
    of_layer = network._compute_loss_grad
    optimizer = inner.AdamOptimizer.__base__
    update = optimizer.update_params

    def noise(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return np.asarray(rng.uniform(-1, 1, shape) * np.finfo(dtype).eps)

    def noisy(a: Any, b: Any, **options: Any) -> Any:
        exact = product(a, b, **options)
        size = np.asarray(product(abs(a), abs(b), **options))
        return exact + (noise(exact.shape, exact.dtype) * size * 4).astype(exact.dtype)

    def noisy_probabilities(name: str, p: np.ndarray) -> None:
        activations[name](p)
        p *= (1 + noise(p.shape, p.dtype)).astype(p.dtype)
        np.minimum(p, 1, out=p)

    def noisy_loss(name: str, y: Any, p: Any, weights: Any = None) -> Any:
        exact = np.asarray(losses[name](y, p, weights))
        return exact.dtype.type(exact + _size(name, y, p, weights) * noise((), p.dtype))

    def noisy_pass(self: Any, x: Any, y: np.ndarray, weights: Any, *arguments: Any) -> Any:
        if weights is not None:
            weights = weights * (1 + noise(weights.shape, weights.dtype)).astype(weights.dtype)
        if seed % 2 and x.dtype == np.float32 and y.dtype.kind == "f":
            narrow = y.astype(np.float32)
            y = narrow if np.isfinite(narrow).all() else y
        loss, *gradients = whole(
            self, x, y, weights, *arguments
        )  # with the penalty, by the weights' sum
        return loss * (1 + 4 * noise((), np.asarray(loss).dtype)), *gradients

    def noisy_sums(
        self: Any, layer: int, count: float, h: Any, deltas: Any, to_coefs: Any, sums: Any
    ) -> None:
        of_layer(self, layer, count, h, deltas, to_coefs, sums)
        size = 4 * abs(deltas[layer]).sum(axis=0) / count
        sums[layer] = (sums[layer] + noise(size.shape, size.dtype) * size).astype(sums[layer].dtype)

    def noisy_updates(optimizer: Any, parameters: Sequence[np.ndarray], gradients: Any) -> None:
        for p, update in zip(parameters, optimizer._get_updates(gradients), strict=True):
            p += update * (1 + 4 * noise(p.shape, p.dtype))

    def noisy_tanh_slope(Z: np.ndarray, delta: np.ndarray) -> None:
        delta *= 1 - Z**2 * (1 - abs(noise(Z.shape, Z.dtype))).astype(Z.dtype)

    inner.safe_sparse_dot, network._backprop = noisy, noisy_pass
    network._compute_loss_grad = noisy_sums
    optimizer.update_params = noisy_updates
    inner.DERIVATIVES["tanh"] = noisy_tanh_slope
    inner.ACTIVATIONS |= {n: functools.partial(noisy_probabilities, n) for n in activations}
    inner.LOSS_FUNCTIONS |= {n: functools.partial(noisy_loss, n) for n in losses}
    try:
        with checked_gradients():
            yield
    finally:
        inner.safe_sparse_dot, network._backprop = product, whole
        network._compute_loss_grad = of_layer
        inner.ACTIVATIONS |= activations
        inner.DERIVATIVES["tanh"] = tanh_slope
        inner.LOSS_FUNCTIONS |= losses
        optimizer.update_params = update


def _size(name: str, y: np.ndarray, p: np.ndarray, weights: np.ndarray | None) -> Any:
    """Return the size of the terms that cancel in a loss.

    The terms are those of y log(y / p) - y + p and (y - p)^2 / 2. Because y and p have been
    rounded, a loss near 0 keeps few digits. So is 1 - p of log(1 - p), to a unit of 1.
    """
    if name == "binary_log_loss":
        return 1.0
    if name == "poisson":
        terms = abs(xlogy(y, y / p)) + abs(y) + abs(p)
        return np.average(terms, weights=weights, axis=0).sum()
    if name == "squared_error":
        terms = abs(y - p) * (abs(y) + abs(p))
        return np.average(terms, weights=weights, axis=0).mean()
    return 0.0


def _twins() -> Sequence[World]:
    """Return many twins: the last bits decide whether a short fit stops early, which has few
    outcomes."""
    return [
        World(f"twin {seed}", lambda: _names(theirs), functools.partial(other_roundings, seed))
        for seed in range(16)
    ]


# -- what can be seen -------------------------------------------------------------------------

BEYOND = {  # scikit-learn has no such parameters and attributes
    "device", "devices", "precision", "class_weight", "dropout", "callbacks", "progress", "checkpoint",
    "checkpoint_every", "n_members", "device_", "validation_loss_curve_", "members_",
}  # fmt: skip


def _special(value: Any, path: str) -> Leaves | None:
    if isinstance(value, list) and value and isinstance(value[0], list):
        array = np.array(value)  # from tolist(): its numbers have one scale, like the array's
        if array.dtype == np.float64:
            return {f"{path}.type": "list", path: array}
    if isinstance(value, BaseEstimator):
        leaves: Leaves = {f"{path}.class": type(value).__name__}
        for name in sorted(vars(value)):
            private = name.startswith("_") or name in BEYOND
            if not private and (name, leaves[f"{path}.class"]) != ("loss", "MLPClassifier"):
                leaves |= leaves_of(getattr(value, name), _special, f"{path}.{name}")
        return leaves
    if isinstance(value, np.random.RandomState):
        state: Any = value.get_state()
        _, keys, position, *gauss = state
        return {f"{path}.state": (hash(keys.tobytes()), position, *gauss)}
    if isinstance(value, dict):
        return leaves_of([(k, v) for k, v in value.items() if k not in BEYOND], _special, path)
    if isinstance(value, (pd.DataFrame, pd.Series)) or sparse.issparse(value):
        return {}
    return None


def _describe(value: Any) -> Leaves:
    return leaves_of(value, _special)


def same(there: np.ndarray, here: np.ndarray, twins: list[np.ndarray], lines: Sequence[str]) -> str:
    """Return "" if the difference is rounding, else the reason why it is not."""
    size = np.abs(there[np.isfinite(there)]).max(initial=0.0)

    def distance(other: np.ndarray) -> float:
        if not np.array_equal(np.isfinite(there), np.isfinite(other)):
            return np.inf
        finite = np.isfinite(there)
        return float(np.abs(there[finite] - other[finite]).max(initial=0.0))

    found = distance(here)
    grown = max(map(distance, twins), default=0.0)
    narrow = any("float32" in line for line in lines)  # the losses are Python floats all the same
    base = 64 * 2.0**-23 if narrow else 1000 * 2.0**-52
    allowed = max(base * size, 1e-300, 100 * grown)
    if found <= allowed or (found == np.inf and grown == np.inf):
        return ""
    return f"off by {found:.3g} of {size:.3g}, other roundings of the reference by {grown:.3g}"


# -- programs ---------------------------------------------------------------------------------

PARAMETERS: dict[str, list[str]] = {
    "solver": ["'sgd'", "'adam'", "'lbfgs'"],
    "activation": ["'relu'", "'tanh'", "'logistic'", "'identity'"],
    "alpha": ["0.0", "1e-4", "1.0", "10", "0", "-1.0"],
    "batch_size": ["'auto'", "1", "2", "5", "7", "1000"],
    "learning_rate": ["'constant'", "'invscaling'", "'adaptive'"],
    "learning_rate_init": ["0.1", "1e-3", "1", "10.0", "0.5"],
    "power_t": ["0.5", "0.0", "1.0"],
    "max_iter": ["3", "1", "2", "5", "20"],
    "shuffle": ["True", "False"],
    "random_state": ["0", "1", "r", "None", "np.int64(3)", "'x'"],
    "tol": ["1e-4", "0.0", "0.5", "1e3"],
    "warm_start": ["True", "False"],
    "momentum": ["0.9", "0.0", "0.5", "1.0", "1"],
    "nesterovs_momentum": ["True", "False"],
    "early_stopping": ["True", "False"],
    "validation_fraction": ["0.1", "0.3", "0.5"],
    "beta_1": ["0.9", "0.0", "0.5"],
    "beta_2": ["0.999", "0.0", "0.5"],
    "epsilon": ["1e-8", "0.1"],
    "n_iter_no_change": ["1", "2", "10", "np.inf"],
    "max_fun": ["15000", "1", "5"],
    "hidden_layer_sizes": ["3", "(3,)", "(4, 2)", "[3]", "()", "(0,)", "np.array([3, 2])", "20"],
}
ROWS = ["", "[::2]", "[:5]", "[:1]", "[::-1]", "[:0]"]
XS = [
    "{X}", "{X}.astype(np.float32)", "np.asfortranarray({X})", "{X}.tolist()",
    "(4 * {X}).astype(int)", "(4 * {X}).astype(np.int8)", "{X} > 0", "{X}.astype(np.float16)",
    "{X}.astype(object)", "{X}.astype(np.longdouble)", "sparse.csr_matrix({X})",
    "sparse.csc_matrix({X}.astype(np.float32))", "sparse.coo_array({X})", "pd.DataFrame({X})",
    "pd.DataFrame({X}, columns=list('abcdef')[:X.shape[1]])",
    "pd.DataFrame({X}.astype(np.float32), columns=list('bacdef')[:X.shape[1]])",
    "{X}[:, :-1]", "np.hstack([{X}, {X}])", "1e10 * {X}", "1e160 * {X}", "0 * {X}", "1e-30 * {X}",
    "np.where({X} > 1.5, np.nan, {X})", "np.where({X} > 1.5, np.inf, {X})", "{X}[:, ::-1]",
    "{X}[0]", "{X}.astype('>f8')", "{X}.astype(str)", "{X} + 0j", "np.ma.masked_array({X})", "X",
]  # fmt: skip
LABELS = [
    "{y}", "{y}.tolist()", "{y}.astype(float)", "names[{y}]", "names.astype(object)[{y}]",
    "{y}[:, None]", "{y} > 0", "{Y}", "{y} + 1", "0 * {y}", "{y} % 2", "np.eye(3, dtype=int)[{y} % 3]",
    "pd.Series({y})", "{y} + 0.5", "np.where({y} > 1, np.nan, {y})", "{Y}.tolist()",
    "sparse.csr_matrix({Y})", "{y} - 1", "{y}.astype(np.int8)", "{Y}[:, :1]", "{Y}[:, :2]",
    "{Y}.astype(bool)", "{y}.astype(np.uint64)", "pd.Series(names[{y}])", "y",
    "pd.Categorical(names[{y}])",
]  # fmt: skip
TARGETS = [
    "{z}", "{Z}", "{Z}[:, :1]", "{Z}[:, :2]", "{z}.astype(np.float32)", "{z}.tolist()",
    "{Z}.tolist()", "{y}", "1e39 * {z}", "1e200 * {z}", "{z}.astype(object)",
    "np.where({z} > 1, np.nan, {z})", "pd.Series({z})", "pd.DataFrame({Z})", "{z}.astype(str)",
    "{z} > 0", "abs({z})", "0 * {z}", "{z} + 0j", "{z}.astype(np.float16)",
    "np.asfortranarray({Z})", "abs({Z})", "z", "{Z}.astype(np.float32)", "1e-30 * {z}",
]  # fmt: skip
WEIGHTS = [
    "{w}", "{w}.tolist()", "0 * {w}", "-{w}", "{w}.astype(np.float32)", "np.where({w} > 1, 0, {w})",
    "w", "2", "1e30 * {w}", "{y}", "pd.Series({w})", "{w}[:, None]", "1e-200 * {w}", "np.array(1)",
]  # fmt: skip
CLASSES = ["[0, 1, 2, 3]", "np.unique(y)", "[0, 1]", "names", "[3, 2, 1, 0]", "[False, True]", "None",
           "[0.0, 1.0, 2.0, 3.0]", "[0]"]  # fmt: skip
EDITS = [
    "{m}.coefs_[0][...] = 0.1", "{m}.coefs_[-1] *= 2", "{m}.coefs_[0] = {m}.coefs_[0].astype(np.float32)",
    "{m}.coefs_ = [c.astype(np.float32) for c in {m}.coefs_]", "{m}.coefs_ = [2 * c for c in {m}.coefs_]",
    "{m}.intercepts_[0] = {m}.intercepts_[0] + 1", "{m}.intercepts_ = [b.astype(np.float32) for b in {m}.intercepts_]",
    "{m}.coefs_ = [np.asfortranarray(c) for c in {m}.coefs_]", "{m}.coefs_ = tuple({m}.coefs_)",
    "{m}.coefs_[0] = {m}.coefs_[0][:, :1]", "{m}.coefs_[0] = {m}.coefs_[0].tolist()", "{m}.intercepts_[-1][...] = -1",
    "{m}.coefs_ = [c.astype(np.float64) for c in {m}.coefs_]", "{m}.coefs_ = [c.T.copy().T for c in {m}.coefs_]",
    "{m}.coefs_[0] = {m}.coefs_[0].astype(int)", "{m}.coefs_[0][0, 0] = np.nan", "{m}.coefs_ = {m}.coefs_[:-1]",
    "del {m}.coefs_", "{m}.n_iter_ = 0", "{m}.t_ = 100", "{m}.loss_curve_ = []", "{m}.warm_start = True",
    "{m}.coefs_ = {o}.coefs_", "{m}.intercepts_ = {o}.intercepts_", "{m}.random_state = 5", "{m}.best_loss_ = np.inf",
    "{m}.tol = 0.5", "{m}.coefs_[0].setflags(write=False)", "{m}.n_features_in_ = 2",
    "{m}._no_improvement_count = 0", "{m}.validation_scores_ = []",
]  # fmt: skip
COPIES = [
    "{o} = copy.deepcopy({m})", "{o} = pickle.loads(pickle.dumps({m}))", "{o} = clone({m})",
    "{o} = by_joblib({m})", "{o} = copy.copy({m})", "{o} = pickle.loads(pickle.dumps({m}, 2))",
    "{o} = clone({m}).set_params(**{m}.get_params())",
]  # fmt: skip


def _settings(draw: Draw, most: int) -> dict[str, str]:
    names = draw.sample(sorted(PARAMETERS), draw.randrange(most + 1))
    return {name: draw.pick(PARAMETERS[name]) for name in names}


def _arguments(given: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in given.items())


def _constructor(draw: Draw, regressor: bool) -> str:
    given = {"hidden_layer_sizes": "3", "max_iter": "3", "random_state": "0"} | _settings(draw, 8)
    if regressor and draw.one_in(4):
        given["loss"] = "'poisson'"
    return f"{'MLPRegressor' if regressor else 'MLPClassifier'}({_arguments(given)})"


def _line(draw: Draw, regressor: bool) -> str:
    m, o = draw.choice([("m", "o")] * 3 + [("o", "m")])
    verb = draw.choice(["fit", "partial_fit", "partial_fit", "read", "copy", "set", "edit", "new"])
    if verb == "copy":
        return draw.pick(COPIES).format(m=draw.choice([m, o]), o=m)
    if verb == "set":
        return f"{m}.set_params({_arguments(_settings(draw, 3))})"
    if verb == "edit":
        return draw.pick(EDITS).format(m=m, o=o)
    if verb == "new":
        made = f"{m} = {_constructor(draw, regressor)}"
        return draw.choice([made, "r = np.random.RandomState(2)", "np.random.seed(3)"])
    rows = draw.pick(ROWS)
    held = {name: f"{name}{rows}" for name in ("X", "y", "Y", "z", "Z", "w")}
    x = draw.pick(XS).format(**held)
    y = draw.pick(TARGETS if regressor else LABELS).format(**held)
    weight = draw.pick(WEIGHTS).format(**held)
    if verb == "read":
        more = f", {weight}" if draw.one_in(4) else ""
        reading = [
            f"{m}.predict({x})", f"{m}.score({x}, {y}{more})", f"{m}.predict_proba({x})",
            f"{m}.predict_log_proba({x})", f"{m}.get_params()", f"hasattr({m}, 'partial_fit')",
            f"hasattr({m}, 'predict_proba')", f"{m}.feature_names_in_",
        ]  # fmt: skip
        return draw.pick(reading)
    more = f", sample_weight={weight}" if draw.one_in(4) else ""
    if verb == "partial_fit" and not regressor and draw.one_in(2):
        more += f", classes={draw.pick(CLASSES)}"
    return f"{m}.{verb}({x}, {y}{more})"


def history(draw: Draw) -> list[str]:
    """Return a program: data, an estimator m and its clone o, and up to ten calls."""
    regressor, rows = draw.one_in(2), draw.choice([12, 2, 30, 7])
    columns, classes = draw.choice([2, 1, 4]), draw.choice([3, 2, 4])
    return [
        f"rng = np.random.RandomState({draw.randrange(4)})",
        f"X = rng.standard_normal(({rows}, {columns}))",
        f"Z = rng.standard_normal(({rows}, 3)); z = Z[:, 0]; Y = (Z > 0).astype(int)",
        f"y = rng.randint(0, {classes}, {rows}); w = rng.uniform(0.5, 2, {rows})",
        "names = np.array(['p', 'q', 'rr', 's']); r = np.random.RandomState(1)",
        f"m = {_constructor(draw, regressor)}",
        "o = clone(m)",
        *(_line(draw, regressor) for _ in range(draw.randint(1, 10))),
    ]


FUZZER = Fuzzer(
    "estimators",
    "estimators.check(PROGRAM)",
    [
        "import copy, pickle, numpy as np, pandas as pd, scipy.sparse as sparse",
        "from sklearn.base import clone",
    ],
    history,
    World("scikit-learn", lambda: _names(theirs), checked_gradients),
    World("gpubackprop", lambda: _names(ours, device="cpu"), programs.seeded),
    _twins,
    _describe,
    same,
    lambda lines, found: known.reason(known.ESTIMATORS, lines, found),
    frozenset(
        {"hidden_layer_sizes", "max_iter", "random_state", "np", "pd", "sparse", "rng", "copy"}
    ),
    beside="loss_",
)


def check(program: str) -> None:
    programs.check(FUZZER, program)
