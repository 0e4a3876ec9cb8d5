"""The cost of one small call, beside the library that it replaces: a ratio for each bound.

    python benchmarks/bench_calls.py [--only NAME] [--rounds 400] [--path]

Both calls of a pair run in this process, on one thread, and take turns. A ratio is that of two
neighbouring turns, so that a busy machine slows both. The results are compared before anything is
timed. Instead, `--path` names the functions of this package that a loss enters up to its formula.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import numpy as np

from gpubackprop import ops

ROOT = Path(__file__).resolve().parents[1]
Call = Callable[[], Any]


class Pair(NamedTuple):
    """Two calls with the same result, and the bound on the ratio of their times."""

    name: str
    bound: float
    ours: Call
    theirs: Call
    turns: int = 1  # calls of each in one round; their total time counts
    rounds: float = 1.0  # share of the `--rounds` that this pair runs


def five_lines(z: np.ndarray, labels: np.ndarray) -> tuple[Any, np.ndarray]:
    """Compute the loss as the textbook does, with one exponential."""
    e, rows = np.exp(z - z.max(axis=1, keepdims=True)), np.arange(len(labels))
    p = e / e.sum(axis=1, keepdims=True)
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1
    return loss, p / len(labels)


def numpy_pairs() -> list[Pair]:
    """Return `ops.softmax_cross_entropy` beside five lines of NumPy."""

    def pair(rows: int, classes: int, bound: float) -> Pair:
        rng = np.random.default_rng(0)
        z = rng.normal(size=(rows, classes)).astype(np.float32)
        y = rng.integers(0, classes, rows)
        for mine, its in zip(ops.softmax_cross_entropy(z, y), five_lines(z, y), strict=True):
            np.testing.assert_allclose(mine, its, rtol=2e-5, atol=1e-7)
        return Pair(
            f"ops.softmax_cross_entropy {z.shape} / five lines", bound,
            lambda: ops.softmax_cross_entropy(z, y), lambda: five_lines(z, y),
        )  # fmt: skip

    return [pair(64, 10, 3.0), pair(256, 10, 1.2)]


def torch_pairs() -> list[Pair]:
    """Return `gpubackprop.torch.cross_entropy`, forward and backward, beside PyTorch's."""
    import torch

    from gpubackprop import torch as gt

    torch.set_num_threads(1)

    def pair(rows: int, classes: int, bound: float) -> Pair:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(rows, classes, generator=generator, requires_grad=True)
        y = torch.randint(classes, (rows,), generator=generator)

        def both_ways(function: Any) -> Any:
            z.grad = None
            loss = function(z, y)
            loss.backward()
            return loss.detach(), z.grad

        for mine, its in zip(
            both_ways(gt.cross_entropy), both_ways(torch.nn.functional.cross_entropy), strict=True
        ):
            torch.testing.assert_close(mine, its)
        return Pair(
            f"torch.cross_entropy {(rows, classes)} / PyTorch", bound,
            lambda: both_ways(gt.cross_entropy),
            lambda: both_ways(torch.nn.functional.cross_entropy),
        )  # fmt: skip

    return [pair(64, 10, 2.5), pair(256, 1000, 1.0)]


def sklearn_pairs() -> list[Pair]:
    """Return the estimator's calls beside scikit-learn's, on the digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPClassifier as Theirs

    from gpubackprop.sklearn import MLPClassifier as Ours

    warnings.simplefilter("ignore")
    x, y = load_digits(return_X_y=True)
    x = x / 16.0
    settings = {"hidden_layer_sizes": (128,), "random_state": 0, "max_iter": 20}
    theirs = Theirs(**settings).fit(x, y)
    ours = Ours.from_sklearn(theirs)
    row = x[:1]
    np.testing.assert_allclose(ours.predict_proba(row), theirs.predict_proba(row), rtol=1e-9)
    sizes, classes = (200, 150, 64, 97, 128, 33), np.unique(y)

    def partial_fit(kind: Any) -> Call:
        model = kind(**settings).partial_fit(x[:200], y[:200], classes=classes)

        def call() -> None:
            start = 0
            for size in sizes:
                model.partial_fit(x[start : start + size], y[start : start + size])
                start += size

        return call

    grid = {"hidden_layer_sizes": [(32,), (128,)], "alpha": [1e-4, 1e-2]}

    def search(kind: Any) -> Call:
        model = kind(random_state=0, max_iter=15)
        return lambda: GridSearchCV(model, grid, cv=3, refit=False).fit(x, y)

    return [
        Pair("predict, one row / scikit-learn", 1.0,
             lambda: ours.predict(row), lambda: theirs.predict(row)),
        Pair("predict_proba, one row / scikit-learn", 1.0,
             lambda: ours.predict_proba(row), lambda: theirs.predict_proba(row)),
        Pair("partial_fit, changing sizes / scikit-learn", 0.9, partial_fit(Ours),
             partial_fit(Theirs), rounds=0.5),
        Pair("GridSearchCV, digits / scikit-learn", 0.5, search(Ours), search(Theirs), rounds=0.02),
    ]  # fmt: skip


def ratios(pair: Pair, rounds: int) -> list[float]:
    """Return our time over theirs, round by round; the two take turns to begin."""
    result, calls = [], (pair.ours, pair.theirs)
    for call in calls:
        call()
    for number in range(rounds):
        seconds = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            call = calls[which]
            for _ in range(pair.turns):
                started = time.perf_counter()
                call()
                seconds[which] += time.perf_counter() - started
        result.append(seconds[0] / seconds[1])
    return result


def way_of(call: Call) -> list[str]:
    """Return each function of this package that `call` enters, up to the one with the formula."""
    found: dict[str, None] = {}

    def watch(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        own = event == "call" and str(ROOT / "gpubackprop") in code.co_filename
        if own and FORMULA not in found:
            found.setdefault(code.co_qualname)

    for _ in range(3):
        call()
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(found)


FORMULA = "CrossEntropy.block"


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="Ratios of small calls.")
    parser.add_argument("--only", default="", help="pairs whose name holds this")
    parser.add_argument("--rounds", type=int, default=400, help="rounds of each pair")
    parser.add_argument("--path", action="store_true", help="functions entered, and no times")
    options = parser.parse_args(arguments)
    if options.path:
        for pair in (numpy_pairs()[0], torch_pairs()[0]):
            way = way_of(pair.ours)
            print(f"{pair.name}: {len(way)} functions: {', '.join(way)}")
        return {}
    result = {}
    for pairs in (numpy_pairs, torch_pairs, sklearn_pairs):
        for pair in pairs():
            if options.only not in pair.name:
                continue
            rounds = max(3, round(options.rounds * pair.rounds))
            found = ratios(pair, rounds)
            median = result[pair.name] = statistics.median(found)
            met = "met" if median <= pair.bound else "NOT MET"
            low, high = np.quantile(found, (0.2, 0.8))
            print(f"{pair.name:48} {median:6.2f} ({low:.2f} to {high:.2f}), at most "
                  f"{pair.bound:.1f}: {met}", flush=True)  # fmt: skip
    return result


if __name__ == "__main__":
    main()
