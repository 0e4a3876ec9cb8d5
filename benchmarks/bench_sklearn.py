"""`MLPClassifier.fit` of this package against scikit-learn's, on the CPU or a GPU.

    python benchmarks/bench_sklearn.py [--threads 1] [--device cpu] [--out results.json] [--sizes]

Each class runs in a process of its own, which fits when it is told to; the two take turns, and a
ratio is that of two fits of one turn. Before timing, the loss curves are compared. Figures of a
busy machine mean nothing: run it on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OURS, THEIRS = "gpubackprop.sklearn", "sklearn.neural_network"
ROUNDS = 7
STEADY = {"tol": 0.0, "n_iter_no_change": 10**6, "random_state": 0}  # no early end
DIGITS = {"hidden_layer_sizes": [128], "max_iter": 50}
LARGE = {"hidden_layer_sizes": [512, 512], "batch_size": 256, "max_iter": 2}


def cases(sizes: bool) -> list[dict[str, Any]]:
    """What is fitted: data ("digits", or [rows, columns] at random), dtype and parameters."""
    if sizes:  # for the crossing point of a GPU
        return [
            {"data": [rows, 784], "dtype": "float32", "parameters": {**LARGE, "batch_size": batch}}
            for rows in (1000, 10_000, 60_000)
            for batch in (200, 2000)
        ]
    small = [
        {"data": "digits", "dtype": dtype, "parameters": {**DIGITS, "batch_size": batch}}
        for dtype in ("float64", "float32")
        for batch in (32, 200, 1000)
    ]
    return [*small, {"data": [20_000, 784], "dtype": "float32", "parameters": LARGE}]


WORKER = """
import importlib, json, sys, time, warnings
import numpy as np
from sklearn.datasets import load_digits
warnings.simplefilter("ignore")
cls = importlib.import_module(sys.argv[1]).MLPClassifier
for line in sys.stdin:
    case = json.loads(line)
    if case["data"] == "digits":
        x, y = load_digits(return_X_y=True)
        x = x / 16
    else:
        rng = np.random.default_rng(0)
        x, y = rng.random(case["data"]), rng.integers(0, 10, case["data"][0])
    model = cls(**case["parameters"])
    started = time.perf_counter()
    model.fit(x.astype(case["dtype"]), y)
    seconds = time.perf_counter() - started
    device = getattr(model, "device_", "cpu")
    print(json.dumps({"seconds": seconds, "loss": model.loss_curve_, "device": device}), flush=True)
"""


class Contestant:
    """A process that fits one of the two classes."""

    def __init__(self, module: str, threads: int) -> None:
        limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(limits, str(threads))
        environment["PYTHONPATH"] = str(ROOT)
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, module], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def fit(self, case: dict[str, Any]) -> dict[str, Any]:
        """{"seconds", "loss", "device"} of one fit."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the benchmark's process ended: {case}")
        return json.loads(line)

    def close(self) -> None:
        with self.process:  # closes its input, which ends it
            pass


def measure(case: dict[str, Any], ours: Contestant, theirs: Contestant, rounds: int) -> dict:
    """Seconds of both in each round, and the median, least and largest ratio of a round."""
    settings = {**STEADY, **case["parameters"]}
    own = {**case, "parameters": {**settings, "device": case["device"]}}
    other = {**case, "parameters": settings}
    first, second = ours.fit(own), theirs.fit(other)  # also warms up
    tolerance = 1e-10 if case["dtype"] == "float64" and first["device"] == "cpu" else 1e-3
    worst = max(abs(a / b - 1) for a, b in zip(first["loss"], second["loss"], strict=True))
    if worst > tolerance:
        raise SystemExit(f"loss curves differ by {worst:.1e} (relative): {case}")
    seconds = [(ours.fit(own)["seconds"], theirs.fit(other)["seconds"]) for _ in range(rounds)]
    ratios = [mine / its for mine, its in seconds]
    return {
        **case, "device": first["device"], "loss_difference": worst,
        "seconds": {"ours": [s[0] for s in seconds], "scikit-learn": [s[1] for s in seconds]},
        "ratio": {
            "median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)
        },
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="MLPClassifier.fit against scikit-learn's.")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads of each process")
    parser.add_argument("--device", default="cpu", help="of this package: cpu, cuda, cuda:1")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each case")
    parser.add_argument("--sizes", action="store_true", help="a table by data size instead")
    parser.add_argument("--only", type=int, help="the case of this number alone, from 0")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    options = parser.parse_args(arguments)
    ours, theirs = Contestant(OURS, options.threads), Contestant(THEIRS, options.threads)
    chosen = cases(options.sizes)
    chosen = chosen if options.only is None else [chosen[options.only]]
    rows = []
    for case in chosen:
        row = measure({**case, "device": options.device}, ours, theirs, options.rounds)
        rows.append(row)
        print(f"{row['data']!s:14} {row['dtype']} {row['parameters']} on {row['device']}: "
              f"{row['ratio']['median']:.3f} of scikit-learn's time "
              f"({row['ratio']['least']:.3f} to {row['ratio']['largest']:.3f})")  # fmt: skip
    ours.close()
    theirs.close()
    result = {"environment": environment(options.threads), "cases": rows}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def environment(threads: int) -> dict[str, Any]:
    import numpy as np
    import scipy
    import sklearn

    return {
        "threads": threads,
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
    }


if __name__ == "__main__":
    main()
