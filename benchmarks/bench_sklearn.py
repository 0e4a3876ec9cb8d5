"""`MLPClassifier.fit` of this package against scikit-learn's and PyTorch, on the CPU or a GPU.

    python benchmarks/bench_sklearn.py [--threads 1] [--device cpu] [--out results.json] [--sizes]

Each contestant runs in a process of its own (fit_worker.py), which fits when it is told to; they
take turns, and a ratio is that of two fits of one turn. PyTorch, where it is installed, runs a
plain loop over the same batches from the same weights, with its default and with its fused Adam.
Before timing, the loss curves are compared. Figures of a busy machine mean nothing: run it on a
quiet one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpubackprop.bench.table import spread

ROOT = Path(__file__).resolve().parents[1]
OURS, SKLEARN = "gpubackprop.sklearn", "sklearn.neural_network"
PEERS = {"scikit-learn": SKLEARN, "torch": "torch", "torch fused": "torch-fused"}
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


class Contestant:
    """A process that fits one of the classifiers."""

    def __init__(self, name: str, threads: int) -> None:
        limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(limits, str(threads))
        environment["PYTHONPATH"] = str(ROOT)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fit_worker", name], env=environment, text=True,
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


def measure(
    case: dict[str, Any], ours: Contestant, peers: dict[str, Contestant], rounds: int
) -> dict:
    """Seconds of all in each round, and median, least and largest of our ratio to each peer."""
    parameters = {**STEADY, **case["parameters"], "device": case["device"]}
    settings = {**case, "parameters": parameters, "check": False}
    checked = settings | {"check": True}
    first = ours.fit(checked)  # also warms up
    differences = {
        name: _difference(case, name, first, peer.fit(checked)) for name, peer in peers.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    for _ in range(rounds):
        for name, contestant in {"ours": ours, **peers}.items():
            seconds[name].append(contestant.fit(settings)["seconds"])
    ratios = {
        name: [mine / its for mine, its in zip(seconds["ours"], seconds[name], strict=True)]
        for name in peers
    }
    return {
        **case, "device": first["device"], "loss_difference": differences, "seconds": seconds,
        "ratio": {
            name: {"median": statistics.median(r), "least": min(r), "largest": max(r)}
            for name, r in ratios.items()
        },
    }  # fmt: skip


def _difference(case: dict[str, Any], name: str, ours: dict, theirs: dict) -> float:
    """Largest relative difference of the loss curves."""
    exact = case["dtype"] == "float64" and ours["device"] == "cpu"
    worst = max(abs(a / b - 1) for a, b in zip(ours["loss"], theirs["loss"], strict=True))
    if worst > (1e-10 if exact else 1e-3):
        raise SystemExit(f"loss curves differ from {name} by {worst:.1e} (relative): {case}")
    return worst


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="MLPClassifier.fit against its peers.")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads of each process")
    parser.add_argument("--device", default="cpu", help="of this package: cpu, cuda, cuda:1")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each case")
    parser.add_argument("--sizes", action="store_true", help="a table by data size instead")
    parser.add_argument("--only", type=int, help="the case of this number alone, from 0")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    options = parser.parse_args(arguments)
    has_torch = importlib.util.find_spec("torch") is not None
    ours = Contestant(OURS, options.threads)
    peers = {
        name: Contestant(module, options.threads)
        for name, module in PEERS.items()
        if module == SKLEARN or has_torch
    }
    chosen = cases(options.sizes)
    chosen = chosen if options.only is None else [chosen[options.only]]
    rows = []
    for case in chosen:
        row = measure({**case, "device": options.device}, ours, peers, options.rounds)
        rows.append(row)
        print(f"{row['data']!s:12} {row['dtype']} batch {row['parameters']['batch_size']:5} on "
              f"{row['device']}: {statistics.median(row['seconds']['ours']):.3f} s "
              f"({spread(row['seconds']['ours'])}); of "
              + ", ".join(f"{name}'s {r['median']:.3f} ({r['least']:.3f} to {r['largest']:.3f})"
                          for name, r in row["ratio"].items()), flush=True)  # fmt: skip
    for contestant in (ours, *peers.values()):
        contestant.close()
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
